"""An export that is there, with a page that says what it is, on the Hugging Face hub."""

import hashlib
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tunesmith import atomic
from tunesmith.errors import RunError
from tunesmith.seams import Export
from tunesmith.types import Report

CARD = "README.md"
MARK = "<!-- written by tunesmith ({}): a card that is edited is kept -->\n"  # the first digits of the card's SHA-256


class Hub(Export):
    """Write a model card into an export, and say what a push would send; with `push=true`, send it.

    `OUT` is a folder that another export wrote. It is compared with its run again before anything is sent.
    """

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    """The repository on the hub, as owner/name."""
    push: bool = False
    """Send it. False: a dry run, that needs no network."""
    private: bool = True
    """Whether a repository that is made is seen by its owner alone."""
    license: str | None = None
    """License of the model, by the hub's word for it (apache-2.0, llama3.1, ...). None: the card says none."""
    base_model: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """The base model by its name on the hub, for a run that named it by a folder. None: as the run named it."""

    def write(self, run: Path, out: Path) -> Report:
        """Write the card and push, or say what would be pushed.

        Raises:
            RunError: `out` is no export of this run, or the hub does not take it.
        """
        from dataclasses import replace

        from tunesmith import record
        from tunesmith.component import pick
        from tunesmith.exports.checks.compare import weights_of
        from tunesmith.exports.checks.signature import facts
        from tunesmith.exports.formats import hub_files
        from tunesmith.exports.formats.hub_card import card

        if not out.is_dir():
            raise RunError(f"{out} is no export: write one first, as with tunesmith export {run} {out} type=merged")
        signed = facts(out)
        export = pick(Export, signed["export"])
        assert isinstance(export, Export)
        report = export.check(run, out)
        named = hub_files.base_here(out) if self.base_model is None else None
        if named is not None and self.push:
            raise RunError(f"{out} is an adapter of {named}, which is not on the hub: say base_model=OWNER/NAME")
        parts = card(run, record.read(run), weights_of(run), signed, self.repo, self.license, self.base_model)
        kept = _put(out / CARD, "\n".join(parts) + "\n")
        files = [file for file in sorted(out.rglob("*")) if file.is_file()]
        size = f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
        said = self._send(out) if self.push else f"a dry run: push=true sends them to {self.repo}"
        missing = "" if named is None else f", and base_model=OWNER/NAME, for {named} is on this machine alone"
        return replace(report, notes=(*report.notes, *kept, f"{size}, {CARD} among them: {said}{missing}"))

    def _send(self, out: Path) -> str:
        """Send a folder without the places of this machine that it names.

        Returns where it is. Raises RunError where the hub does not take it.
        """
        import httpx
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        from tunesmith.exports.formats import hub_files

        hub = HfApi()
        try:
            hub.create_repo(self.repo, private=self.private, exist_ok=True)
            with tempfile.TemporaryDirectory() as room:
                hub_files.fill(Path(room), out, hub_files.texts(out, self.base_model))
                sent = hub.upload_folder(repo_id=self.repo, folder_path=room, commit_message="Export by tunesmith")
        except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(f"{self.repo} was not pushed: {first}. See hf auth login") from error
        return f"pushed to {sent.commit_url}"


def _put(file: Path, text: str) -> tuple[str, ...]:
    """Write a card, or keep the one that was edited and say so."""
    if file.is_file():
        past = file.read_text(encoding="utf-8")
        body = past.rpartition(MARK.partition("{")[0])[0]
        if past != _marked(body):
            return (f"{file.name} was edited, and is kept: delete it to have it written anew",)
    atomic.write(file, _marked(text).encode())
    return ()


def _marked(text: str) -> str:
    return text + MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16])
