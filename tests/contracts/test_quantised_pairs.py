"""Every adapter on a model in few bits: it trains, is loaded again and merged to the same numbers, or is refused."""

import pytest
import torch

from contracts.test_adapters import OPTIONS
from fixtures_models import save_model, tiny_model
from tunesmith import Recipe, together
from tunesmith.adapted import adapt
from tunesmith.component import all_of, refusal
from tunesmith.engine import quantised, stacked
from tunesmith.engine.checkpoint import save_weights
from tunesmith.engine.model import load_model, widened_model
from tunesmith.errors import RecipeError
from tunesmith.recipe import Model
from tunesmith.seams import Adapter, Quantization

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "scale": 0.1}
IDS = torch.arange(20)[None] * 7 % 300
WAYS = ("bnb_4bit", "bnb_8bit", "hqq")
OF_LORA = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa quickly": {"init_lora_weights": "pissa_niter_2"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}
ADAPTERS = {name: {"type": name, **OPTIONS.get(name, {})} for name in all_of(Adapter)}
ADAPTERS |= {f"lora, {name}": {"type": "lora", **options} for name, options in OF_LORA.items()}


def component(options):
    return all_of(Adapter)[options["type"]](**{name: value for name, value in options.items() if name != "type"})


PAIRS = {
    (name, way): refusal([component(options), all_of(Quantization)[way]()])
    for name, options in ADAPTERS.items()
    for way in WAYS
}
TOGETHER = [pair for pair, reason in PAIRS.items() if reason is None]
APART = [pair for pair, reason in PAIRS.items() if reason is not None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pairs"), tiny_model(**SIZES))


def loaded(folder, way):
    return load_model(Model(path=str(folder), dtype="float32", quantization=way), "cpu")


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits[:, -IDS.shape[1] :]


@pytest.mark.parametrize(("adapter", "way"), TOGETHER)
def test_what_goes_together_trains_and_is_loaded_and_merged_to_the_same_numbers(adapter, way, folder, tmp_path):
    chosen, base = component(ADAPTERS[adapter]), loaded(folder, way)
    own = logits(base)
    model = chosen.apply(base)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.5)
    for _ in range(2):  # of some updates one half is 0 at first, and the other has no gradient
        optimizer.zero_grad()
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    trained = logits(model)
    assert (trained - own).abs().max() > 1e-4
    save_weights(model, tmp_path)
    assert torch.allclose(logits(stacked.put(loaded(folder, way), tmp_path)), trained, atol=1e-5)
    if type(chosen).unmerged is None:
        merged = stacked.put(widened_model(loaded(folder, way), str(folder)), tmp_path).merge_and_unload()
        assert type(merged.model.layers[0].mlp.up_proj) is torch.nn.Linear
        assert torch.allclose(logits(merged), trained, atol=1e-4)


@pytest.mark.parametrize(("adapter", "way"), APART)
def test_what_does_not_is_refused_before_anything_is_loaded_with_what_works(adapter, way):
    with pytest.raises(RecipeError) as error:
        Recipe(
            model={"path": "no/model", "quantization": way},
            data={"train": "builtin:identity"},
            adapter=ADAPTERS[adapter],
        )
    assert PAIRS[adapter, way] in str(error.value)
    assert "use " in PAIRS[adapter, way] and ("bnb" in PAIRS[adapter, way] or "quantization" in PAIRS[adapter, way])


def test_the_refused_are_these():
    names = {way: {name for name, other in APART if other == way} for way in WAYS}
    whole = {name for name, kind in all_of(Adapter).items() if not kind.beside}
    made = {"ia3", "lora, pissa", "lora, pissa quickly", "lora, olora", "lora, orthogonal"}
    assert names["bnb_4bit"] == whole | made | {"loha", "lokr"}
    assert names["hqq"] == whole | made - {"ia3"}
    assert names["bnb_8bit"] == whole | made | {"lora, dora"}


@pytest.mark.parametrize(("way", "adapter"), [("bnb_4bit", "loha"), ("bnb_8bit", "ia3")])
def test_a_model_that_is_stored_so_refuses_the_same(way, adapter, folder, tmp_path):
    place = save_model(tmp_path / "stored", loaded(folder, way))
    assert quantised.component_of(loaded(folder, way)) == way and quantised.component_of(tiny_model(**SIZES)) is None
    recipe = Recipe(model={"path": str(place), "dtype": "float32"}, data={"train": "builtin:identity"}, adapter=adapter)
    with pytest.raises(RecipeError) as error:
        adapt(recipe, "cpu", None)
    assert f"stored is stored in {way}. {PAIRS[adapter, way]}" in str(error.value)


@pytest.mark.parametrize("way", all_of(Quantization))
def test_adapters_below_are_not_merged_into_rounded_weights(way):
    words = {"model": {"path": "no/model", "quantization": way}, "data": {"train": "builtin:identity"}}
    Recipe(**words, adapter={"type": "lora", "start_from": ["one"]})
    with pytest.raises(RecipeError, match=f"start_from: .* those of {way} would be rounded anew: merge them"):
        Recipe(**words, adapter={"type": "lora", "start_from": ["one", "two"]})


def test_the_page_has_these_pairs():
    found = {(one.first, one.second): one.reason for one in together.pairs(Adapter, Quantization)}
    assert all(found[pair] == reason for pair, reason in PAIRS.items() if pair[0] in all_of(Adapter))
