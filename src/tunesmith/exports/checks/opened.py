"""A run that was asked, and is still in memory."""

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.exports.checks import values
from tunesmith.exports.checks.compare import Reference, compared, questions, reference, weights_of
from tunesmith.exports.checks.manners import manners
from tunesmith.generate.engine import Generator
from tunesmith.generate.load import stored_head
from tunesmith.recipe import Dtype
from tunesmith.recipe_train import DeviceName
from tunesmith.types import Report

Compare = Callable[..., Report]  # of a folder, the name it will have, and how it is loaded


@dataclass
class Opened:
    """The model and tokenizer of a run, and what compares an export with what they said."""

    model: Any
    tokenizer: Any
    compare: Compare
    reference: Reference | None = None  # what it answered; None of one that says values

    def closed(self) -> Compare:
        """Forget the model; what compares stays."""
        self.model = None
        gc.collect()  # modules and what peft has around them name each other
        return self.compare


def _as_it_is(model: Any) -> Any:
    return model


def open_run(run: Path, device: DeviceName, dtype: Dtype | None, prepare: Callable[[Any], Any] = _as_it_is) -> Opened:
    """Load the final weights of a run and ask them, after `prepare` has been at the model. Raises RunError."""
    place, asked = weights_of(run), questions(run)
    if stored_head(place) is not None:
        said = values.said(place, device, dtype, asked)
        own = manners(said.model, said.tokenizer)
        return Opened(said.model, said.tokenizer, functools.partial(values.compared, said.values, own, asked, device))
    generator = Generator.open(place, device, dtype)
    generator.model = prepare(generator.model)
    found = reference(generator, asked)
    return Opened(generator.model, generator.tokenizer, functools.partial(compared, found, device), found)
