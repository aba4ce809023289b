"""Bits of the layers of a model that is stored in few bits, as its config says them and a run here holds them.

GPTQ, AWQ and compressed-tensors are held as `engine/packed.py` does: numbers of 4 bits (those of 2 and 3 too) or of 8,
a scale of 16 bits for a group of a row, and a byte for its zero where zeros differ; where inputs were ordered by their
activations, an int32 for each input. What bitsandbytes and torchao stored is held as `quantizations/` rounds to it.

Which layers are plain is taken from the config as well: a plan reads no weights.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCALE, ZERO, ORDER = 16, 8, 32  # bits of a group's scale and zero, and of the group of an input
EIGHT = 8.0


@dataclass(frozen=True)
class Bits:
    """Bits of a matrix [rows, columns]: of each number, and what there is for a row and for a column."""

    number: float
    row: float = 0.0
    column: float = 0.0

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of the whole matrix."""
        return int((rows * columns * self.number + rows * self.row + columns * self.column) / 8)


@dataclass(frozen=True)
class Stored:
    """How a model is stored: `method` as its config names it, `said` what else the config says of that."""

    method: str
    said: Mapping[str, Any]

    def bits(self, layer: str) -> Bits | None:
        """Those of a linear layer's weight by the layer's name in the model; None: it is plain."""
        return METHODS[self.method](self.said, layer)


def stored(config: Any) -> Stored | None:
    """How a model is stored by its config; None: in plain weights, or in what is known to nobody here."""
    from tunesmith.engine.quantised import stored_method, stored_words

    method, said = stored_method(config), stored_words(config)
    if said is None or method not in METHODS:
        return None
    return Stored(method, dict(said) if isinstance(said, Mapping) else said.to_dict())


def _grouped(bits: int, size: int | None, zeros: bool, ordered: bool) -> Bits:
    """Bits with a scale, and maybe a zero, for so many columns of a row; None or below 1: for a whole row."""
    number, each = (EIGHT if bits == EIGHT else 4.0), float(SCALE + ZERO * zeros)
    if size is None or size < 1:
        return Bits(number, row=each)
    return Bits(number + each / size, column=float(ORDER * ordered))


def _gptq(said: Mapping[str, Any], layer: str) -> Bits | None:
    """GPTQModel's `dynamic` has regular expressions: with "-:" layers are plain, else they have values of their own."""
    blocks = said.get("modules_in_block_to_quantize") or ()
    names = [name for block in blocks for name in ([block] if isinstance(block, str) else block)]
    if _plain(said, layer) or (names and not layer.endswith(tuple(names))):
        return None
    own: Mapping[str, Any] = said
    for pattern, values in (said.get("dynamic") or {}).items():
        if re.match(pattern.removeprefix("-:").removeprefix("+:"), layer):
            if pattern.startswith("-:"):
                return None
            own = {**said, **values}
            break
    return _grouped(own.get("bits", 4), own.get("group_size", -1), not own.get("sym", True), bool(own.get("desc_act")))


def _awq(said: Mapping[str, Any], layer: str) -> Bits | None:
    size = said.get("group_size", said.get("q_group_size", 128))
    return None if _plain(said, layer) else _grouped(4, size, said.get("zero_point", True), ordered=False)


def _compressed(said: Mapping[str, Any], layer: str) -> Bits | None:
    """The first group that a layer is of; `Linear` is the kind of all of them."""
    if _named(said.get("ignore") or (), layer):
        return None
    for group in (said.get("config_groups") or {}).values():
        weights, targets = group.get("weights"), group.get("targets") or ("Linear",)
        if weights is None or not ("Linear" in targets or _named(targets, layer)):
            continue
        size, zeros = weights.get("group_size"), not weights.get("symmetric", True)
        strategy = weights.get("strategy") or ("group" if size else "tensor")
        if strategy == "tensor":
            return Bits(EIGHT if weights.get("num_bits", 8) == EIGHT else 4.0)
        ordered = weights.get("actorder") in (True, "group", "dynamic")
        return _grouped(weights.get("num_bits", 8), size if strategy == "group" else None, zeros, ordered)
    return None


def _bitsandbytes(said: Mapping[str, Any], layer: str) -> Bits | None:
    from tunesmith.quantizations.bnb_4bit import FourBit
    from tunesmith.quantizations.bnb_8bit import EightBit

    if _plain(said, layer, "llm_int8_skip_modules"):
        return None
    if said.get("load_in_4bit"):
        return Bits(*FourBit(use_double_quant=bool(said.get("bnb_4bit_use_double_quant"))).bits_per_weight())
    return Bits(*EightBit().bits_per_weight())


def _torchao(said: Mapping[str, Any], layer: str) -> Bits | None:
    from tunesmith.quantizations.torchao import TorchAO

    return None if _plain(said, layer) else Bits(*TorchAO().bits_per_weight())


def _plain(said: Mapping[str, Any], layer: str, key: str = "modules_to_not_convert") -> bool:
    """Whether a layer is of those that are not converted, by names as transformers takes them."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    return not should_convert_module(layer, said.get(key) or None)


def _named(names: Sequence[str], layer: str) -> bool:
    """Whether compressed-tensors means a layer: by its name, or by a regular expression after "re:"."""
    return any(re.match(name[3:], layer) if name.startswith("re:") else name == layer for name in names)


METHODS = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
}
