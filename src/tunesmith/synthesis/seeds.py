"""The tasks that people wrote, from which a model makes others."""

from collections.abc import Mapping
from typing import Any

from tunesmith.data import source
from tunesmith.errors import DataError
from tunesmith.formats._fields import Fields
from tunesmith.recipe_data import Source
from tunesmith.synthesis.options import Synthesis
from tunesmith.synthesis.prompts import Instance, Task


def read(path: str, options: Synthesis) -> tuple[Task, ...]:
    """The seed tasks in a file of any kind that `data.train` reads.

    A row has `instruction` and `instances` (a list of `input` and `output`), or `output` and perhaps `input`; and
    `is_classification`, which `kinds: auto` and `kinds: classification` need.

    Raises:
        DataError: a row is no task, or there are none of a kind that the options ask for.
    """
    found = []
    for where, row in source.read(Source(path=path)):
        try:
            found.append(_task(row))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    needed = {"auto": (True, False), "classification": (True,), "other": (False,)}[options.kinds]
    for kind in needed:
        if not any(bool(one.classification) == kind for one in found):
            said = f"none of its {len(found)} tasks is{'' if kind else ' not'} a classification task"
            remedy = "kinds=classification" if kind is False else "kinds=other, or give rows is_classification: true"
            raise DataError(f"{path}: {said}, and kinds={options.kinds} shows the model such tasks: say {remedy}")
    return tuple(found)


def _task(row: Mapping[str, Any]) -> Task:
    fields = Fields(row)
    instruction = fields.text("instruction").strip()
    if not instruction:
        raise fields.wrong("instruction", "is empty")
    given = fields.objects("instances") if "instances" in row else [fields]
    instances = [Instance((one.optional_text("input") or "").strip(), one.text("output").strip()) for one in given]
    if not instances or not all(one.output for one in instances):
        raise fields.wrong("instances" if "instances" in row else "output", "is empty")
    return Task(instruction, tuple(instances), _classification(fields))


def _classification(fields: Fields) -> bool | None:
    value = fields.values.get("is_classification")
    words = {"true": True, "yes": True, "false": False, "no": False, "": None}  # as a table's cells hold them
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if value is None or isinstance(value, bool):
        return value
    raise fields.wrong("is_classification", f"must be true or false and is {value!r:.40}")
