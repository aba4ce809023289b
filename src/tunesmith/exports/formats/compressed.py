"""Weights in few bits that rows have chosen, by llm-compressor, in checkpoints of compressed-tensors."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.data.choose import choose
from tunesmith.data.prepare import prepare
from tunesmith.engine.encoder_decoder import ready
from tunesmith.engine.model import load_model, without_progress_bar
from tunesmith.errors import RunError
from tunesmith.exports.checks.compare import weights_of
from tunesmith.exports.formats.quantised import Hold, refuse
from tunesmith.extras import need
from tunesmith.prediction.rows import recipe_of
from tunesmith.recipe import Model

if TYPE_CHECKING:
    from tunesmith.exports.formats.calibrated import Calibrated

EXTRA = "llmcompressor"
THEIRS = ("llmcompressor", "compressed_tensors")  # that log by loguru
THEIR_RECIPE = "recipe.yaml"  # which llm-compressor writes beside the weights, by the name that a run's own has


def by_rows(export: "Calibrated", run: Path) -> Hold:
    """What writes a merged model in few bits that the rows of its run have chosen.

    Raises:
        MissingExtra: llm-compressor is not installed.
        RunError, DataError: the run cannot be merged, or the rows that it was trained on cannot be had.
    """
    refuse(run, weights_of(run))
    need(f"an export in {export.method}", EXTRA)
    rows = rows_of(run, export.num_samples, export.max_tokens)

    def hold(room: str, kind: str, folder: Path) -> None:
        model: Any = load_model(Model(path=room), kind)
        _refuse_width(export, model)
        with _quiet():
            _round(export, model, rows)
            model.save_pretrained(folder, save_compressed=True)
        (folder / THEIR_RECIPE).unlink(missing_ok=True)

    return hold


def rows_of(run: Path, number: int, longest: int) -> list[list[int]]:
    """The tokens of so many samples that a run was trained on, spread evenly over them, as it read them.

    Raises:
        RunError: it was given its rows by a script.
        DataError: the rows are no longer there.
    """
    with recipe_of(run, "so that nothing chooses the bits: use type=bnb") as recipe:
        recipe, own = ready(recipe)
        store = prepare(recipe, recipe.data.train, own)
        trained = choose(recipe, store, None).trained
        picked = trained[np.linspace(0, len(trained) - 1, min(number, len(trained))).round().astype(int)]
        found = [store.branches(int(at))[0].ids[:longest].tolist() for at in picked]
    return [ids for ids in found if len(ids) > 1]


def _refuse_width(export: "Calibrated", model: Any) -> None:
    """Raise RunError for a layer that groups of this size do not divide."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and layer is not model.get_output_embeddings():
            if layer.in_features % export.group_size:
                raise RunError(
                    f"{name} is {layer.in_features} wide, which groups of {export.group_size} do not divide: say "
                    f"group_size={np.gcd(layer.in_features, export.group_size)}"
                )


def _round(export: "Calibrated", model: Any, rows: list[list[int]]) -> None:
    """Round a model in place, as llm-compressor does it."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    # symmetric: transformers 5.23 does not load the zero points of others
    how = QuantizationArgs(
        num_bits=export.bits, type="int", symmetric=True, strategy="group", group_size=export.group_size
    )
    groups = {"config_groups": {"linear": QuantizationScheme(targets=["Linear"], weights=how)}, "ignore": ["lm_head"]}
    steps = [GPTQModifier(**groups)] if export.method == "GPTQ" else [AWQModifier(), QuantizationModifier(**groups)]
    with _unpinned():
        oneshot(model=model, dataset=_batches(model, rows), recipe=steps, num_calibration_samples=len(rows))


def _batches(model: Any, rows: list[list[int]]) -> Any:
    """Each row by itself, so that nothing is filled up."""
    ids = [torch.tensor([row], device=model.device) for row in rows]
    batches: Any = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    return torch.utils.data.DataLoader(batches, batch_size=None)


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which llm-compressor says nothing of what it does but by its progress bars."""
    from loguru import logger

    for name in THEIRS:
        logger.disable(name)
    try:
        with warnings.catch_warnings(), without_progress_bar():
            # all layers count as offloaded that it has placed, also those that never left memory
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules", UserWarning)
            yield
    finally:
        for name in THEIRS:
            logger.enable(name)


@contextmanager
def _unpinned() -> Iterator[None]:
    """A block in which what AWQ keeps is not pinned where there is nothing to pin it for.

    llm-compressor 0.14 asks torch to pin it all the same, which fails on a machine without an accelerator.
    """
    from llmcompressor.pipelines.cache import IntermediatesCache

    pin = IntermediatesCache.pin_memory
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pin
