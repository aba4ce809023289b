"""The account of a dataset: every row read is kept or dropped, and every drop has a reason and a place."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.data.render import Rendered

FIRST_PLACES = 3  # rows named for each reason


@dataclass
class Ledger:
    """Counts of rows, samples and tokens. `rows_read == rows_kept + rows dropped`, by reason.

    A row that is split is kept when any part is; its other parts count in `parts_dropped`.
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
    _row: list["Rendered"] = field(default_factory=list, repr=False)

    def add(self, one: "Rendered") -> None:
        """Count one sample. The parts of a split row come one after the other."""
        if one.part == 0:
            self._close()
        self._row.append(one)

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
            self.rows_split += len(parts) > 1
            self.parts_dropped += len(parts) - len(kept)
        else:
            entry = self.dropped.setdefault(str(parts[0].dropped), {"count": 0, "first": []})
            entry["count"] += 1
            entry["first"] = [*entry["first"], parts[0].where][:FIRST_PLACES]
        self.samples += len(kept)
        for tokens in (tokens for part in kept for tokens in part.branches):
            self.tokens += len(tokens)
            self.trained_tokens += int((tokens.weight[1:] != 0).sum())
            self.longest_tokens = max(self.longest_tokens, len(tokens))

    def as_dict(self) -> dict[str, Any]:
        """The counts, with `dropped` as {reason: {count, first places}}."""
        self._close()
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    @classmethod
    def from_dict(cls, counts: dict[str, Any]) -> "Ledger":
        """The ledger that `as_dict` wrote."""
        return cls(**counts)

    def lines(self) -> list[str]:
        """The account in words, one line a fact."""
        self._close()
        facts = [f"{self.rows_read:,} rows read, {self.rows_kept:,} kept"]
        for reason, entry in self.dropped.items():
            more = ", ..." if entry["count"] > len(entry["first"]) else ""
            facts.append(f"{entry['count']:,} dropped: {reason} ({', '.join(entry['first'])}{more})")
        if self.rows_truncated:
            facts.append(f"{self.rows_truncated:,} truncated to data.max_tokens")
        if self.rows_split:
            facts.append(
                f"{self.rows_split:,} split to fit; {self.parts_dropped:,} parts of them dropped as too "
                "long or with nothing to learn"
            )
        share = self.trained_tokens / max(1, self.tokens)
        facts.append(
            f"{self.samples:,} samples, {self.tokens:,} tokens, {self.trained_tokens:,} trained "
            f"({share:.1%}), longest {self.longest_tokens:,}"
        )
        return facts
