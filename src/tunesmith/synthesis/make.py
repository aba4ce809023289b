"""`tunesmith synthesize`, top to bottom: a folder in which each stage has its file, and all is accounted for."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from tunesmith import atomic
from tunesmith.data.ledger import FIRST_PLACES, places
from tunesmith.errors import RunError
from tunesmith.generate.endpoint import shown
from tunesmith.journal import Journal
from tunesmith.synthesis import author, seeds, stages
from tunesmith.synthesis.options import Synthesis
from tunesmith.synthesis.prompts import Task

SETTINGS, INSTRUCTIONS, KINDS, INSTANCES = "settings.json", "instructions.jsonl", "kinds.jsonl", "instances.jsonl"
JOURNALS = {INSTRUCTIONS: "tasks", KINDS: "instruction", INSTANCES: "instruction"}  # and a key of every entry
TRAIN, LEDGER = "train.jsonl", "ledger.json"
LOCK = ".lock"  # of the run that writes in the folder: its process and its machine

CHANGEABLE = {"num_instructions", "with_seeds", "key_variable", "timeout_seconds", "max_retries"}
"""Options that change nothing of what is written already, so that a folder goes on under others."""

SPARE = "not needed: there are num_instructions already"
FOREIGN = "is not empty, and holds no synthesis to go on with. Choose another folder"
GO_ON = "Make room, then run the same command again: it goes on"


def synthesize(
    path: str, out: Path, options: Synthesis, say: stages.Say, writer: author.Author | None = None
) -> dict[str, Any]:
    """Make instruction data from the seed tasks in a file, or go on with it. Returns the ledger.

    `out` gets a file for each stage, `train.jsonl` of alpaca rows and `ledger.json`. `writer` answers in the place of
    the model that the options name.

    Raises:
        DataError: the seed tasks cannot be used.
        RunError: `out` holds something else, was begun with other options or seed tasks, or another run writes in it;
            or no row came out.
        ModelError: the model cannot be opened or asked; what it has written stays, and the same command goes on.
        RecipeError: the variable that `key_variable` names holds no key.
    """
    tasks = seeds.read(path, options)
    with atomic.room(out, RunError, GO_ON), _alone(out):
        _begin(out, path, options, tasks)
        requests, decided, answers = (Journal(out / name, key) for name, key in JOURNALS.items())
        work = stages.Work(options, tasks, cache(lambda: writer or author.find(options)), say)
        kept = stages.instructions(work, requests)
        stages.instances(work, kept, stages.kinds(work, kept, decided), answers)
        ledger = _finish(out, options, tasks, kept, (requests, decided, answers))
    if not ledger["rows"]:
        raise RunError(f"{out}/{TRAIN} has no rows: nothing that the model wrote can be used. See {out}/{LEDGER}")
    return ledger


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Make the folder, and keep other runs out of it. The lock of a process that is no more is taken over.

    Raises:
        RunError: another run writes in the folder, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} {FOREIGN}")
    out.mkdir(parents=True, exist_ok=True)
    lock = out / LOCK
    file = None
    while file is None:
        _refuse_living(lock)
        with suppress(FileExistsError):  # another run made it just now
            file = lock.open("x", encoding="utf-8")  # O_EXCL
    try:
        with file:
            file.write(f"{os.getpid()} {platform.node()}")
        yield
    finally:
        lock.unlink(missing_ok=True)


def _refuse_living(lock: Path) -> None:
    """Remove the lock that a dead process of this machine left; raise RunError for any other."""
    try:
        process, _, machine = lock.read_text(encoding="utf-8").partition(" ")
    except FileNotFoundError:
        return
    known = machine == platform.node() and process.isdecimal()
    if known and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
        lock.unlink(missing_ok=True)
        return
    raise RunError(
        f"{lock.parent}: another synthesis writes there (process {process or 'unknown'} on {machine or 'a machine'}). "
        f"Wait for its end or choose another folder; if that process is no more, remove {lock}"
    )


def _begin(out: Path, path: str, options: Synthesis, tasks: Sequence[Task]) -> None:
    """Say in the folder what it is for, or refuse one in which something was written for other options or seeds."""
    said = options.model_dump(mode="json")
    if options.is_address:
        said["model"] = shown(options.model)
    content = json.dumps([asdict(task) for task in tasks], sort_keys=True).encode()
    settings = {"seeds": hashlib.sha256(content).hexdigest(), "options": said}
    place, journals = out / SETTINGS, [out / name for name in JOURNALS]
    if not any(path.is_file() and path.stat().st_size for path in journals):
        if not {place, *journals, out / LOCK}.issuperset(out.iterdir()):
            raise RunError(f"{out} {FOREIGN}")
        atomic.write(place, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
        return
    try:
        earlier = json.loads(place.read_text(encoding="utf-8"))
        free = CHANGEABLE | ({"model"} if options.is_address and earlier["options"]["name"] is not None else set())
        before = {option: earlier["options"].get(option) for option in said.keys() - free}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{place} is missing or damaged ({error}): {out} cannot go on. Choose another") from None
    if earlier.get("seeds") != settings["seeds"]:
        raise RunError(f"{out} was begun with other seed tasks than {path} holds now. Choose another folder")
    for option, value in said.items():
        if option in before and before[option] != value:
            told = f"{option}={before[option]!r:.60} and not {value!r:.60}"
            raise RunError(f"{out} was begun with {told}. Choose another folder")


def _finish(
    out: Path, options: Synthesis, tasks: Sequence[Task], kept: Sequence[str], journals: Sequence[Journal]
) -> dict[str, Any]:
    """Stage 4: write the rows and the account. Returns the ledger."""
    requests, decided, answers = journals
    rows = [
        {"instruction": task.instruction, "input": one.input, "output": one.output}
        for task in (tasks if options.with_seeds else ())
        for one in task.instances
    ]
    num_seed_rows, wanted = len(rows), set(kept)
    instances = _Count()
    for number, entry in enumerate(answers.entries, 1):
        for one, reason in stages.rows(tasks, entry, options.max_instances):
            if entry["instruction"] not in wanted:
                reason = SPARE
            instances.add(reason, f"{INSTANCES}:{number}")
            if one is not None and reason is None:
                rows.append({"instruction": entry["instruction"], "input": one.input, "output": one.output})
    verdicts = [entry["verdict"] for entry in decided.entries]
    ledger = {
        "instructions": {"answers": len(requests.entries), **_judged(requests, wanted).as_dict()},
        "kinds": {
            "answers": len(verdicts),
            "classification": verdicts.count(True),
            "other": verdicts.count(False),
            "undecided": verdicts.count(None),
        },
        "instances": {"answers": len(answers.entries), **instances.as_dict()},
        "seed_rows": num_seed_rows,
        "rows": len(rows),
    }
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic.write(out / TRAIN, lines.encode())
    atomic.write(out / LEDGER, (json.dumps(ledger, indent=2, ensure_ascii=False) + "\n").encode())
    return ledger


def _judged(requests: Journal, wanted: set[str]) -> "_Count":
    count = _Count()
    for number, entry in enumerate(requests.entries, 1):
        reasons = [task["dropped"] or (None if task["instruction"] in wanted else SPARE) for task in entry["tasks"]]
        for reason in reasons or ["no instruction in the answer"]:
            count.add(reason, f"{INSTRUCTIONS}:{number}")
    return count


class _Count:
    """Texts that were kept, and those that were dropped by reason: together all that were written."""

    def __init__(self) -> None:
        self._texts = 0
        self._kept = 0
        self._dropped: dict[str, dict[str, Any]] = {}

    def add(self, reason: str | None, where: str) -> None:
        """Count one text: kept, or dropped for a reason."""
        self._texts += 1
        if reason is None:
            self._kept += 1
            return
        entry = self._dropped.setdefault(reason, {"count": 0, "first": []})
        entry["count"] += 1
        if where not in entry["first"]:  # one answer may hold several texts
            entry["first"] = [*entry["first"], where][:FIRST_PLACES]

    def as_dict(self) -> dict[str, Any]:
        """The counts: texts == kept + those dropped."""
        return {"texts": self._texts, "kept": self._kept, "dropped": self._dropped}


def lines(ledger: dict[str, Any]) -> Iterable[str]:
    """The account in words, one line a fact."""
    for stage in ("instructions", "instances"):
        counts = ledger[stage]
        yield f"{stage}: {counts['texts']:,} in {counts['answers']:,} answers, {counts['kept']:,} kept"
        for reason, entry in counts["dropped"].items():
            yield f"  {entry['count']:,} dropped: {reason} ({places(entry)})"
    kinds = ledger["kinds"]
    yield (
        f"kinds: {kinds['classification']:,} of classification, {kinds['other']:,} of others, "
        f"{kinds['undecided']:,} that the model left open (taken as others)"
    )
    seeds_ = f", {ledger['seed_rows']:,} of them of the seed tasks" if ledger["seed_rows"] else ""
    yield f"{ledger['rows']:,} rows{seeds_}"
