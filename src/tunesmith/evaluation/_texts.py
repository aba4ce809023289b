"""Long texts to read: those of a file, or made from this package's own corpus."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.generate.subject import Subject

SEED = 1_000_003  # of made texts: another one than that of the built-in model's own
DOCUMENTS = 64  # made at a time


def made(seed: int) -> Iterator[str]:
    """Short texts without end: stories, days, facts and recipes, by a seed."""
    from tunesmith.builtin.corpus import generate_documents

    while True:
        yield from (row["text"] for row in generate_documents(seed, DOCUMENTS))
        seed += 1


def of_file(path: str) -> list[str]:
    """The texts of a file: a txt is one text, of others each row has one in `text`. Raises DataError."""
    from tunesmith.data import source
    from tunesmith.formats.text import Text
    from tunesmith.recipe_data import Source

    if path.endswith(".txt") and Path(path).is_file():
        return [Path(path).read_text(encoding="utf-8")]
    one = Source(path=path)
    samples = (Text().read(row) for _, row in source.read(one))
    return [str(turn.content) for sample in samples for turn in sample.branches[0]]


def some(path: str | None, number: int | None) -> list[str]:
    """The first texts of a file or, without one, made ones. Raises DataError."""
    return list(islice(made(SEED), number or DOCUMENTS)) if path is None else of_file(path)[:number]


def digest(path: str | None) -> str:
    """What tells the texts of a file, or made ones, from others. Raises DataError."""
    texts = repr(of_file(path)) if path is not None else ""
    return hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()


def stream(subject: "Subject", path: str | None, tokens: int) -> list[int]:
    """The tokens of a file's texts, or of made ones, one after the other, with what ends a document between them.

    Made ones are as many as asked for.

    Raises:
        DataError: the file cannot be read, or has fewer tokens.
    """
    end = [] if subject.tokenizer.eos_token_id is None else [subject.tokenizer.eos_token_id]
    found: list[int] = []
    for text in made(SEED) if path is None else of_file(path):
        if path is None and len(found) >= tokens:
            return found[:tokens]
        found += [*subject.ids(text), *end]
    if len(found) < tokens:
        raise DataError(f"{path} has {len(found):,} tokens, and {tokens:,} are read: say shorter lengths or more text")
    return found
