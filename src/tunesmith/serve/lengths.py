"""Which texts are too long for sure, before they are cut into tokens: that takes half a minute for one of 15 MB."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_LEVEL = {character: byte for byte, character in bytes_to_unicode().items()}  # of tokens that are bytes (GPT-2)
BLANK = "▁"  # how others write one
BETWEEN_WORDS = re.compile(r"[\W_]+")
CUTTING = {"ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "Sequence"}  # and taking nothing away but blanks
WRITING = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace", "Sequence"}  # the same


def letters(text: str) -> tuple[int, int]:
    """Characters that no tokenizer leaves out, as some do with blanks; and those of words, of which a token has few."""
    return len("".join(text.replace(BLANK, "").split())), len(BETWEEN_WORDS.sub("", text))


def longest_token(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int] | None:
    """The most of either (`letters`) that one token stands for; None where one may stand for any number of them."""
    if not tokenizer.is_fast:
        return None
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    cutting, writing = list(_parts(said["pre_tokenizer"])), list(_parts(said["normalizer"]))
    kinds, vocabulary = {part["type"] for part in cutting}, tokenizer.get_vocab()
    taking = [part for part in cutting if part.get("behavior") == "Removed"]
    taking += [
        part for part in writing if part["type"] == "Replace" and (part["content"] != BLANK or not _of_blank(part))
    ]
    if taking or kinds - CUTTING or {part["type"] for part in writing} - WRITING or said["model"]["type"] != "BPE":
        return None
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if "ByteLevel" in kinds and BYTE_LEVEL.keys() <= vocabulary.keys():
        return _most(letters(token) if token in added else _begun(token) for token in vocabulary)
    if said["model"].get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return _most(map(letters, vocabulary))
    return None


def _most(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    of_all, of_words = zip(*counts, strict=True)
    return max(of_all), max(of_words)


def written(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """A text as the tokenizer writes it before it cuts it, where letters can become fewer by that."""
    how = tokenizer.backend_tokenizer.normalizer
    return text if how is None or text.isascii() else str(how.normalize_str(text))


def _parts(said: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A step of a tokenizer and the steps that it is made of."""
    if said is not None:
        yield said
        for part in said.get("normalizers", said.get("pretokenizers", ())):
            yield from _parts(part)


def _of_blank(replace: Mapping[str, Any]) -> bool:
    return replace["pattern"] == {"String": " "}


def _begun(token: str) -> tuple[int, int]:
    """The same of the characters that begin in a token of bytes; a part of one may be a word's."""
    raw = bytes(BYTE_LEVEL[letter] for letter in token if letter in BYTE_LEVEL)
    of_more = sum(byte >= 0xC0 for byte in raw)
    of_ascii = letters("".join(chr(byte) for byte in raw if byte < 0x80))
    return of_ascii[0] + of_more, of_ascii[1] + of_more
