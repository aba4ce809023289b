"""Machines and the devices in them, as `--devices 8xH100-80GB --nodes 4` says them; the rates are in devices.yaml."""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from tunesmith.errors import RecipeError, near

MOST = 1_000_000  # devices of a machine that are planned: a slip of the keyboard is more
HOST_MEMORY = 2e12  # bytes of a machine's own memory, as a DGX H100 has them: what is offloaded must fit there


@dataclass(frozen=True)
class Rates:
    """A device by its maker's data sheet: bytes, operations a second, and bytes a second in one direction."""

    name: str
    memory: float
    flops: float  # dense, in bfloat16
    bandwidth: float  # of its memory
    link: float  # to its neighbours in a machine
    across: float  # to other machines
    host: float  # to the host's memory
    source: str


@dataclass(frozen=True)
class Cluster:
    """Machines with the same devices."""

    device: Rates
    each: int  # devices of a machine
    nodes: int = 1

    @property
    def devices(self) -> int:
        """All of them."""
        return self.each * self.nodes

    def link(self, group: int) -> float:
        """Bytes a second between the devices of a group, where groups fill machines one after the other."""
        return self.device.link if group <= self.each else self.device.across


@cache
def table() -> dict[str, Rates]:
    """The devices that are known, by name."""
    import yaml

    rows = yaml.safe_load((Path(__file__).parent / "devices.yaml").read_text(encoding="utf-8"))
    return {name: Rates(name, **row) for name, row in rows.items()}


def cluster_of(text: str, nodes: int = 1, memory: str | None = None) -> Cluster:
    """The machines that `8xH100-80GB` says, or `H100-80GB` for one device. Raises RecipeError.

    `memory` is what each is planned to have, as 75GB, in place of all.
    """
    found = re.fullmatch(r"(?:(\d+)x)?(.+)", text)
    assert found is not None or not text
    said = "" if found is None else found[2]
    name = {known.lower(): known for known in table()}.get(said.lower(), said)
    if name not in table():
        raise RecipeError(f"--devices: there is no device {name!r} (it was {text!r}). {near(name, table())}")
    number = int(found[1] or 1) if found else 1
    if not 0 < number <= MOST:
        raise RecipeError(f"--devices: {number} devices (it was {text!r}): say from 1 to {MOST} of a machine")
    device = table()[name] if memory is None else replace(table()[name], memory=float(bytes_of(memory)))
    return Cluster(device, number, nodes)


def bytes_of(text: str) -> int:
    """The bytes that 8GB, 80GiB or 500MB say. Raises RecipeError."""
    units = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
    number = text.lower().rstrip("bikmgt").strip()
    size = units.get(text.lower().removeprefix(number).strip())
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise RecipeError(f"--memory {text}: {text}GB? It is a number with a unit, as 8GB or 24GiB")
    if size is None or not number.replace(".", "", 1).isdecimal():
        raise RecipeError(f"--memory is a number with a unit, as 8GB or 24GiB (it was {text!r})")
    return int(float(number) * size)
