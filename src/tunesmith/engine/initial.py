"""What a low-rank update was at the first step, kept beside it as a second, frozen adapter.

PiSSA and OLoRA (arXiv 2404.02948, 2406.01775) begin with parts of the frozen weights, which they take out of them:
W = R + s B0 A0, and R is what is frozen. What is stored is the same function as a plain update of the model's own
weights: R + s B A = W + s (B A - B0 A0), which has twice the rank: A over A0, and B beside -B0. Both halves are read
again when a run goes on.

The model without its update would not be the one that training began with; with the adapter `initial`, it is.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.engine.linear import FrozenLinear
from tunesmith.engine.model import is_adapted
from tunesmith.errors import ModelError

NAME = "initial"
TAKING = ("pissa", "olora")  # beginnings of the ways that take the update out of the weights
PAIRS = (("lora_A", 0), ("lora_B", 1))  # names of matrices, and the axis of the rank


def takes(config: Any) -> bool:
    """Whether an adapter of these options of peft takes its beginning out of the frozen weights."""
    return str(getattr(config, "init_lora_weights", None)).startswith(TAKING)


def is_kept(model: Any) -> bool:
    """Whether a model has an adapter as it was at the first step."""
    return is_adapted(model) and NAME in model.peft_config


def digest(model: Any) -> str:
    """What tells the adapter of the first step from others."""
    found = hashlib.sha256()
    for key, one in sorted(_state(model, NAME).items()):
        found.update(key.encode() + one.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()


def keep(model: Any, name: str) -> None:
    """Keep an adapter as it is now as a second one, which is not trained."""
    from peft import set_peft_model_state_dict

    config = copy.copy(model.peft_config[name])
    plain = {"init_lora_weights": True, "use_dora": False, "modules_to_save": None, "trainable_token_indices": None}
    for option, value in plain.items() if takes(config) else ():
        setattr(config, option, value)
    model.add_adapter(NAME, config)
    state = _state(model, name)
    if takes(config := model.peft_config[name]):
        state = {key: one for key, one in state.items() if _axis(key) is not None}
    set_peft_model_state_dict(model, {key: one.clone() for key, one in state.items()}, adapter_name=NAME)
    model.set_adapter(name)


def _state(model: Any, name: str) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def _axis(key: str) -> int | None:
    return next((axis for part, axis in PAIRS if part in key), None)


def make_plain(model: Any, folder: Path) -> None:
    """Turn a stored update that took its beginning out of the weights into one of the model's own weights."""
    file, said = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    first = _state(model, NAME)
    stored = {}
    for key, one in load_file(file).items():
        axis = _axis(key)
        if axis is None:
            stored[key] = one
        else:
            begun = first[key].to(one.device, one.dtype)
            stored[key] = torch.cat([one, -begun if axis else begun], axis).contiguous()
    save_file(stored, file, {"format": "pt"})
    config = json.loads(said.read_text(encoding="utf-8"))
    scale = 2**0.5 if config["use_rslora"] else 2  # lora_alpha over the rank, or over its root, stays what it was
    config |= {"r": 2 * config["r"], "lora_alpha": scale * config["lora_alpha"], "init_lora_weights": True}
    config["rank_pattern"] = {key: 2 * one for key, one in config["rank_pattern"].items()}
    config["alpha_pattern"] = {key: scale * one for key, one in config["alpha_pattern"].items()}
    said.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


@torch.no_grad()
def take_up(model: Any, name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter's own half of what `make_plain` stored; the other is what the frozen weights are without.

    Where the beginning found here is another one (a decomposition differs from machine to machine), the frozen weights
    are made those of the stored one. Raises ModelError when they are held in few bits.
    """
    from peft import set_peft_model_state_dict

    halves = {key: one.chunk(2, axis) for key, one in state.items() if (axis := _axis(key)) is not None}
    stored = {key: -second if _axis(key) else second for key, (_, second) in halves.items()}
    before = _state(model, NAME)
    if any(not torch.equal(one, before[key].to(one.device)) for key, one in stored.items()):
        _shift(model, 1)
        set_peft_model_state_dict(model, stored, adapter_name=NAME)
        _shift(model, -1)
    return {key: halves[key][0] if key in halves else one for key, one in state.items()}


def _shift(model: Any, sign: int) -> None:
    """Add the beginning of each update to its frozen weight, or take it out."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and NAME in module.lora_A:
            if isinstance(module.get_base_layer(), FrozenLinear):
                raise ModelError(
                    f"the run began with another decomposition of {name} (as another machine has), and what is held in "
                    "8 bits cannot be made the rest of that: go on where it began, or without model.frozen_dtype"
                )
            module.get_base_layer().weight.add_(module.get_delta_weight(NAME), alpha=sign)
