"""How GPTQ's checkpoints hold a linear layer (AutoGPTQ, GPTQModel).

qweight [I * bits / 32, O] int32: the numbers of an output down the words of its column. qzeros [G, O * bits / 32]: the
zeros of a group along its row; the first format stores each less 1. scales [G, O]. g_idx [I]: the group of each input,
which do not follow each other where inputs were ordered by their activations (desc_act).
"""

from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.engine.packed import WORD, Numbers, unpack

NAMES = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")


def problem(said: Mapping[str, Any]) -> str | None:
    """Why a checkpoint that says so of itself cannot be read; None where it can."""
    form = "marlin" if said.get("is_marlin_format") else said.get("checkpoint_format") or FORMATS[0]
    if form not in FORMATS:
        return f"its format is {form}, and what is read is {' and '.join(FORMATS)}"
    bits = said.get("bits", 4)
    return None if bits in BITS else f"it has {bits} bits, and what is read has {', '.join(map(str, BITS))}"


def read(parts: Mapping[str, torch.Tensor], shape: tuple[int, int], said: Mapping[str, Any]) -> Numbers:
    """The numbers of a layer [O, I]. Raises ValueError where its tensors do not fit it."""
    rows, columns = shape
    words, scale = parts["qweight"], parts["scales"].T
    bits = words.shape[0] * WORD // columns
    if bits not in BITS or words.shape[1] != rows or scale.shape[0] != rows:
        raise ValueError(f"qweight {tuple(words.shape)} and scales {tuple(parts['scales'].shape)}")
    numbers = unpack(words.T, bits, columns)
    zero = unpack(parts["qzeros"], bits, rows).T
    if said.get("checkpoint_format") != "gptq_v2":
        zero = (zero + 1) & ((1 << bits) - 1)
    return Numbers(numbers, scale, zero, _group(parts.get("g_idx"), scale.shape[1], columns, said))


def _group(found: torch.Tensor | None, number: int, columns: int, said: Mapping[str, Any]) -> torch.Tensor | None:
    """The group of each column, None where they follow each other in equal sizes."""
    size = columns // number
    if columns % number:
        size = said["group_size"]
    plain = torch.arange(columns, dtype=torch.int32) // size
    group = plain if found is None else found.int()
    plain = plain.to(group.device)
    return None if not columns % number and torch.equal(group, plain) else group
