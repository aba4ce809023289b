"""From a batch to log-probabilities: the model runs up to its head, and only asked positions go on.

A pre-hook takes what would enter the head, which itself is given no position, so the model's own forward pass runs,
whatever its family.

Letters: T tokens, N asked tokens, D hidden size, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.engine.attention import Layout
from tunesmith.engine.device import compute_dtype
from tunesmith.engine.elementwise import PLAIN, Elementwise
from tunesmith.engine.head import Means, Pairs, Shaping, log_probabilities
from tunesmith.engine.layers import plain_linear, update_of
from tunesmith.engine.logits import own_and_mean
from tunesmith.engine.model import base_of
from tunesmith.types import Batch, Scores

if TYPE_CHECKING:
    from tunesmith.engine.teacher import Teacher


@dataclass(frozen=True)
class Scorer:
    """How a model's log-probabilities are computed.

    `fused` bypasses the head; otherwise the model makes the logits of the asked positions itself.
    """

    head: torch.nn.Module
    means: Means
    fused: bool
    selects: bool  # the model takes `logits_to_keep`
    packed: bool  # the model's attention is tunesmith's
    ops: Elementwise = field(default=PLAIN, repr=False)
    teacher: "Teacher | None" = None  # whose words the model's own are compared with

    @classmethod
    def of(cls, model: Any, fused: bool = True, packed: bool = True, ops: Elementwise = PLAIN) -> "Scorer":
        """The scorer of a loaded (and perhaps adapted) causal model."""
        base = base_of(model)
        head = base.get_output_embeddings()
        selects = "logits_to_keep" in inspect.signature(base.forward).parameters
        means = Means(Shaping.of(base.config), ops)
        return cls(head, means, fused and plain_linear(head) is not None, selects, packed, ops)

    def __call__(
        self, model: torch.nn.Module, batch: Batch, likelihood: bool = False, reads: Sequence[str] = ()
    ) -> Scores:
        """The log-probability of each asked target under `model`, which may be wrapped for distribution.

        `likelihood` says that the loss is -sum(weight * logps), and what has no log-probabilities in it, which a
        trained head is quicker with. `reads` are those of `Objective.reads`.
        """
        entropy, of_logits = "entropy" in reads, "lead" in reads or "normaliser" in reads
        asked = batch.weight[0].nonzero()[:, 0] if batch.asked is None else batch.asked  # [N]
        target = batch.target[0, asked]
        told = None if self.teacher is None else self.teacher.told(batch)  # first: a student's pass holds more
        divergences = None
        found = self.run(model, batch, asked)
        if self.fused:
            pairs, bias = self.entering(found)
            known = batch.weight[0, asked] if likelihood else None
            with torch.autocast(batch.weight.device.type, enabled=False):
                if self.teacher is not None and told is not None:
                    divergences = self.teacher.compare(pairs, bias, self.means, told)
                    if not self.teacher.how.likelihood:
                        pairs = [(x.detach(), weight.detach()) for x, weight in pairs]
                        bias = None if bias is None else bias.detach()
                logps, entropies = log_probabilities(pairs, bias, target, self.means, known, entropy)
                if of_logits:
                    own, mean = own_and_mean(pairs, bias, target, self.means)
        else:
            logits = found.float()  # [N, V]
            logps = logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)
            entropies = torch.special.entr(logits.softmax(-1)).sum(-1) if entropy else None
            if of_logits:
                own, mean = logits.gather(-1, target[:, None])[:, 0], logits.mean(-1)
        places = (torch.zeros_like(asked), asked)
        made = {"logps": logps, "entropy": entropies, "divergence": divergences}
        if of_logits:
            made |= {"lead": own - mean if "lead" in reads else None}
            made |= {"normaliser": own - logps if "normaliser" in reads else None}
        placed: dict[str, Any] = {
            name: torch.zeros_like(batch.weight).index_put(places, one) for name, one in made.items() if one is not None
        }
        return Scores(**placed)

    def run(self, model: torch.nn.Module, batch: Batch, asked: torch.Tensor) -> torch.Tensor:
        """What enters a fused head at the asked positions [N, D]; of another one, the logits there [N, V]."""
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "use_cache": False,
        }
        if self.packed:
            inputs["packed"] = Layout.of(batch, self.ops)
        else:
            assert batch.prefix is None, "run.py refuses shared beginnings without packed attention"
        if self.selects:
            inputs["logits_to_keep"] = asked
        found = head_input(model, self.head, inputs)[0] if self.fused else model(**inputs).logits[0]
        return found if self.selects else found[asked]

    def entering(self, hidden: torch.Tensor) -> tuple[Pairs, torch.Tensor | None]:
        """What enters a fused head [N, D] with the head's weights, and what enters its update; and its bias."""
        plain = plain_linear(self.head)
        assert plain is not None, "fused heads are"
        dtype = compute_dtype(plain.weight)
        hidden = hidden.to(dtype)
        pairs = [(hidden, plain.weight.to(dtype))]
        with torch.autocast(hidden.device.type, enabled=False):
            update = None if plain is self.head else update_of(self.head)
            if update is not None:
                assert update.down is not None and update.up is not None
                low = (
                    torch.nn.functional.linear(
                        torch.nn.functional.dropout(hidden, update.dropout), update.down.to(dtype)
                    )
                    * update.scale
                )
                pairs.append((low, update.up.to(dtype)))
            return pairs, None if plain.bias is None else plain.bias.to(dtype)


def asked_of(batch: Batch) -> torch.Tensor:
    """The positions of a batch that have a weight: [N]."""
    return batch.weight[0].nonzero()[:, 0] if batch.asked is None else batch.asked


def head_input(model: torch.nn.Module, head: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Run the model and return what would enter its head, which itself is given no position to work on."""
    caught: list[torch.Tensor] = []

    def catch(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(args[0])
        return (args[0][:, :0], *args[1:])

    handle = head.register_forward_pre_hook(catch)
    try:
        model(**inputs)
    finally:
        handle.remove()
    (hidden,) = caught
    return hidden
