"""A recipe and the shape of its model, without weights."""

import pytest

from fixtures_models import tiny_config
from tunesmith.defaults import Device, resolve
from tunesmith.planner import shapes
from tunesmith.recipe import Recipe

CUDA = Device("cuda", "a CUDA device", True)


@pytest.fixture
def told(tmp_path):
    """A resolved recipe and its shape; keywords are its sections."""
    tiny_config(400).save_pretrained(tmp_path / "mine")

    def made(adapter="full", train=None, **sections):
        data = {"train": "builtin:identity", "max_tokens": 512}
        options = {"device": "cuda", "activation_checkpointing": True} | (train or {})
        recipe = Recipe(model=str(tmp_path / "mine"), data=data, adapter=adapter, train=options, **sections)
        recipe = resolve(recipe, CUDA).recipe
        return recipe, shapes.shape_of(recipe)

    return made
