"""What stands beside the weights and decides what a model is given and where its answer ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.engine.model import base_of
from tunesmith.generate.ends import ends_of

TEXTS = (
    "Hello, world! It's what we'll say, and DON'T you forget.",
    "  two spaces,   three,\n\n\ttabs\t\tand ends \n",
    "1234567890, 3.14159 and 1,000,000 at 12:30",
    "Grüße aus Köln; naïve café; Ελληνικά; русский; 你好，世界。今天天气很好。 日本語 한국어 🙂🚀👩‍👩‍👧",
    'def add(a, b):\n    return a + b  # sum\n\n{"name": [1, 2.5, null]} <b>http://a.b/c?d=e&f</b>',
)

SPECIAL = ("bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Manners:
    """Chat template, tokens that end an answer, special tokens, labels, and the ids of some texts."""

    template: Any
    ends: frozenset[int]
    special: Mapping[str, str]
    labels: Mapping[int, str]
    ids: Mapping[str, tuple[int, ...]]


def manners(model: Any, tokenizer: Any) -> Manners:
    """Those of a loaded model and its tokenizer."""
    base = base_of(model)
    labels = {} if base.get_output_embeddings() is not None else dict(base.config.id2label)
    return stated(getattr(base, "generation_config", None), tokenizer, labels)  # a model that says values has none


def stated(config: Any, tokenizer: Any, labels: Mapping[int, str] = {}) -> Manners:
    """Those of a generation config, where there is one, and a tokenizer."""
    named = tokenizer.special_tokens_map
    special = {name: str(named[name]) for name in SPECIAL if named.get(name) is not None}
    texts = (*TEXTS, *special.values(), " ".join(f"a {token} b" for token in special.values()))
    ids = {text: tuple(tokenizer(text)["input_ids"]) for text in texts}
    return Manners(tokenizer.chat_template, ends_of(config), special, labels, ids)


def difference(run: Manners, export: Manners) -> str | None:
    """The first thing in which an export is not what its run is, in words; None where there is none."""
    if run.template != export.template:
        return f"its chat template is another than the run's{_where(run.template, export.template)}"
    if run.ends != export.ends:
        return f"its answers end at the tokens {sorted(export.ends)}, and the run's at {sorted(run.ends)}"
    for name in sorted({*run.special, *export.special}):
        own, other = run.special.get(name), export.special.get(name)
        if own != other:
            return f"its {name} is {other!r}, and the run's is {own!r}"
    if run.labels != export.labels:
        return f"its labels are {export.labels}, and the run's are {run.labels}"
    for text, ids in run.ids.items():
        if export.ids[text] != ids:
            return f"its tokenizer reads {text[:40]!r} as {[*export.ids[text]][:12]}, and the run's as {[*ids][:12]}"
    return None


def _where(own: Any, other: Any) -> str:
    """Where two texts part."""
    if not isinstance(own, str) or not isinstance(other, str):
        return f": {str(other)[:40]!r} in place of {str(own)[:40]!r}"
    at = next((place for place, pair in enumerate(zip(own, other, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(own), len(other)) if at is None else at
    return f" from character {at + 1} on: {other[at : at + 40]!r} in place of {own[at : at + 40]!r}"
