"""What DeepSpeed shares out among two processes (gloo) equals one process with all of it."""

import json
from importlib.util import find_spec

import pytest

from fixtures_commands import together
from invariants.objective_runs import ACCUMULATED, SAMPLES, equal, killed, learned, new_runs
from invariants.whole_runs import digests, metrics
from tunesmith.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

FULL = ("adapter=full", "optimizer.learning_rate=1e-3")
STEP = "reference.compute=step"
ALONE = (f"{ACCUMULATED}={SAMPLES}",)
RECIPES = {
    "sft-lora": ("sft",),
    "sft-full": ("sft", *FULL),
    "dpo-lora": ("dpo", STEP),
    "dpo-full": ("dpo", *FULL),
    "reward-lora": ("reward",),
    "reward-full": ("reward", *FULL),
}
STAGES = (1, 2, 3)


def shared(stage):
    return ("parallel.strategy=deepspeed", f"parallel.zero_stage={stage}")


CELLS = {f"{name}-{stage}": (*words, *shared(stage)) for stage in STAGES for name, words in RECIPES.items()}
CELLS |= {
    "sft-lion-2": ("sft", *FULL, "optimizer=lion", *shared(2)),
    "sft-best-2": ("sft", *FULL, "eval.load_best_model_at_end=true", *shared(2)),
    "sft-best-3": ("sft", *FULL, "eval.load_best_model_at_end=true", *shared(3)),
    "sft-bf16-2": ("sft", "train.bf16=true", *shared(2)),
    "sft-checkpointed-3": ("sft", *FULL, "train.activation_checkpointing=true", *shared(3)),
    "sft-host-2": ("sft", *FULL, "parallel.offload=cpu", *shared(2)),
    "sft-host-3": ("sft", *FULL, "parallel.offload=cpu", *shared(3)),
    "sft-file-2": ("sft", *FULL, "parallel.strategy=deepspeed", "parallel.deepspeed_config={folder}/own.json"),
    "dpo-once-3": ("dpo", *shared(3)),
}
if find_spec("bitsandbytes") is not None:
    CELLS["sft-q4-3"] = ("sft", "model.quantization=bnb_4bit", *shared(3))
OWN = {  # of a file of DeepSpeed's options
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 500, "overlap_comm": False},
    "train_batch_size": "auto",
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "eps": "auto"}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    (folder / "own.json").write_text(json.dumps(OWN))
    return new_runs(folder)


def command(runs, number, name, objective, *words):
    """The command line of a run of `number` processes, whose cache is its own."""
    words = [word.format(folder=runs.folder) for word in words]
    words = (f"{ACCUMULATED}={SAMPLES // number}", f"data.cache_dir={runs.folder / f'cache-{number}'}", *words)
    return runs.command(objective, runs.folder / f"{number}-{name}", *words)


@pytest.fixture(scope="module")
def two(runs):
    """What has two processes make the cells of a stage, once: what they said."""
    said = {}

    def make(stage):
        if stage not in said:
            own = {name: words for name, words in CELLS.items() if name.endswith(f"-{stage}")}
            said[stage] = together(2, *(command(runs, 2, name, *words) for name, words in own.items()))
        return said[stage]

    return make


@pytest.mark.parametrize("name", CELLS)
def test_two_processes_equal_one(runs, two, name):
    two(name[-1])
    objective, *words = (word for word in CELLS[name] if not word.startswith("parallel."))
    one = runs.of(objective, *ALONE, *words)
    assert learned(one)
    equal(one, runs.folder / f"2-{name}")


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_said_and_nothing_of_it_is_left_in_the_folder(runs, two, stage):
    said = two(f"{stage}")
    number = sum(name.endswith(f"-{stage}") for name in CELLS)
    assert said.count(f"parallel: DeepSpeed's ZeRO-{stage} on 2 processes") == number
    run = runs.folder / f"2-sft-full-{stage}"
    config = json.loads((run / "final" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    kinds = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jsonl", ".yaml", ".png", ".jinja"}


@pytest.mark.parametrize("stage", (2, 3))
def test_a_killed_run_goes_on_bit_for_bit_and_elsewhere_with_the_same_rows(runs, two, stage):
    """What as many, four and one processes make of runs of two that were killed after their second step."""
    two(f"{stage}")
    names = [f"sft-lora-{stage}", f"sft-full-{stage}"]
    whole = {name: runs.folder / f"2-{name}" for name in names}
    for number in (2, 4, 1):
        again = {name: killed(whole[name], 2, runs.folder / f"again-{number}-{name}") for name in names}
        commands = [["train", str(run)] for run in again.values()]
        if number == 1:
            assert [main(one) for one in commands] == [0, 0]
        else:
            together(number, *commands)
        for name, run in again.items():
            equal(whole[name], run)
            if number == 2:
                assert metrics(run) == metrics(whole[name])
                assert digests(run / "final") == digests(whole[name] / "final")


@pytest.mark.parametrize("stage", (2, 3))
def test_two_processes_go_on_with_what_lay_whole(runs, stage):
    one = runs.of("sft", *ALONE, *FULL, *shared(stage))
    again = killed(one, 2, runs.folder / f"of-one-{stage}")
    together(2, ["train", str(again)])
    equal(one, again)
