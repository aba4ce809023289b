"""One model folder with the adapter in its weights, as transformers loads it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.recipe import DeviceName, Dtype
from tunesmith.seams import Export, Report

if TYPE_CHECKING:
    from tunesmith.exports._check import Probe


class Merged(Export):
    """Add the adapter to its base model's weights. A run that trained whole weights is written as it is."""

    dtype: Dtype = "auto"
    """Precision of the written weights. auto: as the base model (or a run that trained whole weights) stores
    its own."""
    max_shard_size: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(KB|MB|GB|TB)$")] = "5GB"
    """Largest file of weights; a model that is larger is written as several files and an index."""
    device: DeviceName = "auto"
    """Device to merge on and to compare with the run on."""

    def write(self, run: Path, out: Path) -> Report:
        """Write the merged model of a run.

        Raises:
            RunError: the run is not finished or is damaged, or its adapter cannot be merged; `out` holds something;
                or what was written does not answer as the run does, and is removed.
            ModelError: the base model cannot be loaded.
        """
        from tunesmith.exports import _values
        from tunesmith.exports._check import new_folder, questions, refuse_unmerged, verify, weights_of
        from tunesmith.generate.load import stored_head

        place = weights_of(run)
        refuse_unmerged(run, place)
        with new_folder(out) as folder:
            if stored_head(place) is not None:
                asked = questions(run)
                before = _values.said(place, self.device, self.dtype, asked)
                self._write(before.model, before.tokenizer, folder)
                return _values.verify(folder, before.values, self.device, "auto", asked, out)
            probes = self._merge(place, folder, questions(run))
            return verify(folder, probes, self.device, "auto", out)

    def _merge(self, place: str, folder: Path, asked: tuple[str, ...]) -> "list[Probe]":
        """Write the merged weights, and return what the run answered before they were merged."""
        from tunesmith.exports._check import probe
        from tunesmith.generate.engine import Generator

        generator = Generator.open(place, self.device, self.dtype)
        probes = probe(generator, asked)
        self._write(generator.model, generator.tokenizer, folder)
        return probes

    def _write(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write a model with its adapter, if it has one, in its weights."""
        from tunesmith.engine.model import is_adapted, without_progress_bar

        merged = model.merge_and_unload() if is_adapted(model) else model
        with without_progress_bar():
            merged.save_pretrained(folder, max_shard_size=self.max_shard_size)
        tokenizer.save_pretrained(folder)
