"""Which modules of a layer are cut and how, and which models are refused."""

import pytest

from fixtures_models import tiny_model
from tunesmith.engine import tensor
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


def test_other_processes_beside_them_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    said = {"adapter": "full", "parallel": {"tensor": 2}}
    recipe = Recipe(model="builtin:tiny", data={"train": "builtin:identity"}, **said)
    assert tensor.wanted(recipe)
    with pytest.raises(RecipeError, match="parallel.tensor=2 is for as many processes, and these are 4: start 2"):
        tensor.cut(tiny_model(), recipe, "cpu")
