"""Encoder-decoder models: how an answer begins, and log-probabilities of answers given what the encoder reads.

A row holds samples of two sequences, end to end. Here they become two padded batches, one for each side, and only what
is asked of the decoder's meets the head. No answer sees padding: the encoder's is masked, and the decoder's stands
behind what is asked.

Letters: T tokens of the row, n samples, P and A tokens of the longest prompt and answer, N asked tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tunesmith.component import name_of
from tunesmith.data import sides
from tunesmith.defaults import with_values
from tunesmith.engine.compat import attention_of
from tunesmith.engine.elementwise import PLAIN, Elementwise
from tunesmith.engine.kernels import Kernels
from tunesmith.engine.model import base_of, load_config, load_tokenizer, num_rows
from tunesmith.engine.scores import Scorer, head_input
from tunesmith.engine.trial import Trial
from tunesmith.errors import ModelError, RecipeError
from tunesmith.recipe import Recipe
from tunesmith.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = ((11, 7), (5, 13), (17, 4))  # tokens of the probe's prompts and answers


def derived(recipe: Recipe, given: Any | None = None) -> dict[str, Any]:
    """What an objective takes from the config of the recipe's model, or of one that a script gave, by dotted option.

    Raises:
        RecipeError: the model is an encoder and a decoder and the objective wants a decoder alone, or the other way.
        ModelError: there is no model, or its config does not say what starts an answer.
    """
    objective: Any = recipe.objective
    encodes, name = type(objective).encodes, name_of(objective)
    config = load_config(recipe.model) if given is None else base_of(given).config
    if encodes and not config.is_encoder_decoder:
        raise RecipeError(
            f"the objective {name} is for models of an encoder and a decoder, and {recipe.model.path} "
            f"({config.model_type}) is a decoder alone: say objective=sft"
        )
    if config.is_encoder_decoder and not encodes and "values" not in type(objective).needs:
        raise RecipeError(
            f"{recipe.model.path} ({config.model_type}) is a model of an encoder and a decoder, and the objective "
            f"{name} is for a decoder alone: say objective=seq2seq"
        )
    if not encodes or objective.decoder_start_token_id is not None:
        return {}
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise ModelError(
            f"the config of {recipe.model.path} does not say which token starts an answer: say "
            "objective.decoder_start_token_id"
        )
    return {"objective.decoder_start_token_id": start}


def begin_answers(model: Any, objective: Any) -> None:
    """Have a model begin its answers as it is trained to; what it answers with is saved with it."""
    model.generation_config.decoder_start_token_id = objective.decoder_start_token_id


def ready(recipe: Recipe) -> "tuple[Recipe, PreTrainedTokenizerBase]":
    """A recipe and its tokenizer as rows are rendered with them. Raises as `derived`, `load_tokenizer`, `prepared`."""
    if type(recipe.objective).encodes:
        recipe = with_values(recipe, derived(recipe))
    return recipe, sides.prepared(recipe.data.template, recipe.objective, load_tokenizer(recipe.model))


@dataclass(frozen=True)
class TwoSided(Scorer):
    """How log-probabilities of answers are computed."""

    def run(self, model: torch.nn.Module, batch: Batch, asked: torch.Tensor) -> torch.Tensor:
        """What enters a fused head where answers are asked for a token [N, D]; of another one, the logits [N, V]."""
        inputs = padded(batch)
        longest = inputs["decoder_input_ids"].shape[1]
        place = batch.seq[0, asked] // 2 * longest + batch.position_ids[0, asked]  # [N] in [n * A]
        found = head_input(model, self.head, inputs) if self.fused else model(**inputs).logits
        return found.flatten(0, 1)[place]


def padded(batch: Batch) -> dict[str, Any]:
    """What a model is given of a batch: its prompts [n, P] with a mask where one is padded, and its answers [n, A]."""
    lengths = batch.offsets.diff().tolist() if batch.lengths is None else list(batch.lengths)
    found = batch.input_ids[0].split(lengths)
    inputs: dict[str, Any] = {
        "input_ids": pad_sequence(found[0::2], batch_first=True),
        "decoder_input_ids": pad_sequence(found[1::2], batch_first=True),
        "use_cache": False,
    }
    prompts = torch.tensor(lengths[0::2])
    if prompts.min() < prompts.max():
        mask = torch.arange(int(prompts.max()))[None] < prompts[:, None]
        inputs["attention_mask"] = mask.long().to(batch.input_ids.device)
    return inputs


@torch.no_grad()
def choose(model: Any, ops: Elementwise = PLAIN) -> Kernels:
    """Compare our layers and the fused head with the model's own on a few tokens, and fall back.

    Each sample alone through the model as transformers has it is the reference, its own scale of what enters a tied
    head and its own bias behind the head included.

    Raises:
        ModelError: the model's answers depend on padding.
    """
    was_training = model.training
    model.eval()
    base = base_of(model)
    trial = Trial.of(model, _probe(model), _alone)
    plain = TwoSided.of(model, fused=False, packed=False, ops=ops)
    problem = trial.scores(plain)
    if problem is not None:
        raise ModelError(f"{type(base).__name__} cannot be trained on padded samples: {problem}")
    layers, notes = trial.fused(ops, plain)
    scorer = TwoSided.of(model, packed=False, ops=ops)
    problem = trial.scores(scorer) if scorer.fused else "it is no linear layer, nor one with a plain low-rank update"
    if problem is not None:
        scorer = replace(scorer, fused=False)
        notes.append(f"the fused head is off ({problem}): the model makes the logits of every token of an answer")
    model.train(was_training)
    return Kernels(scorer, False, tuple(notes), attention_of(base), getattr(base.config, "use_cache", None), layers)


def _probe(model: Any) -> Batch:
    """A row of random samples, of whose answers every token is asked but the first."""
    device = next(model.parameters()).device
    lengths = [length for pair in PROBE for length in pair]
    words = num_rows(model)
    ids = torch.randint(0, words, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    return batch_of([part.tolist() for part in ids[0].split(lengths)], device)


def batch_of(sequences: Sequence[Sequence[int]], device: Any = "cpu") -> Batch:
    """A batch of prompts and answers by turns, each answer behind its start token and asked with weight 1."""
    lengths = torch.tensor([len(one) for one in sequences])
    ids = torch.tensor([token for one in sequences for token in one])[None]
    weight = torch.cat([torch.full((len(one),), float(number % 2)) for number, one in enumerate(sequences)])[None]
    weight[0, lengths.cumsum(0) - 1] = 0
    return Batch(
        input_ids=ids.to(device),
        position_ids=torch.cat([torch.arange(len(one)) for one in sequences])[None].to(device),
        target=ids.roll(-1, 1).to(device),
        weight=weight.to(device),
        seq=torch.repeat_interleave(torch.arange(len(sequences)), lengths)[None].to(device),
        label=torch.full((len(sequences),), torch.nan, device=device),
        offsets=torch.tensor([0, *lengths.cumsum(0)], dtype=torch.int32, device=device),
        longest=int(lengths.max()),
        branch=(torch.arange(len(sequences)) % 2).to(device),
    )


def _alone(model: Any, batch: Batch) -> torch.Tensor:
    """The log-probabilities of a batch's targets, each sample through the model by itself: [1, T]."""
    found = torch.zeros_like(batch.weight)
    bounds = batch.offsets.tolist()
    for first, middle, last in zip(bounds[0:-1:2], bounds[1::2], bounds[2::2], strict=True):
        answer = batch.input_ids[:, middle:last]
        logits = model(
            input_ids=batch.input_ids[:, first:middle], decoder_input_ids=answer, use_cache=False
        ).logits.float()
        found[:, middle : last - 1] = logits[:, :-1].log_softmax(-1).gather(-1, answer[:, 1:, None])[..., 0]
    return found
