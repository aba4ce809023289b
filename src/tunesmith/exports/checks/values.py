"""How the export of a reward model or classifier is verified: by what it and the run say of the same texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.engine.model import base_of
from tunesmith.engine.values import filled
from tunesmith.exports.checks.compare import TOLERANCE, refuse_difference
from tunesmith.exports.checks.manners import Manners, manners
from tunesmith.generate.load import load
from tunesmith.recipe import Dtype
from tunesmith.recipe_train import DeviceName
from tunesmith.types import Report


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


def compared(
    run: torch.Tensor,
    own: Manners,
    asked: Sequence[str],
    device: DeviceName,
    folder: Path,
    out: Path,
    dtype: Dtype | None,
) -> Report:
    """How what was written, loaded with plain transformers or peft, compares with what the run said.

    Raises RunError: what stands beside its weights is other than the run's.
    """
    after = said(str(folder), device, dtype, asked)
    refuse_difference(own, manners(after.model, after.tokenizer))
    largest = (after.values - run).abs().max().item()
    tolerance = TOLERANCE[after.model.dtype] * run.abs().max().item()
    same = largest <= tolerance  # NaN is not
    return Report(out, same, len(asked), largest, tolerance, compared="values")
