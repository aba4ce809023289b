"""metrics.jsonl: one JSON object a line, in the order things happened; a resume leaves no gap and no repeat.

A training line has `step, loss, learning_rate, grad_norm, tokens, trained_tokens, seconds` (the last three
count from the run's first step, through every resume), an evaluation line `step, eval_loss` and what else was
measured.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import atomic
from tunesmith.errors import RunError


@dataclass(frozen=True, slots=True)
class MetricsFile:
    """The metrics file of a run."""

    path: Path

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line, in the system's hands on return. NaN and infinity, which JSON lacks, become null."""
        text = json.dumps({name: _finite(value) for name, value in line.items()}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; a last line without its end was cut by a kill and is not one. No file is no line.

        Raises:
            RunError: a line is not a JSON object with a step.
        """
        if not self.path.exists():
            return []
        whole = self.path.read_bytes().split(b"\n")[:-1]
        return [self._parse(text, number) for number, text in enumerate(whole, start=1)]

    def trim(self, step: int) -> None:
        """Keep the lines up to and with `step`: what was logged after the checkpoint goes."""
        kept = [json.dumps(line) + "\n" for line in self.read() if line["step"] <= step]
        atomic.write(self.path, "".join(kept).encode())

    def _parse(self, text: bytes, number: int) -> dict[str, Any]:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise RunError(f"{self.path}:{number} is not a JSON object with a `step`: mend or delete that line")
        return line


@dataclass(slots=True)
class Smooth:
    """An exponential mean over about `span` values, its start corrected (arXiv 1412.6980, section 3)."""

    span: float
    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, value: float) -> float:
        """The mean with one value more; one that is not finite changes nothing. NaN before a finite one."""
        if math.isfinite(value):
            share = 2 / (self.span + 1)
            self._sum += share * (value - self._sum)
            self._weight += share * (1 - self._weight)
        return self._sum / self._weight if self._weight else math.nan


def three_digits(value: float) -> str:
    """A number with three significant digits and no exponent where people use none: 0.0123, 1.20, 12,300."""
    if not math.isfinite(value) or value == 0:
        return f"{value:.3g}"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def _finite(value: Any) -> Any:
    """A number that JSON can say, or None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
