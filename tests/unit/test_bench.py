"""`bench.measure`: numbers that follow from each other, of the run that training makes."""

import io
import json

import pytest
from rich.console import Console

from fixtures_models import save_model
from tunesmith import Recipe, bench, train
from tunesmith.engine import peaks
from tunesmith.errors import RecipeError

ROWS = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure."} for i in range(40)]
PEAKS = (1e9, 3e9)


@pytest.fixture
def recipe(tmp_path):
    save_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return Recipe(
        model=str(tmp_path / "model"),
        data={
            "train": str(tmp_path / "rows.jsonl"),
            "max_tokens": 64,
            "eval": 4,
            "cache_dir": str(tmp_path / "cache"),
        },
        adapter={"type": "lora", "r": 4},
        optimizer={"learning_rate": 1e-2},
        train={
            "row_tokens": 128,
            "max_steps": 5,
            "device": "cpu",
            "warmup_steps": 0,
            "output_dir": str(tmp_path / "run"),
        },
        eval={"eval_steps": 2, "prompts": ["What is 3 and 1?"]},
    )


@pytest.fixture
def measured(recipe, monkeypatch):
    """What three steps after two are measured as, on a device of 2 GFLOP/s."""
    found = iter(PEAKS)
    monkeypatch.setattr(peaks, "measured", lambda device, dtype: next(found))
    said = []
    return bench.measure(recipe, steps=3, warmup=2, say=said.append), said


def test_the_numbers_follow_from_each_other(measured):
    found, said = measured
    assert json.loads(json.dumps(found)) == found and "measuring: 2 steps to warm up, then 3" in said
    assert len(found["steps"]) == 3 and found["warmup"] == 2
    for name in ("seconds", "tokens", "trained_tokens", "padded_tokens", "flops"):
        assert found[name] == pytest.approx(sum(step[name] for step in found["steps"])), name
    for one in (found, *found["steps"]):
        assert one["seconds"] == pytest.approx(sum(one["seconds_by_part"].values()))
        assert one["tokens_per_second"] == one["tokens"] / one["seconds"]
        assert one["trained_tokens_per_second"] == one["trained_tokens"] / one["seconds"]
        assert one["mfu"] == pytest.approx(one["flops"] / one["seconds"] / 2e9)
    assert found["peak"] == {"flops_per_second": 2e9, "source": "measured", "measured": list(PEAKS)}
    assert found["padded_tokens"] == 0 and 100 < found["tokens"] / 3 <= 128
    assert found["tokens"] < found["run_tokens"] <= 5 * 128
    assert found["versions"].keys() >= {"python", "tunesmith", "torch", "transformers", "peft"}
    assert found["compute_dtype"] == found["recipe"]["model"]["dtype"]
    assert 5e7 < found["peak_memory_bytes"] < 1e11


def test_it_is_the_run_that_training_makes(recipe, measured, tmp_path):
    found, _ = measured
    run = train(recipe)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert (found["first_loss"], found["loss"]) == (pytest.approx(lines[0]["loss"]), pytest.approx(lines[-1]["loss"]))
    assert found["first_grad_norm"] == pytest.approx(lines[0]["grad_norm"])
    assert found["run_tokens"] == lines[-1]["tokens"]
    assert found["trained_tokens"] == lines[-1]["trained_tokens"] - lines[1]["trained_tokens"]


def test_a_device_of_the_table_is_not_measured(recipe, monkeypatch):
    monkeypatch.setattr(peaks, "listed", lambda device, dtype: 4e9)
    monkeypatch.setattr(peaks, "measured", None)
    found = bench.measure(recipe, steps=1, warmup=1, say=lambda line: None)
    assert found["peak"] == {"flops_per_second": 4e9, "source": "table", "measured": []}
    assert "4 GFLOP/s (the table's)" in dict(bench.lines(found))["MFU"]


def test_a_whole_run(recipe, monkeypatch):
    monkeypatch.setattr(peaks, "measured", lambda device, dtype: 1e9)
    found = bench.measure(recipe, steps=0, warmup=2, say=lambda line: None)
    assert len(found["steps"]) == 5 - 2
    with pytest.raises(RecipeError, match="the run has 5 steps, and 5 warm up"):
        bench.measure(recipe, steps=0, warmup=5, say=lambda line: None)


def test_the_table_for_people(measured):
    found, _ = measured
    screen = io.StringIO()
    bench.show(found, Console(file=screen, width=100))
    text = screen.getvalue()
    assert f"{found['tokens_per_second']:,.1f}" in text and "2 GFLOP/s (measured: 1 before the steps, 3 after)" in text
    for part in ("data", "forward", "backward", "optimizer", "peak memory", "MFU"):
        assert part in text
