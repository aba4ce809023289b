"""Which attention and which head a model runs with: the fast ones, once they gave the model's own numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunesmith.engine import attention
from tunesmith.engine.compat import attention_of
from tunesmith.engine.device import compute_dtype
from tunesmith.engine.model import base_of
from tunesmith.engine.scores import Scorer
from tunesmith.errors import ModelError
from tunesmith.types import Batch

LENGTHS = (11, 5, 17)  # tokens of the probe's sequences
SHARED = 7  # of the first one's, by which the last one goes on when sharing is tried
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}  # of log-probabilities around -10


FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)  # of a model in a trial


@dataclass(frozen=True)
class Kernels:
    """The scorer of a model, what had to be said about it, and what the model came with."""

    scorer: Scorer
    shares: bool  # whether sequences may go on from the beginning of another one
    notes: tuple[str, ...]
    own_attention: str  # transformers' choice for the model, right for generation
    use_cache: bool | None  # None: a config of several parts has none

    @contextmanager
    def generating(self, model: Any) -> Iterator[None]:
        """The model with transformers' own attention, which knows caches; the packed one is back afterwards."""
        base = base_of(model)
        packed = attention_of(base)
        base.set_attn_implementation(self.own_attention)
        try:
            yield
        finally:
            base.set_attn_implementation(packed)

    def restore(self, model: Any) -> None:
        """Give a model back as it came: with its own attention, and its cache as it was set."""
        base = base_of(model)
        base.set_attn_implementation(self.own_attention)
        if self.use_cache is not None:
            base.config.use_cache = self.use_cache


@dataclass(frozen=True)
class _Trial:
    """A model, random sequences, and what it says of each of them alone."""

    model: Any
    batch: Batch
    reference: torch.Tensor  # [1, T]
    tolerance: float

    @classmethod
    def of(cls, model: Any) -> "_Trial":
        batch = _probe_batch(model)
        tolerance = TOLERANCE.get(compute_dtype(next(model.parameters())), 0.2)
        return cls(model, batch, _alone(model, batch), tolerance)

    def scores(self, scorer: Scorer) -> str | None:
        """What is wrong with a scorer's log-probabilities of the packed sequences, if anything."""
        try:
            difference = (scorer(self.model, self.batch).logps - self.reference).abs().max().item()
        except FAILURES as error:
            return _said(error)
        return None if difference <= self.tolerance else f"log-probabilities differ by {difference:.2g}"

    def goes_on(self, scorer: Scorer) -> bool:
        """Whether the last sequence scores as behind the first tokens of the first one when it shares them."""
        own = slice(-LENGTHS[-1], None)
        positions = self.batch.position_ids.clone()
        positions[:, own] += SHARED
        prefix = torch.tensor([[0, 0]] * (len(LENGTHS) - 1) + [[0, SHARED]])
        whole = _batch(torch.cat([self.batch.input_ids[:, :SHARED], self.batch.input_ids[:, own]], dim=1))
        try:
            shared = scorer(self.model, replace(self.batch, position_ids=positions, prefix=prefix)).logps[0, own]
            expected = scorer(self.model, whole).logps[0, SHARED:]
        except FAILURES:
            return False
        return bool((shared - expected).abs().max() <= self.tolerance)

    def masks(self) -> str | None:
        """Which mask of the model packed attention would not follow on long sequences, if any."""
        base = base_of(self.model)
        base.set_attn_implementation(attention.PROBE)
        if attention_of(base) != attention.PROBE:
            return f"the attention of {type(base).__name__} cannot be replaced"
        try:
            self.model(input_ids=self.batch.input_ids[:, : LENGTHS[0]], use_cache=False)
        except FAILURES as error:
            return _said(error)
        return None


@torch.no_grad()
def choose(model: Any) -> Kernels:
    """Compare packed attention and the fused head with the model's own on a few random tokens, and fall back.

    Each sequence alone through the model as transformers has it is the reference. The model is left with the chosen
    attention. Under autocast, what is compared is what autocast computes.

    Raises:
        ModelError: the model lets packed sequences see each other whatever attention it runs.
    """
    was_training = model.training
    model.eval()
    base = base_of(model)
    if attention_of(base) == attention.NAME:  # left by an earlier run
        base.set_attn_implementation("sdpa")
    own = attention_of(base)
    trial = _Trial.of(model)
    notes: list[str] = []
    problem = _try_packed(trial, own)
    packed = problem is None
    if not packed:
        base.set_attn_implementation(own)
        notes.append(f"packed attention is off ({problem}): transformers' {own} with its packed mask is used")
        problem = trial.scores(Scorer.of(model, fused=False, packed=False))
        if problem is not None:
            raise ModelError(f"{type(base).__name__} cannot be trained on packed rows: {problem}")
    scorer = Scorer.of(model, packed=packed)
    if scorer.fused:
        problem = trial.scores(scorer)
        if problem is not None:
            scorer = Scorer.of(model, fused=False, packed=packed)
            notes.append(f"the fused head is off ({problem}): the model makes its own logits where asked")
    else:
        notes.append("the fused head is off (the head is adapted or no plain linear layer)")
    if not scorer.fused and not scorer.selects:
        notes.append(
            f"{type(base).__name__} makes the logits of every token: if memory runs out, lower train.row_tokens"
        )
    shares = packed and trial.goes_on(scorer)
    model.train(was_training)
    return Kernels(scorer, shares, tuple(notes), own, getattr(base.config, "use_cache", None))


def _try_packed(trial: _Trial, own: str) -> str | None:
    """Give the model packed attention; what is wrong with it, if anything."""
    base = base_of(trial.model)
    if own != "sdpa":  # where transformers chooses another one, the model has caps, sinks or biases of its own
        return f"{type(base).__name__} runs {own} attention"
    attention.register()
    problem = trial.masks()
    if problem is None:
        base.set_attn_implementation(attention.NAME)
        problem = trial.scores(Scorer.of(trial.model, fused=False, packed=True))
    return problem


def _said(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _probe_batch(model: Any) -> Batch:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (1, sum(LENGTHS)), generator=generator)
    return _batch(ids.to(device), LENGTHS)


def _batch(ids: torch.Tensor, lengths: tuple[int, ...] | None = None) -> Batch:
    """Sequences of these lengths, or one, of which every token is asked that follows another."""
    lengths = lengths or (ids.shape[1],)
    ends = torch.tensor(lengths).cumsum(0) - 1
    weight = torch.ones(ids.shape)
    weight[0, ends] = 0
    device = ids.device
    return Batch(
        input_ids=ids,
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(device),
        target=ids.roll(-1, 1),
        weight=weight.to(device),
        seq=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].to(device),
        label=torch.full((len(lengths),), torch.nan, device=device),
        offsets=torch.tensor([0, *(ends + 1)], dtype=torch.int32, device=device),
        longest=max(lengths),
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
