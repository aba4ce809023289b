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
from tunesmith.engine import attention, cuda_attention, frozen, kernels, liger
from tunesmith.engine.elementwise import PLAIN
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
    notes = [frozen.hold(model, "float8", PLAIN)] if case.frozen == "float8" else []
    if case.liger:
        notes.append(_use_liger(model))
    with torch.autocast(device, torch.bfloat16):
        chosen = kernels.choose(adapted, kernels.elementwise(adapted, None)[0])
    if case.attention != "auto":
        notes.append(_use_attention(case.attention))
    optimizer = AdamW(learning_rate=LEARNING_RATE[case.method]).build(adapted)
    return Built(adapted, chosen.scorer, optimizer, cost, (*notes, *chosen.notes))


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
