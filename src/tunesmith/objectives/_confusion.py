"""What was found and what was right, as counts that can be added; and the usual numbers made of them.

Letters: S sequences, C classes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def matrix(found: "torch.Tensor", label: "torch.Tensor", classes: int) -> "torch.Tensor":
    """How often each class [C, :] was said to be each [:, C], of class numbers [S]: [C, C]."""
    import torch

    return torch.bincount(label * classes + found, minlength=classes * classes).view(classes, classes)


def by_class(found: "torch.Tensor", label: "torch.Tensor") -> "torch.Tensor":
    """For each class, how often it held or not [C, 2, :] and was said or not [C, :, 2], of truths [S, C]: [C, 2, 2]."""
    import torch

    places = 2 * label.long() + found.long()  # [S, C]
    return torch.stack([(places == place).sum(0) for place in range(4)], dim=1).view(-1, 2, 2)


def measures(counts: "torch.Tensor") -> dict[str, Any]:
    """Precision, recall, F1 (macro: the mean of the classes; weighted: by their samples), and the counts as a list.

    A class that was never said has a precision of 0, one that never held a recall of 0, as usual; one of which neither
    is so counts in no mean.
    """
    counts = counts.double()
    if counts.ndim == 2:
        right, held, said = counts.diagonal(), counts.sum(1), counts.sum(0)  # [C]
    else:
        right, held, said = counts[:, 1, 1], counts[:, 1].sum(1), counts[:, :, 1].sum(1)
    precision, recall = right / said.clamp(min=1), right / held.clamp(min=1)
    scores = {"precision": precision, "recall": recall, "f1": 2 * right / (held + said).clamp(min=1)}
    there = held + said > 0
    found: dict[str, Any] = {}
    for name, each in scores.items():
        found[f"{name}_macro"] = each[there].mean().item()
        found[f"{name}_weighted"] = ((each * held).sum() / held.sum().clamp(min=1)).item()
    return found | {"confusion": counts.long().tolist()}
