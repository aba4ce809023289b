"""A needle in a haystack: one fact at some depth of a long text, and a question about it at the end."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.seams import Task, TaskResult

if TYPE_CHECKING:
    from tunesmith.generate.subject import Subject

Length = Annotated[int, Field(ge=64, le=10_000_000)]
Depth = Annotated[float, Field(ge=0, le=1)]

FACT = "The secret number of {name} is {number}."
ASKED = "{text}\n\nWhat is the secret number of {name}?"
BEGUN = "\nThe secret number of {name} is"  # where there is no chat template, so that the text goes on
NAMES = ("Ada", "Bruno", "Clara", "Daniel", "Elsa", "Felix", "Greta", "Henry", "Iris", "Jonas", "Karin", "Louis")
SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]+\s*")


@dataclass(frozen=True, slots=True)
class Question:
    """A haystack with its needle, and the number that answers it."""

    text: str
    name: str
    number: str


class Needle(Task):
    """Whether a model finds one fact in a long text: the share of right answers by length and depth."""

    lengths: Annotated[tuple[Length, ...], Field(min_length=1)] = (512, 1024, 2048, 4096, 8192)
    """Tokens of a prompt, the question included."""
    depths: Annotated[tuple[Depth, ...], Field(min_length=1)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the fact stands: 0 is the beginning of the text, 1 its end."""
    num_samples: Annotated[int, Field(gt=0)] = 4
    """Questions for each length and depth, with other facts and texts."""
    data: str | None = None
    """File of the texts around: a txt, or rows with `text`. None: stories and facts of this package's own corpus."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 24
    """Longest answer, in tokens; it is right when it has the number in it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Decides facts and texts."""

    def digest(self) -> str:
        """What tells the texts from others."""
        from tunesmith.evaluation import _texts

        return _texts.digest(self.data)

    def run(self, subject: "Subject") -> TaskResult:
        """Ask all questions, the short ones first. Raises DataError when the file is too short or cannot be read."""
        from tunesmith.evaluation import _heatmap

        lengths, depths = sorted(set(self.lengths)), sorted(set(self.depths))
        items = [item for length in lengths for item in self._asked(subject, length, depths)]
        rows: list[dict[str, Any]] = []
        for length in lengths:
            by_depth = {depth: _share(items, length=length, depth=depth) for depth in depths}
            named = {f"depth {depth:.0%}": share for depth, share in by_depth.items()}
            rows.append({"length": length, **named, "all": _share(items, length=length)})
        metrics = {"accuracy": _share(items)} | {f"accuracy_{row['length']}": row["all"] for row in rows}
        shares = [[_share(items, length=length, depth=depth) for length in lengths] for depth in depths]
        picture = _heatmap.heatmap(shares, depths, lengths, subject.context_tokens)
        return TaskResult(metrics, tuple(rows), tuple(items), picture)

    def _asked(self, subject: "Subject", length: int, depths: Sequence[float]) -> Iterator[dict[str, Any]]:
        """Each question of a length, and what was answered."""
        from tunesmith.evaluation import _texts

        for number in range(self.num_samples):
            draw = random.Random(f"{self.seed} {length} {number}")
            hay = _texts.made(draw.randrange(2**31)) if self.data is None else iter(_texts.of_file(self.data))
            room = length - _tokens(subject, Question("", *_fact(random.Random(0))))
            sentences = cut(subject, hay, room)
            for depth in depths:
                name, secret = _fact(draw)
                asked = Question(hidden(sentences, FACT.format(name=name, number=secret), depth), name, secret)
                answer = subject.answer(*_said(asked), self.max_new_tokens)
                yield {
                    "length": length,
                    "depth": depth,
                    "tokens": _tokens(subject, asked),
                    "number": secret,
                    "answer": answer,
                    "right": is_right(answer, secret),
                }


def _fact(draw: random.Random) -> tuple[str, str]:
    return draw.choice(NAMES), str(draw.randrange(1000, 10_000))


def _said(question: Question) -> tuple[str, str]:
    """What a model is asked, and how the answer begins where it goes on with a text."""
    return ASKED.format(text=question.text, name=question.name), BEGUN.format(name=question.name)


def _tokens(subject: "Subject", question: Question) -> int:
    """The tokens of the whole prompt; of an empty haystack, what stands around it with its fact."""
    text = question.text or FACT.format(name=question.name, number=question.number)
    return len(subject.prompt(*_said(Question(text, question.name, question.number))))


def cut(subject: "Subject", texts: Iterator[str], room: int) -> list[str]:
    """Sentences of some texts, as many as have room in so many tokens. Raises DataError when there are fewer."""
    from tunesmith.errors import DataError

    found: list[str] = []
    for text in texts:
        for sentence in SENTENCE.findall(text.strip() + "\n\n"):
            tokens = len(subject.ids(sentence))
            if tokens > room:
                return found
            room -= tokens
            found.append(sentence)
    raise DataError(f"data: the texts around the needle end {room:,} tokens before the prompt is full: say more text")


def hidden(sentences: Sequence[str], fact: str, depth: float) -> str:
    """A text with a fact between two of its sentences."""
    at = round(depth * len(sentences))
    return "".join([*sentences[:at], f"{fact} ", *sentences[at:]]).strip()


def is_right(answer: str, number: str) -> bool:
    """Whether an answer has the number in it, whatever stands between its digits' groups."""
    return number in re.findall(r"\d+", re.sub(r"(?<=\d)[,\s](?=\d)", "", answer))


def _share(items: Sequence[dict[str, Any]], **where: Any) -> float:
    """The share of right answers among those of a length or a depth."""
    right = [item["right"] for item in items if all(item[name] == value for name, value in where.items())]
    return sum(right) / len(right)
