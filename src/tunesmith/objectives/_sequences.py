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


def pairs(batch: Batch) -> "tuple[torch.Tensor, torch.Tensor]":
    """The sequences that are compared, the better ones and the worse ones: [P] each.

    Those of a sample are ordered, the best first; each is compared with every one after it.
    """
    import torch

    place = branches(batch)
    sample = (place == 0).cumsum(0)
    before = (sample[:, None] == sample[None, :]) & (place[:, None] < place[None, :])
    better, worse = torch.nonzero(before, as_tuple=True)
    return better, worse


def num_pairs(batch: Batch) -> "torch.Tensor":
    """How many pairs are compared: []. Each sequence is, with all that stand before it in its sample."""
    return branches(batch).sum()


def means(values: "torch.Tensor") -> tuple[Any, int]:
    """What a metric of some numbers is: their sum and how many they are."""
    return values.detach().sum(), len(values)
