"""New tokens: trained, saved, resumed, merged, and loaded by plain libraries to the same logits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fixtures_models import save_model, tiny_model, tiny_tokenizer
from tunesmith import Recipe, resume, train
from tunesmith.adapted import adapt
from tunesmith.engine.compat import peft_warnings
from tunesmith.engine.kernels import _batch
from tunesmith.engine.model import load_model, load_tokenizer
from tunesmith.engine.scores import Scorer
from tunesmith.errors import ModelError, RecipeError
from tunesmith.exports.adapter import PlainAdapter
from tunesmith.exports.merged import Merged
from tunesmith.generate.load import load
from tunesmith.recipe import Model

TOKENS = {"<think>": "", "<call>": "What is two"}
SPECIAL = {"<|quiet|>": ""}
SIZE = len(tiny_tokenizer())
IDS = torch.tensor([[5, 7, SIZE, 9, SIZE + 1, 11, SIZE + 2, 30, 31]])  # with every new token


def recipe(folder, adapter, **changes):
    model = {"path": str(folder / "model"), "dtype": "float32", "new_tokens": TOKENS, "new_special_tokens": SPECIAL}
    tree = {
        "model": model,
        "data": {
            "train": str(folder / "rows.json"), "max_tokens": 64, "eval": 2, "cache_dir": str(folder / "cache"),
        },
        "adapter": adapter,
        "optimizer": {"learning_rate": 1e-2},
        "train": {
            "max_steps": 4, "row_tokens": 256, "save_steps": 2, "save_total_limit": 9, "warmup_steps": 0,
            "device": "cpu", "output_dir": str(folder / "run"),
        },
    }  # fmt: skip
    return Recipe(**(tree | changes))


def model_of(folder, tied=True, vocab=None, **changes):
    save_model(folder / "model", tiny_model(vocab, tied=tied, scale=0.1, **changes))
    rows = [
        {"instruction": f"<call> {i} and 1?", "output": f"<think>sure<|quiet|><call> {i + 1}, sure!"} for i in range(12)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_the_tokenizer_knows_them_and_what_is_special_is_not_decoded(tmp_path):
    model_of(tmp_path)
    said = Model(path=str(tmp_path / "model"), new_tokens=list(TOKENS), new_special_tokens=list(SPECIAL))
    tokenizer = load_tokenizer(said)
    ids = tokenizer("x<think>y<|quiet|>z<call>")["input_ids"]
    assert [one for one in ids if one >= SIZE] == [SIZE, SIZE + 2, SIZE + 1] and len(tokenizer) == SIZE + 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "x<think>yz<call>"
    with pytest.raises(ModelError, match="model.new_tokens: .* has '<|im_end|>' already: leave it out"):
        load_tokenizer(said.model_copy(update={"new_tokens": {"<|im_end|>": ""}}))
    with pytest.raises(ValueError, match="'<a>' cannot be added"):
        Model(path="x", new_tokens=["<a>"], new_special_tokens=["<a>"])


@pytest.mark.parametrize(("tied", "spare"), [(True, 0), (False, 9), (False, 0)])
def test_new_rows_begin_as_means(tied, spare, tmp_path):
    vocab = SIZE + spare
    model_of(tmp_path, tied, vocab)
    old = tiny_model(vocab, tied=tied, scale=0.1)
    said = Model(path=str(tmp_path / "model"), new_tokens=TOKENS, new_special_tokens=SPECIAL)
    model = load_model(said, "cpu")
    words = tiny_tokenizer()("What is two")["input_ids"]
    for before, now in (
        (old.get_input_embeddings().weight, model.get_input_embeddings().weight),
        (old.get_output_embeddings().weight, model.get_output_embeddings().weight),
    ):
        assert len(now) == max(vocab, SIZE + 3) == model.config.vocab_size
        assert torch.equal(now[:SIZE], before[:SIZE]) and torch.equal(now[SIZE + 3 :], before[SIZE + 3 :])
        torch.testing.assert_close(now[[SIZE, SIZE + 2]], before[:SIZE].mean(0).expand(2, -1))
        torch.testing.assert_close(now[SIZE + 1], before[words].mean(0))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("name", ["lora", "full"])
@pytest.mark.parametrize(("tied", "spare"), [(True, 0), (False, 9)])
def test_trained_merged_and_reloaded_by_plain_libraries(name, tied, spare, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_of(tmp_path, tied, SIZE + spare)
    run = train(recipe(tmp_path, {"type": name})).folder
    model, tokenizer = load(str(run), "cpu")
    own = logits(model)
    assert tokenizer.convert_tokens_to_ids("<|quiet|>") == SIZE + 2
    start = load_model(recipe(tmp_path, {"type": name}).model, "cpu")
    report = Merged(device="cpu").write(run, tmp_path / "merged")
    assert report.passed
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), own, rtol=1e-4, atol=1e-4)
    assert merged.config.tie_word_embeddings == tied
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("<call>")["input_ids"] == [SIZE + 1]
    for before, now in (
        (start.get_input_embeddings().weight, merged.get_input_embeddings().weight),
        (start.get_output_embeddings().weight, merged.get_output_embeddings().weight),
    ):
        assert ((now - before)[SIZE : SIZE + 3].abs().amax(1) > 1e-3).all(), "every new row was trained"
        assert name == "full" or torch.equal(now[:SIZE], before[:SIZE]), "and no other"
    if name == "lora":
        assert PlainAdapter(device="cpu").write(run, tmp_path / "adapter").passed
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        if not spare:
            base.resize_token_embeddings(len(tokenizer))
        with peft_warnings():
            adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
        assert torch.equal(logits(adapted), own)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_beside_a_head_keep_the_fused_path_with_its_gradients(tied, tmp_path):
    model_of(tmp_path, tied)
    found = adapt(recipe(tmp_path, {"type": "lora"}), "cpu", None)
    assert found.kernels.scorer.fused and not [note for note in found.notes if "off" in note]
    assert any("new tokens: <think>, <call>, <|quiet|>" in note for note in found.notes)
    model = found.model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    batch = _batch(IDS, (4, 5))
    made = []
    for fused in (True, False):
        model.zero_grad()
        scores = Scorer.of(model, fused=fused)(model, batch)
        (scores.logps * torch.arange(9)).sum().backward()
        made.append((scores.logps.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(made[0][0], made[1][0])
    rows = [name for name in made[0][1] if "trainable_tokens_delta" in name]
    assert len(rows) == (1 if tied else 2) and made[0][1].keys() == made[1][1].keys()
    for name, one in made[0][1].items():
        torch.testing.assert_close(one, made[1][1][name], rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        without = [Scorer.of(model, fused=fused)(model, batch).logps for fused in (True, False)]
    torch.testing.assert_close(*without)
    assert (without[0] - made[0][0]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["lora", "full"])
def test_it_goes_on_bit_for_bit(name, tmp_path):
    model_of(tmp_path)
    first = train(recipe(tmp_path, {"type": name})).folder
    shutil.copytree(first, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/final")
    shutil.rmtree(tmp_path / "again/checkpoints/step-4")
    again = resume(tmp_path / "again").folder
    for path in (first / "final").glob("*.safetensors"):
        expected, other = load_file(path), load_file(again / "final" / path.name)
        assert expected.keys() == other.keys() and all(torch.equal(one, other[key]) for key, one in expected.items())


def test_half_precision_trains_rows_in_float32(tmp_path):
    model_of(tmp_path)
    said = {"path": str(tmp_path / "model"), "dtype": "bfloat16", "new_tokens": TOKENS}
    model = adapt(recipe(tmp_path, {"type": "lora"}, model=said), "cpu", None).model
    rows = [one for name, one in model.named_parameters() if "trainable_tokens_delta" in name]
    assert [one.dtype for one in rows] == [torch.float32]


def test_frozen_embeddings_are_said_to_be(tmp_path):
    model_of(tmp_path)
    notes = adapt(recipe(tmp_path, {"type": "freeze", "num_layers": 1}), "cpu", None).notes
    assert any("stay as they begin, since the embeddings are frozen" in note for note in notes)


def test_embeddings_that_are_trained_whole_are_so_once(tmp_path):
    model_of(tmp_path, tied=False)
    adapter = {"type": "lora", "modules_to_save": ["embed_tokens", "lm_head"]}
    model = adapt(recipe(tmp_path, adapter), "cpu", None).model
    assert not [name for name, _ in model.named_parameters() if "trainable_tokens" in name]


def test_what_a_script_brings_is_not_changed(tmp_path):
    model_of(tmp_path)
    with pytest.raises(RecipeError, match="model.new_tokens: .* the model that was given"):
        adapt(recipe(tmp_path, {"type": "full"}), "cpu", tiny_model())
    with pytest.raises(RecipeError, match="model.new_tokens: a script brought the tokenizer"):
        train(recipe(tmp_path, {"type": "full"}), tokenizer=tiny_tokenizer())
