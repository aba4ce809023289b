"""Two processes that train one model (gloo) equal one: losses, weights, and what is written."""

import json
import subprocess
import sys

import pytest

from fixtures_commands import together
from invariants.objective_runs import ACCUMULATED, CENTRED, OBJECTIVES, equal, killed, learned, new_runs
from invariants.whole_runs import digests, metrics
from tunesmith.cli.main import main

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
UNEVEN = ("data.eval=3", "train.num_train_epochs=3")  # an odd number of rows to train on, and of held-out ones
ONE, TWO = f"{ACCUMULATED}=12", f"{ACCUMULATED}=6"
FULL = ("adapter=full", "optimizer.learning_rate=1e-3")
STEP = "reference.compute=step"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return new_runs(tmp_path_factory.mktemp("ranks"))


def by_two(runs, name, objective, *words):
    """The command line of a run of two processes, whose cache is its own: they render and score for themselves."""
    run = runs.folder / f"two-{name}"
    return runs.command(objective, run, *UNEVEN, TWO, f"data.cache_dir={runs.folder / f'cache-{name}'}", *words)


@pytest.fixture(scope="module")
def first(runs):
    """A run that two processes made of the plain command line, and what they said."""
    words = by_two(runs, "sft", "sft")
    done = subprocess.run([*TORCHRUN, "-m", "tunesmith", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return runs.folder / "two-sft", done.stderr


@pytest.mark.slow
def test_two_processes_equal_one(runs, first):
    """Also where the last step, and the held-out rows, leave nothing for one of them."""
    run, said = first
    one = runs.of("sft", *UNEVEN, ONE)
    assert learned(one)
    equal(one, run)
    assert len(metrics(run)) == len({json.dumps(line) for line in metrics(run)})
    assert said.count("run folder:") == said.count("packed:") == 1
    assert [line["tokens"] for line in metrics(run) if "loss" in line] == [
        line["tokens"] for line in metrics(one) if "loss" in line
    ]


@pytest.mark.slow
def test_whatever_is_compared_and_wherever_the_reference_is(runs, first, tmp_path):
    """Once started, two processes make a run of every objective, and go on with one that was killed."""
    centred = runs.own("centred", CENTRED)
    cases = {name: (name,) for name in OBJECTIVES if name != "sft"} | {
        "dpo-step": ("dpo", STEP, "train.max_steps=3"),
        "dpo-full": ("dpo", *FULL, STEP),
        "centred": (centred,),
        "centred-step": (centred, STEP),
    }
    again = killed(first[0], 2, tmp_path / "again")
    together(2, *(by_two(runs, name, *words) for name, words in cases.items()), ["train", again])
    for name, words in cases.items():
        one = runs.of(words[0], *UNEVEN, ONE, *words[1:])
        assert learned(one)
        equal(one, runs.folder / f"two-{name}")
    assert metrics(again) == metrics(first[0]) and digests(again / "final") == digests(first[0] / "final")


SHORT = """
import tunesmith.engine.device
from tunesmith.objectives.sft import SFT

tunesmith.engine.device.free_memory_bytes = lambda kind: 1_000_000

class Short(SFT):
    pass
"""


@pytest.mark.slow
def test_what_processes_share_is_chosen_by_the_plan_and_kept(runs, first, tmp_path):
    """Where a device has little room; a run that goes on keeps it, wherever that is."""
    short = runs.own("short", SHORT)
    said = together(2, by_two(runs, "short", short, *FULL, f"data.train={runs.rows('sft')}"))
    assert "parallel: auto takes fsdp: a whole model with its states needs 0." in said
    assert "the model's weights are shared out among processes (2)" in said
    again = killed(runs.folder / "two-short", 2, tmp_path / "again")
    (runs.folder / "short.py").write_text(SHORT.replace("1_000_000", "10**12"))
    said = together(2, ["train", again])
    assert "auto takes" not in said and "the model's weights are shared out among processes (2)" in said
    for run, chosen in ((runs.folder / "two-short", "fsdp"), (again, "fsdp"), (first[0], "ddp")):
        assert json.loads((run / "record.json").read_text())["derived"]["parallel.strategy"] == chosen
    assert digests(again / "final") == digests(runs.folder / "two-short" / "final")
    assert "parallel: auto takes ddp: a whole model with its states needs 0." in first[1]


SLOW = """
import os, time
from tunesmith.engine import callbacks, checkpoint
from tunesmith.engine.trainer import Trainer
from tunesmith.objectives.sft import SFT


def timed(work, seconds):
    def do(*given, **options):
        begun = time.monotonic()
        time.sleep(seconds)
        found = work(*given, **options)
        with open("{folder}/" + work.__name__ + os.environ["RANK"], "a") as file:
            print(begun, time.monotonic(), file=file)
        return found
    return do


if os.environ["RANK"] == "0":
    checkpoint.prune = timed(checkpoint.prune, 1)
    callbacks.AnswerQuestions.on_evaluate = timed(callbacks.AnswerQuestions.on_evaluate, 1)
else:
    Trainer._save_checkpoint, Trainer.evaluate = timed(Trainer._save_checkpoint, 0), timed(Trainer.evaluate, 0)


class Slow(SFT):
    pass
"""


@pytest.mark.slow
def test_all_wait_while_the_first_saves_or_answers(runs, tmp_path):
    """A step's messages wait some minutes, and a large model is written for longer."""
    slow = runs.own("slow", SLOW.replace("{folder}", str(tmp_path)))
    words = ('eval.prompts=["What?"]', "eval.max_new_tokens=1", "train.max_steps=3", "train.save_steps=1")
    together(2, by_two(runs, "slow", slow, f"data.train={runs.rows('sft')}", "eval.eval_steps=1", *words))

    def times(name):
        return [tuple(map(float, line.split())) for line in (tmp_path / name).read_text().splitlines()]

    for one, other in (("prune0", "_save_checkpoint1"), ("on_evaluate0", "evaluate1")):
        assert len(times(one)) == len(times(other)) >= 3
        assert all(theirs > own for (_, own), (_, theirs) in zip(times(one), times(other), strict=True))


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(first, tmp_path):
    run = killed(first[0], 2, tmp_path / "run")
    assert main(["train", str(run)]) == 0
    equal(first[0], run)
    assert json.loads((run / "record.json").read_text())["num_processes"] == 1


@pytest.mark.slow
def test_classes_of_the_held_out_set_are_counted_once(runs):
    """Also where one of two processes has no row of it left."""
    together(2, by_two(runs, "words", "token_classify"))
    one = runs.of("token_classify", *UNEVEN, ONE)
    assert learned(one)
    equal(one, runs.folder / "two-words")
    counts = [
        [line["eval_confusion"] for line in metrics(run) if "eval_loss" in line]
        for run in (one, runs.folder / "two-words")
    ]
    assert counts[0] == counts[1]


OPTIMIZERS = {
    "galore": ("optimizer.rank=4", "optimizer.update_proj_gap=2"),
    "apollo": ("optimizer.rank=4", "optimizer.update_proj_gap=2"),
    "badam": ("optimizer.switch_every=1", "optimizer.switch_mode=random"),
}


@pytest.mark.slow
def test_subspaces_and_turns_are_the_same_everywhere(runs):
    """Also where gradients of blocks that rest are added as zeros, and where one process does not compute them."""
    cases = {name: (*FULL, f"optimizer.type={name}", *words) for name, words in OPTIMIZERS.items()}
    together(2, *(by_two(runs, name, "sft", *words) for name, words in cases.items()))
    for name, words in cases.items():
        one = runs.of("sft", *UNEVEN, ONE, *words)
        assert learned(one)
        equal(one, runs.folder / f"two-{name}")
