"""Slurm: a script for sbatch, in which each machine runs torchrun."""

import shlex
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tunesmith.launchers.torchrun import Torchrun
from tunesmith.launching import Launcher

Word = Annotated[str, Field(pattern=r"^[\w.,:@%+=/()-]+$")]

SCRIPT = """\
#!/bin/bash
{options}

set -euo pipefail
{setup}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${{hosts%%$'\\n'*}}
srun --kill-on-bad-exit=1 {command}
"""
HERE = "HEAD:0"  # replaced by the address that only the job knows


class Slurm(Launcher):
    """A script for sbatch: each machine runs torchrun, and all meet at the first of them."""

    script: str = "tunesmith.sbatch"
    """File that the script is written to."""
    nodes: Annotated[int, Field(gt=0)] = 1
    """Machines."""
    gpus_per_node: Annotated[int, Field(gt=0)] = 8
    """GPUs of each, and as many processes."""
    cpus_per_task: Annotated[int, Field(gt=0)] | None = None
    """CPU cores of each machine. None: as the cluster gives."""
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$")] | None = None
    """Longest run, as D-HH:MM:SS. None: as the cluster gives."""
    partition: Word | None = None
    """Queue. None: the cluster's usual one."""
    account: Word | None = None
    """Who pays. None: your usual one."""
    job_name: Word = "tunesmith"
    """Name of the job."""
    output: Word = "%x-%j.out"
    """File of what the job prints; %j is its number."""
    port: Annotated[int, Field(gt=0, lt=65536)] = 29500
    """Port at which machines meet."""
    max_restarts: Annotated[int, Field(ge=0)] = 0
    """As torchrun's."""
    requeue: bool = False
    """Begin again, from the last checkpoint, when Slurm took the machines away; needs train.output_dir."""
    stop_seconds: Annotated[int, Field(gt=0)] = 120
    """Seconds before the end of its time at which a run is told to save and stop."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the run: ["module load cuda", "source venv/bin/activate"]."""

    def begins_again(self) -> bool:
        """With max_restarts or requeue."""
        return self.max_restarts > 0 or self.requeue

    def command(self, arguments: Sequence[str]) -> list[str]:
        """What hands the script in."""
        return ["sbatch", self.script]

    def files(self, arguments: Sequence[str]) -> dict[str, str]:
        """The script."""
        said = {
            "job-name": self.job_name,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "output": self.output,
            "signal": f"TERM@{self.stop_seconds}",
        }
        options = [f"--{name}={value}" for name, value in said.items() if value is not None]
        options.append("--requeue" if self.requeue else "--no-requeue")
        text = SCRIPT.format(
            options="\n".join(f"#SBATCH {one}" for one in options),
            setup="".join(f"{line}\n" for line in self.setup),
            command=self.each(arguments),
        )
        return {self.script: text}

    def each(self, arguments: Sequence[str]) -> str:
        """What each machine runs, as a shell reads it."""
        torchrun = Torchrun(
            nproc_per_node=self.gpus_per_node,
            nnodes=str(self.nodes),
            rdzv_endpoint=HERE,
            rdzv_id="JOB",
            max_restarts=self.max_restarts,
            stop_seconds=self.stop_seconds,
        )
        known = {f"--rdzv-endpoint={HERE}": f'--rdzv-endpoint="$head:{self.port}"'}
        known["--rdzv-id=JOB"] = '--rdzv-id="$SLURM_JOB_ID"'
        return " ".join(known.get(word, shlex.quote(word)) for word in torchrun.command(arguments))
