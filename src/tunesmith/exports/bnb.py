"""A merged model in 4 or 8 bits by bitsandbytes, as transformers and vLLM load it."""

from pathlib import Path
from typing import Literal

from tunesmith.exports.checks.costs import BNB as COSTS
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Export
from tunesmith.types import Report


class Bnb(Export):
    """Merge a run, and hold its linear layers, but the head, in few bits. No rows are needed."""

    bits: Literal[4, 8] = 4
    """Bits of a weight: 4 (nf4 by blocks of 64, as QLoRA has them) or 8 (LLM.int8, by rows)."""
    device: DeviceName = "auto"
    """Device to round and to compare on."""

    def write(self, run: Path, out: Path) -> Report:
        """Write the model. Raises MissingExtra, RunError: see `quantised.write`."""
        from tunesmith.exports.formats import quantised

        hold = quantised.in_words(f"bnb_{self.bits}bit", self.device)
        return quantised.write(self, hold, self.device, COSTS[self.bits], run, out)

    def check(self, run: Path, out: Path) -> Report:
        """Compare the model with the run that it is of again. Raises RunError where they differ."""
        from tunesmith.exports.formats import quantised

        return quantised.check(self.device, COSTS[self.bits], run, out)
