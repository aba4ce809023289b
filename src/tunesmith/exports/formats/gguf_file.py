"""Writing a .gguf file tensor by tensor, and reading it again.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package lays the file out and rounds.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.exports.formats import gguf_families as families
from tunesmith.exports.merging.tensors import Spec

FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q5_0": 8, "bf16": 32}  # llama.cpp's llama_ftype
WIDE = ("token_embd.weight", "output.weight")  # of which llama.cpp itself keeps more bits where others have 4 or 5
FREQUENCIES = "rope_freqs.weight"


def kind(name: str, shape: Sequence[int], outtype: str) -> str:
    """What a tensor is rounded to in a file of a type: vectors and norms to nothing, rows of odd lengths to f16."""
    import gguf

    if len(shape) == 1 or name.endswith("_norm.weight"):
        return "f32"
    wide = outtype in ("q4_0", "q5_0") and name in WIDE
    chosen = "q8_0" if wide else outtype
    block, _ = gguf.GGML_QUANT_SIZES[_type(chosen)]
    return chosen if shape[-1] % block == 0 else "f16"


def _type(kind: str) -> Any:
    import gguf

    return gguf.GGMLQuantizationType[kind.upper()]


def rounded(value: torch.Tensor, kind: str) -> np.ndarray:
    """A tensor as it lies in a file."""
    import gguf

    return gguf.quants.quantize(value.float().contiguous().numpy(), _type(kind))


def names(config: Any, specs: Sequence[Spec]) -> dict[str, str]:
    """llama.cpp's name of each tensor of a model."""
    import gguf

    architectures = {name: one for one, name in gguf.MODEL_ARCH_NAMES.items()}
    family = families.FAMILIES[config.model_type]
    names = gguf.get_tensor_name_map(architectures[family.arch], config.num_hidden_layers)
    found = {spec.name: names.get_name(spec.name, try_suffixes=(".weight", ".bias")) for spec in specs}
    unknown = [name for name, other in found.items() if other is None]
    assert not unknown, unknown
    return found


def write(
    path: Path,
    config: Any,
    facts: Mapping[str, Any],
    specs: Sequence[Spec],
    tensors: Iterator[torch.Tensor],
    outtype: str,
) -> None:
    """Write the tensors of a model, by transformers' names, and facts by llama.cpp's."""
    import gguf

    writer = gguf.GGUFWriter(path, families.FAMILIES[config.model_type].arch)
    for key, value in facts.items():
        _put(writer, key, value)
    frequencies, named = families.frequencies(config), names(config, specs)
    if frequencies is not None:
        _announce(writer, FREQUENCIES, tuple(frequencies.shape), "f32")
    for spec in specs:
        _announce(writer, named[spec.name], spec.shape, kind(named[spec.name], spec.shape, outtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if frequencies is not None:
        writer.write_tensor_data(rounded(frequencies, "f32"))
    for spec, tensor in zip(specs, tensors, strict=True):
        value = families.kept(config, spec.name, tensor.float())
        writer.write_tensor_data(rounded(value, kind(named[spec.name], spec.shape, outtype)))
    writer.close()


def _put(writer: Any, key: str, value: Any) -> None:
    import gguf

    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.UINT32,
        float: gguf.GGUFValueType.FLOAT32,
        str: gguf.GGUFValueType.STRING,
    }
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_key_value(key, value, kinds[type(value)])


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[_type(kind)]
    nbytes = torch.Size(shape).numel() // block * size
    writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=_type(kind))


def read(path: Path) -> dict[str, Any]:
    """What a file says beside its tensors. Raises ValueError for one that is no whole .gguf file."""
    import gguf

    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items()}


def half_step(value: torch.Tensor, kind: str) -> torch.Tensor:
    """By how much a number of a tensor can be another after rounding: half a step of its block.

    A step of q8_0 is max|x|/127 of 32 numbers, one of q5_0 and q4_0 is max|x|/16 and max|x|/8, whose last is cut: a
    number at the far end can be a whole step off. The step itself is kept in float16.
    Source: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c
    """
    size = value.abs()
    if kind in ("f32", "f16", "bf16"):
        share = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}[kind]
        return size * share + 2.0**-25
    levels, steps = {"q8_0": (127, 0.5), "q5_0": (16, 1.0), "q4_0": (8, 1.0)}[kind]
    largest = size.reshape(-1, 32).amax(-1, keepdim=True)
    bound = largest / levels * steps + largest * 2.0**-11 + 2.0**-25 * levels
    return bound.expand(-1, 32).reshape(value.shape)
