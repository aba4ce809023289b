"""The adapter alone, as peft loads it beside its base model."""

import shutil
from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Export
from tunesmith.types import Report

FILES = (
    "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "config.json",
    "quantization_config.json",
)  # fmt: skip


class PlainAdapter(Export):
    """Copy the adapter with its tokenizer and chat template."""

    device: DeviceName = "auto"
    """Device to compare the copy with the run on."""

    def write(self, run: Path, out: Path) -> Report:
        """Write the adapter folder of a run.

        Raises:
            RunError: the run trained whole weights, is not finished or is damaged; `out` holds something; or
                the copy does not answer as the run does, and is removed.
        """
        from tunesmith.engine import stacked
        from tunesmith.exports.checks.compare import judged, new_folder, watched, weights_of
        from tunesmith.exports.checks.opened import open_run
        from tunesmith.exports.checks.signature import seal, sign
        from tunesmith.generate.load import is_adapter

        place = weights_of(run)
        if not is_adapter(place):
            raise RunError(f"{run} trained the model's own weights, so it has no adapter: use type=merged")
        if stacked.beneath(Path(place)):
            raise RunError(
                f"{run} was trained on top of merged adapters, and no plain loader has them: use type=merged"
            )
        with new_folder(out) as folder:
            for name in FILES:
                if (Path(place) / name).is_file():
                    shutil.copyfile(Path(place) / name, folder / name)
            opened = open_run(run, self.device, None)
            opened.tokenizer.save_pretrained(folder)
            compare = opened.closed()
            sealed = seal(folder)
            with watched(folder, sealed):
                report = judged(compare(folder, out, None))
            return sign(folder, self, sealed, report)

    def check(self, run: Path, out: Path) -> Report:
        """Compare an adapter folder with the run that it is of again. Raises RunError where they differ."""
        from tunesmith.exports.checks.compare import checking, judged
        from tunesmith.exports.checks.opened import open_run

        with checking(out):
            return judged(open_run(run, self.device, None).closed()(out, out, None))
