"""The rows of a data set as what a model is asked, and the answer that it should give."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import record
from tunesmith.data import registry, source
from tunesmith.data.choose import choose
from tunesmith.data.ledger import note, places
from tunesmith.data.prepare import prepare
from tunesmith.defaults import with_values
from tunesmith.engine.encoder_decoder import ready
from tunesmith.errors import DataError, RunError, TemplateError
from tunesmith.recipe import Recipe
from tunesmith.recipe_data import Source
from tunesmith.seams import Format
from tunesmith.templates._apply import apply
from tunesmith.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation up to its last answer, and that answer as the text and tokens that a model would write."""

    where: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    label: str
    label_ids: tuple[int, ...]


@dataclass
class Rows:
    """What was read of a data set, and why rows of it were left out."""

    asked: list[Asked] = field(default_factory=list)
    dropped: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The account in words."""
        left = sum(entry["count"] for entry in self.dropped.values())
        yield f"{len(self.asked) + left:,} rows read, {len(self.asked):,} asked"
        for reason, entry in self.dropped.items():
            yield f"{entry['count']:,} dropped: {reason} ({places(entry)})"


def of_file(one: Source, tokenizer: "PreTrainedTokenizerBase | None") -> Rows:
    """The rows of a file, dataset or glob.

    Raises:
        DataError, TemplateError: it cannot be read, or none of its rows has an answer.
    """
    return _read(((where, row, one.format) for where, row in source.read(one)), tokenizer, one.path)


def content(one: Source) -> str:
    """What tells the rows of a file, dataset or glob from others. Raises DataError."""
    return source.fingerprint(one)[:16]


def content_held_out(run: Path) -> str:
    """What tells the rows that a run held out, or held them out of, from others. Raises as `held_out`."""
    with _begun(run) as recipe:
        sources = recipe.data.eval if isinstance(recipe.data.eval, tuple) else recipe.data.train
        return " ".join(map(content, sources))


def held_out(run: Path, tokenizer: "PreTrainedTokenizerBase | None", say: Callable[[str], None]) -> Rows:
    """The rows that a run held out: of its `data.eval`, or those of `data.train` that it did not train on.

    Raises:
        RunError: it held nothing out, or was given its rows by a script.
        DataError: the rows are no longer there.
    """
    with _begun(run) as recipe:
        if isinstance(recipe.data.eval, tuple):
            kept, sources = None, recipe.data.eval
        else:
            say(f"asked are the rows that {run} held out")
            recipe, own = ready(recipe)
            store = prepare(recipe, recipe.data.train, own)
            kept, sources = {store.place(int(at)) for at in choose(recipe, store, None).held}, recipe.data.train
        rows = ((where, row, one.format) for one in sources for where, row in source.read(one))
        return _read(((*read,) for read in rows if kept is None or read[0] in kept), tokenizer, str(run))


@contextlib.contextmanager
def recipe_of(run: Path, instead: str) -> Iterator[Recipe]:
    """The recipe of a run with what was derived from it, in a block in the folder that its paths are from.

    Raises:
        RunError: it was given its rows by a script; `instead` says what to do.
    """
    run = run.expanduser().absolute()
    past = record.read(run)
    if "rows" in past["given"]:
        raise RunError(f"{run} was given its rows by a script: {instead}")
    with contextlib.chdir(past["working_folder"] if Path(past["working_folder"]).is_dir() else "."):
        yield registry.applied(with_values(Recipe.load(str(run / "recipe.yaml")), past["derived"]))


@contextlib.contextmanager
def _begun(run: Path) -> Iterator[Recipe]:
    """The recipe of a run that held rows out, in a block as that of `recipe_of`. Raises RunError."""
    with recipe_of(run, "say FILE, the rows to be answered") as recipe:
        if not recipe.data.eval:
            raise RunError(f"{run} held no rows out (data.eval is {recipe.data.eval!r}): say FILE, rows to be answered")
        yield recipe


def _read(
    rows: Iterator[tuple[str, Mapping[str, Any], Format]], tokenizer: "PreTrainedTokenizerBase | None", name: str
) -> Rows:
    found = Rows()
    for where, row, format_ in rows:
        try:
            found.asked.append(asked(where, row, format_, tokenizer))
        except (DataError, TemplateError) as error:
            note(found.dropped, error.reason, where)
    if not found.asked:
        raise DataError(f"{name} has no row to answer: {'; '.join(found.lines())}")
    return found


def asked(where: str, row: Mapping[str, Any], format_: Format, tokenizer: "PreTrainedTokenizerBase | None") -> Asked:
    """What one row asks. Of alternatives the first, which is the best, is the answer.

    Raises:
        DataError, TemplateError: it is not of the format, or does not end with an answer that says something.
    """
    sample = format_.read(row)
    turns = sample.branches[0]
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise DataError(f"{where}: the row ends with no answer", "no answer at the end")
    spoken = tuple(turn.spoken() for turn in turns)
    label, ids = _label(spoken, sample.tools, turns[-1], tokenizer)
    if not label:
        raise DataError(f"{where}: the answer is empty", "an empty answer")
    return Asked(where, spoken[:-1], sample.tools, label, ids)


def _label(
    spoken: tuple[dict[str, Any], ...],
    tools: tuple[Mapping[str, Any], ...],
    answer: Message,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> tuple[str, tuple[int, ...]]:
    """The last turn as a model would write it: calls of tools and reasoning too, without what ends a turn.

    Without a tokenizer, its text alone.
    """
    text = (
        answer.content if isinstance(answer.content, str) else "".join(part.get("text", "") for part in answer.content)
    )
    if tokenizer is None:
        return text.strip(), ()
    if tokenizer.chat_template:
        whole, begun = apply(tokenizer, [*spoken], tools), apply(tokenizer, [*spoken[:-1]], tools, prompt=True)
        if whole.startswith(begun):
            text = whole[len(begun) :]
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    ends = {*tokenizer.all_special_ids}
    while ids and (ids[-1] in ends or not str(tokenizer.decode(ids[-1:])).strip()):
        ids.pop()
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip(), tuple(ids)
