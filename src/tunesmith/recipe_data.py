"""The section of a recipe that says which rows are learned from, and how they become tokens."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.component import Section, default
from tunesmith.seams import Format, Template


class Source(Section):
    """Where rows come from. A bare path is a source of its own."""

    path: str
    """File, folder or glob (json, jsonl, csv, tsv, parquet, arrow, xlsx, txt, each also with .gz or .zst); hub id
    (hf://, ms:// and om:// name the hub); s3://, gs://, http(s)://; a name in data.registry; or `builtin:identity`."""
    format: Format = default(Format)
    """How a row is read."""
    columns: dict[str, str] = {}
    """Names a format expects, mapped to the columns that hold them: {instruction: Question}. An empty one is not
    read."""
    replace: dict[Annotated[str, Field(min_length=1)], str] = {}
    """Texts to put in place of others, in every column: {"{{name}}": Smith}."""
    name: str | None = None
    """Configuration of a hub dataset, or sheet of a workbook."""
    split: str = "train"
    """Split of a hub dataset."""
    num_samples: Annotated[int, Field(gt=0)] | None = None
    """Use this many rows: the first ones, or all of them again and again where there are fewer."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each sample comes in an epoch, 0.5 being half of them; where data.mix draws, how often this source is
    drawn beside the weights of the others."""
    share: Annotated[str, Field(pattern=r"^[1-9][0-9]*(-[1-9][0-9]*)?/[1-9][0-9]*$")] | None = None
    """Use a part of the rows, by their content: 1-2/10 is the first two tenths, 3-6/10 the four after them. Stages
    with other parts have no row in common."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("share", mode="after")
    @classmethod
    def _says_which_part(cls, value: str | None) -> str | None:
        if value is None:
            return value
        part, _, whole = value.partition("/")
        first, dash, last = part.partition("-")
        if not dash:
            raise ValueError(f"says how much and not which part: 1-{first}/{whole} is the first {first} of {whole}")
        if not 1 <= int(first) <= int(last) <= int(whole):
            raise ValueError(f"must count up within 1-{whole}/{whole}")
        return value


Sources = tuple[Source, ...]
Role = Literal["system", "user", "assistant", "tool"]


class Loss(Section):
    """What is learned of a conversation. What a row says of a turn (`train`, `weight`, `train_spans`) outweighs it."""

    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("assistant",)
    """Whose turns are learned; `tool` is the results of calls."""
    turns: Literal["all", "last"] = "all"
    """Whether all of those turns are learned, or the last alone."""
    tool_calls: bool = True
    """Whether the assistant's calls are learned."""
    reasoning: Literal["train", "keep", "drop"] = "train"
    """What happens to an answer's reasoning (`<think>`). keep: it stands before the answer and is not learned. drop:
    it is left out."""
    pattern: str | None = None
    """Regular expression: of the text of a learned turn only what it matches is learned (its groups, where it has
    some), and the end of the turn."""
    train_on_prompt: bool = False
    """Learn every token, those of the prompts and of the template included."""

    @field_validator("roles", mode="before")
    @classmethod
    def _role_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _chooses_or_not(self) -> "Loss":
        plain = {name: field.default for name, field in type(self).model_fields.items()}
        choosing = [name for name in ("roles", "turns", "tool_calls", "pattern") if getattr(self, name) != plain[name]]
        choosing += ["reasoning"] if self.reasoning == "keep" else []
        if self.train_on_prompt and choosing:
            raise ValueError(
                f"train_on_prompt learns every token, and {choosing[0]} chooses some: leave one of them out"
            )
        return self

    @field_validator("pattern", mode="after")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from None
        return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict | Source) else value


class Data(Section):
    """Rows, and how they become tokens."""

    train: Annotated[Sources, Field(min_length=1)]
    """Sources to train on."""
    eval: Annotated[float, Field(ge=0)] | Sources = 0.0
    """Held-out samples: a fraction of the samples (below 1), a count, or a list of sources. Parts of a split row go
    together, so that a count may be exceeded by those of one row."""
    registry: str | None = None
    """File that names datasets: YAML or JSON of {name: {path: ..., format: ...}}, or a dataset_info.json of
    LLaMA-Factory. `path: alpaca_en` is then one of them."""
    mix: Literal["concatenate", "first_exhausted", "all_exhausted"] = "concatenate"
    """How several sources make one stream. concatenate: all samples of all. The others draw from the sources by
    weight until the first one is used up, or until all are, the smaller ones repeated."""
    weight_by: Literal["samples", "tokens"] = "samples"
    """What the weights of drawn sources are shares of."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What happens to samples that equal an earlier one. They are counted in any case but in a stream."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Likeness from which two samples are duplicates too: the share of runs of five tokens that they have in common,
    estimated by MinHash. None: equal ones alone are looked for."""
    leakage: Literal["keep", "drop"] = "keep"
    """What happens to training samples that equal held-out ones. They are counted in any case but in a stream."""
    streaming: bool = False
    """Render rows as they are needed, and never hold a source whole; needs train.max_steps."""
    buffer_samples: Annotated[int, Field(gt=0)] = 16_384
    """Samples that a stream shuffles and packs together."""
    template: Template = default(Template)
    """How a conversation is written as tokens."""
    loss: Loss = Loss()
    """Which of its tokens are learned."""
    max_tokens: Annotated[int, Field(gt=1, le=10_000_000)] = 2048
    """Longest sample, in tokens; pretrain lays documents of any length end to end."""
    position_skipping: Annotated[int, Field(gt=1, le=10_000_000)] | None = None
    """Positions below this are seen in training, though samples are shorter: those of each are cut in two, with a
    random gap between (PoSE, arXiv 2309.10400). None: they follow one another."""
    shared_prefix: bool = True
    """Whether what answers to one prompt, or the turns of a divided conversation, begin with in common is computed
    once."""
    overlong: Literal["drop", "truncate", "split"] = "drop"
    """What happens to a longer one. drop: counted and left out. truncate: later turns go, then prompts are shortened;
    an answer is never cut. split: divided at turns, the system message repeated."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Decides the held-out samples and the order of the others."""
    shuffle: bool = True
    """Whether the order changes with every epoch; false keeps the order of the files."""
    window_samples: Annotated[int, Field(gt=0)] = 4096
    """Samples of the shuffled stream that are packed into rows together."""
    num_processes: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Processes that render. None: one for every 64 MB of a source, and at most one per processor."""
    cache_dir: str | None = None
    """Where rendered rows are kept. None: tunesmith's folder in the user's cache."""

    @field_validator("train", mode="before")
    @classmethod
    def _train_list(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("eval", mode="before")
    @classmethod
    def _eval_list(cls, value: Any) -> Any:
        if isinstance(value, bool) or value in ([], ()):
            raise ValueError("must be a fraction below 1, a whole count or a list of sources; 0 holds nothing out")
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return [value]
        return _listed(value)

    @field_validator("eval", mode="after")
    @classmethod
    def _eval_whole(cls, value: float | Sources) -> float | Sources:
        if isinstance(value, float) and value >= 1 and value != int(value):
            raise ValueError("must be a fraction below 1, a whole count or a list of sources")
        return value
