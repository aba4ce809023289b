"""`bench --against`: the same rows for everybody, turns, ratios, and what cannot be compared."""

import io
import json
import sys

import pytest
from rich.console import Console

from fixtures_models import save_model
from tunesmith import Recipe, bench, bench_against
from tunesmith.defaults import resolve
from tunesmith.engine import peaks
from tunesmith.engine.device import choose
from tunesmith.errors import RecipeError, RunError

LONG = " and ".join(["one"] * 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("against")
    save_model(place / "model")
    rows = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}." * (1 + i % 2)} for i in range(30)]
    rows[2]["output"], rows[3]["output"] = "", LONG  # neither is trained on
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


@pytest.fixture
def make(folder):
    def recipe(**sections):
        data = {"train": str(folder / "rows.jsonl"), "max_tokens": 64, "eval": 4, "cache_dir": str(folder / "cache")}
        train = {"row_tokens": 64, "device": "cpu", "gradient_accumulation_steps": 2}
        options = {"model": {"path": str(folder / "model"), "dtype": "float32"}, "data": data, "train": train}
        return Recipe(**options | {"adapter": {"type": "lora", "r": 4}} | sections)

    return recipe


@pytest.fixture
def turns(monkeypatch):
    """Contenders that only say what they are given."""
    called = []

    def in_process(contender, command):
        number = [name for name, _ in called].count(contender)
        called.append((contender, command))
        if contender == bench_against.OURS or contender in bench_against.VARIANTS:
            numbers = {"tokens_per_second": [60.0, 30.0, 90.0][number], "trained_tokens_per_second": 20.0}
            numbers |= {"samples_per_second": 6.0, "whole_tokens_per_second": 1.5 * numbers["tokens_per_second"]}
            memory = {"tokens": 90, "padded_tokens": 10, "peak_memory_bytes": 3e9}
            return numbers | memory | {"run_tokens": 0, "first_loss": 1.5}
        rate = [20.0, 15.0, 10.0][number]
        counts = {"real_tokens": 30, "padded_tokens": 40, "run_tokens": 7, "first_loss": 1.25}
        memory = {"peak_rss_gb": 6.0, "peak_cuda_gb": None}
        return {"real_tokens_per_s": rate, "supervised_tokens_per_s": 5.0, "samples_per_s": 2.0} | counts | memory

    monkeypatch.setattr(bench_against, "_in_process", in_process)
    return called


def option(command, name):
    return command[command.index(name) + 1]


def test_all_get_the_same_rows_in_turn(make, turns, monkeypatch):
    files = {}
    real = bench_against._commands

    def commands(recipe, peers, length, rows, folder):
        files["rows"] = [json.loads(line) for line in rows.file.read_text().splitlines()]
        files["recipe"] = Recipe.load(str(folder / "recipe.yaml"))
        files["counts"] = rows
        return real(recipe, peers, length, rows, folder)

    monkeypatch.setattr(bench_against, "_commands", commands)
    peers = bench_against.Peers(("hf", "trl-pack"), "another-python", 4)
    said = []
    found = bench_against.compare(make(), peers, bench_against.Length(steps=2, warmup=1, rounds=3), said.append)
    assert [name for name, _ in turns] == ["tunesmith", "hf", "trl-pack"] * 3
    asked = [row["messages"][0]["content"] for row in files["rows"]]
    kept = [number for number in range(30) if number not in (2, 3)]
    assert asked == [f"What is {number} and 1?" for number in kept[: len(asked)]]
    rows = files["counts"]
    longest = 64  # of a row, so what one more would have had
    assert 3 * 2 * 64 - longest < rows.tokens <= 3 * 2 * 64 and rows.number == len(asked)
    ours, theirs = turns[0][1], turns[1][1]
    assert ours[1:4] == ["-m", "tunesmith", "bench"] and "--json" in ours
    assert (option(ours, "--steps"), option(ours, "--warmup")) == ("0", "1")  # one pass
    recipe = files["recipe"]
    assert (recipe.data.shuffle, recipe.data.loss.turns, recipe.train.max_steps) == (False, "last", None)
    assert recipe.data.train[0].path == option(theirs, "--data") == str(rows.file)
    assert theirs[:3] == ["another-python", str(bench_against.SCRIPT), "hf"]
    expected = {"rows": rows.number, "steps": 0, "warmup": 1, "batch-size": 4, "dtype": "float32", "lora-r": 4}
    assert {name: option(theirs, f"--{name}") for name in expected} == {k: str(v) for k, v in expected.items()}
    assert found["contenders"][0]["padded_share"] == 0.1
    hf = found["contenders"][1]
    assert (hf["contender"], hf["tokens_per_second"], hf["padded_share"], hf["first_loss"]) == ("hf", 15, 0.25, 1.25)
    assert hf["times_as_fast_by_round"] == [4.5, 3, 13.5] and hf["times_as_fast"] == 4.5  # of 90/20, 45/15, 135/10
    assert hf["share_of_memory"] == 0.5
    assert f"note: hf saw 7 tokens of these rows, and not {rows.tokens}" in said


def test_what_ours_is_given_runs_and_packs_so_many_steps(make, tmp_path, monkeypatch):
    monkeypatch.setattr(peaks, "measured", lambda device, dtype: 1e9)
    recipe = resolve(make(), choose("cpu")).recipe
    rows = bench_against._write_rows(recipe, bench_against.Length(2, 1, 1), tmp_path)
    found = bench.measure(Recipe.load(str(tmp_path / "recipe.yaml")), 0, 1, lambda line: None)
    assert found["run_tokens"] == rows.tokens and len(found["steps"]) == rows.steps - 1


def test_pairs_are_compared_by_the_tokens_of_both_answers_in_full(make, turns, folder):
    rows = [
        {"prompt": f"What is {i} and 1?", "chosen": f"It is {i + 1}.", "rejected": f"It is {i}, and more than that."}
        for i in range(30)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"train": str(folder / "pairs.jsonl"), "max_tokens": 64, "cache_dir": str(folder / "cache")}
    recipe = make(data=data, objective="dpo", train={"row_tokens": 128, "device": "cpu"})
    peers = bench_against.Peers(("unshared", "in-step", "trl-dpo"), "another-python", 4)
    found = bench_against.compare(recipe, peers, bench_against.Length(2, 1, 2), lambda line: None)
    commands = dict(turns)
    assert commands["unshared"] == [*commands[bench_against.OURS], "data.shared_prefix=false"]
    assert commands["in-step"] == [*commands[bench_against.OURS], "reference.compute=step"]
    assert commands["trl-dpo"][2] == "trl-dpo"
    trl = next(one for one in found["contenders"] if one["contender"] == "trl-dpo")
    assert trl["times_as_fast_by_round"] == [4.5, 3.0]  # of 1.5 times 60 and 30, over 20 and 15
    with pytest.raises(RecipeError, match="bench --against trl compares objective=sft .* has dpo with lora"):
        bench_against.compare(
            recipe, bench_against.Peers(("trl",), "another-python", 4), bench_against.Length(2, 1, 2), print
        )


def test_the_table(capsys):
    one = {
        "contender": "hf", "tokens_per_second": 1234.5, "trained_tokens_per_second": 100.0, "padded_share": 0.25,
        "samples_per_second": 7.0,
        "peak_memory_bytes": 6e9, "first_loss": 1.25, "times_as_fast": 3.0, "share_of_memory": 0.5,
    }  # fmt: skip
    about = {"versions": {"tunesmith": "1", "torch": "2"}, "date": "today", "device": {"name": "cpu"}}
    rounds = {"tunesmith": [about], "trl": [{"trl": "9"}]}
    screen = io.StringIO()
    bench_against.show({"contenders": [one], "rounds": rounds, "rows": 7}, Console(file=screen, width=120))
    text = screen.getvalue()
    for part in ("1,234.5", "25.0%", "6.00", "1.2500", "3.00x", "0.50x", "same 7 rows", "tunesmith 1, torch 2, trl 9"):
        assert part in text


def test_peers_that_cannot_run(monkeypatch, tmp_path):
    with pytest.raises(RunError, match="there is no trainer 'trl-pakc'. Did you mean 'trl-pack'"):
        bench_against.Peers.of("hf,trl-pakc", sys.executable, 8)
    with pytest.raises(RunError, match="--peer-python: .*nowhere does not run: No such file"):
        bench_against.Peers.of("hf", str(tmp_path / "nowhere"), 8)
    monkeypatch.setitem(bench_against.NEEDS, "trl", "no_such_package")
    with pytest.raises(RunError, match="needs no_such_package, which .* cannot import .*--peer-python"):
        bench_against.Peers.of("hf,trl", sys.executable, 8)
    assert bench_against.Peers.of("hf", sys.executable, 8) == bench_against.Peers(("hf",), sys.executable, 8)
    monkeypatch.setattr(bench_against, "SCRIPT", tmp_path / "peers.py")
    with pytest.raises(RunError, match="peers.py is not there: run it from a checkout"):
        bench_against.Peers.of("hf", sys.executable, 8)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"objective": "pretrain"}, "this recipe has pretrain with lora"),
        ({"adapter": "freeze"}, "this recipe has sft with freeze"),
        (
            {"adapter": {"type": "lora", "lora_dropout": 0.1}},
            r"adapter.lora_dropout: .* compares with 0.0 \(it was 0.1",
        ),
        ({"train": {"row_tokens": 4096, "device": "cpu"}}, "fill 1 steps of 4096 tokens a row, and 1 warm up"),
    ],
)
def test_recipes_that_cannot_be_compared(make, sections, reason):
    with pytest.raises(RecipeError, match=reason):
        bench_against.compare(
            make(**sections), bench_against.Peers(("hf",), "", 8), bench_against.Length(2, 1, 1), lambda line: None
        )


def test_a_contender_that_fails_is_told():
    command = [sys.executable, "-c", "import sys; print(1, file=sys.stderr); sys.exit('no memory')"]
    with pytest.raises(RunError, match="^hf ended with 1: no memory$"):
        bench_against._in_process("hf", command)


@pytest.mark.slow
def test_transformers_trainer_takes_its_turn(make):
    recipe = make(train={"row_tokens": 64, "device": "cpu"})
    peers = bench_against.Peers.of("hf", sys.executable, 2)
    said = []
    found = bench_against.compare(recipe, peers, bench_against.Length(2, 1, 1), said.append)
    ours, theirs = (found["rounds"][name][0] for name in ("tunesmith", "hf"))
    assert ours["run_tokens"] == theirs["run_tokens"] == found["tokens"]
    assert [line for line in said if line.startswith("note")] == []
    assert 0 < theirs["padded_share"] < 1 and theirs["adapter"] == "lora"
