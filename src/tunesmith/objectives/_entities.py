"""Entities of one word or more, by tags: B-PLACE begins a place, I-PLACE goes on with it, O is none.

They are counted as conlleval does (Tjong Kim Sang and De Meulder 2003): an entity is right when its kind and both of
its ends are; an I- tag that follows no word of its kind begins an entity too.

Letters: N words, K kinds of entities.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def kinds(names: Sequence[str]) -> list[str]:
    """The kinds of entities that classes are tags of, in the order of their first; [] where they are no such tags."""
    parts = [name.partition("-") for name in names if name != "O"]
    tags = all(mark in ("B", "I") and kind for mark, _, kind in parts)
    return list(dict.fromkeys(kind for *_, kind in parts)) if tags else []


def counts(
    found: "torch.Tensor", label: "torch.Tensor", sequence: "torch.Tensor", names: Sequence[str]
) -> "torch.Tensor":
    """How many entities of each kind are right, are said and are there: [K, 3].

    `found` and `label` are class numbers of words [N], `sequence` says in which text each word stands.
    """
    import torch

    known = kinds(names)
    kind = label.new_tensor([known.index(name[2:]) if name != "O" else -1 for name in names])
    begins = torch.tensor([name.startswith("B-") for name in names], device=label.device)
    said, end_said = _entities(kind[found], begins[found], sequence)
    there, end = _entities(kind[label], begins[label], sequence)
    right = there[(there == said) & (end == end_said)]
    return torch.stack([torch.bincount(one[one >= 0], minlength=len(known)) for one in (right, said, there)], dim=1)


def _entities(
    kind: "torch.Tensor", begins: "torch.Tensor", sequence: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The kind of the entity that begins at each word [N], -1 where none does, and the word behind its last one [N]."""
    import torch

    new = torch.ones_like(begins)  # goes on with nothing
    new[1:] = begins[1:] | (kind[1:] < 0) | (kind[1:] != kind[:-1]) | (sequence[1:] != sequence[:-1])
    place = torch.where(new, torch.arange(len(kind), device=kind.device), len(kind))
    behind = torch.full_like(place, len(kind))
    behind[:-1] = place.flip(0).cummin(0).values.flip(0)[1:]
    return torch.where(new, kind, -1), behind


def measures(counts: "torch.Tensor") -> dict[str, float]:
    """Precision, recall and F1 of all entities together (micro)."""
    right, said, there = counts.double().sum(0).tolist()
    return {
        "entity_precision": right / max(said, 1),
        "entity_recall": right / max(there, 1),
        "entity_f1": 2 * right / max(said + there, 1),
    }
