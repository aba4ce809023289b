"""An export that is there, with a page that says what it is, on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from tunesmith.errors import RunError
from tunesmith.seams import Export, Report

CARD = "README.md"


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

    def write(self, run: Path, out: Path) -> Report:
        """Write the card and push, or say what would be pushed.

        Raises:
            RunError: `out` is no export of this run, or the hub does not take it.
        """
        from dataclasses import replace

        from tunesmith import record
        from tunesmith.component import pick
        from tunesmith.exports._card import card
        from tunesmith.exports._check import weights_of
        from tunesmith.exports._signature import facts

        if not out.is_dir():
            raise RunError(f"{out} is no export: write one first, as with tunesmith export {run} {out} type=merged")
        signed = facts(out)
        export = pick(Export, signed["export"])
        assert isinstance(export, Export)
        report = export.check(run, out)
        text = card(run, record.read(run), weights_of(run), signed, self.repo, self.license)
        (out / CARD).write_text(text, encoding="utf-8")
        files = [file for file in sorted(out.rglob("*")) if file.is_file()]
        size = f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
        said = self._send(out) if self.push else f"a dry run: push=true sends them to {self.repo}"
        return replace(report, notes=(*report.notes, f"{size}, {CARD} among them: {said}"))

    def _send(self, out: Path) -> str:
        """Send a folder. Returns where it is. Raises RunError where the hub does not take it."""
        import httpx
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        hub = HfApi()
        try:
            hub.create_repo(self.repo, private=self.private, exist_ok=True)
            sent = hub.upload_folder(repo_id=self.repo, folder_path=str(out), commit_message="Export by tunesmith")
        except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(f"{self.repo} was not pushed: {first}. See hf auth login") from error
        return f"pushed to {sent.commit_url}"
