"""One process on this machine."""

import sys
from collections.abc import Sequence

from tunesmith.launching import TUNESMITH, Launcher


class Local(Launcher):
    """One process on this machine, as without a launcher."""

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The same command, in a process of its own."""
        return [sys.executable, *TUNESMITH, *arguments]
