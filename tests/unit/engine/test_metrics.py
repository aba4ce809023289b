import json
import math

import pytest

from tunesmith.engine.metrics import MetricsFile, Smooth, three_digits
from tunesmith.errors import RunError


def test_a_line_is_one_json_object_and_is_on_disk_at_once(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1, "loss": 2.5})
    assert metrics.path.read_text() == '{"step": 1, "loss": 2.5}\n'
    metrics.append({"step": 1, "eval_loss": 2.0})
    assert metrics.read() == [{"step": 1, "loss": 2.5}, {"step": 1, "eval_loss": 2.0}]


def test_what_json_cannot_say_is_null(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1, "loss": math.nan, "grad_norm": math.inf, "learning_rate": 1e-4})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    line = json.loads(metrics.path.read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "grad_norm": None, "learning_rate": 1e-4}


def test_trim_leaves_neither_gap_nor_repeat(tmp_path):
    """A run that is killed at step 6 and resumes at step 4 has the file of one that was not killed."""
    whole, killed = MetricsFile(tmp_path / "whole.jsonl"), MetricsFile(tmp_path / "killed.jsonl")
    for step in range(1, 9):
        whole.append({"step": step, "loss": 1 / step})
    for step in range(1, 7):
        killed.append({"step": step, "loss": 1 / step})
    with killed.path.open("a") as file:
        file.write('{"step": 7, "lo')  # what a kill in the middle of a write leaves
    killed.trim(4)
    assert [line["step"] for line in killed.read()] == [1, 2, 3, 4]
    for step in range(5, 9):
        killed.append({"step": step, "loss": 1 / step})
    assert killed.path.read_bytes() == whole.path.read_bytes()


def test_trim_keeps_the_evaluation_of_its_step(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for line in ({"step": 0, "eval_loss": 3.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 2.0}):
        metrics.append(line)
    metrics.append({"step": 3, "loss": 1.0})
    metrics.trim(2)
    assert [line["step"] for line in metrics.read()] == [0, 2, 2]


def test_trim_of_a_run_that_has_logged_nothing(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.read() == []
    metrics.trim(3)
    assert metrics.read() == []


def test_an_edited_file_is_refused_with_its_line(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for wrong in ("oops", "[1]", '{"loss": 1}'):
        metrics.path.write_text('{"step": 1}\n' + wrong + '\n{"step": 2}\n')
        with pytest.raises(RunError, match=r"metrics\.jsonl:2 is not a JSON object with a `step`"):
            metrics.read()


def test_smooth_is_the_weighted_mean_of_what_it_was_given():
    """With span 3 a new value has share 1/2: after 4, 2, 6 the weights are 1/8, 1/4, 1/2, and 7/8 in all."""
    mean = Smooth(span=3)
    assert mean.add(4) == pytest.approx(4)
    assert mean.add(2) == pytest.approx((4 / 4 + 2 / 2) / (3 / 4))
    assert mean.add(6) == pytest.approx((4 / 8 + 2 / 4 + 6 / 2) / (7 / 8))
    assert mean.add(math.nan) == pytest.approx((4 / 8 + 2 / 4 + 6 / 2) / (7 / 8))
    assert math.isnan(Smooth(span=3).add(math.inf))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2, "1.20"), (0.012345, "0.0123"), (12.345, "12.3"), (123.45, "123"), (12345.0, "12,300"),
        (999.9, "1,000"), (0.9996, "1.00"), (-0.5, "-0.500"), (0.0, "0"), (math.nan, "nan"),
        (math.inf, "inf"), (1.234e-6, "1.23e-06"), (1.234e12, "1.23e+12"), (7, "7.00"),
    ],
)  # fmt: skip
def test_three_digits(value, text):
    assert three_digits(value) == text
