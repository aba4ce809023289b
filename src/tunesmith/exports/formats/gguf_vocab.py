"""A tokenizer as llama.cpp keeps it, and the tokenizer that it makes of that.

llama.cpp has two kinds of merging: byte-level ("gpt2"), whose text is cut by one of some patterns that it knows by
name, and that of SentencePiece ("llama"), which joins the two neighbours whose whole has the best score.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.exports.checks.manners import TEXTS, Manners

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
SPACE = "▁"  # how SentencePiece writes one
BYTES = re.compile(r"<0x[0-9A-F]{2}>")
ENDS = ("eos", "eot", "eom")  # the names of llama.cpp's tokens at which an answer ends
CUTS = (
    *TEXTS,
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶‍🌫️ ✅ 🦙🦙 3 33 333 3333 33333 3.3 3..3 3...3",
    "កាន់តែពិសេស និង हिन्दी में नमस्ते, I'll I'LL we'Ve 'RE YOU'd? camelCaseWordsAndHTTPServer ÄÖÜäöü ''``` !!!!?? ------=",
    "a/b/c//d /e\r\n\r\n/f x=1;y=2 #tag @name $5.00 (a) [b] {c} <d> ½ ² Ⅷ ٣",
)


@dataclass(frozen=True, slots=True)
class Split:
    """A row of `gguf_splits.yaml`."""

    splits: tuple[str, ...]
    ignore_merges: bool = False

    def cutter(self) -> Any:
        """What cuts so, as a part of a tokenizer."""
        from tokenizers import Regex, pre_tokenizers

        cuts = [pre_tokenizers.Split(Regex(one), "isolated") for one in self.splits]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@functools.cache
def known() -> Mapping[str, Split]:
    """The ways of cutting that llama.cpp knows, by their names there."""
    import yaml

    rows = yaml.safe_load((Path(__file__).parent / "gguf_splits.yaml").read_text(encoding="utf-8"))
    return {name: Split(tuple(row["splits"]), row.get("ignore_merges", False)) for name, row in rows.items()}


def vocabulary(tokenizer: Any, rows: int, manners: Manners) -> dict[str, Any]:
    """What llama.cpp reads of a tokenizer, by its names, for a model with embeddings of so many tokens.

    Raises:
        RunError: the tokenizer does what llama.cpp cannot.
    """
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    if said["model"]["type"] != "BPE":
        raise RunError(f"llama.cpp's layout has no place for a tokenizer of type {said['model']['type']!r} that merges")
    sentences = said["model"]["byte_fallback"]
    tokens, types = _tokens(said, rows, sentences)
    merges = [tuple(one) if isinstance(one, list) else tuple(one.split(" ")) for one in said["model"]["merges"]]
    found: dict[str, Any] = {"model": "llama" if sentences else "gpt2"}
    if sentences:
        ranks = {left + right: -float(at) for at, (left, right) in reversed([*enumerate(merges)])}
        scores = [
            ranks.get(token, 0.0) if kind == NORMAL else -1000.0 for token, kind in zip(tokens, types, strict=True)
        ]
        found |= {"pre": "default", "tokens": tokens, "scores": scores, "token_type": types}
        begun = tokenizer.backend_tokenizer.encode(f"{before(tokenizer)}x", add_special_tokens=False).tokens
        found["add_space_prefix"] = begun[1].startswith(SPACE)  # llama.cpp puts one behind each special token, or none
    else:
        found |= {"pre": cut_as(tokenizer), "tokens": tokens, "token_type": types}
        found["merges"] = [f"{left} {right}" for left, right in merges]
    found |= _special(tokenizer, manners)
    template = {} if manners.template is None else {"tokenizer.chat_template": manners.template}
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()} | template


def before(tokenizer: Any) -> str:
    """A special token that text stands behind, as in a conversation."""
    return str(tokenizer.bos_token or tokenizer.eos_token)


def _tokens(said: Mapping[str, Any], rows: int, sentences: bool) -> tuple[list[str], list[int]]:
    """The text of each token and its type."""
    by_id = {at: token for token, at in said["model"]["vocab"].items()}
    added = {one["id"]: one for one in said["added_tokens"]}
    most = max([*by_id, *added]) + 1
    if most > rows:
        raise RunError(f"the tokenizer has {most} tokens, and the model has embeddings of {rows}")
    tokens, types = [f"[PAD{at}]" for at in range(rows)], [UNUSED] * rows
    for at, token in by_id.items():
        tokens[at], types[at] = token, BYTE if sentences and BYTES.fullmatch(token) else NORMAL
        if token == said["model"]["unk_token"]:
            types[at] = UNKNOWN
    for at, one in added.items():
        if types[at] == UNKNOWN:
            continue
        control = one["special"] or re.fullmatch(r"<\|.*\|>", one["content"])  # as llama.cpp's converter takes them
        types[at] = CONTROL if control else USER_DEFINED
        tokens[at] = one["content"] if control or not sentences else one["content"].replace(SPACE, " ")
    return tokens, types


def _special(tokenizer: Any, manners: Manners) -> dict[str, Any]:
    """The ids of tokens with a meaning, and whether a text begins and ends with some."""
    named = {"bos": "bos", "unk": "unknown", "pad": "padding", "sep": "seperator", "cls": "cls", "mask": "mask"}
    ids = {other: getattr(tokenizer, f"{own}_token_id") for own, other in named.items()}
    own = tokenizer.eos_token_id
    ends = sorted(manners.ends or {own}, key=lambda end: (end != own, end))
    if len(ends) > len(ENDS):
        raise RunError(
            f"an answer of the run ends at any of the tokens {ends}, and llama.cpp has names for {len(ENDS)}"
        )
    ids |= dict(zip(ENDS, ends, strict=False))
    found: dict[str, Any] = {f"{name}_token_id": at for name, at in ids.items() if at is not None}
    empty = tokenizer("")["input_ids"]
    found["add_bos_token"] = bool(empty) and empty[0] == tokenizer.bos_token_id
    found["add_eos_token"] = bool(empty) and empty[-1] == own and len(empty) > found["add_bos_token"]
    return found


def cut_as(tokenizer: Any) -> str:
    """The name of the way in which llama.cpp cuts text as a byte-level tokenizer does. Raises RunError for none."""
    backend = tokenizer.backend_tokenizer
    ignores = backend.model.ignore_merges
    for name, split in known().items():
        cutter = split.cutter()
        if split.ignore_merges == ignores and all(
            cutter.pre_tokenize_str(text) == backend.pre_tokenizer.pre_tokenize_str(text) for text in CUTS
        ):
            return name
    raise RunError(
        f"the tokenizer of {tokenizer.name_or_path} cuts text in a way that llama.cpp's layout has no name for here "
        f"(known: {', '.join(known())}): export type=merged, and use llama.cpp's own converter"
    )


def difference(tokenizer: Any, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first thing in which the tokenizer that is read from a file is not the run's, in words.

    `found` and `wanted` are as `vocabulary` gives them. A byte-level tokenizer is also made of the file as llama.cpp
    makes it, and is given some texts.
    """
    for name, value in wanted.items():
        other = found.get(name)
        if isinstance(value, list):
            other = other or []
            at = next((at for at, pair in enumerate(zip(value, other, strict=False)) if not _same(*pair)), None)
            if at is not None:
                return f"its {name} has {other[at]!r} at {at}, and the run's has {value[at]!r}"
            if len(other) != len(value):
                return f"its {name} has {len(other)} entries, and the run's has {len(value)}"
        elif not _same(value, other):
            return f"its {name} is {str(other)[:60]!r}, and the run's is {str(value)[:60]!r}"
    if found["tokenizer.ggml.model"] != "gpt2":
        return None
    backend = remade(found)
    for text in CUTS:
        ids = backend.encode(text, add_special_tokens=False).ids
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids != own:
            return f"its tokenizer reads {text[:40]!r} as {ids[:12]}, and the run's as {own[:12]}"
    return None


def _same(own: Any, other: Any) -> bool:
    return bool(own == other)


def remade(found: Mapping[str, Any]) -> Any:
    """The byte-level tokenizer that llama.cpp makes of what it reads."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

    tokens: Sequence[str] = found["tokenizer.ggml.tokens"]
    types: Sequence[int] = found["tokenizer.ggml.token_type"]
    merges = [tuple(one.split(" ")) for one in found["tokenizer.ggml.merges"]]
    split = known()[found["tokenizer.ggml.pre"]]
    vocab = {token: at for at, token in enumerate(tokens)}
    backend = Tokenizer(BPE(vocab, merges, ignore_merges=split.ignore_merges))
    backend.pre_tokenizer = split.cutter()
    whole = [token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    backend.add_tokens([AddedToken(token, normalized=False) for token in whole])
    return backend
