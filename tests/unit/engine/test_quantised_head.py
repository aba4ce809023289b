"""A new head on a model in few bits stays as it is, also where the model is stored so."""

import pytest
import torch

from fixtures_models import save_model, tiny_model
from tunesmith.engine.model import Head, load_model
from tunesmith.recipe import Model

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.mark.parametrize("stored", [False, True], ids=["plain", "stored in 4 bit"])
@pytest.mark.parametrize("tokens", [False, True], ids=["of a sequence", "of tokens"])
def test_a_new_head_is_plain_and_learns(tokens, stored, tmp_path):
    own, held = save_model(tmp_path / "own", tiny_model()), "bnb_4bit"
    if stored:
        own = save_model(tmp_path / "stored", load_model(Model(path=str(own), quantization=held), "cpu"))
        held = None
    model = load_model(Model(path=str(own), quantization=held), "cpu", head=Head(("no", "yes"), tokens=tokens), pad=0)
    assert type(model.score) is torch.nn.Linear and model.score.weight.dtype.is_floating_point
    assert (model.score.bias is not None) == tokens
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
