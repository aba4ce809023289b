"""What a recipe says of DeepSpeed, and what a file of DeepSpeed's own options may say beside it."""

import json
from pathlib import Path

import pytest
import torch

from tunesmith import recipe_zero
from tunesmith.errors import MissingExtra, RecipeError
from tunesmith.recipe import Recipe

LEAST = {"model": "builtin:tiny", "data": {"train": "builtin:identity"}}
TRAIN = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_grad_norm": 0.5, "bf16": True}
OPTIMIZER = {"learning_rate": 1e-4, "betas": (0.9, 0.95), "epsilon": 1e-6, "weight_decay": 0.1}
AGREES = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 3,
    "train_batch_size": "auto",
    "gradient_clipping": 0.5,
    "bf16": {"enabled": True},
    "fp16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "sub_group_size": 1000},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-6, "weight_decay": 0.1}},
    "wall_clock_breakdown": False,
}


def recipe(file=None, options=None, **said):
    parallel = {"strategy": "deepspeed"} | ({} if file is None else {"deepspeed_config": str(file)}) | said
    return Recipe(**(LEAST | {"train": TRAIN, "optimizer": OPTIMIZER} | (options or {})), parallel=parallel)


def problem(*given, **said):
    with pytest.raises(RecipeError) as caught:
        recipe(*given, **said)
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    def write(config):
        path = tmp_path / "own.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return path

    return write


def test_a_file_that_agrees_is_kept_and_the_recipe_has_the_rest(file):
    said = recipe_zero.options(recipe(file(AGREES), offload="cpu"), number=4, width=8)
    assert said["train_batch_size"] == 2 * 3 * 4 and said["gradient_clipping"] == 0.5
    assert said["wall_clock_breakdown"] is False and not said.keys() & {"optimizer", "scheduler", "bf16", "fp16"}
    zero = said["zero_optimization"]
    assert (zero["stage"], zero["sub_group_size"], zero["reduce_bucket_size"]) == (3, 1000, 64)
    assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu"}
    assert said["torch_autocast"]["enabled"] is True


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("train_micro_batch_size_per_gpu", 4, "train.per_device_train_batch_size=2"),
        ("gradient_accumulation_steps", 4, "train.gradient_accumulation_steps=3"),
        ("gradient_clipping", 1.0, "train.max_grad_norm=0.5"),
        ("bf16.enabled", False, "train.bf16=True"),
        ("fp16.enabled", True, "train.fp16=False"),
        ("zero_optimization.stage", 2, "parallel.zero_stage=3"),
        ("zero_optimization.offload_param.device", "none", "parallel.offload=cpu"),
        ("optimizer.type", "Lamb", "optimizer=adamw"),
        ("optimizer.params.lr", 2e-4, "optimizer.learning_rate=0.0001"),
        ("optimizer.params.betas", [0.8, 0.95], "optimizer.betas=[0.9, 0.95]"),
        ("optimizer.params.eps", 1e-8, "optimizer.epsilon=1e-06"),
        ("optimizer.params.weight_decay", 0.0, "optimizer.weight_decay=0.1"),
    ],
)
def test_a_disagreement_names_both_values(file, path, value, said):
    config = json.loads(json.dumps(AGREES))
    *sections, name = path.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    inner[name] = value
    found = problem(file(config), zero_stage=3, offload="cpu")
    assert f"{path}={value}" in found and said in found


def test_a_schedule_and_a_batch_of_all_processes(file):
    found = problem(file({"scheduler": {"type": "WarmupLR"}}))
    assert "scheduler.type=WarmupLR" in found and "leave scheduler out" in found
    with pytest.raises(RecipeError, match=r"train_batch_size=64 .* on 4 processes=24"):
        recipe_zero.options(recipe(file({"train_batch_size": 64})), number=4)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds no mapping"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage=0 shares nothing"),
    ],
)
def test_what_is_no_file_of_options(file, config, said):
    assert said in problem(file(config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"optimizer": {"type": 5}}, "optimizer.type in {} must be text (it was 5)"),
        ({"optimizer": "adamw"}, "optimizer in {} must be a mapping (it was 'adamw')"),
        ({"bf16": True}, "bf16 in {} must be a mapping (it was True)"),
        ({"zero_optimization": [3]}, "zero_optimization in {} must be a mapping (it was [3])"),
        ({"zero_optimization": {"stage": "3"}}, "zero_optimization.stage in {} must be a number (it was '3')"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage in {} must be a number (it was True)"),
        ({"zero_optimization": {"sub_group_size": "x"}}, "sub_group_size in {} must be a number (it was 'x')"),
        (
            {"zero_optimization": {"offload_optimizer": {"nvme_path": 5}}},
            "zero_optimization.offload_optimizer.nvme_path in {} must be text (it was 5)",
        ),
        (
            {"zero_optimization": {"offload_param": "cpu"}},
            "zero_optimization.offload_param in {} must be a mapping (it was 'cpu')",
        ),
    ],
)
def test_a_value_of_another_kind(file, config, said):
    path = file(config)
    assert said.format(path) in problem(path)


def test_what_a_file_leaves_open_is_not_handed_on(file):
    left_open = {"offload_optimizer": {"device": "auto"}, "offload_param": {"device": "auto"}, "sub_group_size": "auto"}
    left_open |= {"stage": 3, "stage3_gather_16bit_weights_on_model_save": "auto", "reduce_bucket_size": "auto"}
    config = {"zero_optimization": left_open, "flops_profiler": {"enabled": "auto"}, "wall_clock_breakdown": "auto"}
    for offload, device in ((None, {}), ("cpu", {"device": "cpu"})):
        said = recipe_zero.options(recipe(file(config), offload=offload), number=2, width=8)
        assert '"auto"' not in json.dumps(said) and said["zero_optimization"]["reduce_bucket_size"] == 64
        assert said["zero_optimization"]["offload_optimizer"] == said["zero_optimization"]["offload_param"] == device
    nothing = file({"zero_optimization": {"stage": 3, "offload_optimizer": None, "offload_param": None}})
    said = recipe_zero.options(recipe(nothing, offload="cpu"), number=2, width=8)["zero_optimization"]
    assert said["offload_optimizer"] == said["offload_param"] == {"device": "cpu"}


def test_a_file_that_is_not_there(tmp_path):
    assert f"there is no file {tmp_path / 'none'}" in problem(tmp_path / "none")


@pytest.mark.parametrize("option", ["zero_stage", "offload", "nvme_path", "deepspeed_config"])
def test_what_is_said_to_deepspeed_alone(option):
    value = {"zero_stage": 2, "offload": "cpu", "nvme_path": "/x", "deepspeed_config": "x.json"}[option]
    assert f"{option}={value} is for parallel.strategy=deepspeed, and this is fsdp" in problem(
        strategy="fsdp", **{option: value}
    )


def in_files(*given, swap="/disk/own", **said):
    found = recipe_zero.options(recipe(*given, **said), number=2, width=8, swap=Path(swap))["zero_optimization"]
    return found["offload_optimizer"], found.get("offload_param"), found["sub_group_size"]


def test_state_in_files_has_its_folder_and_buffers_for_all_of_a_weight():
    state, weights, at_once = in_files(offload="nvme", zero_stage=3, nvme_path="/disk")
    assert state == {"device": "nvme", "nvme_path": "/disk/own", "buffer_count": 4}  # weight, gradient, two means
    assert weights == {"device": "cpu"} and at_once == recipe_zero.AT_ONCE
    state, *_ = in_files(options={"optimizer": {"type": "ademamix"}}, offload="nvme", zero_stage=3)
    assert state["buffer_count"] == 5


def test_a_file_says_files_too(file):
    own = {"device": "nvme", "nvme_path": "/x", "pipeline_read": True, "pipeline_write": True, "buffer_count": 3}
    path = file({"zero_optimization": {"stage": 3, "offload_optimizer": own, "sub_group_size": 1e9}})
    assert recipe_zero.nvme_path(recipe(path).parallel) == "/x"
    state, weights, at_once = in_files(path)
    assert (state["buffer_count"], state["nvme_path"], weights, at_once) == (12, "/disk/own", None, 10**9)
    own |= {"buffer_count": 20, "pipeline_read": False}
    path = file({"zero_optimization": {"offload_optimizer": own, "offload_param": {"device": "none"}}})
    state, weights, at_once = in_files(path, offload="nvme", zero_stage=3)
    assert (state["buffer_count"], weights, at_once) == (20, {"device": "none"}, recipe_zero.AT_ONCE)
    assert "nvme_path=/x in" in problem(path, offload="nvme", zero_stage=3, nvme_path="/y")
    left_open = {"offload_optimizer": None, "offload_param": None, "sub_group_size": "auto"}
    state, weights, at_once = in_files(file({"zero_optimization": left_open}), offload="nvme", zero_stage=3)
    assert (state["buffer_count"], weights, at_once) == (4, {"device": "cpu"}, recipe_zero.AT_ONCE)


@pytest.mark.parametrize("name", recipe_zero.STATES)
def test_the_states_of_an_optimizer_are_those_that_it_counts_itself(name):
    weight = torch.zeros(3, 4)
    kept = recipe(options={"optimizer": {"type": name}}).optimizer.kept_bytes("x", weight, 1)
    assert kept // weight.nbytes == recipe_zero.STATES[name]  # beside a count of steps


def test_where_files_cannot_be(file):
    assert "offload=nvme: DeepSpeed keeps state in files at parallel.zero_stage=3 alone, and this is 2" in problem(
        offload="nvme"
    )
    assert "nvme_path=/x is for parallel.offload=nvme, and this is cpu" in problem(offload="cpu", nvme_path="/x")
    config = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}}
    found = problem(file(config))
    assert (
        "zero_optimization.offload_param.device=nvme cannot be had" in found and "say offload_param.device=cpu" in found
    )
    config = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    found = problem(file(config), offload="nvme")
    assert "offload_optimizer.device=cpu in" in found and "parallel.offload=nvme for this recipe" in found


@pytest.mark.parametrize(
    ("options", "stage", "said"),
    [
        ({"train": {"row_tokens": "auto"}}, 1, "train.row_tokens=auto"),
        ({"train": {"fp16": True}}, 1, "train.fp16=true"),
        ({"train": {"transformers": {"torch_compile": True}}}, 2, "train.transformers.torch_compile"),
        ({"adapter": "adalora"}, 2, "adapter=adalora"),
        ({"optimizer": "muon"}, 2, "optimizer=muon needs whole weights"),
        ({"optimizer": "schedule_free"}, 1, "optimizer=schedule_free needs whole weights or their means"),
        ({"objective": "seq2seq"}, 1, "an encoder and a decoder"),
        ({"model": {"path": "builtin:tiny", "quantization": "bnb_8bit"}}, 3, "model.quantization=bnb_8bit"),
        ({"model": {"path": "builtin:tiny", "frozen_dtype": "int8"}}, 3, "model.frozen_dtype=int8"),
        ({"eval": {"prompts": ["a"]}, "data": LEAST["data"] | {"eval": 2}}, 3, "eval.prompts"),
        ({"adapter": "full", "objective": "dpo", "reference": {"compute": "step"}}, 3, "reference.compute=step"),
    ],
)
def test_what_deepspeed_cannot_do(options, stage, said):
    assert said in problem(options=options, zero_stage=stage)
    Recipe(**(LEAST | options))  # without it


def test_without_deepspeed_it_is_said_how_to_have_it(monkeypatch):
    from tunesmith.engine import zero

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("tunesmith.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'tunesmith\[deepspeed\]'"):
        zero.refuse(recipe(), "cpu")
