"""A merged model in int8 or float8 by torchao, as transformers and vLLM load it."""

from pathlib import Path
from typing import Literal

from tunesmith.exports._costs import TORCHAO as COSTS
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
        """Write the model. Raises MissingExtra, RunError: see `_quantised.write`."""
        from tunesmith.exports import _quantised

        return _quantised.write(
            self, {"type": "torchao", "scheme": self.scheme}, self.device, COSTS[self.scheme], run, out
        )

    def check(self, run: Path, out: Path) -> Report:
        """Compare the model with the run that it is of again. Raises RunError where they differ."""
        from tunesmith.exports import _quantised

        return _quantised.check(self.device, COSTS[self.scheme], run, out)
