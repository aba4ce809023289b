"""A model's own layers, computing the same with less work: adapted linear layers, gated pairs, norms.

A layer keeps its parameters, names and place; it only becomes of a class of ours whose `forward` is `linear`, `gated`
or `norm`, or turns by positions in one pass (rotary.py). It is a kind of its former class, so peft, transformers and
whoever saves or merges see what they know, and `Fused.undo` gives the class back. Where a layer is not what it seems
(an update that is merged, switched off or of another kind; a norm or a gate with another formula) its own forward pass
runs.

Letters: T tokens, D features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners import lora
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper

from tunesmith.engine.device import compute_dtype
from tunesmith.engine.elementwise import ACTIVATIONS, Elementwise
from tunesmith.engine.linear import Dense, FrozenLinear, Layer, gated_linear, linear
from tunesmith.engine.model import base_of
from tunesmith.engine.quantised import FourBit, is_four_bit
from tunesmith.engine.rotary import turning
from tunesmith.engine.shared_out import whole_copy

Compute = Callable[[torch.Tensor, Sequence[Layer]], tuple[torch.Tensor, ...]]  # as `linear` does

SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of layers that are given one input
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}  # of numbers around 1
OFFSETS = (0.0, 1.0)  # what is added to a norm's weight: nothing (Llama and most), 1 (Gemma)


@dataclass(frozen=True, eq=False)
class Fused:
    """The layers that compute in our way, and the classes that they had."""

    before: tuple[tuple[torch.nn.Module, type], ...]

    def undo(self) -> None:
        """Give every layer its class back."""
        for module, kind in self.before:
            for name in ("shared", "ops", "offset", "activation"):
                vars(module).pop(name, None)
            module.__class__ = kind


def fuse(model: torch.nn.Module, ops: Elementwise | None) -> Fused:
    """Make layers compute in our way: those with an update always, gated pairs and norms where `ops` says how."""
    before: list[tuple[torch.nn.Module, type]] = []
    known: dict[Any, Any] = {}
    embedding: Any = base_of(model).get_input_embeddings()
    states = compute_dtype(embedding.weight)
    module: Any
    for module in model.modules():
        kind = type(module)
        if kind is lora.Linear and _has_plain_update(module):
            module.__class__ = _Updated
        elif _is_four_bit_update(kind) and _has_plain_update(module):
            base = module.get_base_layer()
            base.product = FourBit(base)
            module.__class__ = _subclass(_Updating, kind)
        elif ops is not None and _is_norm(module) and _norm_offset(module, ops, known) is not None:
            module.ops, module.offset = ops, _norm_offset(module, ops, known)
            module.__class__ = _subclass(_Norm, kind)
        elif ops is not None and _is_gated(module) and _activation(module, states, known) is not None:
            module.ops, module.activation = ops, _activation(module, states, known)
            module.__class__ = _subclass(_GatedPair, kind)
        elif ops is not None and (turned := _turned(kind, ops, known)) is not None:
            module.__class__ = turned
        if type(module) is not kind:
            before.append((module, kind))
    for module in model.modules():
        _share(module)
    return Fused(tuple(before))


def _subclass(ours: type, theirs: type) -> type:
    return type(f"{ours.__name__.strip('_')}{theirs.__name__}", (ours, theirs), {})


def _turned(kind: type, ops: Elementwise, known: dict[Any, Any]) -> type | None:
    """The class of those that turn by positions in one pass; None where that is not theirs. Tried once a class."""
    if kind not in known:
        forward = turning(kind, ops)
        known[kind] = None if forward is None else type(f"Turning{kind.__name__}", (kind,), {"forward": forward})
    return known[kind]


class _Shared:
    """Layers that a model calls one after the other with the same input: the first call computes all of them."""

    def __init__(self, members: Sequence["_Updating"]) -> None:
        self.members = tuple(members)
        self.x: torch.Tensor | None = None
        self.waiting: dict[_Updating, torch.Tensor] = {}

    def result(self, asked: "_Updating", x: torch.Tensor) -> torch.Tensor:
        """The result of one of the layers."""
        if self.waiting and x is not self.x:  # they have other inputs after all
            self.waiting, self.x = {}, None
            for one in self.members:
                one.shared = None
            return asked.compute(x.to(compute_dtype(x)), [layer_of(asked)])[0]
        if asked not in self.waiting:
            self.x = x
            kind = compute_dtype(x)
            found = asked.compute(x.to(kind), [layer_of(one) for one in self.members])
            self.waiting = dict(zip(self.members, found, strict=True))
        result = self.waiting.pop(asked)
        if not self.waiting:
            self.x = None
        return result


class _Updating(torch.nn.Module):
    """peft's linear layer with low-rank updates, of which one at a time is on, beside a weight held in any way."""

    shared: _Shared | None = None
    compute: Any = staticmethod(linear)  # a `Compute`

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's result of x [.., I]: [.., O]."""
        if args or kwargs or _active(self) is None:
            return super().forward(x, *args, **kwargs)
        if self.shared is not None and all(_active(one) is not None for one in self.shared.members):
            return self.shared.result(self, x)
        return self.compute(x.to(compute_dtype(x)), [layer_of(self)])[0]

    def is_plain(self) -> bool:
        """Whether one update is on, which `linear` computes, and not merged into the weight; others may be off."""
        return _active(self) is not None


class _Updated(_Updating, lora.Linear):
    """The one of a plain weight."""


def update_by(module: Any, compute: Compute) -> bool:
    """Have peft's layer, if its update is plain, compute by a function in place of `linear`; whether it is."""
    if type(module) is not lora.Linear or not _has_plain_update(module):
        return False
    module.__class__, module.compute = _Updated, compute
    return True


def layer_of(module: Any) -> Layer:
    """What `linear` takes of peft's layer."""
    name = _active(module)
    assert name is not None, "asked before"
    base = module.get_base_layer()
    product = Dense(base.weight, base.bias) if type(base) is torch.nn.Linear else base.product
    drops = module.lora_dropout[name]
    share = drops.p if module.training and isinstance(drops, torch.nn.Dropout) else 0.0
    return Layer(product, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name], share)


def plain_linear(module: Any) -> torch.nn.Linear | None:
    """The linear layer that a module is, that it adapts in the plain way, or that it trains whole; None for others."""
    if type(module) is torch.nn.Linear:
        return module
    if isinstance(module, lora.Linear) and _has_plain_update(module):
        return module.get_base_layer()
    if isinstance(module, ModulesToSaveWrapper):
        own = not module.disable_adapters and bool(module.active_adapters)
        return plain_linear(module.modules_to_save[module.active_adapters[0]] if own else module.original_module)
    return plain_linear(module.original_module) if isinstance(module, TrainableTokensWrapper) else None


def update_of(module: Any) -> Layer | None:
    """The low-rank update of a module that `plain_linear` knows, where it has one that is on."""
    if isinstance(module, TrainableTokensWrapper):
        return _rows_of(module.token_adapter)
    if not isinstance(module, lora.Linear) or module.disable_adapters or module.merged:
        return None
    assert len(module.active_adapters) <= 1, "a model is scored with one adapter"
    return None if _active(module) is None else layer_of(module)


def _rows_of(adapter: Any) -> Layer | None:
    """Rows of a head that are trained beside it, as a low-rank update: what is added to each, at its place."""
    if adapter.disable_adapters or adapter.merged or not adapter.active_adapters:
        return None
    assert len(adapter.active_adapters) == 1, "a model is scored with one adapter"
    (name,) = adapter.active_adapters
    weight = adapter.get_base_layer().weight
    rows = torch.tensor(adapter.token_indices[name], device=weight.device)
    at = torch.zeros(len(weight), len(rows), device=weight.device, dtype=weight.dtype)  # [V, rows]
    at[rows, torch.arange(len(rows), device=weight.device)] = 1
    trained = adapter.trainable_tokens_delta[name]
    return Layer(Dense(weight, None), trained - weight[rows].detach().to(trained.dtype), at, 1.0, 0.0)


def _has_plain_update(module: Any) -> bool:
    """Whether peft's layer is a frozen linear layer with plain LoRA beside it, of one adapter or several."""
    base = module.get_base_layer()
    return (
        (isinstance(base, FrozenLinear) or _is_frozen(base))
        and not module.fan_in_fan_out
        and all(_is_plain_update(module, name) for name in module.lora_A)
    )


def _is_frozen(base: Any) -> bool:
    known = type(base) is torch.nn.Linear or is_four_bit(type(base))
    return known and not base.weight.requires_grad


def _is_four_bit_update(kind: type) -> bool:
    """Whether a class is peft's update of a layer of 4 bit, which exists where bitsandbytes was imported."""
    return kind.__name__ == "Linear4bit" and kind.__module__ == "peft.tuners.lora.bnb"


def _is_plain_update(module: Any, name: str) -> bool:
    return (
        name not in module.lora_variant
        and not module.lora_bias[name]
        and type(module.lora_A[name]) is type(module.lora_B[name]) is torch.nn.Linear
    )


def _active(module: Any) -> str | None:
    """The adapter of peft's layer that is on and not merged, if it is one alone and plain; others may be off."""
    if module.disable_adapters or module.merged:
        return None
    on = [name for name in module.active_adapters if name in module.lora_A]
    return on[0] if len(on) == 1 and _is_plain_update(module, on[0]) else None


def _share(module: torch.nn.Module) -> None:
    """Let the updated layers of a module compute together where its kind gives them one input."""
    children: dict[str, Any] = dict(module.named_children())
    for names in SHARING:
        found = [children[name] for name in names if isinstance(children.get(name), _Updating)]
        if len(found) > 1 and len({(one.in_features, one.compute) for one in found}) == 1:
            shared = _Shared(found)
            for one in found:
                one.shared = shared


class _Norm(torch.nn.Module):
    """An RMSNorm in one pass over memory each way; what is kept is its input."""

    ops: Elementwise
    offset: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The norm of the last axis."""
        found: Any = _NormFunction.apply(hidden_states, self.weight, self.offset, _eps(self), self.ops)
        return found


class _NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, offset: float, eps: float, ops: Elementwise
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.offset, ctx.eps, ctx.ops = offset, eps, ops
        return ops.norm(x.flatten(0, -2), weight, offset, eps).view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        gradient, flat = gradients[0].flatten(0, -2), x.flatten(0, -2)
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = ctx.ops.norm_pull(gradient, flat, weight, ctx.offset, ctx.eps).view_as(x)
        if ctx.needs_input_grad[1]:
            by_weight = ctx.ops.norm_pull_weight(gradient, flat, ctx.eps).to(weight.dtype)
        return by_x, by_weight, None, None, None


def _is_norm(module: torch.nn.Module) -> bool:
    plain = [name for name, _ in module.named_parameters()] == ["weight"]
    return plain and type(module).__name__.endswith("RMSNorm") and _eps(module) is not None


def _eps(module: Any) -> Any:
    return getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)


def _norm_offset(module: Any, ops: Elementwise, known: dict[Any, Any]) -> float | None:
    """What a norm adds to its weight, found by trying; None where its formula is another one. Tried once a class."""
    kind = type(module), module.weight.dtype
    if kind not in known:
        module = whole_copy(module)
        x = torch.linspace(-2, 2, 3 * len(module.weight), device=module.weight.device, dtype=module.weight.dtype)
        x = x.view(3, -1)
        with torch.no_grad():
            own = module(x).float()
            tried = {offset: ops.norm(x, module.weight, offset, _eps(module)).float() for offset in OFFSETS}
        known[kind] = _nearest(tried, own, x.dtype)
    return known[kind]


def _nearest(tried: dict[Any, torch.Tensor], own: torch.Tensor, kind: torch.dtype) -> Any | None:
    """The name whose result is nearest to a module's own, if rounding is all that is between them."""
    best = min(tried, key=lambda name: float((tried[name] - own).abs().sum()))
    near = CLOSE.get(kind, 0.05)
    close = torch.allclose(tried[best], own, rtol=near, atol=near * float(own.abs().max()))
    return best if close else None


class _GatedPair(torch.nn.Module):
    """down(activation(gate(x)) * up(x)), of which the product is not kept."""

    ops: Elementwise
    activation: str
    gate_proj: torch.nn.Module
    up_proj: torch.nn.Module
    down_proj: torch.nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's result of x [.., D]: [.., D]."""
        gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
        if isinstance(down, _Updating) and _active(down) is not None:
            return gated_linear(gate, up, self.activation, self.ops, layer_of(down))
        product: Any = _Gated.apply(gate, up, self.activation, self.ops)
        return down(product)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: str, ops: Elementwise) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.ops = activation, ops
        return ops.gated(gate.flatten(0, -2), up.flatten(0, -2), activation).view_as(gate)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        gate, up = ctx.saved_tensors
        flat = (states.flatten(0, -2) for states in (gradients[0], gate, up))
        by_gate, by_up, _ = ctx.ops.gated_pull(*flat, ctx.activation)
        return by_gate.view_as(gate), by_up.view_as(up), None, None


def _is_gated(module: Any) -> bool:
    names = dict(module.named_children())
    return names.keys() == {"gate_proj", "up_proj", "down_proj", "act_fn"}


def _activation(module: Any, states: torch.dtype, known: dict[Any, Any]) -> str | None:
    """The name of a gated pair's activation; None where the block computes something else. Tried once a class."""
    kind = type(module)
    if kind not in known:
        known[kind] = _fitting(module, states)
    return known[kind]


def _fitting(module: Any, states: torch.dtype) -> str | None:
    """The activation that gives the block's own result, for inputs of the dtype of hidden states."""
    module = whole_copy(module)
    device, width = next(module.parameters()).device, module.gate_proj.in_features
    x = torch.linspace(-2, 2, 3 * width, device=device, dtype=states).view(3, -1)
    with torch.no_grad():
        own = module(x).float()
        gate, up = module.gate_proj(x).float(), module.up_proj(x).float()
        made = {name: (formula(gate)[0] * up).to(x.dtype) for name, formula in ACTIVATIONS.items()}
        tried = {name: module.down_proj(product).float() for name, product in made.items()}
    return _nearest(tried, own, x.dtype)
