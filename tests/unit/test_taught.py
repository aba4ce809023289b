"""Whole runs of a student with a teacher, through the command line in this process."""

import json
import re
import shutil

import pytest
import torch
import yaml
from tests.unit.data.test_batch import store_of

from fixtures_models import save_model, tiny_model, tiny_tokenizer
from invariants.whole_runs import make, metrics, weights
from tunesmith.cli.main import main
from tunesmith.data import taught
from tunesmith.data.batch import lay

STEADY = ("model.dtype=float32", "adapter.lora_dropout=0", "eval.prompts=[]", "train.max_steps=3")
STUDENT = {"objective": "distill", "teacher": {"model": "teacher"}, "optimizer": {"learning_rate": 2e-2}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a student, a larger teacher of it, rows and a recipe."""
    folder = tmp_path_factory.mktemp("taught")
    recipe = make(folder)
    save_model(folder / "teacher", tiny_model(seed=7, hidden_size=48, intermediate_size=96))
    said = yaml.safe_load(recipe.read_text()) | STUDENT
    said["teacher"]["model"] = str(folder / "teacher")
    recipe.write_text(yaml.safe_dump(said))
    return folder


@pytest.fixture
def run(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    number = iter(range(100))

    def train(*words):
        out = tmp_path / f"run-{next(number)}"
        assert main(["train", str(base / "recipe.yaml"), *STEADY, *words, f"train.output_dir={out}"]) == 0
        return out

    return train


@pytest.fixture
def refused(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def say(*words):
        assert main(["train", str(base / "recipe.yaml"), *STEADY, *words, "train.output_dir=none"]) != 0
        assert not (tmp_path / "none").exists()
        return " ".join(capsys.readouterr().err.split())

    return say


def same(one, other, loss=1e-5, weight=2e-5):
    for a, b in zip(metrics(one), metrics(other), strict=True):
        for name in a.keys() & {"loss", "eval_loss", "grad_norm", "divergence", "eval_divergence"}:
            assert a[name] == pytest.approx(b[name], abs=loss), name
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], rtol=1e-3, atol=weight, msg=name)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_comes_nearer(run, divergence):
    lines = metrics(run(f"objective.divergence={divergence}", "train.max_steps=8", "train.row_tokens=1024"))
    assert lines[-1]["eval_loss"] < 0.9 * lines[0]["eval_loss"]
    assert lines[-1]["eval_loss"] == lines[-1]["eval_divergence"]
    assert lines[-2]["loss"] < 0.95 * lines[1]["loss"] and lines[1]["loss"] == pytest.approx(lines[1]["divergence"])


def test_micro_batches_change_nothing(run):
    words = ("objective.sft_weight=0.5", "objective.temperature=2")
    one = run(*words, "train.per_device_train_batch_size=4")
    same(one, run(*words, "train.gradient_accumulation_steps=4", "eval.per_device_eval_batch_size=3"))
    same(one, run(*words, "train.gradient_accumulation_steps=4", "train.activation_checkpointing=true"))


def test_words_that_are_kept_are_those_of_every_step(run, base, tmp_path, capsys):
    words = ["objective.top_k=9", "objective.divergence=jsd", f"data.cache_dir={tmp_path / 'cache'}"]
    step = run(*words, "teacher.compute=step")
    assert not list(tmp_path.glob("cache/teacher/*"))
    once = run(*words)
    same(step, once)
    assert "its 9 likeliest words were made once" in " ".join(capsys.readouterr().err.split())
    (kept,) = tmp_path.glob("cache/teacher/*")
    content = kept.read_bytes()
    again = run(*words)
    assert re.search(r"likeliest words of \d+ samples were made by an earlier run", capsys.readouterr().err)
    assert metrics(again) == metrics(once) and kept.read_bytes() == content
    flipped = bytearray(content)
    flipped[40] ^= 64
    kept.write_bytes(flipped)
    assert metrics(run(*words)) == metrics(once) and kept.read_bytes() == content
    said = " ".join(capsys.readouterr().err.split())
    assert f"{kept} is not what was written" in said and "its 9 likeliest words were made once" in said
    run(*words, "objective.temperature=2")
    assert len(list(tmp_path.glob("cache/teacher/*"))) == 2, "the share of all other words is another one"


def test_full_training_of_a_model_beside_a_teacher(run):
    words = ("adapter=full", "optimizer.learning_rate=1e-3", "objective.sft_weight=0.1")
    one = run(*words, "train.per_device_train_batch_size=2")
    same(one, run(*words, "train.gradient_accumulation_steps=2"), weight=1e-4)
    lines = metrics(one)
    assert lines[-1]["eval_loss"] < lines[0]["eval_loss"]


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_model_that_is_its_teacher_has_nothing_to_learn(run, base, divergence):
    """A fresh adapter changes nothing. Adam would make a step of any gradient that is not 0 to the last bit."""
    lines = metrics(run(f"teacher.model={base / 'model'}", f"objective.divergence={divergence}"))
    assert {line.get(name, 0) for line in lines for name in ("loss", "eval_loss", "grad_norm")} == {0}


def test_a_run_and_its_adapter_are_teachers(run, base):
    """An adapter beside its model, and the same one in its weights."""
    teacher = run("objective=sft", "teacher={}", "train.max_steps=6", f"model={base / 'teacher'}")
    lines = metrics(run(f"teacher.model={teacher}"))
    assert lines == metrics(run(f"teacher.model={teacher / 'final'}"))
    plain = metrics(run())
    assert lines[0]["eval_loss"] != pytest.approx(plain[0]["eval_loss"], rel=1e-3)


def test_virtual_tokens_teach_and_learn(run, base):
    """Those of a teacher are beside its model, also in eight bits; and a student's alone are trained."""
    options = "adapter={type: prefix, num_virtual_tokens: 4}"
    teacher = run("objective=sft", "teacher={}", "train.max_steps=6", options, f"model={base / 'teacher'}")
    plain, taught, rounded = (
        metrics(run(*words))[0]["eval_loss"]
        for words in ([], [f"teacher.model={teacher}"], [f"teacher.model={teacher}", "teacher.frozen_dtype=int8"])
    )
    assert abs(taught - plain) > 1e-2 and rounded == pytest.approx(taught, rel=0.05) and rounded != taught
    lines = metrics(run(options))
    assert lines[-1]["eval_loss"] < lines[0]["eval_loss"]


def test_a_teacher_in_eight_bits(run):
    exact, rounded = (metrics(run(*words)) for words in ([], ["teacher.frozen_dtype=int8"]))
    assert exact[0]["eval_loss"] != rounded[0]["eval_loss"]
    assert exact[0]["eval_loss"] == pytest.approx(rounded[0]["eval_loss"], rel=0.05)


def test_going_on_after_a_kill(run, base, tmp_path, capsys):
    for words in (["objective.top_k=4"], []):
        whole = run(*words, "train.save_steps=1")
        cut = shutil.copytree(whole, tmp_path / f"cut-{len(words)}")
        shutil.rmtree(cut / "final")
        for step in (2, 3):
            shutil.rmtree(cut / "checkpoints" / f"step-{step}", ignore_errors=True)
        record = json.loads((cut / "record.json").read_text())
        assert record["teacher"]
        (cut / "record.json").write_text(json.dumps(record | {"status": "running"}))
        assert main(["train", str(cut)]) == 0
        assert metrics(cut) == metrics(whole)
        assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(cut).items())


def test_a_run_does_not_go_on_with_another_teacher(run, base, tmp_path, capsys):
    teacher = shutil.copytree(base / "teacher", tmp_path / "mine")
    whole = run(f"teacher.model={teacher}")
    shutil.rmtree(whole / "final")
    save_model(teacher, tiny_model(seed=8, hidden_size=48, intermediate_size=96))
    capsys.readouterr()
    assert main(["train", str(whole)]) != 0
    assert "the teacher of" in capsys.readouterr().err


def test_what_cannot_be_is_refused(refused, base, tmp_path):
    assert "say teacher.model=PATH" in refused("teacher={}")
    assert "objective sft has no teacher" in refused("objective=sft")
    assert "say how many in objective.top_k" in refused("teacher.compute=once")
    assert "row_tokens=auto measures a model without a teacher" in refused("train.row_tokens=auto")
    assert "of 400 words leave none for the others" in refused("objective.top_k=400")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    save_model(tmp_path / "other", tiny_model(vocab=401), tokenizer)
    said = refused(f"teacher.model={tmp_path / 'other'}")
    assert "teacher.model" in said and "'<extra>' is 400 there and not a token here" in said
    assert "nowhere/at-all is neither a folder here" in refused("teacher.model=nowhere/at-all")


def test_a_sample_in_parts_has_its_own_words(tmp_path):
    """Values of learned tokens alone, told apart by where a part of a long sample begins and ends."""
    one, other = (range(6), [0, 0, 1, 1, 0, 1]), (range(3), [0, 0, 1])
    samples = store_of(tmp_path, [one], [one, other])
    firsts = taught.firsts_of(samples)
    assert firsts.tolist() == [0, 3, 7]
    placed = taught.Taught(samples, torch.arange(7).numpy(), firsts)
    pieces = [[0, 0, 2], [0, 2, 6], [1, 0, 6]]
    row = lay(placed, torch.tensor(pieces).numpy())
    assert row["teacher"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert len(row["teacher"]) == (row["weight"] != 0).sum()
    assert lay(placed, torch.tensor(pieces[1:2]).numpy())["teacher"].tolist() == [1, 2]
    values = torch.zeros(7).numpy().astype(taught.record(2))
    values["logps"][4] = float("nan")
    assert taught.missing(firsts, torch.tensor([0, 1]).numpy(), values).tolist() == [1]
