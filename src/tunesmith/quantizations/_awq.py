"""How AWQ's checkpoints hold a linear layer (AutoAWQ, in its format for GEMM).

qweight [I, O / 8] int32: the numbers of an input along its row, those of 8 outputs to a word in the order below; qzeros
[G, O / 8] in the same way, and scales [G, O].
"""

from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.engine.packed import Numbers, unpack

NAMES = ("qweight", "qzeros", "scales")
BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output of each number of a word, from the lowest bits on


def problem(said: Mapping[str, Any]) -> str | None:
    """Why a checkpoint that says so of itself cannot be read; None where it can."""
    form = str(said.get("version") or said.get("format") or "gemm").lower()
    if said.get("backend") == "llm-awq":
        form = "llm-awq"
    if form != "gemm":
        return f"its format is {form}, and what is read is gemm"
    bits = said.get("bits", said.get("w_bit", BITS))
    return None if bits == BITS else f"it has {bits} bits, and what is read has {BITS}"


def read(parts: Mapping[str, torch.Tensor], shape: tuple[int, int], said: Mapping[str, Any]) -> Numbers:
    """The numbers of a layer [O, I]. Raises ValueError where its tensors do not fit it."""
    rows, columns = shape
    words, scale = parts["qweight"], parts["scales"].T
    if (words.shape[0], words.shape[1] * len(ORDER)) != (columns, rows) or scale.shape[0] != rows:
        raise ValueError(f"qweight {tuple(words.shape)} and scales {tuple(parts['scales'].shape)}")
    return Numbers(_ordered(words).T, scale, _ordered(parts["qzeros"]).T)


def _ordered(words: torch.Tensor) -> torch.Tensor:
    """Numbers [.., O] in the order of outputs."""
    found = unpack(words, BITS, words.shape[-1] * len(ORDER)).unflatten(-1, (-1, len(ORDER)))
    return found[..., torch.tensor(ORDER, device=words.device).argsort()].flatten(-2)
