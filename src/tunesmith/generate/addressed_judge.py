"""A reward model or classifier that `tunesmith serve` serves: its `/v1/score` reads rows as this package does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.generate.endpoint import Endpoint, Server, chosen

SCORE = "/score"
TOGETHER = 16  # rows of a request


@dataclass(frozen=True)
class AddressedJudge:
    """A judge behind an address."""

    endpoint: Endpoint
    name: str

    @classmethod
    def open(cls, address: str, how: Server) -> "AddressedJudge":
        """The judge at an address. Raises RecipeError, ModelError: see `Addressed.open`."""
        endpoint = Endpoint.of(address, how)
        return cls(endpoint, str(chosen(endpoint, address)["id"]))

    def scored(self, rows: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
        """What it says of rows, as `judge.scored` gives it. Raises ModelError where the server judges nothing."""
        while some := list(islice(rows, TOGETHER)):
            told = self._asked([row for _, row in some])
            yield from ({"where": where} | one for (where, _), one in zip(some, told, strict=True))

    def rewards(
        self, messages: Sequence[Mapping[str, Any]], answers: Sequence[str], tools: Sequence[Any] = ()
    ) -> list[float]:
        """The reward of each answer to a conversation; an answer that cannot be read has none (-inf)."""
        said = [{"role": "assistant", "content": one} for one in answers]
        (told,) = self._asked([{"messages": list(messages), "answers": said, "tools": list(tools)}])
        found = {one["answer"]: float(one["reward"]) for one in told.get("answers", ())}
        if not found and "dropped" not in told:
            raise ModelError(
                f"{self.endpoint.place(SCORE)} says no rewards, and answers are ranked by them: it says {told}"
            )
        return [found.get(at, float("-inf")) for at in range(len(answers))]

    def _asked(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        answer = self.endpoint.post(SCORE, {"model": self.name, "input": [dict(row) for row in rows]})
        try:
            data = sorted(answer["data"], key=lambda one: one["index"])
            told = [{key: value for key, value in one.items() if key not in ("object", "index")} for one in data]
        except (LookupError, TypeError, AttributeError):
            raise self.endpoint.strange(SCORE, answer) from None
        if len(told) != len(rows):
            raise self.endpoint.strange(SCORE, answer)
        return told
