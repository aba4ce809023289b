"""From numbers of tokens to numbers of sequences, and which sequences are compared.

Letters: T tokens, S sequences, P pairs.
"""

from typing import TYPE_CHECKING, Any

from tunesmith.types import Batch

if TYPE_CHECKING:
    import torch


def sums(values: "torch.Tensor", batch: Batch) -> "torch.Tensor":
    """The weighted sum over each sequence of what its tokens have: [1, T] to [S]."""
    total = values.new_zeros(len(batch.label))
    return total.index_add(0, batch.seq[0], (values * batch.weight)[0])


def lengths(batch: Batch) -> "torch.Tensor":
    """The summed weight of the learned tokens of each sequence: [S]."""
    return sums(batch.weight.new_ones(batch.weight.shape), batch)


def branches(batch: Batch) -> "torch.Tensor":
    """The place of each sequence in its sample: [S]."""
    assert batch.branch is not None, "rows are laid with it"
    return batch.branch


def pairs(batch: Batch) -> "torch.Tensor":
    """The sequences that are compared, the better one and the worse one of each pair: [2, P].

    Those of a sample are ordered, the best first; each is compared with every one after it.
    """
    import torch

    place = branches(batch)  # so many sequences of its sample stand directly before each
    worse = torch.arange(len(place), device=place.device).repeat_interleave(place)  # [P]
    number = torch.arange(len(worse), device=place.device) - (place.cumsum(0) - place)[worse]  # 0, 1 ... of each
    return torch.stack([worse - place[worse] + number, worse])


def num_pairs(batch: Batch) -> "torch.Tensor":
    """How many pairs are compared: []. Each sequence is, with all that stand before it in its sample."""
    return branches(batch).sum()


def sums_of_pairs(values: "torch.Tensor", batch: Batch, sides: "torch.Tensor", alpha: float = 1.0) -> "torch.Tensor":
    """The weighted sums over the sequences of pairs: [1, T] to [2, P].

    Tokens by which a sequence is longer than the other one of its pair count `alpha` (LD-DPO, arXiv 2409.06411).
    """
    import torch

    if alpha == 1:
        return sums(values, batch)[sides]
    asked = (batch.weight[0] != 0).long()  # [T]
    learned = asked.new_zeros(len(batch.label)).index_add(0, batch.seq[0], asked)  # [S]
    place = asked.cumsum(0) - (learned.cumsum(0) - learned)[batch.seq[0]]  # [T]: from 1 in each sequence
    first, size = batch.offsets[:-1].long()[sides.flatten()], batch.offsets.diff().long()[sides.flatten()]  # [2P]
    pair = torch.repeat_interleave(torch.arange(len(size), device=size.device), size)  # [X]: the tokens of every side
    token = torch.arange(len(pair), device=size.device) + (first - size.cumsum(0) + size)[pair]
    common = learned[sides].amin(0).repeat(2)  # [2P]
    weight = batch.weight[0, token]
    weight = torch.where(place[token] > common[pair], alpha * weight, weight)
    return values.new_zeros(len(size)).index_add(0, pair, values[0, token] * weight).view_as(sides)


def means(values: "torch.Tensor") -> tuple[Any, int]:
    """What a metric of some numbers is: their sum and how many they are."""
    return values.detach().sum(), len(values)
