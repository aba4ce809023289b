"""Ray Train: processes that Ray places on the machines of a cluster, and begins again where one is lost."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.launching import Launcher

SPEAKER = r"^(\x1b\[\d+m)?\((?:{}) pid=[^)]*\)(\x1b\[0m)? "  # how Ray begins a line of another process


class Ray(Launcher):
    """Processes on the machines of a Ray cluster, which sees to it that they come back when one is lost."""

    extra: ClassVar[str | None] = "ray"
    own_lines: ClassVar[str] = "|".join(
        (
            SPEAKER.format(r"(?!RayTrainWorker)\w+") + r"(?!error: )",
            SPEAKER.format("RayTrainWorker") + r"(Setting up process group|\[.* [IWE] \d+ \d+\]|\[W\d+ )",
            r"^(\x1b\[\d+m)?\(raylet",
            r"^\d{4}-\d\d-\d\d [\d:,]+\s+(INFO|WARNING|ERROR) \w+\.py:\d+ --",
        )
    )
    prefix: ClassVar[str] = SPEAKER.format(r"\w+")
    own_files: ClassVar[str] = r'^  File ".*/ray/(train|_private|_raylet)'

    num_workers: Annotated[int, Field(gt=0)] = 1
    """Processes, on all machines together."""
    resources_per_worker: dict[str, Annotated[float, Field(ge=0)]] = {}
    """What each takes of its machine, as {CPU: 8, GPU: 1}. {}: a GPU where the cluster has some, and one CPU."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """PACK: on few machines. SPREAD: on many. STRICT_: or not at all."""
    address: Annotated[str, Field(pattern=r"^(auto|[^\s:/]+:\d+)$")] | None = None
    """A cluster that runs: HOST:6379, or auto on one of its machines. None: this machine alone, for this run."""
    max_restarts: Annotated[int, Field(ge=0)] = 0
    """How often a run that failed goes on from its last checkpoint by itself (Ray's max_failures); needs
    train.output_dir."""
    usage_stats: bool = False
    """Let a cluster that is begun for the run send its usage statistics to Ray's makers."""

    def begins_again(self) -> bool:
        """With max_restarts."""
        return self.max_restarts > 0

    def command(self, arguments: Sequence[str]) -> list[str]:
        """A driver of this package's own, in this Python, that gives Ray the processes' work."""
        said = {
            "num-workers": self.num_workers,
            "resources": json.dumps(self.resources_per_worker) if self.resources_per_worker else None,
            "placement": self.placement_strategy,
            "address": self.address,
            "max-restarts": self.max_restarts,
        }
        words = [f"--{name}={value}" for name, value in said.items() if value is not None]
        environment = [f"RAY_USAGE_STATS_ENABLED={int(self.usage_stats)}", "RAY_DEDUP_LOGS=0"]
        return ["env", *environment, sys.executable, "-m", "tunesmith.launchers._on_ray", *words, "--", *arguments]
