"""What of an export is sent otherwise than it lies here: files that name places of this machine."""

import hashlib
import json
from pathlib import Path

from tunesmith.exports.checks.signature import FILE
from tunesmith.exports.formats.hub_card import hidden, is_hub_id

ADAPTER, BASE = "adapter_config.json", "base_model_name_or_path"


def base_here(out: Path) -> str | None:
    """The base model that an adapter names by a folder, which nobody else has; None where there is none."""
    file = out / ADAPTER
    base = json.loads(file.read_text(encoding="utf-8"))[BASE] if file.is_file() else None
    return None if base is None or is_hub_id(base, Path()) else str(base)


def texts(out: Path, base_model: str | None) -> dict[str, str]:
    """The texts that are sent in place of files, by their names. `base_model` is what hubs call an adapter's."""
    found = {FILE: hidden((out / FILE).read_text(encoding="utf-8"))}
    if base_model is not None and (out / ADAPTER).is_file():
        said = json.loads((out / ADAPTER).read_text(encoding="utf-8")) | {BASE: base_model}
        found[ADAPTER] = json.dumps(said, indent=2, sort_keys=True)
        content, signed = found[ADAPTER].encode(), json.loads(found[FILE])
        signed["files"][ADAPTER] = [len(content), hashlib.sha256(content).hexdigest()]
        found[FILE] = json.dumps(signed, indent=1) + "\n"
    return found


def fill(room: Path, out: Path, changed: dict[str, str]) -> None:
    """Have a folder hold what is sent: links to the files that are sent as they are, and the texts."""
    for file in (file for file in out.rglob("*") if file.is_file()):
        place = room / file.relative_to(out)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file.absolute())
    for name, text in changed.items():
        (room / name).unlink()
        (room / name).write_text(text, encoding="utf-8")
