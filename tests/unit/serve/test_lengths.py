"""Texts that no context has room for are refused by their letters, and only those."""

import time

import pytest

import fixtures_models
from tunesmith.serve.lengths import letters, longest_token, written


def tokenizer_of(model, **parts):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_no_text_has_fewer_tokens_than_its_letters_need():
    tokenizer = fixtures_models.tiny_tokenizer()
    longest = longest_token(tokenizer)
    assert 1 < longest[1] <= longest[0] < 64
    for text in ("The river runs to the sea.", "<|im_start|>" * 50, "   a   b\n\n", "你好 🙂 café", "x" * 5000):
        tokens = len(tokenizer(text, verbose=False)["input_ids"])
        for number, most in zip(letters(written(tokenizer, text)), longest, strict=True):
            assert number <= tokens * most


def test_blanks_are_no_letters():
    assert letters(" a\tb▁\n c\u3000-_é") == (6, 4)


def test_a_token_of_any_text_has_no_longest():
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    unknown = models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")
    assert longest_token(tokenizer_of(unknown, pre_tokenizer=pre_tokenizers.Whitespace())) is None
    few = models.BPE({"a": 0, "b": 1}, [])
    assert longest_token(tokenizer_of(few, pre_tokenizer=pre_tokenizers.ByteLevel())) is None  # drops other letters
    every = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁river": 256, "▁": 257}
    options = {"decoder": decoders.ByteFallback(), "normalizer": normalizers.Replace(" ", "▁")}
    assert longest_token(tokenizer_of(models.BPE(every, [], byte_fallback=True), **options)) == (6, 5)
    options["normalizer"] = normalizers.Replace("x", "")
    assert longest_token(tokenizer_of(models.BPE(every, [], byte_fallback=True), **options)) is None
    split = pre_tokenizers.Split("x", "removed")
    assert longest_token(tokenizer_of(models.BPE(every, [], byte_fallback=True), pre_tokenizer=split)) is None


@pytest.mark.parametrize("text", ["x" * 15 * 2**20, "你" * 2**20])
def test_a_text_of_megabytes_is_refused_before_it_is_cut(text):
    import fixtures_server
    from tunesmith.serve import chat, completions
    from tunesmith.serve.problem import Problem
    from tunesmith.serve.requests import Chat, Completion

    served = fixtures_server.served()
    try:
        for plan, body in (
            (chat.plan, Chat(messages=[{"role": "user", "content": text}])),
            (completions.plan, Completion(prompt=text)),
        ):
            begun = time.process_time()
            with pytest.raises(Problem, match="however it is cut into tokens") as caught:
                plan(served, body)
            assert caught.value.code == "context_length_exceeded" and time.process_time() - begun < 5
    finally:
        served.close()
