"""GSM8K: sums in words, which a model works out in its own words (arXiv 2110.14168)."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.evaluation._shares import wilson
from tunesmith.seams import Task, TaskResult

if TYPE_CHECKING:
    from tunesmith.generate.subject import Subject

NUMBER = re.compile(r"(?:(?<![\d)])-\$?)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")  # of 10-3 the last one is 3
RESULT = re.compile(r"####([^\n]*)")
STOP = "Question:"  # of a model that goes on with the next one
OWN_SUMS = "sums.yaml"


@dataclass(frozen=True, slots=True)
class Sum:
    """A question, how it is worked out, and the result."""

    question: str
    solution: str
    result: Decimal


class Gsm8k(Task):
    """Sums in words: a model writes how it works one out, and the number it ends with is compared.

    That is the number behind `####`, or the last one where there is no such line.
    """

    data: str
    """File, folder or glob of rows with `question` and `answer`, which ends in a line of #### and the result; or the
    hub id openai/gsm8k, of which the test questions are read."""
    num_samples: Annotated[int, Field(gt=0)] | None = None
    """Questions, the first ones. None: all."""
    num_shots: Annotated[int, Field(ge=0)] = 5
    """Questions shown with their solutions before each one."""
    shots: str | None = None
    """File of these, of the same rows, of which the first are taken. None: eight of this package's own."""
    chat: bool | None = None
    """Whether the tokenizer's chat template is used, the examples being earlier turns. None: where there is one."""
    instruction: str = "Solve the problem step by step. End with a line of #### and the result alone."
    """What is said before the first question. Empty: nothing, as to a model that was taught on bare questions."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 400
    """Longest solution, in tokens."""

    def digest(self) -> str:
        """What tells these questions and examples from others."""
        read = repr((list(self._asked()), list(self._shown())))
        return hashlib.sha256(read.encode("utf-8", "surrogatepass")).hexdigest()

    def run(self, subject: "Subject") -> TaskResult:
        """Ask all questions.

        Raises:
            DataError: the file cannot be read, or a row is no such question.
            ModelError: a chat template is asked for, and there is none.
        """
        asked, shown = list(self._asked()), list(self._shown())
        prompts = [self._fitting(subject, one, shown) for one in asked]
        chat = self._chats(subject)
        replies = subject.replies([ids for ids, _ in prompts], self.max_new_tokens, () if chat else (STOP,))
        items = []
        for number, (one, (_, shots), reply) in enumerate(zip(asked, prompts, replies, strict=True), 1):
            found, strict = answered(reply.text)
            items.append(
                {
                    "number": number,
                    "answer": reply.text,
                    "result": None if found is None else str(found),
                    "expected": str(one.result),
                    "right": found == one.result,
                    "behind_####": strict,
                    "finish": reply.finish,
                    "shots": shots,
                }
            )
        return self._result(items)

    def _result(self, items: list[dict[str, Any]]) -> TaskResult:
        right = sum(item["right"] for item in items)
        strict = sum(item["right"] and item["behind_####"] for item in items)
        fewer = sum(item["shots"] < self.num_shots for item in items)
        metrics: dict[str, float] = {
            "accuracy": right / len(items),
            "accuracy_behind_####": strict / len(items),
            "questions": len(items),
            "cut_off": sum(item["finish"] == "length" for item in items),
        }
        metrics |= {"questions_with_fewer_shots": fewer} if fewer else {}
        intervals = {"accuracy": wilson(right, len(items)), "accuracy_behind_####": wilson(strict, len(items))}
        return TaskResult(metrics, items=tuple(items), intervals=intervals)

    def _chats(self, subject: "Subject") -> bool:
        return bool(subject.tokenizer.chat_template) if self.chat is None else self.chat

    def _fitting(self, subject: "Subject", one: Sum, shown: list[Sum]) -> tuple[list[int], int]:
        """A question behind as many examples as the model has room for beside a solution, and their number."""
        room, shots = subject.context_tokens, len(shown)
        while True:
            ids = self.prompt(subject, one, shown[:shots])
            if shots == 0 or room is None or len(ids) + self.max_new_tokens <= room:
                return ids, shots
            shots -= 1

    def prompt(self, subject: "Subject", one: Sum, shown: list[Sum]) -> list[int]:
        """A question behind some examples, as tokens."""
        first = f"{self.instruction}\n\n" if self.instruction else ""
        if self._chats(subject):
            *before, last = [each.question for each in (*shown, one)]
            if before:
                turns = zip([first + before[0], *before[1:]], [each.solution for each in shown], strict=True)
                return subject.conversation(list(turns), last)
            return subject.conversation([], first + last)
        examples = "".join(f"Question: {each.question}\nAnswer: {each.solution}\n\n" for each in shown)
        return [*subject.begin, *subject.ids(f"{first}{examples}Question: {one.question}\nAnswer:")]

    def _asked(self) -> Iterator[Sum]:
        return islice(_of_file(self.data, "test"), self.num_samples)

    def _shown(self) -> Iterator[Sum]:
        from tunesmith.errors import DataError

        if not self.num_shots:
            return
        found = list(islice(_own() if self.shots is None else _of_file(self.shots, "train"), self.num_shots))
        if len(found) < self.num_shots:
            where = self.shots or "this package"
            raise DataError(f"{where} has {len(found)} examples: num_shots can be no more (it was {self.num_shots})")
        yield from found


def answered(text: str) -> tuple[Decimal | None, bool]:
    """The number that a solution ends with, and whether it stands behind ####; None where there is none."""
    behind = [number for line in RESULT.findall(text) for number in NUMBER.findall(line)[:1]]
    numbers = behind[:1] or NUMBER.findall(text)[-1:]
    return (Decimal(re.sub(r"[$,]", "", numbers[0])) if numbers else None), bool(behind)


def _own() -> Iterator[Sum]:
    import yaml

    rows = yaml.safe_load((Path(__file__).parent / OWN_SUMS).read_text(encoding="utf-8"))
    yield from (_sum(row, OWN_SUMS) for row in rows)


def _of_file(path: str, split: str) -> Iterator[Sum]:
    from tunesmith.data import hubs, source
    from tunesmith.recipe_data import Source

    one = Source(path=path, name="main", split=split) if hubs.address(path) else Source(path=path)
    yield from (_sum(row, where) for where, row in source.read(one))


def _sum(row: Mapping[str, Any], where: str) -> Sum:
    """The sum of a row. Raises DataError."""
    from tunesmith.errors import DataError
    from tunesmith.formats.gsm8k import Gsm8k as Rows

    try:
        question, solution = (str(turn.content) for turn in Rows(calculator="drop").read(row).branches[0])
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    result, behind = answered(solution)
    if result is None or not behind:
        raise DataError(f"{where}: the result of the answer is no number: {solution[-40:]!r}")
    return Sum(question, solution, result)
