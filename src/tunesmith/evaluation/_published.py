"""Benchmarks of many subjects: the layout of their folders as published, and of their copies on a hub."""

import csv
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.errors import DataError, RecipeError, near
from tunesmith.evaluation._choice import Choice, Exam
from tunesmith.formats.choices import Question

COLUMNS = ("question", "A", "B", "C", "D", "answer")  # of a file without a header


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the questions of a benchmark lie: `test/anatomy_test.csv`, or the split `test` of a hub's copy."""

    asked: str
    shown: str = "dev"
    file: str = "{subject}_{split}.csv"
    header: bool = True


class Published(Choice):
    """A benchmark of many subjects."""

    data: str
    """Folder as published, with a folder for each split; or the hub id or folder of a copy with a configuration for
    each subject."""

    layout: ClassVar[Layout]

    def exams(self) -> list[Exam]:
        """The questions, by subject in the order of the catalogue.

        Raises:
            RecipeError: there is no such subject.
            DataError: a file is missing, or a row is none of a question.
        """
        categories = catalogue(type(self).__module__)["categories"]
        titles = {name: title for subjects in categories.values() for name, title in subjects.items()}
        category = {name: one for one, subjects in categories.items() for name in subjects}
        found = self._there(titles)
        return [
            Exam(
                name,
                titles.get(name, name.replace("_", " ")),
                category.get(name, ""),
                tuple(self._questions(name, self.layout.asked, self.num_samples)),
                tuple(self._shown(name)),
            )
            for name in self._chosen(found, category)
        ]

    def across(self) -> Mapping[str, Sequence[str]]:
        """The further groups of the catalogue."""
        found: dict[str, list[str]] = catalogue(type(self).__module__).get("across", {})
        return found

    def _there(self, known: Mapping[str, str]) -> list[str]:
        """The subjects that the data have: of a folder as published the files, in the catalogue's order."""
        if not self._is_published():
            return list(known)
        before, after = self.layout.file.format(subject="|", split=self.layout.asked).split("|")
        found = {path.name[len(before) : -len(after)] for path in self._folder.glob(f"{before}*{after}")}
        if not found:
            raise DataError(f"{self._folder} has no {before}SUBJECT{after}: say the folder that the benchmark is in")
        return [name for name in known if name in found] + sorted(found - set(known))

    @property
    def _folder(self) -> Path:
        return Path(self.data).expanduser() / self.layout.asked

    def _is_published(self) -> bool:
        return self._folder.is_dir()

    def _chosen(self, there: Sequence[str], category: Mapping[str, str]) -> list[str]:
        """The subjects that are asked for, by their names or those of their groups."""
        groups = {one: {name for name in there if category.get(name) == one} for one in category.values()}
        groups |= {one: set(names) & set(there) for one, names in self.across().items()}
        for one in self.subjects:
            if one not in there and not groups.get(one):
                raise RecipeError(f"{self.data} has no subject {one!r}. {near(one, [*there, *groups])}")
        wanted = {name for one in self.subjects for name in groups.get(one, {one})}
        return [name for name in there if not wanted or name in wanted]

    def _shown(self, subject: str) -> list[Question]:
        if not self.num_shots:
            return []
        found = list(self._questions(subject, self.layout.shown, self.num_shots))
        if len(found) < self.num_shots:
            where = f"{self.layout.shown} of {subject} in {self.data}"
            raise DataError(f"{where} has {len(found)} examples: num_shots can be no more (it was {self.num_shots})")
        return found

    def _questions(self, subject: str, split: str, most: int | None) -> Iterator[Question]:
        for where, row in islice(self._rows(subject, split), most):
            try:
                yield Question.of(row)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None

    def _rows(self, subject: str, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        from tunesmith.data import source
        from tunesmith.recipe_data import Source

        if not self._is_published():
            try:
                yield from source.read(Source(path=self.data, name=subject, split=split))
            except DataError as error:
                raise DataError(f"{self.data} has no folder {self.layout.asked}/ as published, and {error}") from None
            return
        file = self._folder.parent / split / self.layout.file.format(subject=subject, split=split)
        if self.layout.header:
            yield from source.read(Source(path=str(file)))
        else:
            yield from headless(file)


def headless(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file of questions that has no header, with where each stands. Raises DataError."""
    try:
        reader = csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        while True:
            where = f"{file}:{reader.line_num + 1}"
            record = next(reader, None)
            if record is None:
                return
            if len(record) != len(COLUMNS):
                raise DataError(f"{where} has {len(record)} fields, and there must be {', '.join(COLUMNS)}")
            yield where, dict(zip(COLUMNS, record, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV: {error}") from None


@functools.cache
def catalogue(module: str) -> dict[str, Any]:
    """The subjects of a benchmark by category, and its further groups, by the name of its module."""
    import yaml

    name = module.rpartition(".")[2]
    content = (Path(__file__).parent / "subjects" / f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(content)
    return found
