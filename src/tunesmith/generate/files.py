"""What tells a model from others: what its files hold."""

from pathlib import Path
from typing import Any

from tunesmith.data import digests
from tunesmith.generate.endpoint import is_address
from tunesmith.generate.load import is_adapter, locate, named_base

OF_MODELS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.gguf")


def files_of(path: str) -> list[Any] | None:
    """The files of a model by what they hold, and those of the base that an adapter has; None where none are here.

    Those of a hub's model are told by its commit: which of them were fetched before says nothing.
    """
    if is_address(path):
        return None
    place = locate(path)
    folder = Path(place) if Path(place).exists() else _fetched(place)
    if folder is None:
        return None
    if not Path(place).exists():
        found: list[Any] = [folder.name]
    else:
        files = [folder] if folder.is_file() else sorted({one for kind in OF_MODELS for one in folder.glob(kind)})
        found = [(one.name, digests.digest_of(str(one))) for one in files]
    if not is_adapter(str(folder)):
        return found
    base = files_of(named_base(str(folder)).path)
    return None if base is None else [found, base]


def _fetched(hub_id: str) -> Path | None:
    """The folder of a hub's model that was fetched before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    return Path(found).parent if isinstance(found, str) else None
