"""What exports have in common whose few bits are chosen by what rows make of a model: GPTQ's and AWQ's."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.exports.checks.costs import INTEGERS as COSTS
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Export
from tunesmith.types import Report


class Calibrated(Export):
    """Merge a run, and hold its linear layers, but the head, in few bits that the run's own rows choose.

    The folder is a checkpoint of compressed-tensors, as transformers and vLLM load it.
    """

    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    group_size: Annotated[int, Field(ge=16)] = 128
    """Weights of a row that share a scale; it divides the width of every layer."""
    num_samples: Annotated[int, Field(gt=0)] = 128
    """Rows of the run's training data that the bits are chosen by."""
    max_tokens: Annotated[int, Field(ge=16)] = 512
    """Tokens of such a row that are read; the rest is cut off."""
    device: DeviceName = "auto"
    """Device to round and to compare on."""

    method: ClassVar[str]  # its name in messages

    def write(self, run: Path, out: Path) -> Report:
        """Write the model. Raises MissingExtra, RunError: see `quantised.write`; DataError where the rows are gone."""
        from tunesmith.exports.formats import compressed, quantised

        return quantised.write(self, compressed.by_rows(self, run), self.device, COSTS[self.bits], run, out)

    def check(self, run: Path, out: Path) -> Report:
        """Compare the model with the run that it is of again. Raises RunError where they differ."""
        from tunesmith.exports.formats import quantised

        return quantised.check(self.device, COSTS[self.bits], run, out)
