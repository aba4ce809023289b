"""torch's own starter: several processes on a machine, and on several machines that meet at an address."""

import sys
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tunesmith.explain import wrong
from tunesmith.launching import TUNESMITH, Launcher

# Ranks that begin again must not meet in the store of those before, whose addresses it still has:
# https://github.com/pytorch/pytorch/issues/135712, which torch 2.13 has again.
APART = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
STOP = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # an option of its command has the same name, but not in every version


class Torchrun(Launcher):
    """Several processes, on this machine or on several, where this command is then said on each."""

    own_lines: ClassVar[str] = r"^[WEI]\d{4} [\d:.]+ \d+ \S*torch/distributed/"
    failed_line: ClassVar[str] = r"^E\d{4} .*failed \(exitcode: (?P<code>-?\d+)\) local_rank: (?P<rank>\d+)"
    own_files: ClassVar[str] = r'^  File ".*torch/distributed/(run|launcher/api)\.py"'

    nproc_per_node: Annotated[int, Field(gt=0)] | Literal["gpu", "cpu", "auto"] = "gpu"
    """Processes on each machine; gpu: as many as it has of them."""
    nnodes: Annotated[str, Field(pattern=r"^[1-9]\d*(:[1-9]\d*)?$")] = "1"
    """Machines, or the least and the most of them, 2:4: with fewer the run waits, and goes on as they come and go."""
    rdzv_endpoint: Annotated[str, Field(pattern=r"^\S+:\d+$")] | None = None
    """Where machines meet: HOST:PORT of one of them, the same on all."""
    rdzv_id: Annotated[str, Field(pattern=r"^\S+$")] | None = None
    """A word that tells this run from others that meet there."""
    max_restarts: Annotated[int, Field(ge=0)] = 0
    """How often a run that failed goes on from its last checkpoint by itself; needs train.output_dir."""

    stop_seconds: Annotated[int, Field(gt=0)] = 120
    """Seconds that processes have to save and stop when they are told to, before they are killed."""

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, options: dict[str, object]) -> dict[str, object]:
        nnodes = options.get("nnodes")
        return options | ({"nnodes": str(nnodes)} if type(nnodes) is int else {})

    @model_validator(mode="after")
    def _meets_somewhere(self) -> "Torchrun":
        if self.nnodes != "1" and self.rdzv_endpoint is None:
            raise wrong("nnodes", "several machines meet at an address: set launcher.rdzv_endpoint=HOST:PORT")
        least, _, most = self.nnodes.partition(":")
        if most and int(most) < int(least):
            raise wrong("nnodes", f"the most machines are fewer than the least: say launcher.nnodes={most}:{least}")
        if most and self.rdzv_id is None:
            raise wrong("nnodes", "machines that come later know the run by a word: set launcher.rdzv_id=WORD")
        return self

    def problem(self) -> str | None:
        """No device to count processes by."""
        from tunesmith.engine.device import choose

        if self.nproc_per_node != "gpu" or choose("auto").type != "cpu":
            return None
        return (
            "launcher.nproc_per_node=gpu: this machine has no accelerator to count: say how many processes, as in "
            "launcher.nproc_per_node=2"
        )

    def begins_again(self) -> bool:
        """With max_restarts, or where machines may leave."""
        return self.max_restarts > 0 or ":" in self.nnodes

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Its module, so that it is this Python's."""
        words = [f"--nnodes={self.nnodes}", f"--nproc-per-node={self.nproc_per_node}"]
        if self.rdzv_endpoint is None:
            words.append("--standalone")
        else:
            words += ["--rdzv-backend=c10d", f"--rdzv-endpoint={self.rdzv_endpoint}"]
        words += [f"--rdzv-id={self.rdzv_id}"] if self.rdzv_id is not None else []
        words += [f"--max-restarts={self.max_restarts}"] if self.max_restarts else []
        settings = ["env", f"{STOP}={self.stop_seconds}", *([APART] if self.begins_again() else [])]
        return [*settings, sys.executable, "-m", "torch.distributed.run", *words, *TUNESMITH, *arguments]
