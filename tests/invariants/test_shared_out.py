"""A model whose weights lie in parts on two or four processes (gloo) equals a whole one on one process."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from fixtures_commands import together
from invariants.objective_runs import ACCUMULATED, SAMPLES, equal, killed, learned, new_runs
from invariants.whole_runs import digests, metrics
from tunesmith.cli.main import main
from tunesmith.engine import checkpoint, shares
from tunesmith.exports.merging import gathered

SHARED = "parallel.strategy=fsdp"
FULL = ("adapter=full", "optimizer.learning_rate=1e-3")
BF16 = "train.bf16=true"  # layers are gathered in it, and norms are not
STEP = "reference.compute=step"
ALONE = (f"{ACCUMULATED}={SAMPLES}",)
CELLS = {
    "sft-lora": ("sft",),
    "sft-full": ("sft", *FULL),
    "sft-bf16": ("sft", *FULL, BF16, "train.activation_checkpointing=true"),
    "freeze-bf16": ("sft", "adapter=freeze", "adapter.num_layers=1", BF16),
    "lora-bf16": ("sft", BF16),
    "reward-bf16": ("reward", *FULL, BF16),
    "sft-kept": ("sft", *FULL, "parallel.fsdp_config={reshard_after_forward: false}"),
    "sft-freeze": ("sft", "adapter=freeze", "adapter.num_layers=1", "optimizer=schedule_free"),
    "sft-best": ("sft", *FULL, "train.activation_checkpointing=true", "eval.load_best_model_at_end=true"),
    "dpo-lora": ("dpo",),
    "dpo-lora-step": ("dpo", STEP),
    "dpo-full": ("dpo", *FULL),
    "reward-lora": ("reward",),
    "reward-full": ("reward", *FULL),
}

if find_spec("bitsandbytes") is not None:
    CELLS["lora-q4"] = ("sft", "model.quantization=bnb_4bit")
    CELLS["lora-q4-bf16"] = ("sft", "model.quantization=bnb_4bit", BF16)
AGAIN = ("sft-lora", "sft-full", "lora-q4")  # what is killed, and goes on
FILLS = """
import os, resource
from pathlib import Path

from tunesmith.objectives.sft import SFT


class Filling(SFT):
    def loss(self, scores, batch):
        if os.environ.get("RANK") == "1" and Path("{run}/checkpoints/step-1").is_dir():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return super().loss(scores, batch)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return new_runs(tmp_path_factory.mktemp("shared"))


def command(runs, number, name, objective, *words):
    """The command line of a run of `number` processes, whose cache is its own."""
    words = (f"{ACCUMULATED}={SAMPLES // number}", f"data.cache_dir={runs.folder / f'cache-{number}-{name}'}", *words)
    return runs.command(objective, runs.folder / f"{number}-{name}", *words)


@pytest.fixture(scope="module")
def two(runs):
    """What two processes made of every cell, and of a killed run of full weights; and what they said."""
    folder = runs.folder
    said = together(2, *(command(runs, 2, name, *words, SHARED) for name, words in CELLS.items()))
    return folder, said


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_parts_equal_a_whole(runs, two, name):
    words = [word for word in CELLS[name][1:] if not word.startswith("parallel.")]
    one = runs.of(CELLS[name][0], *ALONE, *words)
    assert learned(one)
    equal(one, two[0] / f"2-{name}", 1e-4 if BF16 in CELLS[name] else 1e-5)  # sums in another order, then rounded


@pytest.mark.slow
def test_it_is_said_and_the_last_weights_are_a_plain_folder(two):
    folder, said = two
    assert said.count("parallel: the model's weights are shared out among processes (2), in 2 layers") == len(CELLS)
    config = json.loads((folder / "2-sft-full" / "final" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not list((folder / "2-sft-full" / "final").glob("**/*.distcp"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft-full", "sft-freeze"])
def test_a_checkpoint_in_parts_is_exported_as_the_plain_folder_that_final_is(two, tmp_path, monkeypatch, name):
    """No two of its weights are held at once where so few bytes are. `schedule_free` ends with others than it has."""
    run, read, held = two[0] / f"2-{name}", shares.read, []
    place = checkpoint.place(run, checkpoint.steps(run)[-1])
    assert not list(place.glob("model*.safetensors"))
    monkeypatch.setattr(gathered, "AT_ONCE", 1)
    monkeypatch.setattr(shares, "read", lambda folder, wanted: held.append(list(wanted)) or read(folder, wanted))
    assert main(["export", str(place), str(tmp_path / "out"), "dtype=float32"]) == 0
    mine, final = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", run / "final"))
    trained = shares.stored(place).keys()
    assert (
        mine.keys() == final.keys() and max(map(len, held)) == 1 and {one for part in held for one in part} == trained
    )
    for key, one in mine.items():
        own = read(place, {key: (one.shape, one.dtype)})[key] if key in trained else one
        assert torch.equal(one, own) and (torch.equal(one, final[key]) or (key in trained and name == "sft-freeze"))
    assert ("model.embed_tokens.weight" in trained) == (name == "sft-full")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert main(["export", str(place), str(tmp_path / "out"), "--check"]) == 0


@pytest.mark.slow
def test_what_needs_plain_weights_says_how_they_are_had(two, capsys):
    place = checkpoint.place(two[0] / "2-sft-full", 1)
    assert main(["chat", str(place)]) == 1
    assert f"weights of {place} lie in parts, as several processes wrote them: make a model" in capsys.readouterr().err


@pytest.fixture(scope="module")
def others(runs, two):
    """What two processes that were killed after their second step made of the rest, and one and four in their place."""
    for number in (1, 2, 4):
        names = {1: ["sft-full"], 2: [name for name in AGAIN if name in CELLS], 4: ["sft-lora", "sft-full"]}[number]
        again = {name: killed(two[0] / f"2-{name}", 2, runs.folder / f"again-{number}-{name}") for name in names}
        commands = [["train", str(run)] for run in again.values()]
        if number == 1:
            assert main(commands[0]) == 0
        if number == 2:
            whole = killed(runs.of("sft", *ALONE, *FULL, SHARED), 2, runs.folder / "again-of-one")
            together(2, *commands, ["train", str(whole)])
        if number == 4:
            hybrid = [command(runs, 4, name, *CELLS[name], SHARED, "parallel.replicate=2") for name in ("dpo-full",)]
            together(4, *commands, *hybrid)
    return runs.folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in AGAIN if name in CELLS])
def test_a_killed_run_goes_on_bit_for_bit_and_elsewhere_with_the_same_rows(two, others, name):
    whole, again = two[0] / f"2-{name}", others / f"again-2-{name}"
    assert metrics(again) == metrics(whole) and digests(again / "final") == digests(whole / "final")
    if name != "lora-q4":
        equal(whole, others / f"again-4-{name}")


@pytest.mark.slow
def test_one_process_goes_on_with_what_lay_in_parts(two, others):
    equal(two[0] / "2-sft-full", others / "again-1-sft-full")


@pytest.mark.slow
def test_two_processes_go_on_in_parts_with_what_lay_whole(runs, others):
    equal(runs.of("sft", *ALONE, *FULL, SHARED), others / "again-of-one")


@pytest.mark.slow
def test_two_copies_on_two_processes_each_equal_one(runs, others):
    equal(runs.of("dpo", *ALONE, *FULL), others / "4-dpo-full")


@pytest.mark.slow
def test_one_of_two_whose_disk_is_full_ends_both_and_they_go_on(runs, two):
    """After the first checkpoint the second one's system refuses its parts, 40 kB of weights, as a full disk does."""
    run = two[0] / "2-filled"
    own = runs.own("filling", FILLS.format(run=run))
    words = (*FULL, SHARED, f"data.train={runs.rows('sft')}")
    said = together(2, command(runs, 2, "filled", own, *words), code=1)
    assert f"{run} cannot be written: File too large" in said
    left = checkpoint.steps(run)
    assert left in ([1], [1, 2]) and checkpoint.damage(checkpoint.place(run, left[-1])) is None
    assert not (run / "final").exists() and not list(run.rglob(".*"))
    assert main(["train", str(run)]) == 0
    equal(two[0] / "2-sft-full", run)


@pytest.mark.slow
def test_a_number_that_cannot_share_a_step_is_refused(two, others, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert main(["train", str(others / "again-4-sft-full")]) == 0  # it is finished
    run = killed(two[0] / "2-sft-full", 1, others / "five")
    assert main(["train", str(run)]) == 1
    assert "has 12 micro-batches, of which 5 processes cannot take as many each" in capsys.readouterr().err
