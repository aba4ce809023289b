"""What a server has done, in the text that Prometheus reads (exposition format 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tunesmith.serve.answering import Account

if TYPE_CHECKING:
    from tunesmith.generate.worker import Worker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """How often a number was how large."""

    def __init__(self, name: str, help_: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.help, self.bounds = name, help_, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a number."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self) -> Iterator[str]:
        """Its lines."""
        yield from _head(self.name, self.help, "histogram")
        total = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{self.name}_bucket{{le="{bound}"}} {total}'
        yield f"{self.name}_sum {self.sum}"
        yield f"{self.name}_count {total}"


class Metrics:
    """The numbers of a server since its start. They belong to its event loop."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.prompt_tokens = self.generated_tokens = 0
        self.histograms = {
            name: Histogram(f"tunesmith_{name}_seconds", help_)
            for name, help_ in {
                "request": "From a request to the end of its answer",
                "queue": "From a request to its place among the running",
                "first_token": "From a request to the first piece of its answer",
                "token": "From a token to the next, on average over an answer",
            }.items()
        }

    def count(self, path: str, status: int, account: Account, seconds: float) -> None:
        """Count a request that has its answer."""
        self.requests[path, status] += 1
        self.prompt_tokens += account.prompt_tokens
        self.generated_tokens += account.generated_tokens
        seen = {
            "request": seconds,
            "queue": account.queued_seconds,
            "first_token": account.first_token_seconds,
            "token": per_token(account),
        }
        for name, value in seen.items():
            if value is not None:
                self.histograms[name].observe(value)

    def text(self, worker: "Worker | None") -> str:
        """All of them, and what the worker is at."""
        lines = list(_head("tunesmith_requests_total", "Requests that have their answer", "counter"))
        for (path, status), number in sorted(self.requests.items()):
            lines.append(f'tunesmith_requests_total{{path="{path}",status="{status}"}} {number}')
        numbers: Mapping[str, tuple[str, str, int]] = {
            "prompt_tokens_total": ("Tokens of prompts", "counter", self.prompt_tokens),
            "generated_tokens_total": ("Tokens of answers", "counter", self.generated_tokens),
            "running": ("Answers that are being made", "gauge", 0 if worker is None else worker.num_running),
            "waiting": ("Answers that wait for a place", "gauge", 0 if worker is None else worker.num_waiting),
        }
        for name, (help_, kind, value) in numbers.items():
            lines += [*_head(f"tunesmith_{name}", help_, kind), f"tunesmith_{name} {value}"]
        for histogram in self.histograms.values():
            lines += histogram.lines()
        return "\n".join(lines) + "\n"


def per_token(account: Account) -> float | None:
    """Seconds from a token to the next, on average; None where there are not two."""
    first, last = account.first_token_seconds, account.last_token_seconds
    if first is None or last is None or account.generated_tokens < 2:
        return None
    return (last - first) / (account.generated_tokens - 1)


def _head(name: str, help_: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {help_}.", f"# TYPE {name} {kind}"
