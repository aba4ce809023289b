"""Multiple-choice questions of your own."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from tunesmith.errors import DataError, RecipeError, near
from tunesmith.evaluation._choice import Choice, Exam
from tunesmith.formats.choices import Question

SUBJECT = "subject"  # the column that divides rows, where there is one


class MultipleChoice(Choice):
    """Questions of any file: rows with `question`, `A`, `B` and so on, and the letter of the right one in `answer`.

    Rows with a column `subject` are also counted by it.
    """

    data: str
    """File, folder, glob or hub id of the questions."""
    shots: str | None = None
    """The same of the examples; each subject is shown those of its own, where rows have one."""
    num_shots: Annotated[int, Field(ge=0)] = 0
    """Questions shown with their answers before each one."""
    columns: dict[str, str] = {}
    """Columns that hold what is expected under other names: {question: Frage}."""

    opening: ClassVar[str] = "The following are multiple choice questions (with answers).\n\n"

    def exams(self) -> list[Exam]:
        """The questions, by subject as they come.

        Raises:
            RecipeError: there is no such subject, or nothing to show.
            DataError: a file is missing, or a row is none of a question.
        """
        if self.num_shots and self.shots is None:
            raise RecipeError(f"num_shots is {self.num_shots}, and there is nothing to show: say shots=FILE")
        asked = _by_subject(self._rows(self.data), Path(self.data).stem)
        shown = _by_subject(self._rows(self.shots), "") if self.shots is not None and self.num_shots else {}
        for one in self.subjects:
            if one not in asked:
                raise RecipeError(f"{self.data} has no subject {one!r}. {near(one, asked)}")
        names = [name for name in asked if not self.subjects or name in self.subjects]
        return [
            Exam(name, name, "", tuple(islice(asked[name], self.num_samples)), self._shown(shown, name))
            for name in names
        ]

    def _shown(self, shown: dict[str, list[Question]], name: str) -> tuple[Question, ...]:
        own = shown.get(name, shown.get("", []))
        if len(own) < self.num_shots:
            where = f"{self.shots} has {len(own)} examples" + (f" of {name}" if name in shown else "")
            raise DataError(f"{where}: num_shots can be no more (it was {self.num_shots})")
        return tuple(own[: self.num_shots])

    def _rows(self, path: str) -> Iterator[tuple[str, Question]]:
        """The questions of a file, each with its subject, "" where the row has none."""
        from tunesmith.data import source
        from tunesmith.recipe_data import Source

        for where, row in source.read(Source(path=path, columns=self.columns)):
            try:
                yield str(row.get(SUBJECT) or ""), Question.of(row)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None


def _by_subject(rows: Iterator[tuple[str, Question]], unnamed: str) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for name, question in rows:
        found.setdefault(name or unnamed, []).append(question)
    return found
