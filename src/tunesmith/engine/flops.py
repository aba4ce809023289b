"""How many floating-point operations a training step needs by its arithmetic: what a device's speed is a share of.

Counted are matrix products, as everybody counts them; norms, activations, softmax and the optimizer are not. A
multiply-accumulate is two operations. For each weight of M multiply-accumulates per token:

- forward: 2 M,
- the gradient of its input: 2 M, where something that stands before it is trained (below the first trained weight
  there is no backward pass),
- its own gradient: 2 M, where it is trained.

So a frozen base with adapters costs about 4 operations per weight and token, the adapters' own weights 6, and full
training 6. The head costs only where a token is asked. Attention is counted by the real lengths of the sequences: a
token sees itself and those before it, within the layer's window; two products forward and four backward. What a kernel
computes twice to save memory (activation checkpointing, attention's scores in its backward pass, the logits of a
trained head) is not counted twice.

"Before" is the order of the modules in the model, which is nearly the order they run in: of modules that read the same
input (query, key and value of the first adapted layer) the later ones are counted as if the earlier ones stood before
them. That is less than one layer's part of all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.engine.model import base_of, has_words, head_modules, num_virtual_tokens
from tunesmith.errors import RecipeError

FORWARD, BACKWARD = 2, 4  # products of attention: scores and sums; the gradients of queries, keys, scores and values
NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # as configs say it
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")


@dataclass(frozen=True)
class Sequence:
    """A sequence of a batch: its own tokens, and those of another one's beginning that it goes on from."""

    tokens: int
    shared: int = 0


@dataclass(frozen=True)
class Attention:
    """A layer's attention: operations for each pair of a token and one that it sees, and how far it sees."""

    flops_per_pair: float
    window: int | None


@dataclass(frozen=True)
class Cost:
    """The operations of a training step, forward and backward: of each token, of each asked one, of attention."""

    per_token: float
    per_asked: float
    attention: tuple[Attention, ...]

    @classmethod
    def of(cls, model: Any) -> "Cost":
        """The cost of a loaded and adapted model, by its modules and what of them is trained.

        Raises:
            RecipeError: the model has an encoder beside its decoder, whose tokens are others.
        """
        base = base_of(model)
        if base.config.is_encoder_decoder:
            raise RecipeError(
                f"bench counts the arithmetic of decoders as yet, and {type(base).__name__} has an encoder too: the "
                "tokens per second of a training run are measured"
            )
        config = base.config.get_text_config()
        share = _share_of_experts(config)
        head = head_modules(model) if has_words(model) else set()  # which only asked tokens enter
        run = {*base.get_decoder().modules(), *head_modules(model)}  # what sees pictures or sound is given none
        per = {False: 0.0, True: 0.0}  # by whether it is the head's
        attention: list[Attention] = []
        trained_before = num_virtual_tokens(model) > 0  # they stand before every module
        for name, module in model.named_modules():
            if module not in run or "original_module" in name.split("."):  # peft's copy of what is trained whole
                continue
            for weight in _weights(module):
                times = 2.0 + 2 * trained_before + 2 * weight.trained
                if "experts" in name.split("."):
                    times *= share
                per[module in head] += times * weight.multiplies
            trained_before |= any(own.requires_grad for own in module.parameters(recurse=False))
            if getattr(module, "is_causal", None) is True:
                trained = trained_before or any(own.requires_grad for own in module.parameters())
                attention.append(_attention(module, config, len(attention), trained))
        return cls(per[False], per[True], tuple(attention))

    def of_step(self, sequences: Iterable[Sequence], asked: int) -> float:
        """The operations of a step over some sequences, `asked` of whose tokens are."""
        sequences = list(sequences)
        total = self.per_token * sum(one.tokens for one in sequences) + self.per_asked * asked
        for layer in set(self.attention):
            pairs = sum(_pairs(one, layer.window) for one in sequences)
            total += self.attention.count(layer) * layer.flops_per_pair * pairs
        return total


@dataclass(frozen=True)
class _Weight:
    multiplies: int  # of a token
    trained: bool


def _weights(module: Any) -> Iterator[_Weight]:
    """A module's own matrices that tokens are multiplied with; a table that is only looked up is none."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, BaseTunerLayer | torch.nn.Embedding):  # the first has the layers that it wraps as modules
        return
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, Conv1D):
        yield _Weight(module.nx * module.nf, module.weight.requires_grad)
        return
    # Quantised layers of every library have these two, and weights of whatever shape.
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    if sizes[0] and sizes[1]:
        yield _Weight(sizes[0] * sizes[1], "weight" in own and own["weight"].requires_grad)
        return
    for parameter in own.values():
        if parameter.dim() == 2 or (parameter.dim() == 3 and not isinstance(module, torch.nn.Conv1d)):
            yield _Weight(parameter.numel(), parameter.requires_grad)  # routers, and experts in one piece


def _share_of_experts(config: Any) -> float:
    """Which part of a layer's experts a token goes through."""
    known = [[getattr(config, name, None) for name in names] for names in (EXPERTS_PER_TOKEN, NUM_EXPERTS)]
    taken, there = (next((number for number in numbers if number), None) for numbers in known)
    return taken / there if taken and there else 1.0


def _attention(module: Any, config: Any, number: int, trained: bool) -> Attention:
    size = getattr(module, "head_dim", None) or config.hidden_size // config.num_attention_heads
    by_query = getattr(module, "qk_head_dim", None) or size  # latent attention has two sizes
    by_value = getattr(module, "v_head_dim", None) or size
    flops = FORWARD * (by_query + by_value) * config.num_attention_heads
    kinds = getattr(config, "layer_types", None)
    slides = kinds[getattr(module, "layer_idx", number)] == "sliding_attention" if kinds else True
    window = getattr(config, "sliding_window", None) if slides else None
    return Attention(flops * (1 + BACKWARD // FORWARD * trained), window)


def _pairs(one: Sequence, window: int | None) -> int:
    """The pairs of a sequence's token and one that it sees: half of the square, and the diagonal."""
    return _seen_by_first(one.shared + one.tokens, window) - _seen_by_first(one.shared, window)


def _seen_by_first(tokens: int, window: int | None) -> int:
    """What the first tokens of a sequence see, together: 1 + 2 + ..., at most `window` each."""
    growing = tokens if window is None else min(tokens, window)
    return growing * (growing + 1) // 2 + (tokens - growing) * growing
