"""What a step leaves out: work for frozen weights, and waiting for the device between two lines of metrics."""

import traceback
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fixtures_models import tiny_lora, tiny_model, tiny_tokenizer
from numerics.packed import packed_batch
from tunesmith import Recipe, train
from tunesmith.adapters.freeze import Freeze
from tunesmith.engine import kernels
from tunesmith.engine.activations import checkpoint_activations
from tunesmith.engine.compat import DispatchMode
from tunesmith.recipe_train import Train

SIZES = {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 256}
ROWS = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure."} for i in range(40)]


def passes(model):
    """The operations of the layers' weights in a forward pass (2 a token), those of the backward pass, the outputs."""
    scorer = kernels.choose(model).scorer
    model.train()
    outputs = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in base.model.layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    batch = packed_batch((50, 30), model.config.vocab_size)
    weights = sum(one.numel() for name, one in base.model.layers.named_parameters() if "lora_" not in name)
    loss = scorer(model, batch).logps.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return 2 * batch.input_ids.numel() * weights, backward.get_total_flops(), outputs


def test_lora_makes_no_gradient_of_a_frozen_weight():
    model = tiny_lora(tiny_model(**SIZES))
    forward, backward, _ = passes(model)
    assert {name for name, one in model.named_parameters() if one.grad is not None} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    assert backward < 1.3 * forward  # of the inputs alone, and of low rank; with frozen weights' too it is 2
    full = tiny_model(**SIZES)
    forward, backward, _ = passes(full)
    assert backward > 1.9 * forward


def test_nothing_is_differentiated_below_the_first_trained_layer():
    trained = 2
    model = Freeze(num_layers=trained).apply(tiny_model(**SIZES))
    forward, backward, outputs = passes(model)
    frozen = SIZES["num_hidden_layers"] - trained
    assert [output.requires_grad for output in outputs] == [False] * frozen + [True] * trained
    assert model.get_input_embeddings().weight.grad is None
    share = trained / SIZES["num_hidden_layers"]
    assert backward < 2.2 * share * forward  # attention's scores are made again


def test_frozen_layers_are_not_computed_again():
    model = Freeze(num_layers=2).apply(tiny_model(**SIZES))
    checkpoint_activations(model, Train(activation_checkpointing=True))
    forward, backward, outputs = passes(model)
    share = 2 / SIZES["num_hidden_layers"]
    assert backward < 3.05 * share * forward
    assert len(outputs) == SIZES["num_hidden_layers"]  # hooks of a layer are not run again either


WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")
AT_LINES = {"log", "evaluate", "_save_checkpoint", "_maybe_log_save_evaluate"}
AT_FIRST = {"_get_iterator"}  # torch's loader draws a seed, on the CPU


class Waits(DispatchMode):
    """Remembers where the host would wait for a device: what reads a value, or makes a shape of values."""

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function.name() == "aten::index.Tensor" and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        if function.name() in WAITING or by_mask:
            self.note(function.name())
        return function(*args, **(kwargs or {}))

    def note(self, what):
        stack = traceback.extract_stack()[:-2]
        names = {frame.name for frame in stack}
        if "_run_epoch" in names and not names & (AT_LINES | AT_FIRST):
            place = next(
                one for one in reversed(stack) if "tunesmith" in one.filename or "transformers" in one.filename
            )
            self.places.append((Path(place.filename).name, place.name, what))


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0, "release_gradients": True}], ids=["plain", "released"])
def test_a_step_between_two_lines_waits_for_nothing(tmp_path, monkeypatch, options):
    waits = Waits()
    own = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (waits.note("tolist"), own(self))[1])
    sections = {
        "model": "mine",
        "data": {"train": "rows", "max_tokens": 64, "cache_dir": str(tmp_path / "cache")},
        "train": {"output_dir": str(tmp_path / "run"), "row_tokens": 64, "max_steps": 4, "logging_steps": 4} | options,
    }
    with waits:
        train(Recipe(**sections), model=tiny_model(), tokenizer=tiny_tokenizer(), rows=ROWS)
    assert not waits.places
