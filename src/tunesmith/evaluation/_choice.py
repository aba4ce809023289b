"""Questions with options to choose from: how they are written, which option a model finds likeliest, what that gives.

All options of a question are asked from one beginning, and so are all questions behind the same examples: what they
have in common is computed once (`Subject.logps`).
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from tunesmith.evaluation._shares import wilson
from tunesmith.formats.choices import Question
from tunesmith.seams import Task, TaskResult

if TYPE_CHECKING:
    from tunesmith.generate.subject import Subject

Sequence_ = tuple[Sequence[int], int]
ALL = "all"


@dataclass(frozen=True, slots=True)
class Exam:
    """The questions of one subject."""

    name: str
    title: str  # as a prompt calls it
    category: str  # "" where there is none
    asked: tuple[Question, ...]
    shown: tuple[Question, ...]  # examples, with their answers


class Choice(Task):
    """Multiple-choice questions; the answer is what a model finds likeliest."""

    num_samples: Annotated[int, Field(gt=0)] | None = None
    """Questions of each subject, the first ones. None: all."""
    num_shots: Annotated[int, Field(ge=0)] = 5
    """Questions shown with their answers before each one."""
    subjects: tuple[str, ...] = ()
    """Subjects, or categories of them. Empty: all there are."""
    answer_with: Literal["letter", "text"] = "letter"
    """What is compared: the options' letters, behind a list of them, or their texts by the mean log-probability of a
    character."""
    chat: bool = False
    """Whether the tokenizer's chat template is used, the examples being earlier turns; published numbers have none."""

    opening: ClassVar[str]  # of a prompt; {subject} is the title
    asks: ClassVar[str] = "{question}"
    answers: ClassVar[str] = "\nAnswer:"
    space: ClassVar[str] = " "  # before an answer

    @field_validator("subjects", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @abstractmethod
    def exams(self) -> list[Exam]:
        """The questions, by subject. Raises DataError, RecipeError."""

    def across(self) -> Mapping[str, Sequence[str]]:
        """Further groups of subjects, of which there is a number of their own."""
        return {}

    def digest(self) -> str:
        """What tells these questions from others."""
        return hashlib.sha256(repr(self.exams()).encode("utf-8", "surrogatepass")).hexdigest()

    def run(self, subject: "Subject") -> TaskResult:
        """Ask all questions, subject by subject. Raises DataError, RecipeError as `exams`; ModelError for no template.

        The metrics count questions; `mean_of_subjects` gives each subject the same weight.
        """
        exams = self.exams()
        items = [item for exam in exams for item in self._asked(subject, exam)]
        rows = [_row(exam.name, exam.category, [i for i in items if i["subject"] == exam.name]) for exam in exams]
        shares = {str(row["subject"]): float(row["accuracy"]) for row in rows}
        metrics: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        for group, names in {ALL: list(shares), **self._groups(exams)}.items():
            row = _row(f"all of {group}" if group != ALL else ALL, "", [i for i in items if i["subject"] in names])
            name = f"accuracy_{group}" if group != ALL else "accuracy"
            metrics[name], intervals[name] = row["accuracy"], (row["low"], row["high"])
            if len(names) > 1:
                means = f"mean_of_subjects_{group}" if group != ALL else "mean_of_subjects"
                metrics[means] = sum(shares[one] for one in names) / len(names)
            rows.append(row)
        rows.append(rows.pop(len(exams)))  # all of them last
        if len(exams) == 1:
            rows = rows[:1]
        fewer = sum(item["shots"] < self.num_shots for item in items)
        metrics |= {"questions_with_fewer_shots": fewer} if fewer else {}
        return TaskResult(metrics, tuple(rows), tuple(items), intervals=intervals)

    def _groups(self, exams: Sequence[Exam]) -> dict[str, list[str]]:
        """Subjects by category, and those of further groups, where there is one of them."""
        found: dict[str, list[str]] = {}
        for exam in exams:
            if exam.category:
                found.setdefault(exam.category, []).append(exam.name)
        names = {exam.name for exam in exams}
        across = {name: [one for one in some if one in names] for name, some in self.across().items()}
        return found | {name: some for name, some in across.items() if some}

    def _asked(self, subject: "Subject", exam: Exam) -> Iterator[dict[str, Any]]:
        """Each question of a subject, and what was answered."""
        prompts = [self._fitting(subject, exam, question) for question in exam.asked]
        found = iter(subject.logps([option for options, _ in prompts for option in options]))
        for number, (question, (options, shots)) in enumerate(zip(exam.asked, prompts, strict=True), 1):
            logps = [next(found).double().sum().item() for _ in options]
            scores = logps
            if self.answer_with == "text":
                scores = [one / len(text) for one, text in zip(logps, question.options, strict=True)]
            best = scores.index(max(scores))
            yield {
                "subject": exam.name,
                "number": number,
                "answer": question.letters[best],
                "expected": question.letters[question.right],
                "right": best == question.right,
                "logps": logps,
                "shots": shots,
            }

    def _fitting(self, subject: "Subject", exam: Exam, question: Question) -> tuple[list[Sequence_], int]:
        """The options of a question behind as many examples as the model has room for, and their number."""
        room, shots = subject.context_tokens, self.num_shots
        while True:
            options = self.options(subject, exam, question, shots)
            if shots == 0 or room is None or max(len(tokens) for tokens, _ in options) <= room:
                return options, shots
            shots -= 1

    def options(self, subject: "Subject", exam: Exam, question: Question, shots: int) -> list[Sequence_]:
        """Each option of a question as tokens, with the number of those that are the option's own."""
        opening = self.opening.format(subject=exam.title)
        texts = list(question.letters if self.answer_with == "letter" else question.options)
        shown = [(self._written(one), self._answer(one)) for one in exam.shown[:shots]]
        if not self.chat:
            examples = "".join(f"{asked}{self.space}{answer}\n\n" for asked, answer in shown)
            return subject.continued(opening + examples + self._written(question), [self.space + one for one in texts])
        said = [(opening + asked if not at else asked, answer) for at, (asked, answer) in enumerate(shown)]
        return subject.replied(said, ("" if shown else opening) + self._written(question), texts)

    def _written(self, question: Question) -> str:
        """A question as it stands in a prompt, up to its answer."""
        listed = "".join(f"\n{line}" for line in question.lines) if self.answer_with == "letter" else ""
        return self.asks.format(question=question.text.strip()) + listed + self.answers

    def _answer(self, question: Question) -> str:
        return (question.letters if self.answer_with == "letter" else question.options)[question.right]


def _row(name: str, category: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    right = sum(item["right"] for item in items)
    low, high = wilson(right, len(items))
    questions = {"questions": len(items), "accuracy": right / len(items), "low": low, "high": high}
    return {"subject": name, "category": category, **questions}
