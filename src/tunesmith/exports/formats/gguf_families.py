"""What llama.cpp has to be told of a model: its sizes by llama.cpp's names, and its tensors as llama.cpp keeps them.

The names and values are those of llama.cpp's own converter:
https://github.com/ggml-org/llama.cpp/tree/master/conversion (llama.py, qwen.py, gemma.py, base.py).

Letters: H heads, D numbers of a head, I inputs of a matrix.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.errors import RunError

ROPES = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class Family:
    """How llama.cpp keeps the models of one type of transformers'."""

    arch: str
    paired: bool = False  # rotates neighbouring numbers of a head, where transformers rotates its two halves
    norm_offset: float = 0.0  # what transformers adds to the weight of a norm when it is used, and llama.cpp does not
    activation: str = "silu"
    whole_every: int = 0  # llama.cpp's layers that see more than a window: every so many; 0: all see everything
    own_head: bool = True  # reads a head that is not the embeddings
    any_head_dim: bool = True  # D is not always hidden size / H


FAMILIES = {
    "llama": Family("llama", paired=True),
    "mistral": Family("llama", paired=True),
    "qwen2": Family("qwen2", any_head_dim=False),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", norm_offset=1.0, activation="gelu_pytorch_tanh", whole_every=2, own_head=False),
    "gemma3_text": Family("gemma3", norm_offset=1.0, activation="gelu_pytorch_tanh", whole_every=6),
}


def family_of(config: Any) -> Family | None:
    """That of a model; None where this package does not write it."""
    return FAMILIES.get(config.model_type)


def refuse(config: Any, tied: bool) -> None:
    """Raise RunError for what llama.cpp computes in another way than the model of a config."""
    family = FAMILIES[config.model_type]
    for said, problem in (
        (config.hidden_activation if family.norm_offset else config.hidden_act, _activation(config, family)),
        (tied, None if tied or family.own_head else "it reads no head that is not the embeddings"),
        (getattr(config, "layer_types", None), _layers(config, family)),
        (getattr(config, "query_pre_attn_scalar", None), _scale(config, family)),
        (head_dim(config), _heads(config, family)),
        (ropes(config)[0].get("rope_type"), _rope(config, family)),
    ):
        if problem is not None:
            raise RunError(f"llama.cpp cannot compute this {config.model_type} model, which has {said!r}: {problem}")


def _activation(config: Any, family: Family) -> str | None:
    said = config.hidden_activation if family.norm_offset else config.hidden_act
    return None if said == family.activation else f"its activation there is {family.activation}"


def _layers(config: Any, family: Family) -> str | None:
    if not family.whole_every:
        return None
    every = family.whole_every
    wanted = ["sliding_attention" if at % every else "full_attention" for at in range(1, config.num_hidden_layers + 1)]
    return None if list(config.layer_types) == wanted else f"one in {every} of its layers sees everything there"


def _scale(config: Any, family: Family) -> str | None:
    if not family.norm_offset:
        return None
    largest = {"gemma2": 46, "gemma3": 62}[family.arch]  # layers of the 27B models
    per_head = config.hidden_size // config.num_attention_heads
    there = per_head if config.num_hidden_layers == largest else config.head_dim
    return None if config.query_pre_attn_scalar == there else f"its scale of queries there is {there}"


def _heads(config: Any, family: Family) -> str | None:
    per_head = config.hidden_size // config.num_attention_heads
    if family.any_head_dim or head_dim(config) == per_head:
        return None
    return f"a head has {per_head} numbers there"


def _rope(config: Any, family: Family) -> str | None:
    rope = ropes(config)[0]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"a part of a head is rotated ({rope['partial_rotary_factor']})"
    known = [one for one in ROPES if one != "llama3" or family.paired]
    return None if rope.get("rope_type", "default") in known else f"rotary positions there are {', '.join(known)}"


def ropes(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotary positions of layers that see everything, and of those that see a window."""
    said = config.rope_parameters
    if "full_attention" in said:
        return said["full_attention"], said["sliding_attention"]
    return said, said


def head_dim(config: Any) -> int:
    """D."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def sizes(config: Any) -> dict[str, Any]:
    """What llama.cpp reads of a model's config, by its names."""
    family = FAMILIES[config.model_type]
    found: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": _context(config, family),
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head_dim(config),
        "attention.value_length": head_dim(config),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": head_dim(config),
        **_positions(config),
    }
    if family.whole_every:
        found["attention.sliding_window"] = config.sliding_window
        found["rope.freq_base_swa"] = float(ropes(config)[1]["rope_theta"])
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            found[name] = float(getattr(config, name))
    return {f"{family.arch}.{name}": value for name, value in found.items()}


def _context(config: Any, family: Family) -> int:
    """How many tokens llama.cpp gives right answers for: it has no windows where a family's layers see everything."""
    window = getattr(config, "sliding_window", None)
    if family.whole_every or window is None:
        return int(config.max_position_embeddings)
    return int(min(config.max_position_embeddings, window))


def _positions(config: Any) -> dict[str, Any]:
    """The stretching of rotary positions; llama3's is a tensor."""
    rope = ropes(config)[0]
    found: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        found["rope.scaling.original_context_length"] = original
        named = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        for own, other in named.items():
            if rope.get(own) is not None:
                found[f"rope.scaling.{other}"] = float(rope[own])
    return found


def frequencies(config: Any) -> torch.Tensor | None:
    """What llama.cpp divides each rotary frequency by [D/2] where a model is stretched as Llama 3; None of others."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = ropes(config)[0]
    if rope.get("rope_type") != "llama3":
        return None
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    dim = head_dim(config)
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain = torch.exp(-math.log(rope["rope_theta"]) * exponents)
    return plain / stretched


def kept(config: Any, name: str, value: torch.Tensor) -> torch.Tensor:
    """A tensor of the model, by transformers' name, as llama.cpp keeps it."""
    family = FAMILIES[config.model_type]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    owner = name.split(".")[-2]
    if family.paired and owner in heads:
        halves = value.reshape(heads[owner], 2, -1, *value.shape[1:])  # [H, 2, D/2, I] or [H, 2, D/2]
        return halves.swapaxes(1, 2).reshape(value.shape)
    return value + family.norm_offset if owner.endswith("norm") else value
