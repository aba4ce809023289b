"""What a mapping of FSDP's options may say beside a recipe."""

import json

import pytest
import yaml

from tunesmith import recipe_fsdp
from tunesmith.defaults import Device, resolve
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

LEAST = {"model": "builtin:tiny", "data": {"train": "builtin:identity"}}
TRAIN = {"bf16": True, "activation_checkpointing": True}
OF_TRANSFORMERS = {
    "version": 2,
    "reshard_after_forward": False,
    "cpu_offload": False,
    "activation_checkpointing": True,
    "cpu_ram_efficient_loading": False,
    "state_dict_type": "SHARDED_STATE_DICT",
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    "min_num_params": 0,
    "xla": False,
}
OF_ACCELERATE = {
    "distributed_type": "FSDP",
    "mixed_precision": "bf16",
    "num_processes": 8,
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": "false",
        "fsdp_offload_params": False,
        "fsdp_activation_checkpointing": True,
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_sync_module_states": True,
        "fsdp_use_orig_params": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "fsdp_backward_prefetch": "BACKWARD_PRE",
        "fsdp_forward_prefetch": False,
    },
}


def recipe(config, strategy="fsdp", **train):
    return Recipe(**LEAST, train=TRAIN | train, parallel={"strategy": strategy, "fsdp_config": config})


def problem(config, **said):
    with pytest.raises(RecipeError) as caught:
        recipe(config, **said)
    return str(caught.value)


@pytest.mark.parametrize("config", [OF_TRANSFORMERS, OF_ACCELERATE], ids=["transformers", "accelerate"])
@pytest.mark.parametrize("way", ["mapping", "json", "yaml"])
def test_what_is_done_is_taken(config, way, tmp_path):
    if way != "mapping":
        path = tmp_path / f"own.{way}"
        path.write_text(json.dumps(config) if way == "json" else yaml.safe_dump(config))
        config = str(path)
    parallel = recipe(config).parallel
    assert not recipe_fsdp.reshards(parallel)
    assert recipe_fsdp.layers(parallel) == ("LlamaDecoderLayer",)


def test_nothing_said_gathers_layers_twice():
    parallel = recipe(None).parallel
    assert recipe_fsdp.reshards(parallel) and recipe_fsdp.layers(parallel) == ()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("fsdp_version", 1, "say 2"),
        ("sharding_strategy", "HYBRID_SHARD", "parallel.replicate for hybrid_shard"),
        ("reshard_after_forward", "FULL_SHARD", "say true or false"),
        ("offload_params", True, "parallel.offload=cpu"),
        ("cpu_ram_efficient_loading", True, "say false"),
        ("state_dict_type", "FULL_STATE_DICT", "say SHARDED_STATE_DICT"),
        ("auto_wrap_policy", "SIZE_BASED_WRAP", "say TRANSFORMER_BASED_WRAP"),
        ("min_num_params", 1000, "leave it out"),
        ("backward_prefetch", "BACKWARD_POST", "say BACKWARD_PRE"),
        ("forward_prefetch", True, "say false"),
        ("use_orig_params", False, "say true"),
        ("limit_all_gathers", False, "say true"),
        ("xla", True, "say false"),
        ("ignored_modules", ["lm_head"], "no option of FSDP that is known here"),
        ("activation_checkpointing", False, "train.activation_checkpointing=True is in the recipe"),
        ("activation_checkpointing_offload", True, "train.activation_offload=False is in the recipe"),
        ("mixed_precision_policy", "fp32", "train.bf16=True for this recipe"),
        ("mixed_precision_policy", "bf16", "reduce_dtype=float32 here"),
    ],
)
def test_what_is_otherwise_is_refused_with_what_to_say(name, value, said):
    found = problem({name: value})
    assert f"parallel.fsdp_config: {name}={value}" in found and said in found


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"param_dtype": "float32"}, "param_dtype=float32: train.bf16=True for this recipe makes param_dtype=bfloat16"),
        ({"reduce_dtype": "bf16"}, "reduce_dtype=bf16: it is always reduce_dtype=float32"),
        ({"output_dtype": "torch.bfloat16"}, "output_dtype=torch.bfloat16: it is always"),
        ({"cast_forward_inputs": True}, "cast_forward_inputs=True: it is always cast_forward_inputs=False"),
        ({"other": 1}, "mixed_precision_policy.other=1 is no option"),
    ],
)
def test_a_policy_of_dtypes(policy, said):
    assert said in problem({"mixed_precision_policy": policy})
    own = {"param_dtype": "bf16", "reduce_dtype": "torch.float32", "output_dtype": None, "cast_forward_inputs": False}
    for policy in (own, None):
        recipe({"mixed_precision_policy": policy})
    recipe({"mixed_precision_policy": "fp32"}, bf16=False)


def test_the_precision_of_a_file_of_accelerate():
    assert "mixed_precision=no: train.bf16=True for this recipe" in problem(OF_ACCELERATE | {"mixed_precision": "no"})
    plain = {"fsdp_config": {"fsdp_version": 2}}
    for value in ("no", False):  # as YAML reads it without quotes
        recipe(plain | {"mixed_precision": value}, bf16=False)


def test_a_precision_that_is_left_open_is_compared_when_the_device_is_known():
    """`accelerate config` writes one, and a recipe that says none takes it on any device that has it."""
    for value, device in (("bf16", "cuda"), ("no", "cpu")):
        told = recipe({"mixed_precision": value}, bf16=None)
        on = {one: resolve(told, Device(one, "", one == "cuda")).recipe for one in ("cuda", "cpu")}
        assert recipe_fsdp.problem(on.pop(device)) is None
        (other,) = on.values()
        assert f"mixed_precision={value}: train.bf16={other.train.bf16} for this" in recipe_fsdp.problem(other)
    assert "reduce_dtype=bf16: it is always" in problem({"mixed_precision_policy": {"reduce_dtype": "bf16"}}, bf16=None)


def test_a_file_that_cannot_be_had(tmp_path):
    assert f"there is no file {tmp_path / 'none.json'}" in problem(str(tmp_path / "none.json"))
    for name, text, said in (("a.json", "{", "cannot be read"), ("b.yaml", "[1]", "holds no mapping")):
        (tmp_path / name).write_text(text)
        assert said in problem(str(tmp_path / name))


def test_it_is_for_fsdp_alone():
    assert "is for parallel.strategy=fsdp, and this is ddp" in problem({"version": 2}, strategy="ddp")
