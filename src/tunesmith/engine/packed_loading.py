"""Loading linear layers as `PackedLinear`: those that are stored in numbers, or plain ones that are rounded here.

A quantizer of transformers, by its own registry: tensor by tensor its loader gives the parts of a layer's weight to
`_Read`, or a plain weight to `_Round`, and at the end each layer that got numbers is replaced.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer, get_keys_to_not_convert
from transformers.utils.quantization_config import QuantizationConfigMixin

from tunesmith.engine import compat
from tunesmith.engine.packed import PACKED, Numbers, PackedLinear
from tunesmith.errors import ModelError
from tunesmith.quantizations import _awq, _compressed, _gptq
from tunesmith.quantizations._half_quadratic import rounded

FORMATS: dict[str, Any] = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}


@register_quantization_config(PACKED)
class PackedConfig(QuantizationConfigMixin):
    """What layers are held in: `held_in` is a method's name, `said` what the stored config says of it."""

    def __init__(
        self,
        held_in: str,
        said: Mapping[str, Any] | None = None,
        modules_to_not_convert: list[str] | None = None,
        **_: Any,
    ) -> None:
        self.quant_method: Any = PACKED
        self.held_in, self.said = held_in, dict(said or {})
        self.modules_to_not_convert = modules_to_not_convert


def taken(config: Any, said: Any, place: str) -> Any:
    """A stored model's config, by which its layers are loaded here. Raises ModelError where they cannot be."""
    values = dict(said) if isinstance(said, Mapping) else said.to_dict()
    method = str(getattr(values["quant_method"], "value", values["quant_method"]))
    problem = FORMATS[method].problem(values)
    if problem is not None:
        raise ModelError(
            f"{place} is stored in {method}, and cannot be trained beside: {problem}. Name the plain model, and set "
            "model.quantization, or another one that is stored in it"
        )
    config.quantization_config = {"quant_method": PACKED, "held_in": method, "said": values}
    return config


@register_quantizer(PACKED)
class PackedQuantizer(HfQuantizer):
    """Loads the layers; see the module."""

    quantization_config: PackedConfig

    def __init__(self, quantization_config: PackedConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.found: dict[str, PackedLinear] = {}  # by the names of the layers that they are for
        self.problems: list[str] = []
        self.plain: frozenset[str] = frozenset()

    def is_serializable(self) -> bool:
        """Whether transformers may save the layers as they are."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Whether an adapter beside the layers can be trained."""
        return True

    def get_weight_conversions(self) -> list[Any]:
        """What makes numbers of the parts of a stored weight."""
        if not self.pre_quantized:
            return []
        names = FORMATS[self.quantization_config.held_in].NAMES
        return [WeightConverter([*names], "weight", [_Read(self)])]

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a plain weight is rounded."""
        layer, _, own = param_name.rpartition(".")
        if self.pre_quantized or own != "weight" or not isinstance(model.get_submodule(layer), torch.nn.Linear):
            return False
        return not any(f".{name}." in f".{layer}." for name in self.plain)

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        """Bytes of a number of a weight, by which room is made on an accelerator."""
        layer, _, own = param_name.rpartition(".")
        packed = own == "weight" and isinstance(model.get_submodule(layer), torch.nn.Linear)
        return 0.5 if packed else float(param.element_size())

    def get_quantize_ops(self) -> Any:
        """What makes numbers of a plain weight."""
        return _Round(self)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            said = self.quantization_config.modules_to_not_convert or ()
            self.plain = frozenset((*get_keys_to_not_convert(model), *said))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.problems:
            raise ModelError(self.problems[0])
        if not self.found:
            raise ModelError(
                f"it has no linear layer in {self.quantization_config.held_in}: leave that out of its config"
            )
        head = model.get_output_embeddings()
        for name, held in self.found.items():
            owner, _, own = name.rpartition(".")
            layer = model.get_submodule(name)
            held.bias = layer.bias
            setattr(model.get_submodule(owner), own, held.widened() if layer is head else held)
        self.found.clear()
        if self.pre_quantized:
            model.config.quantization_config = self.quantization_config.said
            compat.forget_conversions(model, _Read)
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        for name, layer in [*model.named_modules()]:
            if isinstance(layer, PackedLinear):
                owner, _, own = name.rpartition(".")
                setattr(model.get_submodule(owner), own, layer.widened())
        return model


class _Op(ConversionOps):
    """What the quantizer does to the tensors of a layer; the loader copies it for each, but not the quantizer."""

    def __init__(self, hf_quantizer: PackedQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: Any) -> "_Op":
        return self

    def kept(self, name: str, model: Any, numbers: Callable[[torch.nn.Linear], Numbers]) -> torch.Tensor:
        """Have the quantizer keep the numbers of a layer by the name of its weight; in place of that, nothing."""
        quantizer, place, shape = self.hf_quantizer, name.rpartition(".")[0], model.get_parameter(name).shape
        try:
            layer = model.get_submodule(place)
            if not isinstance(layer, torch.nn.Linear):
                raise ValueError(f"it is a {type(layer).__name__}, and no linear layer")
            quantizer.found[place] = PackedLinear(numbers(layer), layer.weight.dtype)
        except (KeyError, ValueError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            quantizer.problems.append(f"{place} cannot be held in {quantizer.quantization_config.held_in}: {what}")
        return torch.empty(()).expand(shape)


class _Read(_Op):
    """The numbers of a stored weight."""

    def convert(self, input_dict: dict[str, Any], *_: Any, **told: Any) -> dict[str, Any]:
        """The weight of a layer by its name, as it is where it is plain."""
        name, model, said = told["full_layer_name"], told["model"], self.hf_quantizer.quantization_config
        parts = {part: one[0] if isinstance(one, list) else one for part, one in input_dict.items()}
        if [*parts] == ["weight"]:
            return {name: parts["weight"].to(model.get_parameter(name).dtype)}
        read = FORMATS[said.held_in].read
        return {
            name: self.kept(name, model, lambda layer: read(parts, (layer.out_features, layer.in_features), said.said))
        }


class _Round(_Op):
    """The numbers of plain weights."""

    def convert(self, input_dict: dict[str, Any], *_: Any, **told: Any) -> dict[str, Any]:
        """The weights by their names: one, or those that a stored tensor is cut into."""
        plain = {name: one[0] if isinstance(one, list) else one for name, one in input_dict.items()}
        return {name: self.kept(name, told["model"], self._of(weight)) for name, weight in plain.items()}

    def _of(self, weight: torch.Tensor) -> Callable[[torch.nn.Linear], Numbers]:
        said = self.hf_quantizer.quantization_config.said
        return lambda _: rounded(weight, said["nbits"], said["group_size"])
