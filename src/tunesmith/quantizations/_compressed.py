"""How checkpoints of compressed-tensors hold a linear layer (llm-compressor, vLLM).

pack-quantized: weight_packed [O, I * bits / 32] int32, the numbers of an output along its row, each plus half of their
range; weight_scale [O, G], weight_shape, and where zeros are not 0 weight_zero_point [O * bits / 32, G], packed down
the columns; weight_g_idx [I] where groups do not follow each other. The naive ones: weight [O, I] in int8 or float8
itself, weight_scale [O, 1], [O, G] or [1], and weight_zero_point as it is.
"""

from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.engine.packed import WORD, Numbers, unpack

NAMES = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight")
PACKED, NAIVE = "pack-quantized", ("naive-quantized", "int-quantized", "float-quantized")
BITS = (4, 8)
EIGHT = (torch.int8, torch.float8_e4m3fn)


def problem(said: Mapping[str, Any]) -> str | None:
    """Why a checkpoint that says so of itself cannot be read; None where it can."""
    groups = list((said.get("config_groups") or {}).values())
    forms = {said.get("format"), *(group.get("format") for group in groups)} - {None, "mixed-precision", "dense"}
    other = sorted(forms - {PACKED, *NAIVE})
    if other:
        return f"its format is {other[0]}, and what is read is {', '.join((PACKED, *NAIVE))}"
    if (said.get("sparsity_config") or {}).get("format", "dense") != "dense":
        return f"its weights are {said['sparsity_config']['format']}, and what is read is dense"
    if (said.get("transform_config") or {}).get("config_groups"):
        return "its layers turn their inputs (transform_config), and what is read does not"
    weights = [group.get("weights") or {} for group in groups]
    blocks = [one["strategy"] for one in weights if one.get("strategy") == "block"]
    if blocks:
        return "it has a scale for a block, and what is read has one for a row or for a group of it"
    bits = sorted({one.get("num_bits", 8) for one in weights} - {*BITS})
    return f"it has {bits[0]} bits, and what is read has {' or '.join(map(str, BITS))}" if bits else None


def read(parts: Mapping[str, torch.Tensor], shape: tuple[int, int], said: Mapping[str, Any]) -> Numbers:
    """The numbers of a layer [O, I]. Raises ValueError where its tensors do not fit it."""
    rows, columns = shape
    scale = parts["weight_scale"].reshape(-1, 1) if parts["weight_scale"].ndim < 2 else parts["weight_scale"]
    zero, group = parts.get("weight_zero_point"), parts.get("weight_g_idx")
    group = None if group is None or bool((group < 0).any()) else group.int()  # -1 of all: not ordered
    if "weight_packed" not in parts:
        weight = parts["weight"]
        if weight.dtype not in EIGHT or tuple(weight.shape) != shape:
            raise ValueError(f"weight {tuple(weight.shape)} in {weight.dtype}")
        zero = None if zero is None or not bool(zero.any()) else zero.reshape(scale.shape)
        return Numbers(weight, scale, zero, group)
    words = parts["weight_packed"]
    bits = next((one for one in BITS if words.shape == (rows, -(-columns * one // WORD))), None)
    if bits is None:
        raise ValueError(f"weight_packed {tuple(words.shape)}")
    half = torch.full((1, 1), 1 << (bits - 1), dtype=torch.uint8, device=words.device)
    found = half if zero is None else unpack(zero.T, bits, rows).T
    return Numbers(unpack(words, bits, columns), scale, found, group)
