"""Chat formats by name, for base models and old ones whose tokenizer brings no template.

Each is a file of `families/`: its jinja text, the tokens it needs and what ends a turn. Nothing is registered.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import field_validator

from tunesmith.component import Section
from tunesmith.errors import TemplateError, near
from tunesmith.templates.jinja import Jinja
from tunesmith.templates.per_turn import divide
from tunesmith.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "families"
NEW = "model.new_special_tokens adds such, and the model has to learn them. "


class Facts(Section):
    """What the file of a family says. A token may be a name, such as `eos_token`: the tokenizer's own of that name."""

    about: str
    """The models it is for."""
    source: str
    """Where the format is published."""
    template: str
    """Its jinja text."""
    tokens: tuple[str, ...]
    """What the tokenizer must have as one token each."""
    special_tokens: dict[str, str] = {}
    """Names of the tokenizer's special tokens that are others for this format."""
    stop: tuple[str, ...]
    """The tokens at which an answer ends; the first is the one that an answer is trained to end with."""
    tools: str
    """How tools, calls and results are written."""
    reasoning: str = "not written"
    """How an answer's reasoning is written."""
    differs: str | None = None
    """Where the text is another than the published template's, and why."""
    per_turn: bool = False
    """Whether earlier answers are written in another way than the last."""


class Family(Jinja):
    """A chat format by its name, with the tokens that it needs; `template: chatml` is short for this."""

    name: str
    """Name of the format."""

    @field_validator("name", mode="after")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in names():
            raise ValueError(f"is no family of templates. {near(value, names())}")
        return value

    def prepare(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
        """A copy of the tokenizer with this format's template and special tokens.

        Raises:
            TemplateError: it lacks a token of the format; with the formats for which it has all.
        """
        found = facts(self.name)
        missing = _missing(found, tokenizer)
        if missing:
            fitting = [name for name in names() if not _missing(facts(name), tokenizer)]
            added = "" if any(token.endswith("_token") for token in missing) else NEW
            raise TemplateError(
                f"the template {self.name} writes {' '.join(missing)}, and the tokenizer of {tokenizer.name_or_path} "
                f"has no such token. {added}It has the tokens of {', '.join(fitting) or 'no template'}"
            )
        prepared = super().prepare(tokenizer)
        added = prepared.get_added_vocab()
        plain = [token for token in _written(found) if token not in added]  # a piece of the vocabulary could be split
        prepared.add_tokens(plain, special_tokens=True)
        prepared.add_special_tokens(dict(found.special_tokens))
        return prepared

    def text(self) -> str:
        """The file's jinja when the recipe names one, else the family's."""
        return super().text() or facts(self.name).template

    def divide(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], ...]:
        """The conversation, or one for each trained turn where the format writes earlier answers anew."""
        return divide(messages) if self.divides() else (messages,)

    def divides(self) -> bool:
        """Whether the format writes earlier answers in another way than the last."""
        return facts(self.name).per_turn

    def document_end(self, tokenizer: "PreTrainedTokenizerBase") -> int | None:
        """The tokenizer's own EOS, which is not the end of a turn where the family has another."""
        own = tokenizer.init_kwargs.get("eos_token")
        found = tokenizer.eos_token_id if own is None else tokenizer.convert_tokens_to_ids(str(own))
        assert found is None or isinstance(found, int)
        return found


def names() -> list[str]:
    """The families, without reading their files."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@functools.cache
def facts(name: str) -> Facts:
    """What the file of a family says."""
    import yaml

    return Facts(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def _written(found: Facts) -> list[str]:
    """The tokens that a family writes by their text."""
    return [token for token in found.tokens if not token.endswith("_token")]


def _missing(found: Facts, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The tokens of a family that a tokenizer lacks."""
    own = {name for name, token in tokenizer.special_tokens_map.items() if token}
    unknown = (None, tokenizer.unk_token_id)
    return [token for token in found.tokens if token not in own and tokenizer.convert_tokens_to_ids(token) in unknown]
