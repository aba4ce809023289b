"""The graph of a merged model, for ONNX Runtime and what is built on it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Export
from tunesmith.types import Report

if TYPE_CHECKING:
    from tunesmith.exports.checks.compare import Reference


class Onnx(Export):
    """Merge a run, and write its graph by transformers' own exporter, in float32: tokens and mask to logits.

    It has no cache of what came before, so it suits scoring and short answers; transformers calls its exporter
    experimental.
    """

    device: DeviceName = "auto"
    """Device to compare the run on. The graph is made and asked on the CPU."""

    def write(self, run: Path, out: Path) -> Report:
        """Write `model.onnx` with its weights beside it, tokenizer and config.

        Raises:
            MissingExtra: onnx, onnxscript or onnxruntime is not installed.
            RunError: the run is not finished, is damaged, or cannot be merged; `out` holds something; or what was
                written is not as the run is.
        """
        import tempfile

        from tunesmith.exports.checks.compare import new_folder, watched, weights_of
        from tunesmith.exports.checks.signature import seal, sign
        from tunesmith.exports.formats import onnx_graph
        from tunesmith.exports.formats.quantised import refuse
        from tunesmith.exports.merged import Merged

        place = weights_of(run)
        refuse(run, place)
        onnx_graph.need()
        merged = Merged(device=self.device)
        with new_folder(out) as folder:
            opened, plan = merged.opened(run, place)
            assert opened.reference is not None, "a run that says words was asked"
            reference = opened.reference
            merged.beside(opened, folder)
            with tempfile.TemporaryDirectory(dir=folder.parent) as room:
                merged.fill(opened, plan, place, Path(room))
                opened.closed()
                onnx_graph.write(Path(room), folder)
            sealed = seal(folder)
            with watched(folder, sealed):
                report = self._compared(reference, folder, out)
            return sign(folder, self, sealed, report)

    def check(self, run: Path, out: Path) -> Report:
        """Compare a graph with the run that it is of again. Raises RunError where they differ."""
        from tunesmith.exports.checks.compare import checking, weights_of
        from tunesmith.exports.merged import Merged

        with checking(out):
            opened, _ = Merged(device=self.device).opened(run, weights_of(run))
            assert opened.reference is not None, "a run that says words was asked"
            reference = opened.reference
            opened.closed()
            return self._compared(reference, out, out)

    def _compared(self, reference: "Reference", folder: Path, out: Path) -> Report:
        from tunesmith.exports.checks.compare import judged
        from tunesmith.exports.formats import onnx_graph

        return judged(onnx_graph.compared(reference, folder, out))
