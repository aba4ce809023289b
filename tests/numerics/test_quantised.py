"""QLoRA's numbers are those of a float32 model with the widened weights, whichever way the layers are computed."""

import pytest
import torch

from fixtures_models import save_model, tiny_lora, tiny_model
from tunesmith import record
from tunesmith.engine import layers, quantised
from tunesmith.engine.model import load_model, widened_model
from tunesmith.recipe import Model

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "scale": 0.1}
IDS = torch.arange(40).view(2, 20) * 7 % 300
KINDS = [
    {"type": "bnb_4bit"},
    {"type": "bnb_4bit", "use_double_quant": False, "quant_storage": "bfloat16"},
    {"type": "bnb_4bit", "quant_type": "fp4"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("quantised"), tiny_model(**SIZES))


def loaded(folder, quantization, dtype="float32"):
    return load_model(Model(path=str(folder), dtype=dtype, quantization=quantization), "cpu")


def learned(model):
    """The log-probabilities of a model, and the gradients of what is trained."""
    model.zero_grad()
    logps = model(input_ids=IDS).logits[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])
    (-logps.sum()).backward()
    return logps.detach(), {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


def close(found, expected, tolerance=1e-5):
    assert (found[0] - expected[0]).abs().max() <= tolerance * expected[0].abs().max()
    assert found[1].keys() == expected[1].keys() and found[1]
    for name, gradient in expected[1].items():
        assert gradient.norm() > 0
        assert (found[1][name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_they_are_those_of_the_widened_weights(folder, quantization):
    model = tiny_lora(loaded(folder, quantization)).train()
    own = learned(model)  # by peft and bitsandbytes
    layers.fuse(model, None)
    fused = [module for module in model.modules() if isinstance(module, layers._Updating)]
    assert len(fused) == 14 and all(isinstance(layers.layer_of(one).product, quantised.FourBit) for one in fused)
    ours = learned(model)
    plain = tiny_lora(widened_model(loaded(folder, quantization), str(folder))).train()
    assert plain.get_base_model().model.layers[0].mlp.up_proj.get_base_layer().weight.dtype == torch.float32
    expected = learned(plain)
    close(ours, expected)
    close(own, expected)
    first, then = tiny_model(**SIZES).state_dict(), plain.get_base_model().state_dict()
    name = "model.layers.0.mlp.up_proj."
    assert (
        0.02 < (then[name + "base_layer.weight"] - first[name + "weight"]).norm() / first[name + "weight"].norm() < 0.2
    )


def test_dropout_is_drawn_for_the_updates_alone(folder):
    model = tiny_lora(loaded(folder, KINDS[0]), lora_dropout=0.5)
    layers.fuse(model, None)
    model.eval()
    steady = learned(model)[0]
    model.train()
    assert not torch.equal(learned(model)[0], steady)


def test_a_model_that_was_evaluated_is_trained_as_before(folder, monkeypatch):
    """bitsandbytes lays weights out anew in evaluation on a CPU with bfloat16, and has no gradient of them then."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = tiny_lora(loaded(folder, KINDS[0], "bfloat16"))
    before = record.model_fingerprint(model)
    with torch.no_grad(), model.disable_adapter():
        model.eval()(input_ids=IDS)
    assert record.model_fingerprint(model) == before
    assert all(gradient.norm() > 0 for gradient in learned(model.train())[1].values())


def test_a_cpu_evaluates_8_bit_weights_as_it_trains_them(folder):
    """bitsandbytes rounds the inputs of the product too in evaluation, and not in training on a CPU."""
    model, plain = loaded(folder, "bnb_8bit"), widened_model(loaded(folder, "bnb_8bit"), str(folder))
    assert type(plain.model.layers[0].mlp.up_proj) is torch.nn.Linear
    with torch.no_grad():
        expected = plain.eval()(input_ids=IDS).logits
        for training in (False, True):
            assert (model.train(training)(input_ids=IDS).logits - expected).abs().max() < 1e-5
    own = tiny_model(**SIZES).state_dict()["model.layers.0.mlp.up_proj.weight"]
    error = (plain.model.layers[0].mlp.up_proj.weight - own).abs() / own.abs().amax(1, keepdim=True)
    assert 1e-4 < error.max() <= 0.5 / 127 + 1e-3  # half a step of 127 in a row, and float16's rounding


def test_what_was_trained_in_half_precision_answers_in_float32_as_its_widened_weights(folder):
    """As a run on CUDA does that is exported on a CPU: its products are in the dtype of the states here."""
    held = Model(path=str(folder), quantization="bnb_4bit").quantization.config(torch.bfloat16, "cpu")
    plain = Model(path=str(folder), dtype="float32")
    model = load_model(plain, "cpu", held=held).eval()
    with torch.no_grad():
        found = model(input_ids=IDS).logits
        expected = widened_model(load_model(plain, "cpu", held=held), str(folder)).eval()(input_ids=IDS).logits
    assert (found - expected).abs().max() < 1e-5


def test_updates_are_float32_and_norms_the_models_own_beside_bfloat16(folder):
    model = tiny_lora(loaded(folder, KINDS[0], "bfloat16"))
    kinds = {name: one.dtype for name, one in model.named_parameters()}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "norm" in name or "embed" in name} == {torch.bfloat16}
    assert {kind for name, kind in kinds.items() if "proj" in name and "lora_" not in name} == {torch.uint8}
    assert type(model.get_output_embeddings()) is torch.nn.Linear


def test_the_storage_type_says_what_a_shard_sees(folder):
    model = loaded(folder, KINDS[1], "bfloat16")
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


def test_the_fingerprint_knows_the_scales(folder):
    model = loaded(folder, KINDS[1])
    before = record.model_fingerprint(model)
    assert record.model_fingerprint(loaded(folder, KINDS[1])) == before
    model.model.layers[0].mlp.up_proj.weight.quant_state.absmax.mul_(2)
    assert record.model_fingerprint(model) != before


def test_layers_are_given_back(folder):
    model = tiny_lora(loaded(folder, KINDS[0]))
    before = [type(one) for one in model.modules()]
    layers.fuse(model, None).undo()
    assert [type(one) for one in model.modules()] == before


def test_parameters_count_what_they_stand_for(folder):
    from tunesmith.adapted import parameters

    assert parameters(loaded(folder, KINDS[0]))["all"] == tiny_model(**SIZES).num_parameters()


def test_4_bit_layers_take_at_most_03_of_16_bits():
    """512 x 512 weights: half a byte each, a byte of scale for 64, 4 for 256 of these; tables of 16 and 256 floats."""
    import bitsandbytes

    model = torch.nn.Sequential(bitsandbytes.nn.Linear4bit(512, 512, bias=False, quant_type="nf4")).to("cpu")
    found, plain = quantised.held_bytes(model)
    blocks = 512 * 512 // 64
    assert plain == 2 * 512 * 512
    assert 0 <= found - (512 * 512 // 2 + blocks + 4 * (blocks // 256) + 4 * (16 + 256)) < 300  # its own JSON
    assert found <= 0.3 * plain


def test_8_bit_layers_take_a_byte_a_weight_and_a_scale_a_row(folder):
    layers_ = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    rows = 2 * (2 * 64 + 2 * 32 + 2 * 128 + 64)
    model = loaded(folder, "bnb_8bit")
    for _ in range(2):  # scales move when a layer is used first
        assert quantised.held_bytes(model) == (layers_ + 4 * rows, 2 * layers_)
        model(input_ids=IDS)
