"""What the benchmark takes of the package, in one place: a model of a case, ready to be trained.

The weights are random and made on the device. Everything else is what a run does: the adapter, the kernels, the scorer
and the optimizer are the package's components.
"""

from dataclasses import dataclass
from typing import Any

import torch

from shapes import Case, Cost, config_of
from tunesmith.adapters.full import Full
from tunesmith.adapters.lora import LoRA
from tunesmith.engine import attention, cuda_attention, float8, kernels, liger
from tunesmith.engine.scores import Scorer
from tunesmith.optimizers.adamw import AdamW

R, LEARNING_RATE = 16, {"lora": 1e-4, "full": 1e-5}


@dataclass(frozen=True)
class Built:
    """A model, how it is scored and trained, and what was said of it."""

    model: Any
    scorer: Scorer
    optimizer: torch.optim.Optimizer
    cost: Cost
    notes: tuple[str, ...]


def built(case: Case, device: str) -> Built:
    """The model of a case on a device."""
    from transformers import AutoModelForCausalLM

    if case.liger:
        liger.require(device)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config_of(case.shape), dtype=torch.bfloat16)
    model.config.use_cache = False
    adapter = LoRA(r=R, lora_alpha=2 * R) if case.method == "lora" else Full()
    adapted = adapter.apply(model).train()
    cost = Cost.of(adapted)
    notes = [_hold_in_float8(model)] if case.frozen == "float8" else []
    if case.liger:
        notes.append(_use_liger(model))
    with torch.autocast(device, torch.bfloat16):
        chosen = kernels.choose(adapted)
    if case.attention != "auto":
        notes.append(_use_attention(case.attention))
    optimizer = AdamW(learning_rate=LEARNING_RATE[case.method]).build(adapted)
    return Built(adapted, chosen.scorer, optimizer, cost, (*notes, *chosen.notes))


class _Held(torch.autograd.Function):
    """A frozen linear layer in 8 bits: the product forward, and its pull."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: float8.Float8) -> torch.Tensor:
        """The layer's result for x [1, T, I]: [1, T, O]."""
        ctx.product = product
        return product.forward(product.prepare(x[0]))[None]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient of x."""
        return ctx.product.pull(gradients[0][0])[None], None


class _HeldLinear(torch.nn.Linear):
    product: float8.Float8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The result of x [1, T, I]: [1, T, O]."""
        with torch.autocast(x.device.type, enabled=False):
            return _Held.apply(x.to(torch.bfloat16), self.product)


@torch.no_grad()
def _hold_in_float8(model: Any) -> str:
    """Turn the frozen linear layers but the head into 8 bits, as `model.frozen_dtype: float8` does for a run."""
    head, weights = model.get_output_embeddings(), 0
    for module in model.modules():
        if type(module) is torch.nn.Linear and module is not head and not module.weight.requires_grad:
            weights += module.weight.numel()
            module.product = float8.Float8.of(module.weight, module.bias)
            module.weight = torch.nn.Parameter(module.weight.new_empty(0), requires_grad=False)  # nobody uses it
            module.__class__ = _HeldLinear
    return f"{weights:,} frozen weights in float8"


def _use_liger(model: Any) -> str:
    """Give the norms and gated pairs of a Llama or Qwen to Liger's kernels."""
    norms = pairs = 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: liger.rms_norm(x, m.weight, m.variance_epsilon)
            norms += 1
        elif hasattr(module, "gate_proj"):
            module.forward = lambda x, m=module: m.down_proj(liger.swiglu(m.gate_proj(x), m.up_proj(x)))
            pairs += 1
    return f"liger: {norms} norms, {pairs} gated pairs"


def _use_attention(name: str) -> str:
    """Make every layer's packed attention run by one kernel, whatever a run would choose."""
    from transformers import AttentionInterface

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        packed: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        query, key = query.to(value.dtype), key.to(value.dtype)
        return cuda_attention.attend(name, query, key, value, scaling, sliding_window, None, packed), None

    AttentionInterface.register(attention.NAME, attend)
    return cuda_attention.said(name)
