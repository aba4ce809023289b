"""Results that are kept: what a model, a task and its data gave once is not computed again.

They are known by a fingerprint: what the files of the model hold, the task's options and data, how the model was
loaded, and the versions of this package, of the task's own file and of the libraries that compute.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith import __version__, atomic
from tunesmith.component import spell
from tunesmith.data import digests
from tunesmith.seams import Task

LIBRARIES = ("torch", "transformers", "peft", "tokenizers")
RESULT, ITEMS, PICTURE = "result.json", "items.jsonl", "picture.png"


@dataclass(frozen=True)
class Found:
    """What a task found of a model, as JSON has it, with each item and the picture."""

    result: dict[str, Any]
    items: list[dict[str, Any]] = field(default_factory=list)
    picture: bytes | None = None


def fingerprint(path: str, task: Task, loaded: Mapping[str, Any]) -> str | None:
    """What tells an evaluation from others: 64 hexadecimal digits; None where its model or data cannot be told.

    `loaded` is how the model is loaded.

    Raises:
        RunError, ModelError, DataError, RecipeError: there is no such model or data.
    """
    from tunesmith.generate.files import files_of

    model, data = files_of(path), task.digest()
    if model is None or data is None:
        return None
    own = Path(inspect.getfile(type(task)))
    code = [own, *sorted(Path(__file__).parent.glob("*.py"))]
    parts = {
        "model": model,
        "task": {**spell(task), "type": own.name},
        "data": data,
        "loaded": loaded,
        "code": [digests.digest_of(str(file)) for file in code],
        "versions": {"tunesmith": __version__} | {name: metadata.version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def place(cache: str | None, print_: str) -> Path:
    """Where the result of a fingerprint is kept."""
    return (Path(cache) if cache is not None else digests.user_cache()) / "evaluations" / print_


def read(folder: Path) -> Found | None:
    """What is kept in a folder."""
    if not (folder / RESULT).is_file():
        return None
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    items = [json.loads(line) for line in (folder / ITEMS).read_text(encoding="utf-8").split("\n") if line]
    picture = folder / PICTURE
    return Found(result, items, picture.read_bytes() if picture.is_file() else None)


def write(folder: Path, found: Found) -> None:
    """Keep it, in place of what was kept there."""
    with atomic.folder(folder, replace=lambda _: True) as work:
        (work / RESULT).write_text(json.dumps(found.result), encoding="utf-8")
        (work / ITEMS).write_bytes(lines(found.items))
        if found.picture is not None:
            (work / PICTURE).write_bytes(found.picture)


def lines(items: Sequence[Mapping[str, Any]]) -> bytes:
    """Items as a file has them, one a line."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode()
