"""Tables of questions and answers, whatever their columns are called."""

from collections.abc import Iterable, Mapping
from typing import Any

from tunesmith.errors import DataError
from tunesmith.formats import _answers, _turns, _write
from tunesmith.formats._fields import Fields, listed
from tunesmith.formats._tags import OPENAI
from tunesmith.seams import Format
from tunesmith.types import Sample

NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "query", "prompt", "problem", "instruction", "input", "ask", "user"),
    "answer": ("answer", "response", "completion", "output", "solution", "reply", "target", "assistant"),
    "system": ("system", "systemprompt", "systemmessage"),
}


class Qa(Format):
    """A question and its answer, in the columns that the options name or that well-known names tell.

    Known are question, query, prompt, problem, instruction, input, ask and user; answer, response, completion,
    output, solution, reply, target and assistant; system and system prompt: in small or capital letters, with
    blanks, underscores and dashes or none. There must be one column of each kind (`question` and `answer` outweigh
    the other names), and what else a row has is left out. Questions and answers may be messages, too: then the
    answer alone is learned.

    ```yaml
    Question: How many legs has a spider?
    Answer: Eight.
    Section Title: Animals
    ```
    """

    question: str | None = None
    """Column of the question."""
    answer: str | None = None
    """Column of the answer."""
    system: str | None = None
    """Column of the system message."""

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has one column that is named as questions are, one as answers are, and no conversation."""
        one_each = all(len(candidates(row, kind)) == 1 for kind in ("question", "answer"))
        return one_each and not row.keys() & {"conversation", *_answers.CONVERSATIONS}

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        question, answer = self._column(fields, "question"), self._column(fields, "answer")
        asked = _answers.said(fields, question, OPENAI, "user")
        turns = (*_answers.unlearned(asked), *_answers.answer(fields, answer, OPENAI))
        system = self.system or next(iter(candidates(row, "system")), None)
        beside = {**row, "system": None if system is None else fields.optional_text(system)}
        if self.system and self.system not in row:
            raise fields.wrong(self.system, "is missing")
        return Sample((_answers.whole(Fields(beside), turns),), tools=_turns.tools(fields))

    def _column(self, row: Fields, kind: str) -> str:
        """The column of a kind."""
        said = getattr(self, kind)
        if said is not None:
            return str(said)
        found = candidates(row.values, kind)
        if len(found) == 1:
            return found[0]
        how = f"`columns: {{{kind}: NAME}}` says which one holds it"
        if found:
            which = f"the columns {listed(found)} may all hold the {kind}: {how} (or `format.{kind}: NAME`)"
            raise DataError(which, f"several columns may hold the {kind}")
        which = (
            f"no column is named as {kind}s are ({listed(NAMES[kind])}); the row has the columns {listed(row.values)}"
        )
        raise DataError(f"{which}: {how}", f"no column is named as {kind}s are")

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row of one question and its answer. Raises DataError."""
        _write.refuse("qa", sample)
        system, pairs = _write.exchanges("qa", sample.branches[0])
        if len(pairs) > 1:
            raise DataError(f"the format qa holds one question, and there are {len(pairs)}", "qa holds one question")
        row = {self.question or "question": pairs[0][0], self.answer or "answer": pairs[0][1]}
        if system is not None:
            row[self.system or "system"] = system
        return _write.finished(self, sample, row)


def candidates(columns: Iterable[str], kind: str) -> list[str]:
    """The columns that are named as a kind is; the kind's own name outweighs the others."""
    own = [column for column in columns if _plain(column) in NAMES[kind]]
    return [kind] if kind in own else own


def _plain(name: str) -> str:
    return "".join(letter for letter in str(name).lower() if letter not in " _-")
