"""LLaMA-Factory's dataset_info.json: what an entry says of a dataset, as the options of a source.

The keys and their defaults are those of `DatasetAttr` in src/llamafactory/data/parser.py, but that a `columns` or
`tags` block that names some keeps the defaults of the others.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, near

HUBS = {"hf_hub_url": "hf", "ms_hub_url": "ms", "om_hub_url": "om"}  # the first that an entry has is taken
PLACES = (*HUBS, "script_url", "cloud_file_name", "file_name")
OF_HUBS = ("subset", "folder", "revision")
KEYS = (*PLACES, *OF_HUBS, "split", "num_samples", "formatting", "ranking", "columns", "tags")
FORMATTINGS = ("alpaca", "sharegpt", "openai")

SHARED = {
    "system": "system", "tools": "tools", "images": "images", "videos": "videos", "audios": "audios",
    "chosen": "chosen", "rejected": "rejected", "kto_tag": "label",
}  # fmt: skip
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"} | SHARED
TURNS = {"messages": "conversations"} | SHARED
"""Their names of columns, and those that our formats know; without an entry's word a column has our name."""

SHAREGPT_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
OPENAI_TAGS = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
    "observation_tag": "tool", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip


def is_entry(value: Any) -> bool:
    """Whether a registry's entry is one of a dataset_info.json: it says where the data is in one of its words."""
    return isinstance(value, Mapping) and any(key in value for key in PLACES)


def options(entry: Mapping[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """The options of the source that an entry says; `folder` is that of the registry, where its files lie.

    Raises:
        DataError: a key is unknown or has a value that cannot be, or the entry asks for remote code.
    """
    _known(entry, KEYS, where)
    said = {key: value for key, value in entry.items() if value is not None}
    found: dict[str, Any] = {"path": _path(said, where, folder)}
    for key, name in (("subset", "name"), ("split", "split"), ("num_samples", "num_samples")):
        if key in said:
            found[name] = said[key]
    formatting = said.get("formatting", "alpaca")
    if formatting not in FORMATTINGS:
        raise DataError(f"{where}: `formatting` is {formatting!r}. {near(str(formatting), FORMATTINGS)}")
    columns = _block(said, "columns", ALPACA if formatting == "alpaca" else TURNS, where)
    tags = _block(said, "tags", () if formatting == "alpaca" else SHAREGPT_TAGS, where)
    ranking = said.get("ranking", False)
    if not isinstance(ranking, bool):
        raise DataError(f"{where}: `ranking` must be true or false and is {ranking!r}")
    return found | (_alpaca(columns, ranking) if formatting == "alpaca" else _turns(columns, tags, formatting, ranking))


def _known(block: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in block:
        if key not in known:
            raise DataError(f"{where}: there is no key {key!r}. {near(key, known)}")


def _path(said: Mapping[str, Any], where: str, folder: Path) -> str:
    """Where the rows lie: on a hub, else in a store, else in a file beside the registry."""
    place = next((key for key in PLACES if said.get(key)), None)
    if place is None:
        raise DataError(f"{where} does not say where the data is: `file_name` and its like are empty")
    value = said[place]
    if not isinstance(value, str):
        raise DataError(f"{where}: `{place}` must be text and is {value!r}")
    if place == "script_url":
        raise DataError(
            f"{where}: `script_url` ({value}) is code that would be run; name the files that it loads instead"
        )
    if place in HUBS:
        revision = f"@{said['revision']}" if "revision" in said else ""
        return f"{HUBS[place]}://{value}{revision}" + (f"/{said['folder']}" if said.get("folder") else "")
    for key in OF_HUBS:
        if key in said:
            raise DataError(f"{where}: `{key}` ({said[key]!r}) is of datasets of a hub, and `{place}` names a file")
    if place == "cloud_file_name":
        if "://" not in value:
            raise DataError(f"{where}: `cloud_file_name` ({value!r}) must be an address, as s3://bucket/rows.json")
        return value
    if not (folder / value).exists():
        raise DataError(f"{where}: there is no {folder / value}, which `file_name` says")
    return str(folder / value)


def _block(said: Mapping[str, Any], key: str, known: Iterable[str], where: str) -> dict[str, str]:
    """A block of names, in which null and nothing are the same: no such column."""
    block = said.get(key, {})
    if not isinstance(block, Mapping):
        raise DataError(f"{where}: `{key}` must be an object of names and is {block!r}")
    if block and not known:
        raise DataError(f"{where}: `{key}` ({', '.join(block)}) is not of the formatting alpaca: add `formatting`")
    _known(block, known, f"{where}: {key}")
    for name, value in block.items():
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: `{key}.{name}` must be text and is {value!r}")
    return {name: value or "" for name, value in block.items()}


def _renamed(columns: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Our names of columns mapped to those that hold them, where the two differ."""
    return {known[name]: column for name, column in columns.items() if known[name] != column}


def _alpaca(columns: dict[str, str], ranking: bool) -> dict[str, Any]:
    renamed = _renamed(columns, ALPACA)
    if ranking:
        return {"columns": renamed, "format": {"type": "pairs"}}
    if columns.get("kto_tag"):
        return {"columns": renamed, "format": {"type": "labelled"}}
    prompt, others = columns.get("prompt"), {name for name in ("query", "response", "history") if name in columns}
    if prompt and columns.get("response") == "" and not any(columns[name] for name in others):
        return {"columns": {"text": prompt}, "format": {"type": "text"}}
    if prompt and not others:  # where rows have an output it answers the prompt, and else that is the text to learn
        return {"columns": renamed | {"instruction": prompt, "text": prompt}, "format": {"type": "auto"}}
    return {"columns": renamed, "format": {"type": "alpaca"}}


def _turns(columns: dict[str, str], tags: dict[str, str], formatting: str, ranking: bool) -> dict[str, Any]:
    base = OPENAI_TAGS if formatting == "openai" else SHAREGPT_TAGS
    tags = base | {name: tag for name, tag in tags.items() if tag}
    if formatting == "openai":
        columns = {"messages": "messages"} | columns
    kind = "pairs" if ranking else "labelled" if columns.get("kto_tag") else "sharegpt"
    if kind == "sharegpt" and tags == OPENAI_TAGS:
        return {"columns": _renamed(columns, TURNS | {"messages": "messages"}), "format": {"type": "messages"}}
    differing = {name: tag for name, tag in tags.items() if tag != SHAREGPT_TAGS[name]}
    said = {"tags": differing} if differing else {}
    return {"columns": _renamed(columns, TURNS), "format": {"type": kind, **said}}
