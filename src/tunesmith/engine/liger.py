"""Liger's fused kernels on CUDA (arXiv 2410.10989): norms, gated activations and rotary positions, in triton.

An extra: `pip install "tunesmith[liger]"`. They are autograd functions, for models that run as transformers has them.
Where layers are tunesmith's own, `engine.elementwise` fuses the same work beside its products.

Letters: T tokens, D features, H query heads, K key heads.
"""

from importlib.util import find_spec

import torch

from tunesmith.errors import MissingExtra


def available(device: str) -> str | None:
    """Why these kernels cannot be used on a type of device, or None."""
    if find_spec("liger_kernel") is None:
        return 'liger-kernel is not installed: pip install "tunesmith[liger]"'
    if device != "cuda":
        return f"Liger's kernels are for cuda, and this is {device}"
    return None


def require(device: str) -> None:
    """Raise MissingExtra, saying why, where these kernels cannot be used."""
    problem = available(device)
    if problem is not None:
        raise MissingExtra(problem)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """RMSNorm of x [T, D]: x / sqrt(mean(x^2) + eps) * (offset + weight).

    Rounded where transformers rounds: Gemma's (an offset of 1) in float32 to the end, Llama's before the weight. Liger
    can write the gradient over the one it is given; that is off, as a residual connection may still need that.
    """
    from liger_kernel.transformers.functional import liger_rms_norm

    return liger_rms_norm(x, weight, eps, offset, "gemma" if offset else "llama", False)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up: [T, D]. Its backward pass writes over gate and up, so they can be gone through once."""
    from liger_kernel.transformers.functional import liger_swiglu

    return liger_swiglu(gate, up)


def geglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gelu(gate) * up in the tanh form: [T, D]. As with `swiglu`, its backward pass writes over gate and up."""
    from liger_kernel.transformers.functional import liger_geglu

    return liger_geglu(gate, up)


def rotary(
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    cos: torch.Tensor,  # [1, T, D]
    sin: torch.Tensor,  # [1, T, D]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys turned by their positions, in halves as Llama has them. Writes over what it is given."""
    from liger_kernel.transformers.functional import liger_rope

    return liger_rope(query, key, cos, sin)
