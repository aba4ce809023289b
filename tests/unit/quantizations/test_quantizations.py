"""What may be held in few bits, what is refused and with which words, and what comes of a run beside it."""

import json
import subprocess
import sys

import pytest
import torch

from fixtures_models import save_model, tiny_model
from tunesmith import Recipe, extras, train
from tunesmith.adapted import adapt
from tunesmith.engine import quantised
from tunesmith.errors import MissingExtra, ModelError, RecipeError, RunError
from tunesmith.exports.adapter import PlainAdapter
from tunesmith.exports.merged import Merged
from tunesmith.generate.load import load

pytestmark = [  # torchao 0.18 uses old names of torch 2.13 as it is imported: https://github.com/pytorch/ao
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "scale": 0.1}
has = extras.find_spec
bnb = pytest.mark.skipif(has("bitsandbytes") is None, reason="bitsandbytes is not installed")
torchao = pytest.mark.skipif(has("torchao") is None, reason="torchao is not installed")
gguf = pytest.mark.skipif(has("gguf") is None, reason="gguf is not installed")
WAYS = [
    pytest.param({"type": "bnb_4bit"}, marks=bnb, id="bnb_4bit"),
    pytest.param({"type": "bnb_8bit"}, marks=bnb, id="bnb_8bit"),
    pytest.param({"type": "hqq"}, id="hqq"),
    pytest.param({"type": "torchao"}, marks=torchao, id="torchao-int8"),
    pytest.param({"type": "torchao", "scheme": "float8_weight_only"}, marks=torchao, id="torchao-float8"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantizations")
    save_model(folder / "model", tiny_model(**SIZES))
    rows = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure!"} for i in range(16)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def recipe(place, model=None, adapter="lora", out="out"):
    return Recipe(
        model={"path": str(place / "model"), "dtype": "float32"} | (model or {}),
        data={"train": str(place / "rows.json"), "max_tokens": 64, "eval": 2, "cache_dir": str(place / "cache")},
        adapter=adapter,
        optimizer={"learning_rate": 1e-2},
        train={"max_steps": 6, "row_tokens": 256, "device": "cpu", "output_dir": str(place / out)},
        eval={"prompts": ("What is 3 and 1?",)},
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_run_learns_is_loaded_as_it_was_and_is_exported(way, place, tmp_path):
    name = "-".join(map(str, way.values()))
    run = train(recipe(place, {"quantization": way}, out=name)).folder
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < losses[0] - 0.3
    model, _ = load(str(run), "cpu", "float32")
    assert quantised.held_in(model.get_base_model()) == way["type"].replace("bnb_4bit", "bitsandbytes").replace(
        "bnb_8bit", "bitsandbytes"
    )
    assert PlainAdapter(device="cpu").write(run, tmp_path / "adapter").largest_logit_difference == 0
    report = Merged(device="cpu").write(run, tmp_path / "merged")
    assert report.passed and report.largest_logit_difference < 1e-3
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


@pytest.mark.parametrize("adapter", ["full", "freeze"])
@pytest.mark.parametrize("way", ["bnb_4bit", "bnb_8bit", "hqq", "torchao"])
def test_what_trains_the_models_own_weights_is_refused_with_what_can(way, adapter, place):
    with pytest.raises(RecipeError, match=f"held in {way} stays as it is, and adapter={adapter} .*use adapter=lora"):
        recipe(place, {"quantization": way}, adapter)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"quantization": "bnb_4bit", "from_scratch": True}, "from_scratch: random weights are trained whole"),
        ({"quantization": "bnb_4bit", "frozen_dtype": "int8"}, "frozen_dtype and quantization both say"),
        ({"quantization": {"type": "hqq", "nbits": 3}}, "model.quantization.nbits: must be 4 or 8"),
        ({"quantization": {"type": "torchao", "scheme": "int4_weight_only"}}, "no gradient: use type=bnb_4bit"),
        ({"quantization": "bnb_3bit"}, "Did you mean 'bnb_.bit'"),
        ({"quantization": {"quant_type": "nf5"}}, "model.quantization.quant_type: must be 'nf4' or 'fp4'"),
    ],
)
def test_what_does_not_go_together_is_refused(model, words, place):
    with pytest.raises(RecipeError, match=words):
        recipe(place, model)


@pytest.mark.parametrize(("way", "package"), [("bnb_4bit", "bitsandbytes"), ("torchao", "torchao")])
def test_a_missing_package_is_told_with_the_command(way, package, place, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=rf"model.quantization={way} needs {package}.*pip install 'tunesmith\[{package}\]'"
    ):
        adapt(recipe(place, {"quantization": way}), "cpu", None)


def stored(place, tmp_path, **said):
    """A model folder whose config says that it is held in some way."""
    folder = save_model(tmp_path / "stored", tiny_model(**SIZES))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return folder


def test_a_stored_model_without_its_package_is_told_with_the_command(place, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    folder = stored(place, tmp_path, quant_method="hqq", quant_config={})
    with pytest.raises(MissingExtra, match=r"held in hqq, which needs .*pip install 'tunesmith\[hqq\]'"):
        adapt(recipe(place, {"path": str(folder)}), "cpu", None)


def test_a_stored_model_is_not_rounded_again(place, tmp_path):
    folder = stored(place, tmp_path, quant_method="gptq", bits=4, group_size=32)
    with pytest.raises(ModelError, match="is stored in gptq: leave model.quantization out"):
        adapt(recipe(place, {"path": str(folder), "quantization": "bnb_4bit"}), "cpu", None)


@bnb
def test_a_model_stored_in_4_bit_is_trained_beside_and_names_itself_as_the_base(place, tmp_path):
    from tunesmith.engine.model import load_model
    from tunesmith.recipe import Model

    base = {"path": str(place / "model"), "dtype": "float32", "quantization": "bnb_4bit"}
    model = load_model(Model(**base), "cpu")
    folder = save_model(tmp_path / "stored", model)
    adapted = adapt(recipe(place, {"path": str(folder)}), "cpu", None)
    assert any("quantised: bitsandbytes, as stored" in note for note in adapted.notes)
    with pytest.raises(RecipeError, match="adapter=full trains the model's own weights, and .* held in bitsandbytes"):
        adapt(recipe(place, {"path": str(folder)}, "full"), "cpu", None)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = load_model(Model(path=str(folder), dtype="float32"), "cpu")(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_has_no_gradient_is_refused_with_what_has(monkeypatch):
    class Held:
        is_trainable = False

    model = tiny_model()
    model.is_quantized, model.hf_quantizer = True, Held()
    model.config.quantization_config = {"quant_method": "mxfp4"}
    with pytest.raises(ModelError, match="m is held in mxfp4, whose products have no gradient: name the plain model"):
        quantised.refuse_untrainable(model, "m")


@gguf
def test_a_gguf_file_is_widened_trained_and_found_again(place):
    folder = _write_gguf(place)
    run = train(recipe(place, {"path": str(folder), "tokenizer": str(place / "model")}, out="gguf")).folder
    model, _ = load(str(run), "cpu", "float32")
    assert quantised.held_in(model.get_base_model()) is None
    base = json.loads((run / "final/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(folder / "model.gguf")
    with torch.no_grad(), model.disable_adapter():
        found = model(input_ids=torch.arange(20)[None]).logits
        expected = tiny_model(**SIZES)(input_ids=torch.arange(20)[None]).logits
    assert torch.allclose(found, expected, atol=1e-3)


def test_a_gguf_file_without_its_package_and_a_folder_with_several(place, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(MissingExtra, match=r"a.gguf needs gguf, .*pip install 'tunesmith\[gguf\]'"):
        adapt(recipe(place, {"path": str(tmp_path)}), "cpu", None)
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match="has 2 .gguf files: name one of them, as .*a.gguf"):
        adapt(recipe(place, {"path": str(tmp_path)}), "cpu", None)


def _write_gguf(place):
    """The tiny model as llama.cpp would write it, in float32."""
    import gguf

    folder = place / "packed"
    folder.mkdir(exist_ok=True)
    model = tiny_model(**SIZES)
    config = model.config
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, number in heads.items():
            if part in name:  # llama.cpp turns neighbours, transformers halves
                tensor = tensor.view(number, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


@bnb
def test_what_bitsandbytes_says_of_a_kernel_for_inference_is_not_repeated():
    """Also where a module has transformers import it at once."""
    code = (  # where it says so by itself it says it twice; on other processors, once
        "import tunesmith.engine.stopwatch; import bitsandbytes.backends.cpu.ops as o; o.logger.warning('another');"
        "o.logger.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s', 'x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gemm_4bit_forward" not in done.stderr and "another" in done.stderr


def test_a_damaged_note_of_what_a_base_was_held_in_is_no_way_to_load(place):
    assert quantised.load_config(place) is None
    with pytest.raises(RunError):
        PlainAdapter().write(place / "model", place / "x")


def test_groups_that_do_not_divide_a_layer_are_told_with_the_layer(place):
    with pytest.raises(ModelError, match=r"down_proj cannot be held in hqq: groups of 96 do not divide a width of 128"):
        adapt(recipe(place, {"quantization": {"type": "hqq", "group_size": 96}}), "cpu", None)
