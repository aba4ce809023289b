"""How the export of a reward model or classifier is verified: by what it and the run say of the same texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.engine.model import base_of
from tunesmith.engine.values import filled
from tunesmith.errors import RunError
from tunesmith.exports._check import TOLERANCE
from tunesmith.generate.load import load
from tunesmith.recipe import Dtype
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Report


@dataclass(frozen=True)
class Said:
    """A model and its tokenizer, and what it says of some texts, or of their tokens: [P, labels]."""

    model: Any
    tokenizer: Any
    values: torch.Tensor


@torch.no_grad()
def said(place: str, device: DeviceName, dtype: Dtype | None, asked: Sequence[str]) -> Said:
    """What a folder of weights says of texts."""
    model, tokenizer = load(place, device, dtype, values=True)
    base = base_of(model)
    ids = [torch.tensor(tokenizer(text)["input_ids"], device=base.device) for text in asked]
    values = filled(model, ids, base.config.get_text_config().pad_token_id)
    laid = torch.cat([one.reshape(-1, one.shape[-1]) for one in values])  # of tokens or of texts, one after the other
    return Said(model, tokenizer, laid.float().cpu())


def verify(
    folder: Path, before: torch.Tensor, device: DeviceName, dtype: Dtype | None, asked: Sequence[str], out: Path
) -> Report:
    """Load what was written with plain transformers or peft, and compare it with what the run said.

    Raises:
        RunError: it differs by more than its precision explains.
    """
    after = said(str(folder), device, dtype, asked)
    largest = (after.values - before).abs().max().item()
    tolerance = TOLERANCE[after.model.dtype] * before.abs().max().item()
    if not largest <= tolerance:  # NaN is not
        raise RunError(
            f"{out} was not written, because it does not say what the run does: the largest difference of a value is "
            f"{largest:.3g} ({tolerance:.3g} is allowed)"
        )
    return Report(out, True, len(asked), largest, tolerance, compared="values")
