"""One model folder with the adapter in its weights, as transformers loads it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.errors import RunError
from tunesmith.recipe import Dtype
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Export, Report

if TYPE_CHECKING:
    from tunesmith.exports._check import Probe
    from tunesmith.exports._stream import Plan


class Merged(Export):
    """Add the adapter to its base model's weights. A run that trained whole weights is written as it is.

    Weights that were held in few bits are written in full width, with the numbers that the run had.
    """

    dtype: Dtype = "auto"
    """Precision of the written weights. auto: as the base model (or a run that trained whole weights) stores
    its own."""
    max_shard_size: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(KB|MB|GB|TB)$")] = "5GB"
    """Largest file of weights; a model that is larger is written as several files and an index."""
    device: DeviceName = "auto"
    """Device to compare with the run on. Weights are merged on the CPU, one after the other, and those that are packed
    or fused as they are loaded on this device."""
    adapters: tuple[str, ...] = ()
    """More adapters (folders or runs) that are merged after the run's own, in order."""

    def write(self, run: Path, out: Path) -> Report:
        """Write the merged model of a run.

        Raises:
            RunError: the run is not finished or is damaged, or its adapter cannot be merged; `out` holds something;
                or what was written does not answer as the run does, and is removed.
            ModelError: the base model, or one of `adapters`, cannot be loaded.
        """
        from tunesmith.exports import _values
        from tunesmith.exports._check import new_folder, questions, refuse_unmerged, verify, weights_of
        from tunesmith.generate.load import stored_head

        place = weights_of(run)
        if self.adapters and stored_head(place) is not None:
            raise RunError(
                f"export.adapters: {run} has a head for classes or rewards, and is merged alone: leave it out"
            )
        refuse_unmerged(run, place)
        with new_folder(out) as folder:
            if stored_head(place) is not None:
                asked = questions(run)
                before = _values.said(place, self.device, self.dtype, asked)
                self._write(self._widened(place, before.model, True), before.tokenizer, folder)
                return _values.verify(folder, before.values, self.device, "auto", asked, out)
            probes = self._merge(place, folder, questions(run))
            return verify(folder, probes, self.device, "auto", out)

    def _merge(self, place: str, folder: Path, asked: tuple[str, ...]) -> "list[Probe]":
        """Write the merged weights, and return what the run answered before they were merged."""
        from tunesmith.engine.model import base_of
        from tunesmith.engine.quantised import held_in
        from tunesmith.exports import _stream
        from tunesmith.exports._check import probe
        from tunesmith.exports._paged import page
        from tunesmith.generate.engine import Generator

        generator = Generator.open(place, self.device, self.dtype)
        held = held_in(base_of(generator.model)) is not None
        plan = None if held else _stream.plan(place, self.dtype, self.adapters)
        if plan is not None and plan.depth <= 1:
            page(generator.model, plan.files)
        generator.model = self._topped(generator.model, place)
        probes = probe(generator, asked)
        if plan is None:
            self._write(self._widened(place, generator.model, False), generator.tokenizer, folder)
        else:
            self._stream(plan, generator, folder)
        return probes

    def _stream(self, plan: "Plan", generator: Any, folder: Path) -> None:
        """Write a plan's weights once the model that was asked is gone."""
        import gc

        from tunesmith.engine.model import base_of
        from tunesmith.exports._tensors import bytes_of

        base_of(generator.model).generation_config.save_pretrained(folder)
        generator.tokenizer.save_pretrained(folder)
        del generator.model
        gc.collect()  # modules and what peft has around them name each other
        plan.write(folder, bytes_of(self.max_shard_size))

    def _topped(self, model: Any, place: str) -> Any:
        """A model with the last of `adapters` beside its weights, and what comes before it in them."""
        from tunesmith.engine import stacked
        from tunesmith.engine.model import is_adapted

        below = Path(place)
        for path in self.adapters:
            base = stacked.settled(model, below) if is_adapted(model) else model
            below = stacked.place_of(path)
            model = stacked.put(base, below).eval()
        return model

    def _widened(self, place: str, model: Any, values: bool) -> Any:
        """The model of a run with plain weights: loaded again, where its base is held in few bits.

        An update was trained beside the rounded numbers, so that it is these it is added to, in their full width.
        """
        from tunesmith.engine.model import base_of
        from tunesmith.engine.quantised import held_in
        from tunesmith.generate.load import load

        held = held_in(base_of(model)) is not None
        if not held:
            return model
        return self._topped(load(place, self.device, self.dtype, values, widened=True)[0], place)

    def _write(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write a model with its adapter, if it has one, in its weights."""
        from tunesmith.engine.model import is_adapted, without_progress_bar

        merged = model.merge_and_unload() if is_adapted(model) else model
        with without_progress_bar():
            merged.save_pretrained(folder, max_shard_size=self.max_shard_size)
        tokenizer.save_pretrained(folder)
