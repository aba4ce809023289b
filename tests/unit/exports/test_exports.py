"""Exports of tiny runs: plain peft and transformers answer as the run did, and a bad export is caught."""

import json
import shutil

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fixtures_models
from tunesmith.component import pick
from tunesmith.engine.model import load_tokenizer
from tunesmith.errors import ModelError, RunError
from tunesmith.exports.adapter import PlainAdapter
from tunesmith.exports.checks import compare
from tunesmith.exports.merged import Merged
from tunesmith.exports.merging import stream
from tunesmith.generate.engine import Generator
from tunesmith.recipe import Model
from tunesmith.seams import Export
from tunesmith.types import Report

QUESTION = "What is two and three?"
TOKENS = 40


def make_run(folder, arch="llama", tied=True, dtype=torch.float32, prompts=(), **lora):
    """A run folder as a finished LoRA run leaves it, on a base model that is stored in `dtype`."""
    base = fixtures_models.save_model(folder / "base", fixtures_models.tiny_model(arch=arch, tied=tied).to(dtype))
    model = fixtures_models.tiny_model(arch=arch, tied=tied)
    model.name_or_path = str(base)
    run = folder / "run"
    run.mkdir()
    recipe = {"model": {"path": str(base)}, "eval": {"prompts": list(prompts)}}
    (run / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    fixtures_models.tiny_lora(model, **lora).save_pretrained(run / "final", save_embedding_layers=False)
    load_tokenizer(Model(path=str(base))).save_pretrained(run / "final")
    model.generation_config.eos_token_id = [0, 2]
    model.generation_config.save_pretrained(run / "final")
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def short(tmp_path):
    """A run whose export is asked one question."""
    return make_run(tmp_path, prompts=[QUESTION])


def prompt_ids(tokenizer):
    messages = [{"role": "user", "content": QUESTION}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")


def greedy(model, tokenizer):
    """What plain transformers writes after the question, through its own `generate`."""
    given = prompt_ids(tokenizer)
    model.generation_config.eos_token_id = None
    return model.generate(**given, max_new_tokens=TOKENS, do_sample=False)[0].tolist()


@torch.no_grad()
def logits(model, tokenizer):
    return model(prompt_ids(tokenizer)["input_ids"]).logits


def in_memory():
    """The tuned model of `make_run`, never written anywhere."""
    return fixtures_models.tiny_lora(fixtures_models.tiny_model()).eval()


def test_adapter_loads_in_plain_peft(run, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = PlainAdapter().write(run, tmp_path / "out")
    assert report == Report(tmp_path / "out", True, 3, 0.0, report.tolerance, divergence=0.0)
    assert report.passed
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == fixtures_models.CHATML
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    untuned = greedy(base, tokenizer)
    with _quiet_peft():
        loaded = PeftModel.from_pretrained(base, tmp_path / "out")
    tuned = greedy(loaded, tokenizer)
    assert tuned == greedy(in_memory(), tokenizer) != untuned
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"} <= files
    assert {"tokenizer.json", "chat_template.jinja"} <= files and "model.safetensors" not in files


def _quiet_peft():
    from tunesmith.engine.compat import peft_warnings

    return peft_warnings()


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_merged_loads_in_plain_transformers(tmp_path, arch, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    run = make_run(tmp_path, arch, tied)
    report = Merged().write(run, tmp_path / "out")
    assert report.passed and report.same_greedy_tokens and report.partings == ()
    assert 0 < report.largest_logit_difference < report.tolerance < 0.01
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tuned = fixtures_models.tiny_lora(fixtures_models.tiny_model(arch=arch, tied=tied)).eval()
    assert torch.allclose(logits(merged, tokenizer), logits(tuned, tokenizer), atol=1e-4)
    assert greedy(merged, tokenizer) == greedy(tuned, tokenizer)
    assert merged.config.tie_word_embeddings is tied
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [0, 2]
    assert tokenizer.chat_template == fixtures_models.CHATML
    assert not list((tmp_path / "out").glob("*adapter*"))


def test_trained_head_of_a_tied_model_is_not_lost(tmp_path):
    from transformers import AutoModelForCausalLM

    base = fixtures_models.tiny_model()
    with pytest.warns(UserWarning, match="tie_word_embeddings=True"):
        run = make_run(tmp_path, modules_to_save=["lm_head"])
    weights = run / "final" / "adapter_model.safetensors"
    stored = load_file(weights)
    head = next(name for name in stored if "lm_head" in name)
    stored[head] = stored[head] + 1.0
    save_file(stored, weights, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        report = Merged().write(run, tmp_path / "out")
    assert report.passed
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(merged.lm_head.weight, base.lm_head.weight + 1.0)
    assert torch.equal(merged.model.embed_tokens.weight, base.lm_head.weight)


def test_shards_have_an_index(run, tmp_path):
    report = Merged(max_shard_size="40KB").write(run, tmp_path / "out")
    assert report.passed
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1 and {shard.name for shard in shards} == set(index["weight_map"].values())
    biggest = max(tensor.numel() * 4 for tensor in fixtures_models.tiny_model().parameters())
    for shard in shards:
        with safe_open(shard, "pt") as file:
            held = [file.get_tensor(name).nbytes for name in file.keys()]
        assert sum(held) <= 40_000 or held == [biggest]


@pytest.mark.parametrize("size", ["5", "GB", "5 GB", "five MB", "-1GB"])
def test_bad_shard_size_is_refused(size):
    with pytest.raises(ValidationError, match="max_shard_size"):
        Merged(max_shard_size=size)


def stored_dtypes(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_tensor(name).dtype for name in file.keys()}


def test_dtype_is_the_bases_or_the_asked_one(tmp_path):
    run = make_run(tmp_path, dtype=torch.bfloat16)
    low = Merged().write(run, tmp_path / "auto")
    assert stored_dtypes(tmp_path / "auto") == {torch.bfloat16}
    high = Merged(dtype="float32").write(run, tmp_path / "high")
    assert stored_dtypes(tmp_path / "high") == {torch.float32}
    half = Merged(dtype="float16").write(run, tmp_path / "half")
    assert stored_dtypes(tmp_path / "half") == {torch.float16}
    assert high.largest_logit_difference < half.largest_logit_difference < low.largest_logit_difference
    assert high.tolerance < half.tolerance < low.tolerance


def test_merge_in_bfloat16_rounds_each_weight_once(tmp_path):
    run = make_run(tmp_path, dtype=torch.bfloat16)
    Merged().write(run, tmp_path / "out")
    base = load_file(tmp_path / "base" / "model.safetensors")
    adapter = load_file(run / "final" / "adapter_model.safetensors")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    exact = base[f"{name}.weight"].float() + (8 / 4) * (b @ a)  # lora_alpha / r
    assert torch.equal(merged[f"{name}.weight"], exact.bfloat16())


def test_run_that_trained_whole_weights(tmp_path):
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    model = fixtures_models.tiny_model(seed=5)
    fixtures_models.save_model(run / "final", model)
    (run / "recipe.yaml").write_text("model: {path: builtin:tiny}\n", encoding="utf-8")
    with pytest.raises(RunError, match="no adapter: use type=merged"):
        PlainAdapter().write(run, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    report = Merged().write(run, tmp_path / "out")
    assert report.passed and report.largest_logit_difference == 0
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(written[name], tensor) for name, tensor in model.state_dict().items())
    assert Merged(dtype="bfloat16").write(run, tmp_path / "low").passed


def test_nothing_is_overwritten(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert Merged().write(run, out).passed  # an empty folder is free
    before = {file: file.read_bytes() for file in out.iterdir()}
    for export in (Merged(), PlainAdapter()):
        with pytest.raises(RunError, match=f"{out} is not empty: choose another folder"):
            export.write(run, out)
        with pytest.raises(RunError, match="is a file"):
            export.write(run, out / "config.json")
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["base", "out", "run"]


def spoil(monkeypatch, name, change):
    """Let `change` at a file that was written, before it is verified."""
    whole = compare.load

    def load(path, *rest):
        file = next((item for item in compare.Path(path).iterdir() if item.name.startswith(name)), None)
        if file is not None and file.parent.name.startswith(".out."):
            change(file)
        return whole(path, *rest)

    monkeypatch.setattr(compare, "load", load)


def flip(file, place=-1):
    """A bit of one byte the other way; the last bytes of weights are the least of what a number is."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def edit(name, change):
    """A change of a file that holds JSON."""

    def at(file):
        said = json.loads(file.read_text())
        change(said)
        file.write_text(json.dumps(said))

    return name, at


MERGED = (Merged(), "model.safetensors")
ALONE = (PlainAdapter(), "adapter_model.safetensors")


def unchanged(tmp_path):
    return sorted(item.name for item in tmp_path.iterdir()) == ["base", "run"]


@pytest.mark.parametrize(("export", "name"), [MERGED, ALONE])
@pytest.mark.parametrize("place", [-1, -2, 0, 20])
def test_a_flipped_bit_is_caught_wherever_it_is(short, tmp_path, monkeypatch, export, name, place):
    """Even one that changes no answer, as the last of a number does."""
    spoil(monkeypatch, name, lambda file: flip(file, place))
    with pytest.raises(RunError, match=f"out was not written: .*its file {name} is damaged"):
        export.write(short, tmp_path / "out")
    assert unchanged(tmp_path)


def test_torn_and_missing_files_are_caught(short, tmp_path, monkeypatch):
    spoil(
        monkeypatch, "model.safetensors", lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    )
    with pytest.raises(RunError, match=r"its file model\.safetensors is damaged"):
        Merged().write(short, tmp_path / "out")
    monkeypatch.undo()
    spoil(monkeypatch, "model-00002-of", lambda file: file.unlink())
    with pytest.raises(RunError, match=r"its file model-00002-of-\d+.safetensors is missing"):
        Merged(max_shard_size="40KB").write(short, tmp_path / "out")
    assert unchanged(tmp_path)


BESIDE = {
    "chat template": (
        "chat_template.jinja",
        lambda file: file.write_text(file.read_text().replace("assistant", "bot")),
        "its chat template is another than the run's from character .* on: .bot",
    ),
    "end of answers": (
        *edit("generation_config.json", lambda said: said.update(eos_token_id=[0])),
        r"its answers end at the tokens \[0\], and the run's at \[0, 2\]",
    ),
    "eos token": (
        *edit("tokenizer_config.json", lambda said: said.update(eos_token="<|im_start|>")),
        r"its eos_token is '<\|im_start\|>', and the run's is '<\|im_end\|>'",
    ),
    "tokenizer": (
        *edit("tokenizer.json", lambda said: said["model"]["merges"].pop(0)),
        "its tokenizer reads '  two spaces.*' as",
    ),
}


@pytest.mark.parametrize("export", [Merged(), PlainAdapter()])
@pytest.mark.parametrize("what", BESIDE)
def test_what_stands_beside_the_weights_is_that_of_training(short, tmp_path, monkeypatch, export, what):
    name, change, message = BESIDE[what]
    spoil(monkeypatch, name, change)
    with pytest.raises(RunError, match=f"out was not written: {message}"):
        export.write(short, tmp_path / "out")
    assert unchanged(tmp_path)


def test_weights_that_answer_otherwise_are_caught(short, tmp_path, monkeypatch):
    """Also where they are what was written."""
    whole = stream._updated

    def updated(wrapper, values):
        return {own: one * 1.1 for own, one in whole(wrapper, values).items()}

    monkeypatch.setattr(stream, "_updated", updated)
    with pytest.raises(RunError, match=r"out was not written: .* logit difference is \S+ \(0\.00\d+ is allowed\)"):
        Merged().write(short, tmp_path / "out")
    monkeypatch.setattr(
        stream, "_updated", lambda wrapper, values: {own: one * torch.nan for own, one in values.items()}
    )
    with pytest.raises(RunError, match=r"logit difference is nan"):
        Merged().write(short, tmp_path / "out")
    assert unchanged(tmp_path)


@pytest.mark.parametrize(("export", "name"), [MERGED, ALONE])
def test_an_export_is_checked_again_later(short, tmp_path, export, name):
    from tunesmith.exports.checks.signature import signed

    report, out = export.write(short, tmp_path / "out"), tmp_path / "out"
    options, sealed = signed(out)
    assert pick(Export, options) == export and name in sealed and "export.json" not in sealed
    assert export.check(short, out) == report
    flip(out / name)
    with pytest.raises(RunError, match=f"out is not as its run is: .*its file {name} is damaged"):
        export.check(short, out)
    assert (out / name).is_file()
    (out / "export.json").unlink()
    with pytest.raises(RunError, match=r"has no readable export.json"):
        export.check(short, out)


def test_a_merge_that_adds_nothing_is_caught(short, tmp_path, monkeypatch):
    """The check is against the run before merging: a merge that leaves the adapter out cannot pass."""
    from peft.tuners.lora.layer import Linear

    monkeypatch.setattr(Linear, "merge", lambda layer: None)
    with pytest.raises(RunError, match="on 1 of 1 prompts its greedy tokens are others"):
        Merged().write(short, tmp_path / "out")


def test_prompts_are_the_recipes_own(tmp_path):
    run = make_run(tmp_path, prompts=[f"question {number}" for number in range(9)])
    assert compare.questions(run) == tuple(f"question {number}" for number in range(5))
    assert Merged().write(run, tmp_path / "out").prompts == 5
    assert compare.questions(tmp_path) == compare.PROMPTS
    probe = compare.reference(Generator.open(str(run)), ["a"]).probes[0]
    assert len(probe.tokens) >= 32 and probe.logits.shape == (len(probe.tokens), 400)
    assert probe.logits.argmax(-1).tolist() == list(probe.tokens)  # the row of each token is the one that chose it


def test_unfinished_damaged_and_missing_runs_are_refused(run, tmp_path):
    from tunesmith.engine.checkpoint import atomic_folder

    with atomic_folder(run / "whole") as folder:
        shutil.copytree(run / "final", folder, dirs_exist_ok=True)
    shutil.rmtree(run / "final")
    with pytest.raises(RunError, match=f"has no final/ yet.*tunesmith train {run}"):
        Merged().write(run, tmp_path / "out")
    (run / "whole").rename(run / "final")
    assert PlainAdapter().write(run, tmp_path / "good").passed
    assert not (tmp_path / "good" / "manifest.json").exists()
    weights = run / "final" / "adapter_model.safetensors"
    flip(weights)
    for export in (Merged(), PlainAdapter()):
        with pytest.raises(RunError, match=r"cannot be exported: .*adapter_model\.safetensors is damaged"):
            export.write(run, tmp_path / "out")
    with pytest.raises(RunError, match="no run folder"):
        Merged().write(compare.Path("some-hub-id"), tmp_path / "out")
    with pytest.raises(ModelError, match="no model folder"):
        Merged().write(tmp_path / "none" / "such", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_both_are_found_by_name():
    assert isinstance(pick(Export, "adapter"), PlainAdapter)
    assert pick(Export, {"max_shard_size": "1GB"}) == Merged(max_shard_size="1GB")
