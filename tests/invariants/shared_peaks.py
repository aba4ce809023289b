"""The peak of a step of one process of several (gloo) whose model is shared out, as torch's allocator gives it."""

import json
import os
import socket
import sys
from pathlib import Path

from fixtures_commands import FORKS, SECONDS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _measure(environment, recipe, config, out):
    os.environ |= environment
    sys.path.insert(0, str(BENCHMARKS))
    import torch

    import memory_peak

    torch.distributed.init_process_group("gloo")
    peak = memory_peak.measured(recipe, config)
    Path(out).write_text(json.dumps(peak))
    torch.distributed.destroy_process_group()


def of_each(number, recipe, config, folder):
    """The peaks of so many processes of a resolved recipe, in bytes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    begun = []
    for rank in range(number):
        place = {name: str(one) for name, one in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        begun.append(FORKS.Process(target=_measure, args=(place, recipe, config, str(folder / f"peak-{rank}"))))
        begun[-1].start()
    for one in begun:
        one.join(SECONDS)
        assert one.exitcode == 0
    return [json.loads((folder / f"peak-{rank}").read_text()) for rank in range(number)]
