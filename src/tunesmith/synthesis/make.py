"""`tunesmith synthesize`, top to bottom: a folder in which each stage has its file, and all is accounted for."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith import atomic
from tunesmith.errors import RunError
from tunesmith.synthesis import author, seeds, stages
from tunesmith.synthesis.journal import Journal
from tunesmith.synthesis.options import Synthesis
from tunesmith.synthesis.prompts import Task

SETTINGS, INSTRUCTIONS, KINDS, INSTANCES = "settings.json", "instructions.jsonl", "kinds.jsonl", "instances.jsonl"
TRAIN, LEDGER = "train.jsonl", "ledger.json"

CHANGEABLE = {"num_instructions", "with_seeds", "key_variable", "timeout_seconds", "max_retries"}
"""Options that change nothing of what is written already, so that a folder goes on under others."""

FIRST_PLACES = 3  # named for each reason
SPARE = "not needed: there are num_instructions already"
GO_ON = "Make room, then run the same command again: it goes on"


def synthesize(
    path: str, out: Path, options: Synthesis, say: stages.Say, writer: author.Author | None = None
) -> dict[str, Any]:
    """Make instruction data from the seed tasks in a file, or go on with it. Returns the ledger.

    `out` gets a file for each stage, `train.jsonl` of alpaca rows and `ledger.json`. `writer` answers in the place of
    the model that the options name.

    Raises:
        DataError: the seed tasks cannot be used.
        RunError: `out` holds something else, or was begun with other options or seed tasks; or no row came out.
        ModelError: the model cannot be opened or asked; what it has written stays, and the same command goes on.
    """
    tasks = seeds.read(path, options)
    with atomic.room(out, RunError, GO_ON):
        _begin(out, path, options, tasks)
        requests, decided, answers = (Journal(out / name) for name in (INSTRUCTIONS, KINDS, INSTANCES))
        work = stages.Work(options, tasks, cache(lambda: writer or author.find(options)), say)
        kept = stages.instructions(work, requests)
        stages.instances(work, kept, stages.kinds(work, kept, decided), answers)
        ledger = _finish(out, options, tasks, kept, (requests, decided, answers))
    if not ledger["rows"]:
        raise RunError(f"{out}/{TRAIN} has no rows: nothing that the model wrote can be used. See {out}/{LEDGER}")
    return ledger


def _begin(out: Path, path: str, options: Synthesis, tasks: Sequence[Task]) -> None:
    """Make the folder, or refuse one in which something was written for other options or seed tasks."""
    said = options.model_dump(mode="json")
    if options.is_address:
        said["model"] = author.shown(options.model)
    content = json.dumps([asdict(task) for task in tasks], sort_keys=True).encode()
    settings = {"seeds": hashlib.sha256(content).hexdigest(), "options": said}
    place, journals = out / SETTINGS, [out / name for name in (INSTRUCTIONS, KINDS, INSTANCES)]
    if not any(path.is_file() and path.stat().st_size for path in journals):
        own = {place, *journals}
        if out.exists() and not (out.is_dir() and own.issuperset(out.iterdir())):
            raise RunError(f"{out} is not empty, and holds no synthesis to go on with. Choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        atomic.write(place, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
        return
    earlier = json.loads(place.read_text(encoding="utf-8"))
    if earlier["seeds"] != settings["seeds"]:
        raise RunError(f"{out} was begun with other seed tasks than {path} holds now. Choose another folder")
    free = CHANGEABLE | ({"model"} if options.is_address and earlier["options"]["name"] is not None else set())
    for option, value in said.items():
        before = earlier["options"].get(option)
        if option not in free and before != value:
            raise RunError(f"{out} was begun with {option}={before!r:.60} and not {value!r:.60}. Choose another folder")


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
        if where not in entry["first"][:FIRST_PLACES]:  # one answer may hold several texts
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
            more = ", ..." if entry["count"] > len(entry["first"]) else ""
            yield f"  {entry['count']:,} dropped: {reason} ({', '.join(entry['first'])}{more})"
    kinds = ledger["kinds"]
    yield (
        f"kinds: {kinds['classification']:,} of classification, {kinds['other']:,} of others, "
        f"{kinds['undecided']:,} that the model left open (taken as others)"
    )
    seeds_ = f", {ledger['seed_rows']:,} of them of the seed tasks" if ledger["seed_rows"] else ""
    yield f"{ledger['rows']:,} rows{seeds_}"
