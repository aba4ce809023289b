"""Models stored in GPTQ, AWQ or compressed-tensors: an adapter learns beside them, and is merged into their numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures_models import tiny_model
from fixtures_packed import WAYS, save_packed
from tunesmith import adapted, train
from tunesmith.adapted import adapt
from tunesmith.engine import quantised
from tunesmith.engine.model import load_model
from tunesmith.errors import ModelError, RecipeError, RunError
from tunesmith.exports.merged import Merged
from tunesmith.generate.load import load
from tunesmith.recipe_parallel import Parallel
from unit.quantizations.test_quantizations import SIZES, place, recipe

__all__ = ["place"]


@pytest.mark.parametrize("method", WAYS)
def test_a_run_learns_is_loaded_as_it_was_and_is_merged(method, place, tmp_path, capsys):
    folder = save_packed(tmp_path / "base", tiny_model(**SIZES), method)
    run = train(recipe(place, {"path": str(folder)}, out=f"on-{method}")).folder
    assert f"quantised: {method}, as stored: 0.0 MB of layers, 0." in capsys.readouterr().err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < losses[0] - 0.3
    model, _ = load(str(run), "cpu", "float32")
    assert quantised.held_in(model.get_base_model()) == method
    report = Merged(device="cpu").write(run, tmp_path / "merged")
    assert report.passed and report.largest_logit_difference < 1e-3
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
    assert not any("qweight" in name or "packed" in name for name in load_file(tmp_path / "merged/model.safetensors"))
    with pytest.raises(RunError, match=f"into: stored is for a base that the run rounded, .* stored in {method}"):
        Merged(device="cpu", into="stored").write(run, tmp_path / "again")
    with pytest.raises(ModelError, match=f"cannot be merged into weights in {method}, .* type=merged"):
        Merged(device="cpu", adapters=(str(run),)).write(run, tmp_path / "again")
    with pytest.raises(RecipeError, match=f"{method}, which is held here as hqq is.* would be rounded anew: merge"):
        adapt(recipe(place, {"path": str(folder)}, {"type": "lora", "start_from": [str(run), str(run)]}), "cpu", None)


REFUSED = [
    ("gptq", {"checkpoint_format": "marlin"}, "its format is marlin, and what is read is gptq and gptq_v2"),
    ("gptq", {"bits": 5}, "it has 5 bits, and what is read has 2, 3, 4, 8"),
    ("awq", {"version": "gemv"}, "its format is gemv, and what is read is gemm"),
    ("awq", {"bits": 3}, "it has 3 bits, and what is read has 4"),
    ("compressed-tensors", {"format": "nvfp4-pack-quantized"}, "its format is nvfp4-pack-quantized, .* pack-quantized"),
    ("compressed-tensors", {"format": "marlin-24"}, "its format is marlin-24"),
    ("compressed-tensors", {"config_groups": {"0": {"weights": {"num_bits": 3}}}}, "it has 3 bits, .* 4 or 8"),
    ("compressed-tensors", {"config_groups": {"0": {"weights": {"strategy": "block"}}}}, "a scale for a block"),
    ("compressed-tensors", {"transform_config": {"config_groups": {"0": {}}}}, r"turn their inputs \(transform_config"),
    ("compressed-tensors", {"sparsity_config": {"format": "sparse-bitmask"}}, "weights are sparse-bitmask"),
]


@pytest.mark.parametrize(("method", "said", "words"), REFUSED)
def test_what_cannot_be_read_is_refused_by_name_with_what_can(method, said, words, place, tmp_path):
    folder = save_packed(tmp_path / "base", tiny_model(**SIZES), method, **said)
    with pytest.raises(ModelError, match=f"{words}.* Name the plain model, and set model.quantization"):
        adapt(recipe(place, {"path": str(folder)}), "cpu", None)


def test_what_trains_the_weights_or_takes_them_for_numbers_is_refused(place, tmp_path):
    folder = save_packed(tmp_path / "base", tiny_model(**SIZES), "gptq")
    with pytest.raises(
        RecipeError, match=r"adapter=full trains the model's own weights, .*held in gptq.* use adapter=l"
    ):
        adapt(recipe(place, {"path": str(folder)}, "full"), "cpu", None)
    with pytest.raises(
        RecipeError, match=r"stored in gptq, which is held here as hqq is\. adapter.init_lora_weights: pi"
    ):
        adapt(recipe(place, {"path": str(folder)}, {"type": "lora", "init_lora_weights": "pissa"}), "cpu", None)


def test_parts_of_weights_are_refused_as_beside_weights_that_are_rounded_here(place, tmp_path):
    folder = save_packed(tmp_path / "base", tiny_model(**SIZES), "awq")
    shared = recipe(place, {"path": str(folder)}).model_copy(update={"parallel": Parallel(strategy="fsdp")})
    model = load_model(shared.model, "cpu")
    with pytest.raises(RecipeError, match=r"held here as hqq is\. model.quantization=hqq does not go with .*fsdp"):
        adapted._refuse_as_stored(shared, model)


def damaged(folder, change):
    """A folder whose tensors are changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


DOWN = "model.layers.1.mlp.down_proj"


def test_a_layer_whose_tensors_are_missing_or_do_not_fit_is_named(place, tmp_path):
    folder = save_packed(tmp_path / "base", tiny_model(**SIZES), "gptq")
    damaged(folder, lambda tensors: tensors.pop(f"{DOWN}.qzeros"))
    with pytest.raises(ModelError, match=f"{DOWN} cannot be held in gptq: it lacks 'qzeros'"):
        adapt(recipe(place, {"path": str(folder)}), "cpu", None)
    folder = save_packed(tmp_path / "other", tiny_model(**SIZES), "awq")
    damaged(folder, lambda tensors: tensors.update({f"{DOWN}.qweight": torch.zeros(4, 4, dtype=torch.int32)}))
    with pytest.raises(ModelError, match=rf"{DOWN} cannot be held in awq: qweight \(4, 4\) and scales"):
        adapt(recipe(place, {"path": str(folder)}), "cpu", None)


def test_a_layer_that_is_not_there_is_not_made_up(place, tmp_path):
    folder = save_packed(tmp_path / "base", tiny_model(**SIZES), "awq")
    damaged(folder, lambda tensors: [tensors.pop(name) for name in [*tensors] if name.startswith(DOWN)])
    with pytest.raises(ModelError, match=f"is stored in awq, and {DOWN}.weight is not to be had of it"):
        adapt(recipe(place, {"path": str(folder)}), "cpu", None)


def test_a_layer_of_a_stored_model_may_be_plain_and_so_is_its_head(place, tmp_path):
    """As layers that a checkpoint's makers left out, and a head that they did not."""
    folder = save_packed(tmp_path / "base", tiny_model(tied=False, vocab=400, **SIZES), "awq")
    plain = tiny_model(tied=False, vocab=400, **SIZES).state_dict()
    how = WAYS["awq"][0]

    def change(tensors):
        for name in [*tensors]:
            if name.startswith(DOWN):
                tensors.pop(name)
        tensors[f"{DOWN}.weight"] = plain[f"{DOWN}.weight"]
        tensors.update({f"lm_head.{part}": value for part, value in how(tensors.pop("lm_head.weight")).items()})

    damaged(folder, change)
    base = adapt(recipe(place, {"path": str(folder)}), "cpu", None).model.get_base_model()
    assert type(base.lm_head) is torch.nn.Linear
    assert 0.02 < (base.lm_head.weight - plain["lm_head.weight"]).norm() / plain["lm_head.weight"].norm() < 0.2
    assert torch.equal(base.model.layers[1].mlp.down_proj.get_base_layer().weight, plain[f"{DOWN}.weight"])
