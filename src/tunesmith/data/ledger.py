"""The account of a dataset: every row read is kept or dropped, and every drop has a reason and a place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.data import lengths
from tunesmith.data.shared import own_tokens
from tunesmith.data.source import Registered

if TYPE_CHECKING:
    from tunesmith.data.rendered import Rendered
    from tunesmith.recipe_data import Source

FIRST_PLACES = 3  # rows named for each reason

DUPLICATE = "duplicate of an earlier sample"
NEAR_DUPLICATE = "near duplicate of an earlier sample"
LEAKED = "equals a held-out sample"
NEARLY_LEAKED = "nearly equals a held-out sample"
SPECIAL = "has a special token in its own text"
EARLIER = "has earlier answers, which are read and not learned"
CUT = "cut off by data.overlong=truncate"

FOUND = {  # what is looked for in the samples: how it is said, and the option that changes it
    DUPLICATE: ("equal an earlier one", "data.duplicates=drop leaves them out"),
    NEAR_DUPLICATE: ("nearly equal an earlier one", "data.duplicates=drop leaves them out"),
    LEAKED: ("of those to train on equal held-out ones", "data.leakage=drop leaves them out"),
    NEARLY_LEAKED: ("of those to train on nearly equal held-out ones", "data.leakage=drop leaves them out"),
    SPECIAL: (
        "have in their own text what is read as a special token, an end of a turn for one",
        "`replace` of a source changes it",
    ),
    EARLIER: (
        "have earlier answers, which are read and not learned",
        "data.template=per_turn, with a chat template, makes a sample of each",
    ),
}

UNSTREAMED = (DUPLICATE, NEAR_DUPLICATE, LEAKED, NEARLY_LEAKED)  # whose option looks at all samples at once


@dataclass
class Ledger:
    """Counts of rows, samples and tokens. `rows_read == rows_kept + rows dropped`, by reason.

    A row that is split is kept when any part is; its other parts count in `parts_dropped`. `tokens_dropped` has, by
    reason, the tokens of what was left out after it was written as tokens: what is kept and what was dropped are
    together the tokens that were read. `rows_truncated`, `rows_split`, `repeated_tokens` and `joined_answers` count
    what was read, before duplicates and leaked samples are left out.
    """

    rows_read: int = 0
    rows_kept: int = 0
    rows_truncated: int = 0
    rows_split: int = 0
    parts_dropped: int = 0
    samples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest_tokens: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows_refused: int = 0  # of the dropped ones: those that the format cannot read or the template cannot write
    repeated_tokens: int = 0  # that conversations of one row begin with in common, and that are computed again
    shared_tokens: int = 0  # that branches of one sample begin with in common, and that are computed once
    tied_answers: int = 0  # that are left out of rows, since another one is as good
    joined_answers: int = 0  # whose beginning is part of their header's last token, which is not learned
    tokens_dropped: dict[str, int] = field(default_factory=dict)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)  # by what: those of `FOUND`, dropped or not
    lengths: dict[str, int] = field(default_factory=dict)  # samples by the tokens that each takes in a row
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    _row: list["Rendered"] = field(default_factory=list, repr=False)
    _source: str = field(default="", repr=False)

    def add(self, one: "Rendered", source: str = "") -> None:
        """Count one sample, of a source by its name. The parts of a split row come one after the other."""
        if one.part == 0:
            self._close()
        self._row.append(one)
        self._source = source

    def _close(self) -> None:
        """Count the row whose parts have all come."""
        parts, self._row = self._row, []
        if not parts:
            return
        kept = [part for part in parts if part.dropped is None]
        self.rows_read += 1
        if kept:
            self.rows_kept += 1
            self.rows_truncated += kept[0].truncated
            self.rows_split += len(parts) > 1 and not parts[0].divided
            self.parts_dropped += len(parts) - len(kept)
        else:
            note(self.dropped, str(parts[0].dropped), parts[0].where)
            self.rows_refused += parts[0].refused is not None
        own = self.sources.setdefault(self._source, new_source())
        own["rows_read"] += 1
        own["rows_kept"] += bool(kept)
        self.samples += len(kept)
        own["samples"] += len(kept)
        for part in parts:
            if part.lost_tokens:
                reason = part.dropped or CUT
                self.tokens_dropped[reason] = self.tokens_dropped.get(reason, 0) + part.lost_tokens
        for part in kept:
            if part.special_said:
                note(self.found, SPECIAL, part.where)
            if part.earlier_read:
                note(self.found, EARLIER, part.where)
            self.repeated_tokens += part.repeated_tokens
            self.joined_answers += part.joined_answers
            self.tied_answers += part.tied_answers
            bucket = lengths.bucket(own_tokens(part.branches))
            self.lengths[bucket] = self.lengths.get(bucket, 0) + 1
            self.shared_tokens += sum(tokens.shared for tokens in part.branches)
            for tokens in part.branches:
                self.tokens += len(tokens)
                self.trained_tokens += tokens.trained
                own["tokens"] += len(tokens)
                own["trained_tokens"] += tokens.trained
                self.longest_tokens = max(self.longest_tokens, len(tokens))

    def as_dict(self) -> dict[str, Any]:
        """The counts, with `dropped` as {reason: {count, first places}}."""
        self._close()
        self.lengths = {label: self.lengths[label] for label in lengths.LABELS if label in self.lengths}
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    @classmethod
    def from_dict(cls, counts: dict[str, Any]) -> "Ledger":
        """The ledger that `as_dict` wrote."""
        return cls(**counts)

    def lines(self, streaming: bool = False, of_samples: bool = False) -> list[str]:
        """The account in words, one line a fact; for a stream without the advice that it refuses.

        `of_samples` says that samples are learned as a whole (`Objective.of_samples`), and not their tokens.
        """
        self._close()
        facts = [f"{self.rows_read:,} rows read, {self.rows_kept:,} kept"]
        for reason, entry in self.dropped.items():
            tokens = f"; {self.tokens_dropped[reason]:,} tokens" if self.tokens_dropped.get(reason) else ""
            facts.append(f"{entry['count']:,} dropped: {reason} ({places(entry)}{tokens})")
        if self.rows_truncated:
            cut = f": {self.tokens_dropped[CUT]:,} tokens cut off" if self.tokens_dropped.get(CUT) else ""
            facts.append(f"{self.rows_truncated:,} truncated to data.max_tokens{cut}")
        if self.rows_split:
            facts.append(f"{self.rows_split:,} split to fit")
        if self.rows_split or self.parts_dropped:
            facts.append(f"{self.parts_dropped:,} parts of rows dropped as too long or with nothing to learn")
        if self.repeated_tokens:
            facts.append(f"{self.repeated_tokens:,} tokens are what conversations of one row begin with in common")
        if self.shared_tokens:
            facts.append(f"{self.shared_tokens:,} tokens are shared by sequences of one sample, and computed once")
        if self.tied_answers:
            facts.append(f"{self.tied_answers:,} answers are ranked the same as another one of their row, and left out")
        if self.joined_answers:
            facts.append(
                f"{self.joined_answers:,} answers begin within the last token of their header, which is not learned"
            )
        for what, entry in self.found.items():
            if what not in self.dropped:
                said, option = FOUND[what]
                advice = "" if streaming and what in UNSTREAMED else f": {option}"
                facts.append(f"{entry['count']:,} samples {said} ({places(entry)}){advice}")
        share = self.trained_tokens / max(1, self.tokens)
        trained = f"{self.samples:,} samples" if of_samples else f"{self.trained_tokens:,}"
        facts.append(
            f"{self.samples:,} samples, {self.tokens:,} tokens, {trained} trained "
            f"({1 if of_samples else share:.1%}), longest {self.longest_tokens:,}"
        )
        return [*facts, *self._source_lines("samples" if of_samples else "trained_tokens")]

    def _source_lines(self, trained: str) -> list[str]:
        """What each source brought, where there are several; `trained` names the count of what is learned."""
        if len(self.sources) < 2:
            return []
        unit = " samples" if trained == "samples" else ""
        return [
            f"of {name}: {own['samples']:,} samples of {own['rows_read']:,} rows, {own['tokens']:,} tokens "
            f"({own['tokens'] / max(1, self.tokens):.1%} of all), {own[trained]:,}{unit} trained "
            f"({own[trained] / max(1, vars(self)[trained]):.1%} of all)"
            for name, own in self.sources.items()
        ]


def new_source() -> dict[str, int]:
    """The counts of a source of which nothing has been read."""
    return {"rows_read": 0, "rows_kept": 0, "samples": 0, "tokens": 0, "trained_tokens": 0}


def note(entries: dict[str, dict[str, Any]], what: str, where: str, number: int = 1) -> None:
    """Count something more often, and keep its first places."""
    entry = entries.setdefault(what, {"count": 0, "first": []})
    entry["count"] += number
    entry["first"] = [*entry["first"], where][:FIRST_PLACES]


def places(entry: Mapping[str, Any]) -> str:
    """The first places of something that was counted, in words."""
    return ", ".join(entry["first"]) + (", ..." if entry["count"] > len(entry["first"]) else "")


def source_names(sources: Sequence["Source"]) -> list[str]:
    """What each source is called in the account: its name or path, with a number where that comes again."""
    said = [one.registered if isinstance(one, Registered) else one.path for one in sources]
    again = [said[:number].count(name) for number, name in enumerate(said)]
    return [f"{name} ({number + 1})" if number else name for name, number in zip(said, again, strict=True)]
