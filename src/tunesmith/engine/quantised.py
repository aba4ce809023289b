"""Weights held in few bits: what holds them, products with those of 4 bit, and what tells them from others.

Letters: T tokens, I and O features in and out.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tunesmith import extras
from tunesmith.engine.linear import Widened
from tunesmith.engine.packed import PACKED, PackedLinear
from tunesmith.errors import ModelError
from tunesmith.recipe import Model

CONFIG = "quantization_config.json"  # beside an adapter: what its base model was held in
READ = ("gptq", "awq", "compressed-tensors")  # what stored models are read from by this package itself
TRAINABLE = "gptq, awq, compressed-tensors, bitsandbytes or torchao in int8"  # what a stored model may be held in


def stored_words(config: Any) -> Any | None:
    """What a stored model's config says of how its weights are held; None where they are plain."""
    text = config.get_text_config()
    return getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)


def stored_method(config: Any) -> str | None:
    """What a stored model's weights are held in, as its config says (gptq, awq, ...); None where they are plain."""
    said = stored_words(config)
    if said is None:
        return None
    values = said if isinstance(said, Mapping) else said.to_dict()
    method = values.get("quant_method") or "bitsandbytes"  # old ones of bitsandbytes do not say it
    return values["held_in"] if method == PACKED else str(getattr(method, "value", method))


def need_for_stored(what: str, method: str) -> None:
    """Look for what loads a model that is held in some way. Raises MissingExtra."""
    if method in extras.EXTRAS:
        extras.need(f"{what} is held in {method}, which", method)


def held_in(model: Any) -> str | None:
    """What the linear layers of a loaded model are held in; None where they are plain."""
    return stored_method(model.config) if getattr(model, "is_quantized", False) else None


def component_of(model: Any) -> str | None:
    """The quantization of this package that a loaded model is held in, as far as components speak of it."""
    kinds = {type(module) for module in model.modules()}
    if any(map(is_four_bit, kinds)):
        return "bnb_4bit"
    if PackedLinear in kinds:  # whatever they were read from
        return "hqq"
    return "bnb_8bit" if any(map(is_eight_bit, kinds)) else None


def refuse_untrainable(model: Any, place: str) -> None:
    """Raise ModelError for a loaded model that is held in what has no gradient, or no weight beside which to train."""
    if held_in(model) is not None and not model.hf_quantizer.is_trainable:
        raise ModelError(
            f"{place} is held in {held_in(model)}, whose products have no gradient: name the plain model, and set "
            f"model.quantization, or name one held in {TRAINABLE}"
        )


def refuse_missing(model: Any, missing: Iterable[str], place: str) -> None:
    """Raise ModelError where weights of a model were not found as a plain one or as that of a linear layer."""
    for name in sorted(missing):
        raise ModelError(
            f"{place} is stored in {held_in(model)}, and {name} is not to be had of it: what is read are linear "
            "layers, and no experts that are one weight here. Name the plain model, and set model.quantization"
        )


def refuse_merging(model: Any, what: str) -> None:
    """Raise ModelError where an update cannot be merged into a model's weights, which are made anew when asked for."""
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ModelError(
            f"{what} cannot be merged into weights in {held_in(model)}, which stay as they are: merge it into plain "
            "ones first, with tunesmith export type=merged, and name that model"
        )


def keep_numbers(model: Any) -> None:
    """Have a CPU evaluate bitsandbytes' layers by the numbers that they are trained with.

    In evaluation it would lay 4 bit weights out anew, with scales rounded to bfloat16, which has no gradient
    (Linear4bit.forward, 0.50): a model that was evaluated could not be trained on. And it would round the inputs of
    8 bit weights too, which it does not in training (matmul, 0.50): each answer would hang on what is beside it.
    """
    for module in model.modules():
        if is_four_bit(type(module)):
            module.support_avx512bf16_for_cpu = False
        elif is_eight_bit(type(module)):
            module.state.__class__ = _widening()


@functools.cache
def _widening() -> type:
    """The kind of state of an 8 bit layer by which a CPU widens the weight and leaves the input as it is."""
    from bitsandbytes import MatmulLtState

    always = property(lambda self: True, lambda self, said: None)
    return type("Widening", (MatmulLtState,), {"is_training": always})


def is_four_bit(kind: type) -> bool:
    """Whether a class is bitsandbytes' linear layer of 4 bit, which is not imported to ask."""
    return kind.__name__ == "Linear4bit" and kind.__module__ == "bitsandbytes.nn.modules"


def is_eight_bit(kind: type) -> bool:
    """Whether a class is bitsandbytes' linear layer of 8 bit."""
    return kind.__name__ == "Linear8bitLt" and kind.__module__ == "bitsandbytes.nn.modules"


def save_config(model: Any, folder: Path) -> None:
    """Write what an adapter's base model is held in beside the adapter, where the stored base does not say it."""
    if held_in(model) is not None and not model.hf_quantizer.pre_quantized:
        (folder / CONFIG).write_text(model.config.quantization_config.to_json_string(use_diff=False), encoding="utf-8")


def load_config(folder: Path) -> Any | None:
    """What `save_config` wrote, as transformers takes it; None: nothing. Raises MissingExtra, ModelError."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    if not (folder / CONFIG).is_file():
        return None
    said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if said["quant_method"] == PACKED:
        from tunesmith.engine.packed_loading import PackedConfig

        return PackedConfig(**said)
    need_for_stored(f"the base model of {folder}", said["quant_method"])
    return AutoQuantizationConfig.from_dict(said)


class FourBit(Widened):
    """A weight of bitsandbytes' 4 bit layer."""

    def dequantised(self, kind: torch.dtype) -> torch.Tensor:
        """The weight [O, I] that the products are with."""
        from bitsandbytes.functional import dequantize_blockwise

        weight, state = self.layer.weight, state_of(self.layer)
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        return torch.ops.bitsandbytes.dequantize_4bit(
            weight.data.view(-1, 1), scales.float(), state.blocksize, state.quant_type, state.shape, kind
        )


def load_options(model: Model, place: str, config: Any, device: str, held: Any | None) -> dict[str, Any]:
    """What `from_pretrained` is told of a model that is, or is to be, held in few bits.

    Raises ModelError for one that is already, or that cannot be trained beside; MissingExtra without the packages that
    it needs.
    """
    from transformers import BitsAndBytesConfig, GgufConfig

    stored, packed = stored_method(config), place.endswith(".gguf")
    if (held is not None or model.quantization is not None) and (stored is not None or packed):
        raise ModelError(f"{model.path} is stored in {stored or 'gguf'}: leave model.quantization out")
    if packed:
        return {"quantization_config": GgufConfig(dequantize=True)}
    if stored in READ:
        from tunesmith.engine.packed_loading import taken

        return {"config": taken(config, stored_words(config), model.path), "device_map": {"": device}}
    if stored is not None:
        need_for_stored(model.path, stored)
        return {"device_map": {"": device}}
    dtype = (config.dtype or torch.float32) if model.dtype == "auto" else getattr(torch, model.dtype)
    if model.quantization is not None and held is None:
        held = model.quantization.config(dtype, device)
    if isinstance(held, BitsAndBytesConfig):
        held.bnb_4bit_compute_dtype = dtype  # that of a run may be another, and would be multiplied in here too
    return {} if held is None else {"quantization_config": held, "device_map": {"": device}}


def state_of(layer: Any) -> Any:
    """The scales of bitsandbytes' 4 bit layer, which lie beside its weight too: FSDP2 gathers a bare one."""
    return getattr(layer.weight, "quant_state", None) or layer.quant_state


def numel(parameter: torch.Tensor) -> int:
    """How many numbers a parameter stands for, also one that lies in parts."""
    state: Any = getattr(parameter, "quant_state", None)
    plain = getattr(parameter, "stands_for", getattr(parameter, "ds_shape", parameter.shape))
    shape = plain if state is None else state.shape
    return int(torch.Size(shape).numel())


def _is_made_of_others(tensor: Any) -> bool:
    return getattr(type(tensor), "__tensor_flatten__", None) is not None


def plain_parts(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor, or the plain ones that it is made of, each by a name."""
    if not _is_made_of_others(tensor):
        yield name, tensor
        return
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    for inner in names:
        yield from plain_parts(f"{name}.{inner}", getattr(tensor, inner))


def scales_of(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What a quantised model has beside its parameters: scales, zeros, tables, each by its name."""
    if held_in(model) is None:
        return
    own = {name for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor) and name not in own:
            yield from plain_parts(name, value)


def widen(model: Any, place: str) -> Any:
    """A model with plain weights of the numbers that those of few bits stand for. Raises ModelError."""
    method = held_in(model)
    if method == "torchao":
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and _is_made_of_others(module.weight):
                module.weight = torch.nn.Parameter(module.weight.dequantize(), requires_grad=False)
        model.hf_quantizer.remove_quantization_config(model)
        return model
    try:
        return model if method is None else model.dequantize(dtype=model.dtype)
    except NotImplementedError as error:
        raise ModelError(f"{place} is held in {method}, which transformers cannot widen: {error}") from error


def said(model: Any) -> list[str]:
    """What has to be said of a model that is held in few bits; nothing of others."""
    if held_in(model) is None:
        return []
    stored = "as stored" if model.hf_quantizer.pre_quantized else "rounded here"
    found, plain = held_bytes(model)
    size = f": {found / 1e6:,.1f} MB of layers, {found / plain:.2f} of what 16 bits take" if plain else ""
    return [f"quantised: {held_in(model)}, {stored}{size}"]


def held_bytes(model: Any) -> tuple[int, int]:
    """The bytes of a model's layers in few bits with their scales, and what they take at 2 bytes a weight.

    torchao's are not counted.
    """
    found = weights = 0
    for module in model.modules():
        if isinstance(module, PackedLinear):
            found += module.nbytes()
            weights += numel(module.codes)
        if not (is_four_bit(type(module)) or is_eight_bit(type(module))):
            continue
        weight = module.weight
        if is_four_bit(type(module)):
            scales = [*weight.quant_state.as_dict(packed=True).values()]
        else:  # which the first product takes from the weight
            scales = [module.state.SCB if weight.SCB is None else weight.SCB]
        found += sum(one.numel() * one.element_size() for one in (weight, *scales))
        weights += numel(weight)
    return found, 2 * weights
