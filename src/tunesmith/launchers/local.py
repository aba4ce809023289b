"""One process on this machine."""

import sys
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tunesmith.launching import TUNESMITH, Launcher


class Local(Launcher):
    """One process on this machine, as without a launcher."""

    max_restarts: Annotated[int, Field(ge=0)] = 0
    """How often a run that failed goes on from its last checkpoint by itself; needs train.output_dir."""

    def restarts(self) -> int:
        """As `max_restarts` says."""
        return self.max_restarts

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The same command, in a process of its own."""
        return [sys.executable, *TUNESMITH, *arguments]
