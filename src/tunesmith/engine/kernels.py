"""Which attention and which head a model runs with: the fast ones, once they gave the model's own numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from tunesmith.engine import attention, cuda_attention
from tunesmith.engine.compat import FAILURES, attention_of
from tunesmith.engine.device import compute_dtype
from tunesmith.engine.elementwise import COMPILED_FROM, PLAIN, Elementwise, compiled, compiler
from tunesmith.engine.layers import Fused
from tunesmith.engine.model import base_of, has_words, num_rows, says_tokens
from tunesmith.engine.pool import POOL
from tunesmith.engine.scores import Scorer, asked_of
from tunesmith.engine.trial import Trial, read, said
from tunesmith.engine.values import ValueScorer
from tunesmith.errors import ModelError, RecipeError
from tunesmith.types import Batch

LENGTHS = (11, 5, 17)  # tokens of the probe's sequences
SHARED = 7  # of the first one's, by which the last one goes on when sharing is tried


@dataclass(frozen=True)
class Kernels:
    """The scorer of a model, what had to be said about it, and what the model came with."""

    scorer: Scorer | ValueScorer
    shares: bool  # whether sequences may go on from the beginning of another one
    notes: tuple[str, ...]
    own_attention: str  # transformers' choice for the model, right for generation
    use_cache: bool | None  # None: a config of several parts has none
    layers: Fused  # what of the model computes in our way

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
        """Give a model back as it came: with its own layers and attention, and its cache as it was set."""
        self.layers.undo()
        POOL.forget()
        base = base_of(model)
        base.set_attn_implementation(self.own_attention)
        if self.use_cache is not None:
            base.config.use_cache = self.use_cache


class _Packed(Trial):
    """What a model says of packed sequences."""

    def goes_on(self, scorer: Scorer | ValueScorer) -> bool:
        """Whether the last sequence scores as behind the first tokens of the first one when it shares them."""
        own = slice(-LENGTHS[-1], None)
        positions = self.batch.position_ids.clone()
        positions[:, own] += SHARED
        prefix = torch.tensor([[0, 0]] * (len(LENGTHS) - 1) + [[0, SHARED]])
        whole = _batch(torch.cat([self.batch.input_ids[:, :SHARED], self.batch.input_ids[:, own]], dim=1))
        try:
            shared = read(scorer(self.model, replace(self.batch, position_ids=positions, prefix=prefix)))
            expected = read(scorer(self.model, whole))
            if has_words(self.model):
                shared, expected = shared[0, own], expected[0, SHARED:]
            else:
                number = LENGTHS[-1] - 1 if says_tokens(self.model) else 1
                shared, expected = shared[-number:], expected[-number:]
        except FAILURES:
            return False
        return self.agree(shared, expected)

    def masks(self) -> str | None:
        """Which mask of the model packed attention would not follow on long sequences, if any."""
        base = base_of(self.model)
        base.set_attn_implementation(attention.PROBE)
        if attention_of(base) != attention.PROBE:
            return f"the attention of {type(base).__name__} cannot be replaced"
        try:
            self.model(input_ids=self.batch.input_ids[:, : LENGTHS[0]], use_cache=False)
        except FAILURES as error:
            return said(error)
        return None


@torch.no_grad()
def choose(model: Any, ops: Elementwise = PLAIN) -> Kernels:
    """Compare packed attention, our layers and the fused head with the model's own on a few tokens, and fall back.

    Each sequence alone through the model as transformers has it is the reference. The model is left with the chosen
    attention and layers. Under autocast, what is compared is what autocast computes. `ops` is how work without a matrix
    product is done: norms and gated pairs stay the model's own where that is not compiled.

    Raises:
        ModelError: the model lets packed sequences see each other whatever attention it runs.
    """
    was_training = model.training
    model.eval()
    base = base_of(model)
    if attention_of(base) == attention.NAME:  # left by an earlier run
        base.set_attn_implementation("sdpa")
    own = attention_of(base)
    notes: list[str] = []
    trial = _Packed.of(model, probe_batch(model), _alone)
    problem = _try_packed(trial, own)
    packed = problem is None
    if not packed:
        base.set_attn_implementation(own)
        instead = (
            f"transformers' {own} with its packed mask is used"
            if has_words(model)
            else f"transformers' {own} is used, and sequences of like length are filled up to batches"
        )
        notes.append(f"packed attention is off ({problem}): {instead}")
        problem = trial.scores(_plain(model, packed=False))
        if problem is not None:
            raise ModelError(f"{type(base).__name__} cannot be trained on packed rows: {problem}")
    elif next(model.parameters()).is_cuda:
        notes.append(
            cuda_attention.said(*cuda_attention.of_model(base.config, compute_dtype(next(model.parameters()))))
        )
    layers, about = trial.fused(ops, _plain(model, packed, ops))
    notes += about
    scorer = _choose_head(trial, packed, ops, notes) if has_words(model) else ValueScorer.of(model, packed, ops)
    shares = packed and trial.goes_on(scorer)
    model.train(was_training)
    return Kernels(scorer, shares, tuple(notes), own, getattr(base.config, "use_cache", None), layers)


def elementwise(model: Any, wanted: bool | None) -> tuple[Elementwise, list[str]]:
    """How work without a matrix product is done, and what has to be said of it.

    `wanted` says whether it is compiled; None is where that pays and a compiler is there.

    Raises:
        RecipeError: it is to be compiled and there is no compiler.
    """
    weight = next(model.parameters())
    missing = compiler(weight.device.type)
    if wanted and missing:
        raise RecipeError(
            f"train.compile: true needs {missing}, which is not here: install it, or leave train.compile out"
        )
    pays = sum(one.numel() for one in model.parameters()) >= COMPILED_FROM
    if wanted is False or (wanted is None and not pays):
        return PLAIN, []
    if missing:
        return PLAIN, [
            f"nothing is compiled, since there is no {missing}: with it, norms, gates and softmax are quicker"
        ]
    return compiled(), []


def _plain(model: Any, packed: bool, ops: Elementwise = PLAIN) -> Scorer | ValueScorer:
    """The scorer that leaves a model's head as it is."""
    return Scorer.of(model, False, packed, ops) if has_words(model) else ValueScorer.of(model, packed, ops)


def _choose_head(trial: _Packed, packed: bool, ops: Elementwise, notes: list[str]) -> Scorer:
    """The fused head if it gives the model's own log-probabilities; what has to be said joins the notes."""
    scorer = Scorer.of(trial.model, packed=packed, ops=ops)
    if scorer.fused:
        problem = trial.scores(scorer)
        if problem is not None:
            scorer = Scorer.of(trial.model, fused=False, packed=packed, ops=ops)
            notes.append(f"the fused head is off ({problem}): the model makes its own logits where asked")
    else:
        notes.append("the fused head is off (it is no linear layer, nor one with a plain low-rank update)")
    if not scorer.fused and not scorer.selects:
        notes.append(
            f"{type(base_of(trial.model)).__name__} makes the logits of every token: if memory runs out, lower "
            "train.row_tokens"
        )
    return scorer


def _try_packed(trial: _Packed, own: str) -> str | None:
    """Give the model packed attention; what is wrong with it, if anything."""
    base = base_of(trial.model)
    caps = getattr(base.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if own != "sdpa" and not caps:  # where transformers chooses another one, the model has sinks or biases of its own
        return f"{type(base).__name__} runs {own} attention"
    attention.register()
    problem = trial.masks()
    if problem is None:
        base.set_attn_implementation(attention.NAME)
        problem = trial.scores(_plain(trial.model, packed=True))
    return problem


def probe_batch(model: Any) -> Batch:
    """A few random sequences, each token of which is asked for the next one."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, num_rows(model), (1, sum(LENGTHS)), generator=generator)
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
    """What a model says of each sequence by itself: log-probabilities of the targets [1, T], or values [S, labels].

    Where it says values of tokens, those of the asked ones [N, labels].
    """
    found = torch.zeros_like(batch.weight)
    bounds = batch.offsets.tolist()
    if not has_words(model):
        each = (model(input_ids=batch.input_ids[:, first:last]).logits for first, last in pairwise(bounds))
        if says_tokens(model):
            return torch.cat([one[0] for one in each])[asked_of(batch)].float()
        return torch.cat(list(each)).float()
    for first, last in pairwise(bounds):
        logits = model(input_ids=batch.input_ids[:, first:last], use_cache=False).logits[:, first - last :].float()
        logps = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, first + 1 : last, None])
        found[:, first : last - 1] = logps[..., 0]
    return found
