"""Datasets of hubs: Hugging Face's by `datasets`, ModelScope's and OpenMind's by a copy that their clients fetch.

An address is `hf://owner/name`, with `@revision` and a folder or file of the dataset behind it where asked for.
"""

import glob
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunesmith.data import files
from tunesmith.data.remote import HUBS, LONGEST_REASON
from tunesmith.errors import DataError, MissingExtra
from tunesmith.recipe_data import Source

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*|[A-Za-z0-9][\w-]*", re.ASCII)
ADDRESS = re.compile(
    rf"(?P<hub>{'|'.join(HUBS)})://(?:datasets/)?(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^/]+))?(?:/(?P<inner>.+))?",
    re.ASCII,
)
REACH_SECONDS = 10  # for the first answer of the hub; later requests wait as its library likes


@dataclass(frozen=True, slots=True)
class Address:
    """A dataset of a hub."""

    hub: str
    id: str
    revision: str | None = None
    inner: str | None = None  # the folder or file of the dataset that is meant

    @property
    def data_files(self) -> str | None:
        """The one file that is meant, or a glob of some."""
        return self.inner if self.inner and (files.kind_of(self.inner) or glob.has_magic(self.inner)) else None

    @property
    def data_dir(self) -> str | None:
        """The folder that is meant."""
        return self.inner if self.inner and not self.data_files else None


def address(path: str) -> Address | None:
    """The dataset of a hub that a path says: an address, or `owner/name` or `name` when nothing here is called so.

    Raises:
        DataError: it begins as an address and is none.
    """
    hub, mark, _ = path.partition("://")
    if mark and hub in HUBS:
        said = ADDRESS.fullmatch(path)
        if said is None:
            raise DataError(f"{path} is no address of a dataset: write {hub}://owner/name")
        return Address(**said.groupdict())
    if HUB_ID.fullmatch(path) and not files.kind_of(path) and not os.path.exists(path):
        return Address("hf", path)
    return None


def load(source: Source, found: Address, streaming: bool = False) -> Any:
    """The dataset of a hub: an iterable of rows, with the `cache_files` it was made of unless it is streamed.

    What is streamed from the hub of Hugging Face is not put on the disk; the others' clients fetch it whole.

    Raises:
        DataError: the hub cannot be reached, or has no such dataset.
        MissingExtra: its client is not installed.
    """
    import datasets

    if found.hub != "hf":
        return load_copy(source, fetched(source.path, found), found)
    with told_as_ours(source.path):
        _refuse_unreachable(source.path, found)
        return datasets.load_dataset(
            found.id,
            source.name,
            split=source.split,
            revision=found.revision,
            data_dir=found.data_dir,
            data_files=found.data_files,
            streaming=streaming,
        )


def load_copy(source: Source, folder: str, found: Address | None = None) -> Any:
    """The rows of a local copy of a hub dataset, or of the part of it that an address says, streamed.

    The cache of `datasets` knows a copy by its folder's name alone, and would give old rows when the copy changes.
    Raises DataError when it cannot be read.
    """
    import datasets

    with told_as_ours(source.path):
        return datasets.load_dataset(
            folder,
            source.name,
            split=source.split,
            streaming=True,
            data_dir=found.data_dir if found else None,
            data_files=found.data_files if found else None,
        )


def fetched(path: str, found: Address) -> str:
    """The folder of a dataset of ModelScope or OpenMind, fetched by its client where it is not there yet.

    Raises:
        DataError: the hub cannot be reached, or has no such dataset.
        MissingExtra: its client is not installed.
    """
    fetch = CLIENTS[found.hub](path)
    options = {"revision": found.revision} if found.revision else {}
    if found.inner:
        options["allow_patterns"] = found.inner if found.data_files else f"{found.inner}/*"
    try:
        return str(fetch(found.id, **options))
    except Exception as error:  # noqa: BLE001  # the clients have errors of their own and of their HTTP libraries
        reason = f"{' '.join(str(error).split())[:LONGEST_REASON]} ({type(error).__name__})"
        raise DataError(f"{path} cannot be fetched: {reason}") from None


def _modelscope(path: str) -> Callable[..., Any]:
    try:
        from modelscope.hub.snapshot_download import dataset_snapshot_download
    except ImportError:
        raise MissingExtra(f"{path} needs ModelScope's client: pip install modelscope") from None
    return dataset_snapshot_download


def _openmind(path: str) -> Callable[..., Any]:
    try:
        from openmind_hub import snapshot_download
    except ImportError:
        raise MissingExtra(f"{path} needs OpenMind's client: pip install openmind_hub") from None

    def fetch(name: str, **options: Any) -> Any:
        return snapshot_download(name, repo_type="dataset", **options)

    return fetch


CLIENTS = {"ms": _modelscope, "om": _openmind}  # what fetches a copy; the datasets of `hf` are read by `datasets`


def _refuse_unreachable(path: str, found: Address) -> None:
    """Raise DataError when the hub does not answer and the cache of `datasets` does not hold the dataset.

    One request that is not repeated: `datasets` itself tries for half a minute before it says so.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if huggingface_hub.is_offline_mode():
        return
    try:
        huggingface_hub.HfApi().dataset_info(found.id, revision=found.revision, timeout=REACH_SECONDS)
    except HfHubHTTPError:
        return  # it answers, and `datasets` says best what is wrong
    except transport() as error:
        cached = os.path.join(datasets.config.HF_DATASETS_CACHE, found.id.replace("/", "___"))
        if not os.path.isdir(cached):
            reason = f"{_no_file(path)}the hub cannot be reached ({error}), and the cache does not hold it"
            raise DataError(f"{path}: {reason}{_beside(path)}") from None


def transport() -> tuple[type[Exception], ...]:
    """The errors of the HTTP library, which is httpx or httpx2 as the hub's version has it, and of the system."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__


def _no_file(path: str) -> str:
    """What is said first of a path that could have been a file's."""
    return "" if "://" in path else "no file here, and "


def _beside(path: str) -> str:
    """A hint when a file here is called as the dataset."""
    beside = glob.glob(f"{path}.*")
    return f". Did you mean the file {min(beside)}?" if beside else ""


@contextmanager
def told_as_ours(path: str) -> Iterator[None]:
    """What `datasets` and the libraries below it raise, as one DataError."""
    import pyarrow
    from datasets.exceptions import DatasetsError

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError, pyarrow.ArrowException, *transport()) as error:
        cause = f": {error.__cause__}" if isinstance(error, DatasetsError) and error.__cause__ else ""
        reason = f"{' '.join(f'{error}{cause}'.split())[:LONGEST_REASON]} ({type(error).__name__})"
        if os.path.isdir(path):
            raise DataError(f"{path} cannot be read as the copy of a hub dataset: {reason}") from None
        raise DataError(f"{path}: {_no_file(path)}no hub dataset that loads: {reason}{_beside(path)}") from None
