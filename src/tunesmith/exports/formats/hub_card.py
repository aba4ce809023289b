"""The page that a model has on a hub: what it was made of, by which recipe, of which rows, and how it was verified.

The fields of its head: https://huggingface.co/docs/hub/model-cards.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith import __version__
from tunesmith.data import files
from tunesmith.generate.load import is_adapter, named_base

LIBRARIES = {"adapter": "peft", "gguf": "gguf", "ollama": "gguf"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FOLDERS = re.compile(r"(?<![\w.:/-])(?:~|[A-Za-z]:)?/(?:[^/\s\"',\]}]+/)+")  # of a path on somebody's machine
COUNTS = ("rows_read", "rows_kept", "rows_truncated", "samples", "tokens", "trained_tokens")


def card(
    run: Path,
    record: Mapping[str, Any],
    place: str,
    signed: Mapping[str, Any],
    repo: str,
    license_: str | None,
    base: str | None,
) -> Iterator[str]:
    """The parts of the page, Markdown with a head of YAML. `base` names the base model in place of the run's word."""
    recipe, kind = record["recipe"], signed["export"]["type"]
    trained_in = Path(record.get("working_folder", "."))
    base = base or (named_base(place).path if is_adapter(place) else recipe["model"]["path"])
    rows = {one["path"] for one in recipe["data"]["train"] if is_hub_id(one["path"], trained_in)}
    method, objective = recipe["adapter"]["type"], recipe["objective"]["type"]
    head: dict[str, Any] = {
        "library_name": LIBRARIES.get(kind, "transformers"),
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", method, objective],
    }
    head |= {"base_model": base} if is_hub_id(base, trained_in) else {}
    head |= {"datasets": sorted(rows)} if rows else {}
    head |= {} if license_ is None else {"license": license_}
    yield f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"
    yield f"# {repo.rpartition('/')[2]}\n"
    yield f"`{hidden(base)}`, tuned with {method} by {objective}, as `{kind}`. Made by tunesmith {__version__}.\n"
    yield f"License: {license_ or 'not said'}. That of the base model and of the rows may bind it too.\n"
    yield "## Recipe\n"
    yield f"```yaml\n{hidden((run / 'recipe.yaml').read_text(encoding='utf-8')).rstrip()}\n```\n"
    yield "## Rows\n"
    yield from _rows(record["data"]["ledger"])
    yield "## Training\n"
    yield from _numbers(record["summary"])
    yield "## Verified\n"
    yield from _verified(signed["verified"])


def is_hub_id(path: str, folder: Path) -> bool:
    """Whether a path that was said in a folder is a name on the hub, and no file or folder there."""
    return bool(HUB_ID.fullmatch(path)) and not files.kind_of(path) and not (folder / path).exists()


def hidden(text: str) -> str:
    """A text in which paths on somebody's machine are the names of their files."""
    return FOLDERS.sub("", text)


def _rows(ledger: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A table of counts; what was held out of the rows of another split was counted there."""
    yield f"| | {' | '.join(name.replace('_', ' ') for name in COUNTS)} |\n|---|{'---:|' * len(COUNTS)}"
    for split, counts in ledger.items():
        told = (f"{counts[name]:,}" if name in counts else "" for name in COUNTS)
        yield f"| {split} | {' | '.join(told)} |"
    for split, counts in ledger.items():
        for reason, entry in counts.get("dropped", {}).items():
            yield f"\n{split}: {entry['count']:,} dropped: {hidden(reason)}"
    yield ""


def _numbers(summary: Mapping[str, Any]) -> Iterator[str]:
    shown = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    yield "| | |\n|---|---:|"
    for name, value in shown.items():
        yield f"| {name.replace('_', ' ')} | {value:,.4f} |" if isinstance(value, float) else f"| {name} | {value:,} |"
    yield ""


def _verified(report: Mapping[str, Any]) -> Iterator[str]:
    same = "the same" if report["same_greedy_tokens"] else f"at {len(report['partings'])} ties other"
    yield (
        f"On {report['prompts']} prompts against the trained weights: {same} {report['compared']}, largest difference "
        f"{report['largest_logit_difference']:.3g} ({report['tolerance']:.3g} is allowed)."
    )
    yield from (f"{note}." for note in report["notes"])
