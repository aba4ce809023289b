"""A merged model in int8 or float8 by torchao, as transformers and vLLM load it."""

from pathlib import Path
from typing import Literal

from tunesmith.exports.checks.costs import TORCHAO as COSTS
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Export
from tunesmith.types import Report


class TorchAO(Export):
    """Merge a run, and hold its linear layers, but the head, in 8 bits by rows. No rows are needed."""

    scheme: Literal["int8_weight_only", "float8_weight_only"] = "int8_weight_only"
    """What a weight is held in."""
    device: DeviceName = "auto"
    """Device to round and to compare on."""

    def write(self, run: Path, out: Path) -> Report:
        """Write the model. Raises MissingExtra, RunError: see `quantised.write`."""
        from tunesmith.exports.formats import quantised

        hold = quantised.in_words({"type": "torchao", "scheme": self.scheme}, self.device)
        return quantised.write(self, hold, self.device, COSTS[self.scheme], run, out)

    def check(self, run: Path, out: Path) -> Report:
        """Compare the model with the run that it is of again. Raises RunError where they differ."""
        from tunesmith.exports.formats import quantised

        return quantised.check(self.device, COSTS[self.scheme], run, out)
