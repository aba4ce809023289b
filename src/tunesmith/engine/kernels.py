"""Which attention and which head a model runs with: the fast ones, once they gave the model's own numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.engine import attention
from tunesmith.engine.compat import attention_of
from tunesmith.engine.scores import Scorer
from tunesmith.errors import ModelError
from tunesmith.types import Batch

LENGTHS = (11, 5, 17)  # tokens of the probe's sequences
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}  # of log-probabilities around -10


@dataclass(frozen=True)
class Kernels:
    """The scorer of a model, and what had to be said about it."""

    scorer: Scorer
    notes: tuple[str, ...]
    own_attention: str  # transformers' choice for the model, right for generation

    @contextmanager
    def generating(self, model: Any) -> Iterator[None]:
        """The model with transformers' own attention, which knows caches; the packed one is back afterwards."""
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        packed = attention_of(base)
        base.set_attn_implementation(self.own_attention)
        try:
            yield
        finally:
            base.set_attn_implementation(packed)


@torch.no_grad()
def choose(model: Any) -> Kernels:
    """Compare packed attention and the fused head with the model's own on a few random tokens, and fall back.

    Each sequence alone through the model as transformers has it is the reference. The model is left with the chosen
    attention.

    Raises:
        ModelError: the model lets packed sequences see each other whatever attention it runs.
    """
    was_training = model.training
    model.eval()
    batch = _probe_batch(model)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    own = attention_of(base)
    reference = _alone(model, batch)
    tolerance = TOLERANCE.get(base.dtype, 0.2)
    notes: list[str] = []

    def agrees(scorer: Scorer) -> str | None:
        try:
            difference = (scorer(model, batch).logps - reference).abs().max().item()
        except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        return None if difference <= tolerance else f"log-probabilities differ by {difference:.2g}"

    attention.register()
    packed = own == "sdpa"  # a model that transformers gives another one has caps, sinks or biases of its own
    problem: str | None = f"{type(base).__name__} has only {own} attention"
    if packed:
        base.set_attn_implementation(attention.NAME)
        problem = agrees(Scorer.of(model, fused=False, packed=True))
    if problem is not None:
        packed = False
        base.set_attn_implementation(own)
        notes.append(f"packed attention is off ({problem}): transformers' {own} with its packed mask is used")
        problem = agrees(Scorer.of(model, fused=False, packed=False))
        if problem is not None:
            raise ModelError(f"{type(base).__name__} cannot be trained on packed rows: {problem}")
    scorer = Scorer.of(model, packed=packed)
    if scorer.fused:
        problem = agrees(scorer)
        if problem is not None:
            scorer = Scorer.of(model, fused=False, packed=packed)
            notes.append(f"the fused head is off ({problem}): the model makes its own logits where asked")
    else:
        notes.append("the fused head is off (the head is adapted or no plain linear layer)")
    model.train(was_training)
    return Kernels(scorer, tuple(notes), own)


def _probe_batch(model: Any) -> Batch:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (1, sum(LENGTHS)), generator=generator)
    weight = torch.ones(1, sum(LENGTHS))
    ends = torch.tensor(LENGTHS).cumsum(0) - 1
    weight[0, ends] = 0
    return Batch(
        input_ids=ids.to(device),
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None].to(device),
        target=ids.roll(-1, 1).to(device),
        weight=weight.to(device),
        seq=torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None].to(device),
        label=torch.full((len(LENGTHS),), torch.nan, device=device),
        offsets=torch.tensor([0, *(ends + 1)], dtype=torch.int32, device=device),
        longest=max(LENGTHS),
    )


def _alone(model: Any, batch: Batch) -> torch.Tensor:
    """The log-probabilities of a batch's targets, each sequence through the model by itself: [1, T]."""
    found = torch.zeros_like(batch.weight)
    bounds = batch.offsets.tolist()
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        logits = model(input_ids=batch.input_ids[:, first:last], use_cache=False).logits.float()
        logps = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, first + 1 : last, None])
        found[:, first : last - 1] = logps[..., 0]
    return found
