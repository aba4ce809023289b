"""How transformers renames and joins the tensors of a model's files as it loads them, and parts them as it saves them.

Experts of a mixture are matrices of their own in its files, and one in memory. transformers keeps this private
(core_model_loading), and it is asked here alone.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch


class Part(NamedTuple):
    """A stored tensor that a weight is made of: its name, and the pattern of transformers that it fits."""

    name: str
    pattern: str
    value: torch.Tensor


class Conversions:
    """The conversions of a model, which may be without weights."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        found = get_model_conversion_mapping(model)
        self._model, self._weights = model, model.state_dict()
        self._renamings = [one for one in found if isinstance(one, WeightRenaming)]
        self._converters = [one for one in found if isinstance(one, WeightConverter)]

    def named(self, stored: str) -> tuple[str, str | None]:
        """The weight that a stored tensor is, or is a part of; and then the pattern that it fits."""
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        return rename_source_key(stored, self._renamings, self._converters, prefix, self._weights)

    def joined(self, name: str, parts: Sequence[Part]) -> torch.Tensor:
        """A weight of its parts."""
        from transformers.core_model_loading import dot_natural_key

        parts = sorted(parts, key=lambda part: dot_natural_key(part.name))
        by_pattern = {pattern: one for one in self._converters for pattern in one.source_patterns}
        converter: Any = copy.deepcopy(by_pattern[parts[0].pattern])
        for part in parts:
            converter.add_tensor(name, part.name, part.pattern, part.value)
        return _one(converter.convert(name, model=self._model, config=self._model.config)[name])

    def parted(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights as they are stored."""
        from transformers.core_model_loading import revert_weight_conversion

        return {name: _one(value) for name, value in revert_weight_conversion(self._model, dict(weights)).items()}


def _one(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, list) else value
