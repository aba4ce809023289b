"""One file in llama.cpp's layout, for llama.cpp and what is built on it (Ollama, LM Studio, llama-cpp-python)."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.errors import RunError
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Export
from tunesmith.types import Report

if TYPE_CHECKING:
    from tunesmith.exports.checks.compare import Reference
    from tunesmith.exports.checks.opened import Opened
    from tunesmith.exports.formats.gguf_check import Written
    from tunesmith.exports.formats.gguf_convert import Converted
    from tunesmith.exports.merging.stream import Plan

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"]


class Gguf(Export):
    """Merge a run tensor by tensor into a .gguf file with tokenizer, chat template and ends of answers.

    Beside it lie the tokenizer and generation config, for tunesmith and transformers. What is no family of this
    package's is converted by llama.cpp's own converter, where that is in PATH.
    """

    outtype: GgufType = "q8_0"
    """What weights are rounded to: by blocks of 32 to 8, 5 or 4 bits, or to a plain type. With q5_0 and q4_0 the
    embeddings and head have 8 bits."""
    device: DeviceName = "auto"
    """Device to compare with the run on."""
    adapters: tuple[str, ...] = ()
    """More adapters (folders or runs) that are merged after the run's own, in order."""

    def write(self, run: Path, out: Path) -> Report:
        """Write the .gguf file of a run into a folder.

        Raises:
            MissingExtra: the `gguf` package is not installed.
            RunError: the model is of a family, or has a tokenizer, that the layout has no place for here; the run is
                not finished or is damaged; `out` holds something; or what was written is not as the run is.
        """
        from tunesmith.exports.checks.compare import new_folder, watched
        from tunesmith.exports.checks.signature import seal, sign

        with new_folder(out) as folder:
            with self._made(run, folder) as (reference, made):
                self.fill(folder, made)
                sealed = seal(folder)
                with watched(folder, sealed):
                    report = self._verified(folder, out, reference, made)
            return sign(folder, self, sealed, report)

    def check(self, run: Path, out: Path) -> Report:
        """Compare a .gguf file with the run that it is of again. Raises RunError where they differ."""
        from tunesmith.exports.checks.compare import checking

        with checking(out), self._made(run, None) as (reference, made):
            return self._verified(out, out, reference, made)

    def _verified(self, folder: Path, out: Path, reference: "Reference", made: "Written | Converted") -> Report:
        from tunesmith.exports.checks.compare import Unlike

        problem = self.problem(folder, made)
        if problem is not None:
            raise Unlike(problem)
        report = made.compared(reference, self.device, folder / self.file, out)
        return replace(report, notes=(*self.notes(made), *report.notes))

    def problem(self, folder: Path, made: "Written | Converted") -> str | None:
        """What is wrong beside the file, in words; None where nothing is."""
        return None

    def notes(self, made: "Written | Converted") -> tuple[str, ...]:
        """What is said of what stands beside the file."""
        return ()

    @property
    def file(self) -> str:
        """The name of the file in its folder."""
        return f"model-{self.outtype}.gguf"

    def fill(self, folder: Path, made: "Written | Converted") -> None:
        """Write the file."""
        made.write(folder / self.file)

    @contextlib.contextmanager
    def _made(self, run: Path, folder: Path | None) -> "Iterator[tuple[Reference, Written | Converted]]":
        """What the run answers, and what its file is made of; what stands beside the file is written to a folder."""
        from tunesmith.engine.model import base_of
        from tunesmith.exports.checks.compare import refuse_unmerged, weights_of
        from tunesmith.exports.formats import gguf_convert
        from tunesmith.exports.formats.gguf_check import Written, facts_of
        from tunesmith.exports.merged import Merged
        from tunesmith.extras import need
        from tunesmith.generate.load import stored_head

        place = weights_of(run)
        need("export type=gguf", "gguf")
        if stored_head(place) is not None:
            raise RunError(f"{run} says rewards or classes, and llama.cpp's layout is for words: use type=merged")
        refuse_unmerged(run, place)
        foreign = gguf_convert.needed(run, place, self.outtype, writes=folder is not None)
        merged = Merged(device=self.device, adapters=self.adapters)
        opened, plan = merged.opened(run, place)
        assert opened.reference is not None, "a run that says words was asked"
        tokenizer, reference = opened.tokenizer, opened.reference
        if folder is not None:
            base_of(opened.model).generation_config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        with tempfile.TemporaryDirectory(dir=run.parent if folder is None else folder.parent) as room:
            again = _plain(merged, opened, place, plan, Path(room))
            plan = again()
            if foreign:
                yield reference, gguf_convert.Converted(plan, tokenizer, self.outtype)
                return
            facts = facts_of(plan, tokenizer, reference.manners, self.outtype, run)
            yield reference, Written(plan, again, tokenizer, facts, self.outtype)


def _plain(merged: Any, opened: "Opened", place: str, plan: "Plan | None", room: Path) -> "Callable[[], Plan]":
    """How the merged weights are had in float32, tensor by tensor; those of a packed base by way of a merged folder."""
    from tunesmith.engine.model import base_of
    from tunesmith.engine.quantised import held_in
    from tunesmith.exports.merging import stream

    more = merged.adapters
    if plan is None or held_in(base_of(opened.model)) is not None:
        merged.whole(opened, place, room)
        place, more = str(room), ()
    opened.closed()

    def again() -> "Plan":
        found = stream.plan(place, "float32", more)
        assert found is not None, "merged weights are in their files as such"
        return found

    return again
