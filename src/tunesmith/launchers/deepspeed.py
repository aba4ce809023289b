"""DeepSpeed's own starter: the machines of a hostfile, over ssh."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from tunesmith.explain import wrong
from tunesmith.launching import TUNESMITH, Launcher


class DeepSpeed(Launcher):
    """The machines of a hostfile, which must be reached by ssh without a password, or the devices of this one."""

    extra: ClassVar[str | None] = "deepspeed"
    own_lines: ClassVar[str] = (
        r"^\[\d{4}-\d\d-\d\d [\d:,]+\] \[(INFO|WARNING|ERROR)\] \[(runner|launch|multinode_runner)"
    )
    failed_line: ClassVar[str] = r"^\[[\d :,-]+\] \[ERROR\] \[launch\.py.* exits with return code = (?P<code>-?\d+)"

    hostfile: str | None = None
    """File of a line for each machine, `worker-1 slots=8`. None: this machine alone."""
    num_nodes: Annotated[int, Field(gt=0)] | None = None
    """How many of its machines. None: all."""
    num_gpus: Annotated[int, Field(gt=0)] | None = None
    """Devices on each. None: all."""
    include: str | None = None
    """Machines and devices of the hostfile to use, `worker-1@worker-2:0,2`. None: all."""
    master_addr: str | None = None
    """Address at which machines meet. None: the first machine's."""
    master_port: Annotated[int, Field(gt=0, lt=65536)] = 29500
    """Port at which they meet."""

    @model_validator(mode="after")
    def _counts_or_names(self) -> "DeepSpeed":
        if self.include is not None and (self.num_nodes is not None or self.num_gpus is not None):
            raise wrong("include", "names machines and devices: leave launcher.num_nodes and launcher.num_gpus out")
        if self.hostfile is not None and not Path(self.hostfile).expanduser().is_file():
            raise wrong("hostfile", f"there is no file {self.hostfile}")
        return self

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Its runner by its module, so that it is this Python's."""
        said = {
            "--hostfile": self.hostfile and str(Path(self.hostfile).expanduser()),
            "--num_nodes": self.num_nodes,
            "--num_gpus": self.num_gpus,
            "--include": self.include,
            "--master_addr": self.master_addr,
            "--master_port": self.master_port,
        }
        words = [f"{name}={value}" for name, value in said.items() if value is not None]
        runner = [sys.executable, "-m", "deepspeed.launcher.runner"]
        if self.hostfile is not None:
            words.append("--force_multi")  # also for one machine: the words below are written for a shell
            arguments = [_over_ssh(word) for word in arguments]
        return [*runner, *words, "--no_local_rank", "--module", TUNESMITH[-1], *arguments]


def _over_ssh(word: str) -> str:
    """A word that the other machine's shell reads as it is: DeepSpeed's PDSHRunner quotes words with spaces, in part.

    It writes them in double quotes with their own escaped, so that what else is special there is escaped here.
    """
    return re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
