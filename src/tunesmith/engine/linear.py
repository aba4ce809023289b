"""Linear layers that share their input, frozen, with low-rank updates beside them, as one function with its gradients.

What peft computes (arXiv 2106.09685): y = x W' + b + scale * dropout(x) A' B'. Here nothing is done for the frozen
weight but its two products; the update is added into the product's own result, forward and backward; layers with one
input multiply it with their A matrices at once and add their gradients of it into one tensor; and what is kept for the
backward pass is the input, once, and x A' (rank columns). A gated pair (SwiGLU) is an input of its own kind: kept are
its two parts, which the layers before have anyway, and the product is made again.

A dropout mask is not kept either: it is drawn again from its seed. A frozen layer below everything that is trained is
given an input that needs no gradient, and makes none.

Letters: T tokens, I and O features in and out, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tunesmith.engine.device import compute_dtype
from tunesmith.engine.elementwise import Elementwise
from tunesmith.engine.pool import multiply


class Product(Protocol):
    """Products with a frozen weight [O, I], in whatever form it is held."""

    def prepare(self, x: torch.Tensor) -> Any:
        """What `forward` takes of an input [T, I]; the same for every weight of the same kind."""

    def forward(self, prepared: Any) -> torch.Tensor:
        """X W' + b: [T, O]."""

    def pull(self, gradient: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
        """Gradient [T, O] times W, added into a tensor [T, I] where one is given."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A weight held as it is."""

    weight: torch.Tensor  # [O, I]
    bias: torch.Tensor | None  # [O]

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """The input itself."""
        return x

    def forward(self, prepared: torch.Tensor) -> torch.Tensor:
        """X W' + b: [T, O]."""
        kind = prepared.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        return multiply(prepared, self.weight.to(kind).T, bias)

    def pull(self, gradient: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
        """Gradient W [T, I], added into a tensor where one is given."""
        weight = self.weight.to(gradient.dtype)
        return multiply(gradient, weight) if into is None else into.addmm_(gradient, weight)


@dataclass(frozen=True, eq=False)
class Widened:
    """The weight of a layer that is held in few bits, widened for each product to the dtype of its input."""

    layer: Any

    def dequantised(self, kind: torch.dtype) -> torch.Tensor:
        """The weight [O, I] that the products are with."""
        raise NotImplementedError

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """The input itself."""
        return x

    def forward(self, prepared: torch.Tensor) -> torch.Tensor:
        """X W' + b: [T, O]."""
        kind, bias = prepared.dtype, self.layer.bias
        return torch.nn.functional.linear(prepared, self.dequantised(kind), None if bias is None else bias.to(kind))

    def pull(self, gradient: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
        """Gradient W [T, I], added into a tensor where one is given."""
        weight = self.dequantised(gradient.dtype)
        return gradient @ weight if into is None else into.addmm_(gradient, weight)


@dataclass(frozen=True, eq=False)
class Layer:
    """A frozen linear layer, and the low-rank update beside it where it has one."""

    product: Product
    down: torch.Tensor | None = None  # A [R, I]
    up: torch.Tensor | None = None  # B [O, R]
    scale: float = 1.0
    dropout: float = 0.0


def linear(x: torch.Tensor, layers: Sequence[Layer]) -> tuple[torch.Tensor, ...]:
    """Each layer's result [.., O] of one input [.., I]."""
    found: Any = _Linear.apply(x.flatten(0, -2), *_told(layers))
    return tuple(one.unflatten(0, x.shape[:-1]) for one in found)


def gated_linear(gate: torch.Tensor, up: torch.Tensor, activation: str, ops: Elementwise, layer: Layer) -> torch.Tensor:
    """The result [.., O] of a layer with an update, of activation(gate) * up, both [.., I].

    The backward pass writes over both, so the graph can be gone through once, and nothing else may keep them.
    """
    found: Any = _GatedLinear.apply(gate.flatten(0, -2), up.flatten(0, -2), activation, ops, *_told([layer]))
    return found.unflatten(0, gate.shape[:-1])


class FrozenLinear(torch.nn.Linear):
    """A linear layer whose frozen weight is held in another form."""

    product: Product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's result of x [.., I]: [.., O]."""
        return linear(x.to(compute_dtype(x)), [Layer(self.product)])[0]


@dataclass(frozen=True, eq=False)
class _Frozen:
    """The layers of one input without what is trained of them."""

    products: tuple[Product, ...]
    updated: tuple[int, ...]  # which of them have an update; what follows is of each of these
    scales: tuple[float, ...]
    dropouts: tuple[float, ...]
    seeds: tuple[int | None, ...]  # of dropout; None: nothing is dropped
    drops: bool  # whether one has a seed

    def low(self, x: torch.Tensor, downs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """X A' of each update [T, R]."""
        if self.drops:
            dropped = (self.dropped(x, number) for number in range(len(downs)))
            return [one @ down.to(x.dtype).T for one, down in zip(dropped, downs, strict=True)]
        return (x @ torch.cat(list(downs)).to(x.dtype).T).split([len(down) for down in downs], 1)

    def dropped(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """X as an update sees it: a share zeroed and the rest scaled up, the same whenever it is asked for."""
        seed, share = self.seeds[number], self.dropouts[number]
        if seed is None:
            return x
        generator = torch.Generator(x.device).manual_seed(seed)
        return x * torch.empty_like(x).bernoulli_(1 - share, generator=generator).div_(1 - share)

    def results(
        self, x: torch.Tensor, lows: Sequence[torch.Tensor], ups: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Every layer's result [T, O]."""
        prepared = self.products[0].prepare(x)
        found = tuple(product.forward(prepared) for product in self.products)
        for number, low, up, scale in zip(self.updated, lows, ups, self.scales, strict=True):
            found[number].addmm_(low, up.to(x.dtype).T, alpha=scale)
        return found

    def pull_low(self, gradients: Sequence[torch.Tensor], ups: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The gradient of each x A' [T, R]."""
        made = zip(self.updated, ups, self.scales, strict=True)
        return [(gradients[number] @ up.to(gradients[number].dtype)).mul_(scale) for number, up, scale in made]

    def pull(
        self, gradients: Sequence[torch.Tensor], by_lows: Sequence[torch.Tensor], downs: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The gradient of the input [T, I]."""
        total: torch.Tensor | None = None
        for product, gradient in zip(self.products, gradients, strict=True):
            total = product.pull(gradient, total)
        assert total is not None, "there is a layer"
        if self.drops:
            for number, (by_low, down) in enumerate(zip(by_lows, downs, strict=True)):
                total += self.dropped(by_low @ down.to(by_low.dtype), number)
        elif by_lows:
            total.addmm_(torch.cat(list(by_lows), 1), torch.cat(list(downs)).to(total.dtype))
        return total

    def pull_matrices(
        self,
        x: torch.Tensor,
        lows: Sequence[torch.Tensor],
        by_lows: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        matrices: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """The gradients of every A, then of every B, in their own dtypes."""
        if self.drops:
            by_downs = [by_low.T @ self.dropped(x, number) for number, by_low in enumerate(by_lows)]
        else:
            joined = torch.cat(list(by_lows), 1).T @ x
            by_downs = list(joined.split([low.shape[1] for low in by_lows]))
        made = zip(self.updated, lows, self.scales, strict=True)
        by_ups = [(low.T @ gradients[number]).mul_(scale).T for number, low, scale in made]
        return [found.to(matrix.dtype) for found, matrix in zip([*by_downs, *by_ups], matrices, strict=True)]


def _told(layers: Sequence[Layer]) -> list[Any]:
    """Layers as a function of autograd takes them: what is frozen, then every A, then every B."""
    updated = tuple(number for number, one in enumerate(layers) if one.down is not None)
    chosen = [layers[number] for number in updated]
    frozen = _Frozen(
        tuple(one.product for one in layers),
        updated,
        tuple(one.scale for one in chosen),
        tuple(one.dropout for one in chosen),
        tuple(int(torch.randint(1 << 62, ())) if one.dropout else None for one in chosen),  # of torch's own generator
        any(one.dropout for one in chosen),
    )
    return [frozen, *(one.down for one in chosen), *(one.up for one in chosen)]


class _Linear(torch.autograd.Function):
    """`linear` of a flat input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, frozen: _Frozen, *matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        number = len(frozen.updated)
        lows = frozen.low(x, matrices[:number]) if number else ()
        ctx.frozen = frozen
        ctx.save_for_backward(x if number else None, *matrices, *lows)
        return frozen.results(x, lows, matrices[number:])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        frozen: _Frozen = ctx.frozen
        number = len(frozen.updated)
        x, *kept = ctx.saved_tensors
        downs, ups, lows = kept[:number], kept[number : 2 * number], kept[2 * number :]
        by_lows = frozen.pull_low(gradients, ups)
        total = frozen.pull(gradients, by_lows, downs) if ctx.needs_input_grad[0] else None
        if not number:
            return total, None
        return total, None, *frozen.pull_matrices(x, lows, by_lows, gradients, [*downs, *ups])


class _GatedLinear(torch.autograd.Function):
    """`gated_linear` of flat inputs: the gated input is not kept, and made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        activation: str,
        ops: Elementwise,
        frozen: _Frozen,
        *matrices: torch.Tensor,
    ) -> torch.Tensor:
        number = len(frozen.updated)
        x = ops.gated(gate, up, activation)
        lows = frozen.low(x, matrices[:number])
        ctx.frozen, ctx.activation, ctx.ops = frozen, activation, ops
        ctx.save_for_backward(gate, up, *matrices, *lows)
        (found,) = frozen.results(x, lows, matrices[number:])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        frozen: _Frozen = ctx.frozen
        number = len(frozen.updated)
        gate, up, *kept = ctx.saved_tensors
        downs, ups, lows = kept[:number], kept[number : 2 * number], kept[2 * number :]
        by_lows = frozen.pull_low(gradients, ups)
        by_gate, by_up, x = gate.detach(), up.detach(), frozen.pull(gradients, by_lows, downs)
        ctx.ops.gated_pull_over(x, by_gate, by_up, ctx.activation)  # now they are what they are called
        by_matrices = frozen.pull_matrices(x, lows, by_lows, gradients, [*downs, *ups])
        return by_gate, by_up, None, None, None, *by_matrices
