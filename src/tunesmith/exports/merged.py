"""One model folder with the adapter in its weights, as transformers loads it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunesmith.errors import RunError
from tunesmith.recipe import Dtype
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Export
from tunesmith.types import Report

if TYPE_CHECKING:
    from tunesmith.exports.checks.opened import Opened
    from tunesmith.exports.checks.signature import Digests
    from tunesmith.exports.merging.stream import Plan


class Merged(Export):
    """Add the adapter to its base model's weights. A run that trained whole weights is written as it is.

    Of a base model that was held in few bits there are two: see `into`, and the report.
    """

    dtype: Dtype = "auto"
    """Precision of the written weights. auto: as the base model (or a run that trained whole weights) stores
    its own."""
    max_shard_size: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(KB|MB|GB|TB)$")] = "5GB"
    """Largest file of weights; a model that is larger is written as several files and an index."""
    device: DeviceName = "auto"
    """Device to compare with the run on. Weights are merged on the CPU, one after the other, and those that are packed
    as they are loaded on this device."""
    adapters: tuple[str, ...] = ()
    """More adapters (folders or runs) that are merged after the run's own, in order."""
    into: Literal["rounded", "stored"] = "rounded"
    """Of a base that was held in few bits in training: the numbers that it had there, in plain weights, or those that
    are stored. The report has both, and says which answers more as the run does."""

    def write(self, run: Path, out: Path) -> Report:
        """Write the merged model of a run.

        Raises:
            RunError: the run is not finished or is damaged, or its adapter cannot be merged; `out` holds something;
                or what was written is not as the run is, and is removed.
            ModelError: the base model, or one of `adapters`, cannot be loaded.
        """
        from tunesmith.exports.checks.compare import new_folder, refuse_unmerged, weights_of
        from tunesmith.generate.load import stored_head

        place = weights_of(run)
        if self.adapters and stored_head(place) is not None:
            raise RunError(
                f"export.adapters: {run} has a head for classes or rewards, and is merged alone: leave it out"
            )
        refuse_unmerged(run, place)
        with new_folder(out) as folder:
            opened, plan = self.opened(run, place)
            sealed = self.fill(opened, plan, place, folder)
            return self._signed(opened, place, folder, out, sealed)

    def check(self, run: Path, out: Path) -> Report:
        """Compare a merged model with the run that it is of again. Raises RunError where they differ."""
        from tunesmith.exports.checks.compare import checking, weights_of

        place = weights_of(run)
        with checking(out):
            opened, _ = self.opened(run, place)
            return self._reported(opened, place, out, out)

    def opened(self, run: Path, place: str) -> "tuple[Opened, Plan | None]":
        """The run after it was asked, and how it is merged tensor by tensor, where it can be."""
        from tunesmith.exports.checks.opened import open_run
        from tunesmith.exports.merging import stream
        from tunesmith.exports.merging.paged import page

        plans: list[Plan | None] = []

        def prepare(model: Any) -> Any:
            plan = stream.plan(place, self.dtype, self.adapters)
            plans.append(plan)
            if plan is not None and plan.num_adapters <= 1:  # what is merged into pages would be forgotten
                page(model, plan.files)
            return self.topped(model, place)

        opened = open_run(run, self.device, self.dtype, prepare)
        return opened, plans[0] if plans else None  # a run that says values is not prepared

    def _signed(self, opened: "Opened", place: str, folder: Path, out: Path, sealed: "Digests") -> Report:
        from tunesmith.exports.checks.compare import watched
        from tunesmith.exports.checks.signature import sign

        with watched(folder, sealed):
            report = self._reported(opened, place, folder, out)
        return sign(folder, self, sealed, replace(report, notes=(*self._of_dtype(opened), *report.notes)))

    def _of_dtype(self, opened: "Opened") -> tuple[str, ...]:
        """What is to be said of weights that are rounded as the base model's are."""
        import torch

        if self.dtype != "auto" or opened.reference is None or opened.reference.dtype == torch.float32:
            return ()
        kind = str(opened.reference.dtype).removeprefix("torch.")
        return (f"written and compared in {kind}, as the base model is stored; dtype=float32 rounds nothing",)

    def _reported(self, opened: "Opened", place: str, folder: Path, out: Path) -> Report:
        """How what was written compares with the run, and the other merge of a base that was held in few bits."""
        from tunesmith.exports.checks.compare import judged
        from tunesmith.exports.checks.two_merges import TWO, both, share

        reference, two = opened.reference, (Path(place) / TWO).is_file()
        compare = opened.closed()
        if reference is None or not two:
            return judged(compare(folder, out, "auto"))
        report = judged(compare(folder, out, "auto", share(place) if self.into == "stored" else None))
        return both(report, reference, place, self.device, self.into, self.adapters)

    def fill(self, opened: "Opened", plan: "Plan | None", place: str, folder: Path) -> "Digests":
        """Write the merged model, tensor by tensor where it can be, and forget the one that was asked."""
        from tunesmith.engine.model import base_of
        from tunesmith.engine.quantised import held_in

        held = held_in(base_of(opened.model))
        if held is not None and self.into == "stored" and base_of(opened.model).hf_quantizer.pre_quantized:
            raise RunError(
                f"export.into: stored is for a base that the run rounded, and this one is stored in {held}, of which "
                "the run had the very numbers: leave it out"
            )
        if plan is None or (held is not None and self.into == "rounded"):
            return self.whole(opened, place, folder)
        self.beside(opened, folder)
        return self.streamed(opened, plan, folder)

    def beside(self, opened: "Opened", folder: Path) -> None:
        """Write what stands beside the weights."""
        from tunesmith.engine.model import base_of

        base_of(opened.model).generation_config.save_pretrained(folder)
        opened.tokenizer.save_pretrained(folder)

    def streamed(self, opened: "Opened", plan: "Plan", folder: Path) -> "Digests":
        """Write a plan's weights once the model that was asked is gone."""
        from tunesmith.exports.checks.signature import seal
        from tunesmith.exports.merging.tensors import bytes_of

        opened.closed()
        return seal(folder, plan.write(folder, bytes_of(self.max_shard_size)))

    def whole(self, opened: "Opened", place: str, folder: Path) -> "Digests":
        """Write a model that is merged as a whole, in plain weights.

        What was held in few bits is loaded again in plain weights, of the numbers that `into` says.
        """
        from tunesmith.engine.model import base_of, is_adapted, without_progress_bar
        from tunesmith.engine.quantised import held_in
        from tunesmith.exports.checks.signature import seal
        from tunesmith.generate.load import load, stored_head

        model = opened.model
        if held_in(base_of(model)) is not None:
            del model
            opened.closed()
            values = stored_head(place) is not None
            rounded = self.into == "rounded"
            found = load(place, self.device, self.dtype, values, widened=rounded, stored=not rounded)[0]
            model = self.topped(found, place)
        merged = model.merge_and_unload() if is_adapted(model) else model
        with without_progress_bar():
            merged.save_pretrained(folder, max_shard_size=self.max_shard_size)
        opened.tokenizer.save_pretrained(folder)
        return seal(folder)

    def topped(self, model: Any, place: str) -> Any:
        """A model with the last of `adapters` beside its weights, and what comes before it in them."""
        from tunesmith.engine import stacked
        from tunesmith.engine.model import is_adapted

        below = Path(place)
        for path in self.adapters:
            base = stacked.settled(model, below) if is_adapted(model) else model
            below = stacked.place_of(path)
            model = stacked.put(base, below).eval()
        return model
