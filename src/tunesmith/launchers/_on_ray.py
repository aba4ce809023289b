"""What `launcher=ray` runs: a driver that has Ray Train start the processes, and what each of them does.

Each is `tunesmith train` in a process of Ray's, which told it its rank and where the others are. Of the processes of an
attempt the first that failed for a reason of its own is heard. Ray's own checkpoints are not used: a run that is begun
again goes on from those in its folder, which all machines see.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import runpy
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import (
    FOLDER_OF_ERRORS,
    JOB,
    LOST,
    RESTART_COUNT,
    RecipeError,
    TunesmithError,
    first_error,
    left_to_launcher,
)
from tunesmith.launching import TUNESMITH


class Failed(Exception):
    """Why a process ended, and when."""

    def __init__(self, message: str, when: float) -> None:
        super().__init__(message, when)
        self.message, self.when = message, when


class Attempts:
    """Counts how often each rank was begun: the largest number of them all is the attempt's."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}

    def begin(self, rank: int) -> int:
        """The number of this attempt of a rank, from 0."""
        self.begun[rank] = self.begun.get(rank, -1) + 1
        return self.begun[rank]


def work(given: Mapping[str, Any]) -> str:
    """What each process does: `tunesmith ARGUMENTS` to its end; what it said on stdout.

    Raises:
        Failed: it did not end well.
    """
    import ray

    rank = os.environ["RANK"]
    if "--verbose" not in given["arguments"]:
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # it tells a traceback of `Failed`
    os.environ[JOB] = given["job"]
    os.environ[RESTART_COUNT] = str(ray.get(given["attempts"].begin.remote(int(rank))))
    said = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="tunesmith-errors-") as errors, contextlib.redirect_stdout(said):
        os.environ[FOLDER_OF_ERRORS] = errors
        if not Path(given["folder"]).is_dir():
            raise Failed(f"rank {rank}: there is no folder {given['folder']} on its machine", time.time())
        os.chdir(given["folder"])
        sys.argv = ["tunesmith", *given["arguments"]]
        try:
            runpy.run_module(TUNESMITH[-1], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        if code:
            message = first_error(Path(errors)) or f"rank {rank} ended with exit code {code}"
            raise Failed(message, time.time())
    return said.getvalue()


def first_of(failures: Mapping[int, BaseException]) -> str:
    """Why the first process of an attempt failed, by rank: one that lost the others only where no other said why."""

    def told(rank: int) -> tuple[bool, float, str]:
        error = failures[rank]
        if isinstance(error, Failed):
            return LOST in error.message, error.when, error.message
        return False, float("inf"), f"rank {rank}: its process is gone and left no word ({type(error).__name__})"

    return min(map(told, failures))[2]


def main(words: Sequence[str]) -> int:
    """Run a driver's command line. Returns 0, or 1 where the run failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-workers", type=int, required=True)
    parser.add_argument("--resources", type=json.loads, default={})
    parser.add_argument("--placement", required=True)
    parser.add_argument("--address")
    parser.add_argument("--max-restarts", type=int, default=0)
    parser.add_argument("arguments", nargs="+")
    try:
        said = _drive(parser.parse_args(words))
    except TunesmithError as error:
        if not left_to_launcher(str(error)):
            sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(said)
    return 0


def _drive(asked: argparse.Namespace) -> str:
    """Have Ray run the processes to their end; what rank 0 said on stdout.

    Raises:
        RecipeError: this machine does not have what the processes are to take.
        TunesmithError: the last attempt failed.
    """
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # or what rank 0 prints is told twice
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Telling(UserCallback):
        """Tells why an attempt failed that another one follows, where Ray decides: on its controller."""

        def __init__(self) -> None:
            self.left = asked.max_restarts

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            if self.left:
                self.left -= 1
                sys.stderr.write(f"error: {first_of(worker_exceptions)}\n")
                sys.stderr.flush()

    if asked.address is None:
        ray.init(include_dashboard=False)
    else:
        ray.init(address=asked.address)
    there = ray.cluster_resources()
    each = asked.resources or {"CPU": 1} | ({"GPU": 1} if there.get("GPU") else {})
    if asked.address is None:
        _refuse_more(each, asked.num_workers, there)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attempts = ray.remote(num_cpus=0, scheduling_strategy=here)(Attempts).remote()
    given = {"arguments": asked.arguments, "folder": str(Path.cwd()), "attempts": attempts, "job": uuid.uuid4().hex}
    with tempfile.TemporaryDirectory(prefix="tunesmith-ray-") as notes:
        trainer = TorchTrainer(
            work,
            train_loop_config=given,
            scaling_config=ScalingConfig(
                num_workers=asked.num_workers,
                use_gpu=bool(each.get("GPU")),
                resources_per_worker=each,
                placement_strategy=asked.placement,
            ),
            run_config=RunConfig(
                storage_path=notes, failure_config=FailureConfig(max_failures=asked.max_restarts), callbacks=[Telling()]
            ),
        )
        try:
            return str(trainer.fit().return_value or "")
        except WorkerGroupError as error:
            raise TunesmithError(first_of(error.worker_failures)) from error
        except TrainingFailedError as error:
            raise TunesmithError(f"Ray: {str(error).strip().splitlines()[-1]}") from error


def _refuse_more(each: Mapping[str, float], number: int, there: Mapping[str, float]) -> None:
    """Raise RecipeError where a machine does not have what so many processes are to take: Ray would wait for ever."""
    for name, size in each.items():
        if size * number > there.get(name, 0):
            raise RecipeError(
                f"launcher.num_workers={number}, each with {size:g} {name}, and this machine has "
                f"{there.get(name, 0):g}: start fewer, or name a cluster by launcher.address"
            )


if __name__ == "__main__":
    from tunesmith.launchers import _on_ray  # by its name, as the processes of Ray import it

    sys.exit(_on_ray.main(sys.argv[1:]))
