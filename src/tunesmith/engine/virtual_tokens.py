"""Learned tokens, or keys and values, that stand before every sequence (peft's prompt learning), on packed rows.

peft puts them before each sequence of a padded batch. Nothing that follows them changes what a decoder makes of them,
so in a packed row they stand once, as a sequence of their own, from which all others go on as from a shared beginning:
attention knows that already. Learned keys and values, which belong to no token, take the places of those that each
layer makes of as many idle tokens.

Letters: V virtual tokens, T tokens of the row, K key and value heads, D head size or hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForCausalLM
from safetensors.torch import load_file, save_file

from tunesmith.engine import multi_adapter
from tunesmith.engine.attention import Layout
from tunesmith.engine.model import num_virtual_tokens

FILE = "prompt_encoder.safetensors"  # the weights that virtual tokens are made by; peft saves what they make alone


class WithVirtualTokens(PeftModelForCausalLM):
    """peft's model with virtual tokens, which takes packed rows too; what is no packed row goes through as in peft."""

    def forward(
        self, input_ids: Any = None, packed: Layout | None = None, position_ids: Any = None, **kwargs: Any
    ) -> Any:
        """The base model's output for a packed row [1, T], as if the virtual tokens stood before each sequence.

        Raises:
            NotImplementedError: a row of several sequences comes without a layout, as for transformers' own attention.
        """
        if packed is None:
            if position_ids is not None:
                raise NotImplementedError(
                    "virtual tokens stand before every sequence, which only packed attention does"
                )
            return super().forward(input_ids=input_ids, **kwargs)
        number = num_virtual_tokens(self)
        inputs, before = self._row(input_ids, number)
        places = torch.arange(number, device=position_ids.device)[None]
        handle = self.get_base_model().get_decoder().register_forward_hook(_without_first(number))
        try:
            return self.base_model(
                **inputs,
                position_ids=torch.cat([places, position_ids + number], dim=1),
                packed=behind(packed, number, before),
                **kwargs,
            )
        finally:
            handle.remove()

    def _row(self, input_ids: torch.Tensor, number: int) -> "tuple[dict[str, Any], Before | None]":
        """The lengthened row [1, V + T] as a model is given it, and the learned keys and values of each layer."""
        if self.active_peft_config.peft_type == "PREFIX_TUNING":
            idle = input_ids.new_zeros(1, number)
            layers = self.get_prompt(batch_size=1).layers
            return {"input_ids": torch.cat([idle, input_ids], dim=1)}, Before(
                [(one.keys, one.values) for one in layers]
            )
        words = self.word_embeddings(input_ids)  # [1, T, D]
        prompt = self.get_prompt(batch_size=1).to(words.dtype)  # [1, V, D]
        return {"inputs_embeds": torch.cat([prompt, words], dim=1)}, None


@dataclass(frozen=True, eq=False)
class Before:
    """Learned keys and values [1, K, V, D] of each layer, in place of those of a row's first tokens."""

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]

    def __call__(self, module: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values [1, K, V + T, D] of a layer's row with the learned ones."""
        learned = self.layers[module.layer_idx]
        first, second = (
            torch.cat([one.to(own.dtype), own[:, :, one.shape[2] :]], dim=2)
            for one, own in zip(learned, (key, value), strict=True)
        )
        return first, second


def behind(packed: Layout, number: int, before: Before | None) -> Layout:
    """The layout of a row with so many tokens at its front, from which all of its sequences go on."""
    first = slice(0, number)
    seen = tuple(
        (first, *(slice(part.start + number, part.stop + number) for part in slices)) for slices in packed.seen
    )
    return replace(
        packed,
        offsets=torch.cat([packed.offsets[:1], packed.offsets + number]),
        lengths=(number, *packed.lengths),
        longest=packed.longest + number,
        seen=((first,), *seen),
        shares=True,
        before=before,
    )


def _without_first(number: int) -> Any:
    def cut(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, number:]
        return output

    return cut


def on_packed_rows(model: Any) -> Any:
    """The model of peft, which takes packed rows from now on if it has virtual tokens."""
    if num_virtual_tokens(model):
        model.__class__ = WithVirtualTokens
    return model


def save(model: Any, folder: Path) -> None:
    """Write the weights that virtual tokens are made by, where they are more than what peft saves, beside that."""
    encoder = model.prompt_encoder[multi_adapter.active(model)]
    if len(encoder.state_dict()) > 1:
        save_file({name: one.contiguous() for name, one in encoder.state_dict().items()}, folder / FILE)


def load(model: Any, folder: Path) -> None:
    """Take up what `save`, or peft, wrote."""
    own = folder / FILE
    if own.is_file():
        state = load_file(own)
    else:
        state = {"embedding.weight": load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]}
    model.prompt_encoder[multi_adapter.active(model)].load_state_dict(state)
