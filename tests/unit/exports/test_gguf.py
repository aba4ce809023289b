"""Exports of .gguf files: transformers and llama.cpp read what the run says, and a bad file is caught."""

import json
import re
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import fixtures_models
from tunesmith.component import pick
from tunesmith.errors import MissingExtra, RunError
from tunesmith.exports.checks.manners import Manners
from tunesmith.exports.formats import gguf_check, gguf_families, gguf_file, gguf_vocab, llama_cpp
from tunesmith.exports.gguf import Gguf
from tunesmith.exports.merging.tensors import Spec
from tunesmith.seams import Export
from unit.exports.test_exports import flip, make_run, unchanged

pytestmark = [
    pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:llama_cpp"),
]
QUESTION = "What is two and three?"
GEMMA3 = {
    "query_pre_attn_scalar": 8, "sliding_window": 64, "num_hidden_layers": 6,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}  # fmt: skip
WHOLE = ["full_attention"] * 6


@pytest.fixture
def short(tmp_path):
    return make_run(tmp_path, prompts=[QUESTION])


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
def test_files_of_each_family_are_what_the_run_says(arch, tmp_path):
    run = make_run(tmp_path, arch, prompts=[QUESTION])
    report = Gguf(outtype="f32").write(run, tmp_path / "out")
    assert report.passed and report.same_greedy_tokens and report.largest_logit_difference < 1e-4
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"model-f32.gguf", "tokenizer.json", "export.json"}
    assert Gguf(outtype="f32").check(run, tmp_path / "out") == report
    if llama_cpp.is_installed():
        assert report.notes[0].startswith("in llama.cpp: the same greedy tokens")


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_types_cost_what_they_round(outtype, short, tmp_path):
    """More bits, less difference: each type lies between its neighbours."""
    report = Gguf(outtype=outtype).write(short, tmp_path / "out")
    low, high = {
        "f16": (1e-5, 0.05), "bf16": (0.01, 0.3), "q8_0": (0.01, 0.5), "q5_0": (0.2, 3), "q4_0": (0.5, 6)
    }[outtype]  # fmt: skip
    assert report.passed and low < report.largest_logit_difference < high


def test_a_head_of_its_own_and_bfloat16(tmp_path):
    run = make_run(tmp_path, tied=False, dtype=torch.bfloat16, prompts=[QUESTION])
    report = Gguf(outtype="q4_0").write(run, tmp_path / "out")
    assert report.passed
    import gguf

    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "out/model-q4_0.gguf").tensors}
    assert kinds["output.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == "Q4_0" and kinds["blk.0.attn_norm.weight"] == "F32"
    assert len(kinds) == 2 * 9 + 3


def test_a_folder_with_one_is_a_model_of_tunesmith(short, tmp_path):
    from tunesmith.generate.engine import Generator

    Gguf(outtype="f32").write(short, tmp_path / "out")
    run, other = Generator.open(str(short)), Generator.open(str(tmp_path / "out"))
    assert other.tokenizer.chat_template == run.tokenizer.chat_template
    assert other.stops == run.stops == {0, 2}


WRONG = {
    "pairs": ("arch", "llama", {"paired": False}, r"its tensor blk\.\d\.attn_[qk]\.weight is other than the run's"),
    "norm": ("arch", "llama", {"norm_offset": 0.5}, r"its tensor blk\.\d\.\w+norm\.weight is other"),
}


@pytest.mark.parametrize("what", WRONG)
def test_tensors_that_are_kept_otherwise_are_caught(what, short, tmp_path, monkeypatch):
    """They are written so, and transformers reads them as llama.cpp keeps them."""
    from dataclasses import replace

    whole = gguf_file.write
    _, name, change, message = WRONG[what]

    def write(*args):
        with monkeypatch.context() as patch:
            known = gguf_families.FAMILIES
            patch.setitem(known, name, replace(known[name], **change))
            whole(*args)

    monkeypatch.setattr(gguf_file, "write", write)
    with pytest.raises(RunError, match=f"out was not written: {message}"):
        Gguf(outtype="q4_0").write(short, tmp_path / "out")
    assert unchanged(tmp_path)


FACTS = {
    "tokenizer.chat_template": ("{{ messages }}", "its tokenizer.chat_template is '{{ messages }}'"),
    "tokenizer.ggml.eos_token_id": (1, "its tokenizer.ggml.eos_token_id is '1', and the run's is '2'"),
    "tokenizer.ggml.pre": ("llama-bpe", "its tokenizer.ggml.pre is 'llama-bpe', and the run's is 'gpt-2'"),
    "llama.rope.freq_base": (5e5, "its llama.rope.freq_base is 500000.0, and the run's is 10000.0"),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_that_are_not_the_runs_are_caught(name, short, tmp_path, monkeypatch):
    whole = gguf_file.write
    value, message = FACTS[name]
    monkeypatch.setattr(
        gguf_file, "write", lambda path, config, facts, *rest: whole(path, config, {**facts, name: value}, *rest)
    )
    with pytest.raises(RunError, match=re.escape(message)):
        Gguf(outtype="q8_0").write(short, tmp_path / "out")
    assert unchanged(tmp_path)


@pytest.mark.parametrize("place", [-1, 30])
def test_a_flipped_bit_is_caught_later(place, short, tmp_path):
    out = tmp_path / "out"
    export = Gguf(outtype="q8_0")
    export.write(short, out)
    flip(out / "model-q8_0.gguf", place)
    with pytest.raises(RunError, match=r"its file model-q8_0\.gguf is damaged"):
        export.check(short, out)


def test_a_cut_file_is_caught_later(short, tmp_path):
    out = tmp_path / "out"
    Gguf(outtype="q8_0").write(short, out)
    file = out / "model-q8_0.gguf"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(RunError, match=r"its file model-q8_0\.gguf is damaged"):
        Gguf(outtype="q8_0").check(short, out)


def test_a_run_that_was_renamed_is_the_same_one(short, tmp_path):
    report = Gguf(outtype="f32").write(short, tmp_path / "out")
    assert Gguf(outtype="f32").check(short.rename(tmp_path / "renamed"), tmp_path / "out") == report


def test_a_file_that_llama_cpp_does_not_read_is_one_line(tmp_path, monkeypatch):
    """As llama-cpp-python says it of a model that is newer than itself."""

    def refuses(path, **options):
        raise ValueError(f"Failed to load model from file: {path}")

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=refuses))
    file = tmp_path / "model.gguf"
    with pytest.raises(RunError, match="llama.cpp does not read it .Failed to load.*a newer llama-cpp-python"):
        llama_cpp.opened(file, 8).__enter__()


def test_rounding_is_within_half_a_step():
    """And the bound is near: some number is further off than half of it."""
    import gguf

    value = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    for kind in ("f16", "bf16", "q8_0", "q5_0", "q4_0"):
        there = gguf.quants.dequantize(gguf_file.rounded(value, kind), gguf.GGMLQuantizationType[kind.upper()])
        share = ((torch.tensor(there) - value).abs() / gguf_file.half_step(value, kind)).max().item()
        assert 0.5 < share <= 1, kind


def test_positions_by_hand():
    """Llama 3's: wavelengths over 8192 / 1 are stretched by 8, those under 8192 / 4 are left alone."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = fixtures_models.tiny_config(rope_parameters=rope, head_dim=8)
    found = gguf_families.frequencies(config)
    waves = [2 * torch.pi * 500000.0 ** (at / 4) for at in range(4)]  # 6.3, 167, 4443, 118143
    smooth = (8192 / waves[2] - 1) / 3
    wanted = torch.tensor([1, 1, 1 / ((1 - smooth) / 8 + smooth), 8])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    assert gguf_families.frequencies(fixtures_models.tiny_config()) is None
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    said = gguf_families.sizes(fixtures_models.tiny_config(rope_parameters=yarn, max_position_embeddings=256))
    assert {name: value for name, value in said.items() if "scaling" in name} == {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
    }
    assert (
        gguf_families.sizes(fixtures_models.tiny_config(arch="mistral", sliding_window=100))["llama.context_length"]
        == 100
    )  # llama.cpp sees everything there


def test_gemma3_by_hand():
    config = fixtures_models.tiny_config(arch="gemma3_text", **GEMMA3)
    gguf_families.refuse(config, tied=True)
    said = gguf_families.sizes(config)
    assert said["gemma3.rope.freq_base"] == 1e6 and said["gemma3.rope.freq_base_swa"] == 1e4
    assert said["gemma3.attention.sliding_window"] == 64
    norm = torch.tensor([0.5, -1.0])
    assert torch.equal(gguf_families.kept(config, "model.layers.0.self_attn.q_norm.weight", norm), norm + 1)
    specs = [Spec("model.layers.5.self_attn.q_norm.weight", torch.float32, (8,))]
    assert gguf_file.names(config, specs) == {specs[0].name: "blk.5.attn_q_norm.weight"}


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "which has 'gelu': its activation there is silu"),
        ("qwen2", {"head_dim": 16}, "which has 16: a head has 8 numbers there"),
        ("gemma2", {"query_pre_attn_scalar": 32}, "which has 32: its scale of queries there is 8"),
        ("gemma3_text", {**GEMMA3, "layer_types": WHOLE}, f"which has {WHOLE}: one in 6 of its layers sees everything"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "which has 'dynamic': rotary positions there are default, linear, yarn",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(arch, changes, message):
    with pytest.raises(RunError, match=f"cannot compute this {arch} model, {re.escape(message)}"):
        gguf_families.refuse(fixtures_models.tiny_config(arch=arch, **changes), tied=True)


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    run = make_run(tmp_path, "gemma", prompts=[QUESTION])
    known = "llama, mistral, qwen2, qwen3, gemma2, gemma3_text"
    with pytest.raises(RunError, match=f"run has a gemma model, and .gguf files are written of {known}: to have"):
        Gguf().write(run, tmp_path / "out")
    assert unchanged(tmp_path)
    monkeypatch.setattr("tunesmith.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"type=gguf needs gguf, which is not installed: pip install 'tunesmith\[gg"):
        Gguf().write(run, tmp_path / "out")


def test_a_head_that_llama_cpp_does_not_read_is_refused(tmp_path):
    """One that was trained beside embeddings that it was one with before."""
    with pytest.warns(UserWarning, match="tie_word_embeddings=True"):
        run = make_run(tmp_path, "gemma2", prompts=[QUESTION], modules_to_save=["lm_head"])
    weights = run / "final" / "adapter_model.safetensors"
    stored = load_file(weights)
    head = next(name for name in stored if "lm_head" in name)
    save_file(stored | {head: stored[head] + 1.0}, weights, metadata={"format": "pt"})
    with pytest.warns(UserWarning), pytest.raises(RunError, match="it reads no head that is not the embeddings"):
        Gguf().write(run, tmp_path / "out")


def told(tokenizer):
    return Manners(tokenizer.chat_template, frozenset([tokenizer.eos_token_id]), {}, {}, {})


def test_each_way_of_cutting_is_found_by_what_it_does():
    tokenizer = fixtures_models.tiny_tokenizer()
    assert gguf_vocab.cut_as(tokenizer) == "gpt-2"
    for name, split in gguf_vocab.known().items():
        tokenizer.backend_tokenizer.pre_tokenizer = split.cutter()
        tokenizer.backend_tokenizer.model.ignore_merges = split.ignore_merges
        assert gguf_vocab.cut_as(tokenizer) == name
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(RunError, match="cuts text in a way that llama.cpp's layout has no name for"):
        gguf_vocab.cut_as(tokenizer)


def test_rows_that_the_tokenizer_lacks_and_more_ends_than_there_are_names():
    tokenizer = fixtures_models.tiny_tokenizer()
    found = gguf_vocab.vocabulary(tokenizer, 410, told(tokenizer))
    assert found["tokenizer.ggml.tokens"][398:402] == [
        *tokenizer.convert_ids_to_tokens([398, 399]),
        "[PAD400]",
        "[PAD401]",
    ]
    assert found["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1] and found["tokenizer.ggml.token_type"][-1] == 5
    assert found["tokenizer.ggml.add_bos_token"] is found["tokenizer.ggml.add_eos_token"] is False
    with pytest.raises(RunError, match="the tokenizer has 400 tokens, and the model has embeddings of 399"):
        gguf_vocab.vocabulary(tokenizer, 399, told(tokenizer))
    many = Manners(None, frozenset(range(4)), {}, {}, {})
    with pytest.raises(RunError, match=r"ends at any of the tokens \[2, 0, 1, 3\], and llama.cpp has names for 3"):
        gguf_vocab.vocabulary(tokenizer, 400, many)


def sentences():
    """A tokenizer as SentencePiece makes them, with bytes for what it lacks."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{at:02X}>" for at in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat and the moon", "what is the river to the sea"] * 9, trainer)
    said = json.loads(tokenizer.to_str())
    said["added_tokens"] = said["added_tokens"][:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(said)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def test_a_tokenizer_of_sentencepiece():
    """Scores say what is merged first; the whole text is joined as the run's tokenizer does, by them alone."""
    from tokenizers import normalizers

    tokenizer = sentences()
    found = gguf_vocab.vocabulary(tokenizer, len(tokenizer), told(tokenizer))
    assert found["tokenizer.ggml.model"] == "llama" and found["tokenizer.ggml.add_space_prefix"] is True
    assert found["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    alone = sentences()
    alone.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    assert gguf_vocab.vocabulary(alone, len(alone), told(alone))["tokenizer.ggml.add_space_prefix"] is False
    scores = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"], strict=True))
    text = "the cat to the moon sat"
    symbols = list("▁" + text.replace(" ", "▁"))
    while pairs := [
        (scores[a + b], -at) for at, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False)) if a + b in scores
    ]:
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    assert symbols == tokenizer.tokenize(text) and len(symbols) < len(text)


def test_it_is_found_by_name():
    assert pick(Export, {"type": "gguf", "outtype": "q4_0"}) == Gguf(outtype="q4_0")
    assert gguf_check.COSTS.keys() == gguf_file.FILE_TYPES.keys()
