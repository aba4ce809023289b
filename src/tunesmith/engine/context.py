"""A packed row in pieces on several processes, for rows that are longer than one device holds.

Each process of a group runs embeddings, layers and head on its piece of the tokens, at their places in the whole row.
Attention is where tokens meet: there the processes exchange pieces of all heads for all tokens of some heads, attend as
ever, and exchange back (DeepSpeed-Ulysses, arXiv 2309.14509). Scores are gathered, so that an objective sees the whole
row on every process, and knows nothing of pieces.

Every process of a group counts the row's loss. So the gradients of a group add up to that of as many equal rows, and
what averages gradients over all processes, and divides by the units that all of them counted, need not know of pieces.

Letters: N processes of a group, T tokens of the row (filled up to a multiple of N), t = T / N, H query heads, K key and
value heads, D head size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist

from tunesmith.data.batch import PackedRow, PackedRows
from tunesmith.data.load import Rows
from tunesmith.engine import attention, ranks, rope
from tunesmith.engine.attention import Layout, packed_attention
from tunesmith.engine.compat import FAILURES
from tunesmith.engine.device import compute_dtype
from tunesmith.engine.kernels import probe_batch
from tunesmith.engine.model import base_of
from tunesmith.engine.reference import Reference
from tunesmith.engine.scores import Scorer
from tunesmith.engine.trial import Trial, read, said
from tunesmith.engine.values import ValueScorer
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.types import Batch, Scores

NAME = f"{attention.NAME}_pieces"
OF_TOKENS = ("input_ids", "position_ids", "target", "weight")  # of a batch, [1, T] each, which a scorer reads


def size(recipe: Recipe) -> int:
    """The processes that share each row: one where there is one."""
    return recipe.parallel.sharers if ranks.number() > 1 else 1


def groups(recipe: Recipe, number: int | None = None) -> int:
    """How many groups, which have rows of their own, so many processes make: None is those of now.

    Raises:
        RecipeError: they do not make whole groups.
    """
    number = ranks.number() if number is None else number
    each = recipe.parallel.sharers if number > 1 else 1
    if number % each:
        option = "tensor" if recipe.parallel.tensor > 1 else "context"
        raise RecipeError(
            f"parallel.{option}={each}: {number} processes make no whole groups of {each}: start a multiple of {each}"
        )
    return number // each


class _Exchange(torch.autograd.Function):
    """Part i [N, ..] of this process goes to process i, and part i of what comes is from it; gradients go back."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _exchanged(parts, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchanged(gradients[0], ctx.group), None


def _exchanged(parts: torch.Tensor, group: Any) -> torch.Tensor:
    parts = parts.contiguous()
    found = torch.empty_like(parts)
    dist.all_to_all_single(found, parts, group=group)
    return found


class _Gather(torch.autograd.Function):
    """What all processes of a group have [t, ..] behind each other [T, ..].

    All of them make the same loss of it, so the sum of the gradients of all is N times one's own.
    """

    @staticmethod
    def forward(ctx: Any, piece: torch.Tensor, group: Any) -> torch.Tensor:
        number = dist.get_world_size(group)
        ctx.number, ctx.own = number, dist.get_rank(group)
        found = [torch.empty_like(piece) for _ in range(number)]
        dist.all_gather(found, piece.contiguous(), group=group)
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].chunk(ctx.number)[ctx.own] * ctx.number, None


@dataclass(frozen=True, eq=False)
class Group:
    """The processes that share each row with this one, which is the one of number `own`."""

    size: int
    own: int
    handle: Any

    @classmethod
    def of_neighbours(cls, number: int) -> "Group":
        """That of so many processes one after the other. Every process calls it."""
        handle, _ = dist.new_subgroups(group_size=number)
        return cls(number, dist.get_rank(handle), handle)

    def piece(self, batch: Batch) -> Batch:
        """The piece of a row that lies here, with the layout of the whole row, which a sequence of its own fills up."""
        tokens = batch.input_ids.shape[1]
        spare = -tokens % self.size
        each = (tokens + spare) // self.size
        own = slice(self.own * each, (self.own + 1) * each)
        changed: dict[str, Any] = {
            name: torch.nn.functional.pad(getattr(batch, name), (0, spare))[:, own] for name in OF_TOKENS
        }
        if batch.teacher_words is not None and batch.teacher_logps is not None:
            here = _asked(batch, own)
            changed |= {"teacher_words": batch.teacher_words[here], "teacher_logps": batch.teacher_logps[here]}
        lengths = tuple(batch.offsets.diff().tolist() if batch.lengths is None else batch.lengths)
        if spare:
            lengths = (*lengths, spare)
            changed["offsets"] = torch.cat([batch.offsets, batch.offsets[-1:] + spare])
            if batch.prefix is not None:
                changed["prefix"] = torch.nn.functional.pad(batch.prefix, (0, 0, 0, 1))
        return replace(batch, **changed, asked=None, lengths=lengths, longest=max(batch.longest, spare))

    def gathered(self, piece: torch.Tensor) -> torch.Tensor:
        """What all processes have of a row [t, ..], as one [T, ..]."""
        found: Any = _Gather.apply(piece, self.handle)
        return found

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,  # [1, H, t, D]
        key: torch.Tensor,  # [1, K, t, D]
        value: torch.Tensor,  # [1, K, t, D]
        attention_mask: torch.Tensor | None,
        packed: Layout | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """Packed attention of a piece of a row to the whole row: [1, t, H, D]; of a whole row as ever."""
        if packed is None or sum(packed.lengths) == query.shape[2]:
            return packed_attention(module, query, key, value, attention_mask, packed=packed, **options)
        dtype = compute_dtype(value)
        copies = math.lcm(key.shape[1], self.size) // key.shape[1]  # of key heads, where processes outnumber them
        states = [query, *(one.repeat_interleave(copies, 1) if copies > 1 else one for one in (key, value))]
        query, key, value = self._heads([one.to(dtype) for one in states])
        found, _ = packed_attention(module, query, key, value, attention_mask, packed=packed, **options)
        return self._pieces(found), None

    def _heads(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """All tokens [1, heads / N, T, D] of this process's heads, of each of some states [1, heads, t, D]."""
        parts = [one[0].unflatten(0, (self.size, -1)) for one in states]  # [N, heads / N, t, D]
        come: Any = _Exchange.apply(torch.cat([one.flatten(1) for one in parts], dim=1), self.handle)
        split = come.split([one[0].numel() for one in parts], dim=1)
        return [
            one.view(part.shape).transpose(0, 1).flatten(1, 2)[None] for one, part in zip(split, parts, strict=True)
        ]

    def _pieces(self, states: torch.Tensor) -> torch.Tensor:
        """All heads [1, t, H, D] of this process's tokens, of states of some heads [1, T, H / N, D]."""
        come: Any = _Exchange.apply(states[0].unflatten(0, (self.size, -1)), self.handle)  # [N, t, H / N, D]
        return come.transpose(0, 1).flatten(1, 2)[None]


def _asked(batch: Batch, own: slice) -> torch.Tensor:
    """Which of the asked positions lie in a piece: bool [N]."""
    asked = batch.weight[0].nonzero()[:, 0] if batch.asked is None else batch.asked
    return (asked >= own.start) & (asked < own.stop)


@dataclass(frozen=True)
class InPieces:
    """A scorer of rows whose pieces lie on several processes: each of them is given, and gives, the whole row's."""

    scorer: Callable[..., Scores]
    group: Group

    def __call__(self, model: torch.nn.Module, batch: Batch, **options: Any) -> Scores:
        """The scores of a batch, as `scorer` gives them."""
        piece, tokens = self.group.piece(batch), batch.input_ids.shape[1]
        if isinstance(self.scorer, ValueScorer):
            values = self.group.gathered(self.scorer.said(model, piece).float())[:tokens]
            return Scores(torch.zeros_like(batch.weight), values=self.scorer.kept(values, batch))
        scores = self.scorer(model, piece, **options)
        found = {one.name: getattr(scores, one.name) for one in fields(Scores) if one.name != "extra"}
        found = {name: one for name, one in found.items() if one is not None}  # [1, t] each
        whole = self.group.gathered(torch.cat([*found.values()]).T)[:tokens].T  # [scores, T]
        return Scores(**{name: row[None] for name, row in zip(found, whole, strict=True)})


@dataclass(frozen=True, eq=False)
class RowsOfGroups(PackedRows):
    """Rows of which processes take micro-batches in turn, and those of a group the same one."""

    group: int = 1
    batch: int = 1  # rows of a micro-batch

    def __len__(self) -> int:
        """The number of rows, each as often as processes take it."""
        return self.group * super().__len__()

    def __getitem__(self, index: int) -> PackedRow:
        """The arrays of one row."""
        number, place = divmod(index, self.batch)
        return super().__getitem__(number // self.group * self.batch + place)

    @classmethod
    def of(cls, rows: PackedRows, group: int, batch: int) -> "RowsOfGroups":
        """Rows that groups of so many processes take micro-batches of."""
        return cls(**{one.name: getattr(rows, one.name) for one in fields(PackedRows)}, group=group, batch=batch)


def use(model: Any, scorer: Scorer | ValueScorer, recipe: Recipe) -> Group | None:
    """Have a model take rows in pieces where a recipe says so, and the processes that share them with this one.

    Raises:
        RecipeError: the processes make no whole groups, or the model does not go with pieces.
    """
    from transformers import AttentionInterface

    groups(recipe)
    number = recipe.parallel.context
    if number == 1 or ranks.number() == 1:
        return None
    option, base = f"parallel.context={number}", base_of(model)
    _refuse(base, scorer.packed, number, option)
    group = Group.of_neighbours(number)
    AttentionInterface.register(NAME, group.attend)
    base.set_attn_implementation(NAME)
    problem = problem_of(model, scorer, group)
    if problem is not None:
        raise RecipeError(
            f"{option}: {type(base).__name__} does not compute the same of a row in pieces ({problem}): leave it out"
        )
    return group


def notes(group: Group | None) -> list[str]:
    """What is to be said of it."""
    return [] if group is None else [f"parallel: each row lies in pieces on {group.size} processes"]


def _refuse(base: Any, packed: bool, number: int, option: str) -> None:
    """Raise RecipeError where a model does not go with pieces."""
    name, text = type(base).__name__, base.config.get_text_config()
    if not packed:
        raise RecipeError(
            f"{option} cuts rows of packed attention, which {name} does not run, or does not run alone: leave it out"
        )
    if text.num_attention_heads % number:
        raise RecipeError(
            f"{option}: the {text.num_attention_heads} attention heads of {name} are shared out evenly: say a number "
            "that divides them"
        )
    if rope.by_longest(base.config):
        raise RecipeError(
            f"{option}: {name} turns positions by the longest sequence of a row, which its pieces do not show: "
            "leave it out"
        )


@torch.no_grad()
def problem_of(model: Any, scorer: Scorer | ValueScorer, group: Group) -> str | None:
    """What is wrong with the scores of a few sequences in pieces, if anything."""
    was_training = model.training
    model.eval()
    batch = probe_batch(model)
    try:
        return Trial.of(model, batch, lambda *_: read(scorer(model, batch))).scores(InPieces(scorer, group))
    except FAILURES as error:
        return said(error)
    finally:
        model.train(was_training)


def shared(rows: Rows, recipe: Recipe) -> Rows:
    """The rows that groups take in turn, so that each process takes those of its group."""
    number = size(recipe)
    if number == 1:
        return rows
    assert isinstance(rows.train, PackedRows), "a recipe with pieces refuses streams"
    held_out, batch = rows.held_out, recipe.eval.per_device_eval_batch_size
    return replace(
        rows,
        train=RowsOfGroups.of(rows.train, number, recipe.train.per_device_train_batch_size),
        held_out=None if held_out is None else RowsOfGroups.of(held_out, number, batch),
    )


def in_pieces(
    group: Group | None, scorer: Scorer | ValueScorer, reference: Reference | None
) -> tuple[Callable[..., Scores], Reference | None]:
    """The scorers of a model in training, and of its own reference, for rows in pieces where they lie so."""
    if group is None:
        return scorer, reference
    if reference is not None and reference.model is None:
        reference = replace(reference, scorer=InPieces(reference.scorer, group))
    return InPieces(scorer, group), reference
