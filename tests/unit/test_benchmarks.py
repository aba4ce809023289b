"""The benchmarks run, and what they count is what they say; what they measure depends on the machine."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

from fixtures_models import save_model, tiny_tokenizer
from unit.exports.test_exports import make_run

FOLDER = Path(__file__).parents[2] / "benchmarks"
CMMLU = FOLDER.parents[1] / "shared" / "data" / "cmmlu"
REAL = Path(os.environ.get("TUNESMITH_TEST_MODEL", FOLDER.parents[1] / "shared" / "model"))
needs_real = pytest.mark.skipif(
    not (REAL / "config.json").is_file(), reason=f"no published model is in {REAL}: name one by TUNESMITH_TEST_MODEL"
)
DATA = "{train: builtin:identity, max_tokens: 64, cache_dir: %s}"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import measure

    yield measure
    for name in ("measure", "peers", "step_path", "profile_step"):
        sys.modules.pop(name, None)


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


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_same_loss(lines, adapter):
    found = lines("same_loss", "--adapter", adapter, "--rows", 3)
    assert [row["what"] for row in found] == ["loss", "grad_norm"]
    for row in found:
        assert row["tunesmith"] == pytest.approx(row["transformers"], rel=1e-4) and row["tunesmith"] > 0.5
        assert row["relative difference"] < 1e-4


def test_another_loss_is_seen(lines, monkeypatch):
    from tunesmith.objectives.sft import SFT

    count = SFT.count
    monkeypatch.setattr(SFT, "count", lambda self, batch: count(self, batch) * 1.01)
    with pytest.raises(SystemExit, match="a relative difference is above 0.001"):
        lines("same_loss", "--rows", 3)


def test_peers_hf(measure, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # which it sets for itself
    import peers

    rows = [
        {"messages": [{"role": "user", "content": "a" * i}, {"role": "assistant", "content": "b"}]} for i in range(7)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = str(save_model(tmp_path / "model"))
    words = ["hf", "--model", model, "--data", str(tmp_path / "rows.jsonl"), "--rows", "6", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["peers.py", *words, "--dtype", "float32", "--adapter", "full"])
    peers.main()
    found = json.loads(capsys.readouterr().out)
    tokenizer = tiny_tokenizer()
    lengths = [len(tokenizer.apply_chat_template(row["messages"], return_dict=False)) for row in rows[:6]]
    assert (found["run_tokens"], found["real_tokens"], found["steps"]) == (sum(lengths), sum(lengths[2:]), 2)
    padded = 2 * max(lengths[2:4]) + 2 * max(lengths[4:])
    assert found["padded_tokens"] == padded > found["real_tokens"]
    assert found["supervised_tokens"] == 4 * len(tokenizer("b<|im_end|>\n")["input_ids"])
    assert found["real_tokens_per_s"] == pytest.approx(found["real_tokens"] / found["seconds"])
    assert found["first_loss"] > 1 and found["first_grad_norm"] > 0.1


def test_rows_of_alpaca_and_of_messages_are_the_same_to_a_peer(measure):
    import peers

    alpaca = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    turns = [{"role": "user", "content": "Add.\n1 and 2"}, {"role": "assistant", "content": "3"}]
    assert peers.prompt_and_completion(alpaca) == peers.prompt_and_completion({"messages": turns})


FILE = '''"""A file."""

import functools


@functools.cache
def first(value):
    """One
    sentence."""
    # a comment
    text = """one

two"""

    def inner():
        return [value for _ in range(3)]

    return inner, text


def second():
    return (lambda: 1)()


def third():
    pass
'''


def test_lines_and_functions_of_a_path_are_counted(measure, tmp_path, monkeypatch):
    import step_path

    monkeypatch.setattr(step_path, "PACKAGE", tmp_path)
    (tmp_path / "file.py").write_text(FILE)
    watcher, names = step_path.Watcher(), {}
    exec(compile(FILE, str(tmp_path / "file.py"), "exec"), names)
    sys.setprofile(watcher.note)
    names["first"](1)[0]()
    names["second"]()
    sys.setprofile(None)
    # first: decorator, def, three lines of text, two of inner, return; second: two
    assert step_path.by_file(watcher.seen) == [("file.py", 3, 10, "first, inner, second")]


@pytest.mark.slow
def test_step_path(lines, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {save_model(tmp_path / 'model')}\ndata: {DATA % tmp_path}\n")
    found = lines("step_path", recipe, "train.logging_steps=100")
    total = found.pop()
    assert total["functions"] == sum(row["functions"] for row in found)
    assert total["functions"] <= 60 and total["lines"] <= 900  # what a step may take
    names = {row["file"]: row["names"].split(", ") for row in found}
    assert "compute_loss" in names["engine/trainer.py"] and "join" in names["data/batch.py"]
    assert "backward" in names["engine/head.py"] and "loss" in names["objectives/sft.py"]
    assert not {"log", "evaluate", "_save_checkpoint", "create_optimizer"} & set(names["engine/trainer.py"])


@pytest.mark.slow
def test_profile_step(lines, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {save_model(tmp_path / 'model')}\ndata: {DATA % tmp_path}\n")
    found = {row["work"]: row for row in lines("profile_step", recipe)}
    assert {"matmul", "attention", "head", "optimizer", "elementwise", "copies"} <= found.keys()
    assert sum(row["share"] for row in found.values()) == pytest.approx(1)
    assert all(row["seconds"] > 0 and row["calls"] > 0 for row in found.values())
    assert "adamw" in found["optimizer"]["most of it"]


@pytest.mark.slow
def test_activations(lines):
    found = lines("activations", "--layers", 4, "--tokens", 64)
    assert [row["activation_checkpointing"] for row in found] == ["false", "selective", "2", "4", "true"]
    share = {row["activation_checkpointing"]: row["share"] for row in found}
    assert share["true"] < share["2"] < share["4"] < share["false"] == 1 and share["true"] < share["selective"] < 0.8
    again = {row["activation_checkpointing"]: row["operations"] for row in found}
    assert 1 == again["false"] < again["selective"] < again["4"] < again["2"] < again["true"] < 1.6


@pytest.fixture
def choices(measure):
    import choices

    yield choices
    sys.modules.pop("choices", None)


@pytest.mark.slow
def test_choices(lines, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["--model", save_model(tmp_path / "model"), "--only", "adapters", "--names", "ia3", "--steps", 5]
    words += ["--every", 2, "--row-tokens", 64, "--held-out", 4, "--found", tmp_path / "found.json"]
    found = lines("choices", *words)
    assert [row["adapter"] for row in found] == ["lora", "ia3"]
    kept = json.loads((tmp_path / "found.json").read_text())
    lora, ia3 = kept.values()
    assert lora["loss after"] < lora["loss before"] == ia3["loss before"]
    # rank 16, two layers: q and o 32 + 32, k and v 32 + 16, three of the MLP 32 + 64
    assert lora["trained"] == 16 * 2 * (2 * 64 + 2 * 48 + 3 * 96)
    assert lora["learning rate"] == 2e-4 and ia3["learning rate"] == 3e-3
    assert 0.1 < lora["step"] < 10
    frozen = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)  # numbers of the layers; words come on top
    held = 4 * (frozen + 4 * lora["trained"]) / 1e6  # of what is trained weights, gradients and two means too
    assert held < lora["memory, MB"] < 4 * held
    monkeypatch.setattr("subprocess.run", None)
    assert lines("choices", *words) == found  # from the file


def test_a_line_of_the_choices_is_the_mean_of_its_runs(choices):
    run = {"trained": 7, "learning rate": 2e-4, "loss before": 2.0, "loss after": 1.5, "step": 1.2, "memory, MB": 9.0}
    assert choices.row("a", [run]) == ["a", 7, "2.0e-04", "2.000", "1.500", "1.20", 9.0]
    other = run | {"loss after": 1.0, "step": 1.4}
    assert choices.row("a", [run, other])[4:6] == ["1.250 (1.000 to 1.500)", "1.30"]


@pytest.mark.parametrize(
    ("model", "shots", "questions"),
    [("builtin:tiny", 0, 40), ("builtin:tiny", 2, 40), pytest.param(REAL, 0, 12, marks=needs_real)],
)
@pytest.mark.skipif(not CMMLU.is_dir(), reason="the published questions are not in shared/ beside the checkout")
def test_same_choice(lines, model, shots, questions):
    words = ("--model", model, "--data", CMMLU, "--questions", questions, "--shots", shots)
    found = {row["what"]: row for row in lines("same_choice", *words)}
    assert found["questions"]["tunesmith"] == questions and found["other answers"]["tunesmith"] == 0
    assert found["right"]["tunesmith"] == found["right"]["transformers"] > 0


def test_exports(lines, tmp_path):
    run = make_run(tmp_path, prompts=["Hello"])
    words = ("type=merged max_shard_size=200MB", "type=merged dtype=float64")
    merged, unknown = lines("exports", run, tmp_path / "out", "--only", *words)
    size = (tmp_path / "base/model.safetensors").stat().st_size
    files = [file.stat().st_size for file in (tmp_path / "out/merged,max_shard_size=200MB").iterdir()]
    assert merged["MB"] == sum(files) / 1e6 and merged["greedy"] == "same" and 0 < merged["seconds"] < 600
    assert merged["times the model"] == pytest.approx(merged["peak GB"] * 1e9 / size) and merged["peak GB"] > 0.1
    assert (unknown["export"], unknown["MB"], unknown["notes"]) == (words[1], None, "was not written")
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["merged,max_shard_size=200MB"]


def test_another_likelihood_is_seen(lines, tmp_path, monkeypatch):
    from tunesmith.evaluation.cmmlu import Cmmlu

    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "logical.csv").write_text(",Question,A,B,C,D,Answer\n0,Who?,I,you,we,they,B\n")
    lines("same_choice", "--data", tmp_path)
    monkeypatch.setattr(Cmmlu, "answers", "\nAnswer:")
    with pytest.raises(SystemExit, match=r"differs by more than 0\.001"):
        lines("same_choice", "--data", tmp_path)


@pytest.mark.slow
def test_serve(lines):
    words = ("--clients", 3, "--seconds", 1, "--new-tokens", 16, "--most-growth", 9)
    found = {row["measured"]: row["is"] for row in lines("serve", *words)}
    assert (found["clients"], found["errors"], found["answers finished behind SIGTERM"]) == (3, 0, "1 of 1")
    assert found["requests"] >= 3 and found["tokens a second, all"] > 0
    assert found["seconds until all who were cut off were given up"] < 30
