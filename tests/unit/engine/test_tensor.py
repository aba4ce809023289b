"""Which modules of a layer are cut and how, and which models are refused."""

import pytest
from torch.distributed import device_mesh

from fixtures_models import tiny_model
from tunesmith.engine import shared_out, tensor
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

OPTION = "parallel.tensor=2"


def test_layers_alone_are_cut():
    plan = tensor.plan_of(tiny_model(), 2, OPTION)
    assert plan["model.layers.0.self_attn.q_proj"] == plan["model.layers.1.mlp.up_proj"] == "colwise"
    assert plan["model.layers.1.self_attn.o_proj"] == plan["model.layers.0.mlp.down_proj"] == "rowwise"
    assert len(plan) == 2 * 7 and all(name.startswith("model.layers.") for name in plan)


def test_norms_of_heads_are_told_apart():
    plan = tensor.plan_of(tiny_model(arch="qwen3"), 2, OPTION)
    assert plan["model.layers.0.self_attn.q_norm"] == "replicated_with_grad_allreduce"


def test_models_that_are_not_cut_so_are_refused():
    with pytest.raises(RecipeError, match="num_key_value_heads of LlamaForCausalLM is 2: say a number that divides"):
        tensor.plan_of(tiny_model(), 4, "parallel.tensor=4")
    with pytest.raises(RecipeError, match="Phi3ForCausalLM is cut in ways that are not known here"):
        tensor.plan_of(tiny_model(arch="phi3"), 2, OPTION)


@pytest.mark.parametrize(
    ("parallel", "number", "axes"),
    [
        ({}, 2, {"tensor": 2}),
        ({}, 8, {"replicate": 4, "tensor": 2}),
        ({"strategy": "fsdp"}, 2, {"tensor": 2}),
        ({"strategy": "fsdp"}, 8, {"fsdp": 4, "tensor": 2}),
        ({"strategy": "fsdp", "fsdp": 2}, 8, {"replicate": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_processes_by_what_they_have(monkeypatch, parallel, number, axes):
    monkeypatch.setenv("WORLD_SIZE", str(number))
    monkeypatch.setattr(device_mesh, "init_device_mesh", lambda device, sizes, mesh_dim_names: (mesh_dim_names, sizes))
    recipe = Recipe(model="builtin:tiny", data={"train": "builtin:identity"}, parallel={"tensor": 2} | parallel)
    names, sizes = shared_out.mesh_of(recipe, "cpu")
    assert dict(zip(names, sizes, strict=True)) == axes


def test_a_number_of_processes_that_does_not_fit(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    said = {"parallel": {"strategy": "fsdp", "fsdp": 3, "tensor": 2}}
    recipe = Recipe(model="builtin:tiny", data={"train": "builtin:identity"}, **said)
    with pytest.raises(RecipeError, match="1 copies of a model, each on 6 processes, need 6 of them, and these are 8"):
        shared_out.mesh_of(recipe, "cpu")
