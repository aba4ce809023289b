"""The benchmarks run, and what they count is what they say; what they measure depends on the machine."""

import json
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import measure

    yield measure
    del sys.modules["measure"]


@pytest.fixture
def lines(measure, monkeypatch, capsys):
    """The lines of a benchmark's table, as JSON."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), "--json", *map(str, words)])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        found = json.loads(capsys.readouterr().out)
        assert found["command"] == f"python {' '.join(sys.argv)}" and "tunesmith" in found["versions"]
        return found["rows"]

    return run


def test_contenders_take_turns_and_the_first_is_not_counted(measure, monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def contender(name, *seconds):
        left = list(seconds)

        def run():
            order.append(name)
            clock[0] += left.pop(0)

        return run

    taken = measure.seconds_in_turn({"a": contender("a", 9, 1, 4, 2), "b": contender("b", 9, 2, 4, 6)}, rounds=3)
    assert order == list("abababab")
    assert taken == {"a": [1, 4, 2], "b": [2, 4, 6]}
    assert measure.ratio(taken["a"], taken["b"]) == 2  # of 2/1, 4/4, 6/2
    assert measure.ratio(taken["b"], taken["a"]) == 0.5  # of 1/2, 4/4, 2/6


def test_a_table(measure, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/x.py", "--rows", "3"])
    measure.report("Title", ("a", "b"), [("one", 1234.5), (1234, None), ("three", 0.98765)], as_json=False)
    said = capsys.readouterr().out
    assert said.startswith("Title\n\n| a | b |\n| --- | --- |\n| one | 1,234 |\n| 1,234 |  |\n| three | 0.988 |\n\n")
    assert "- command: `python benchmarks/x.py --rows 3`\n" in said


def test_made_rows_are_the_same_again_and_have_the_length(measure, tmp_path):
    for name in "ab":
        measure.write_rows(tmp_path / name, 400, 200)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    words = sum(len(text.split()) for row in rows for text in row.values())
    assert len(rows) == 400 and words / 400 == pytest.approx(200 / measure.TOKENS_PER_WORD, rel=0.1)


@pytest.mark.slow
def test_render(lines):
    found = lines("render", "--rows", 40, "--tokens", 30, "--rounds", 1, "--processes", 1)
    names = ["tokenizer", "tokenizer with offsets", "tunesmith", "datasets.map", "tunesmith to a store"]
    assert [row["contender"] for row in found] == names
    rate = {row["contender"]: row["tokens/s"] for row in found}
    for row in found:  # of one round, a ratio is that of the rates
        assert row["of the tokenizer"] == pytest.approx(rate[row["contender"]] / rate["tokenizer"])
    of_map = [row["of datasets.map"] for row in found]
    assert of_map == [None] * 4 + [pytest.approx(rate["tunesmith to a store"] / rate["datasets.map"])]


@pytest.mark.slow
def test_start(lines, tmp_path):
    found = lines("start", "--rows", 60, "--tokens", 30, "--starts", 1, "--folder", tmp_path)
    assert [row["start"] for row in found] == ["rendering", "from the cache, 1"]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 60
    assert len({(row["tokens"], row["packed rows"]) for row in found}) == 1 and found[0]["tokens"] > 60
    assert all(0.05 < row["memory, GB"] < 4 and row["rows, s"] > 0 for row in found)


@pytest.mark.slow
def test_packing(lines):
    found = lines("packing", "--rows", 60, "--tokens", 30, "--row-tokens", 512, 1024)
    assert [row["tokens a row"] for row in found] == [512, 1024]
    for row in found:
        assert row["full"] == pytest.approx(row["tokens"] / (row["rows"] * row["tokens a row"]))
        assert 0.3 < row["padded by 8"] < 1 and row["longest"] <= row["tokens a row"]


@pytest.mark.slow
def test_activations(lines):
    found = lines("activations", "--layers", 4, "--tokens", 64)
    assert [row["activation_checkpointing"] for row in found] == ["false", "selective", "2", "4", "true"]
    share = {row["activation_checkpointing"]: row["share"] for row in found}
    assert share["true"] < share["2"] < share["4"] < share["false"] == 1 and share["true"] < share["selective"] < 0.8
    again = {row["activation_checkpointing"]: row["operations"] for row in found}
    assert 1 == again["false"] < again["selective"] < 1.05 < again["4"] < again["2"] < again["true"] < 1.6
