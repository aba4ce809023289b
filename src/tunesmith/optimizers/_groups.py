"""The groups of parameters that optimizers share."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def matrices_and_vectors(model: "torch.nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters of a model: its matrices with a decay, and its vectors without, where it has any."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
