"""tunesmith: fine-tuning of language models that is correct, fast and pleasant."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.recipe import Eval, Model, Recipe
    from tunesmith.recipe_data import Data, Source
    from tunesmith.recipe_train import Train
    from tunesmith.run import Run, resume, train

__version__ = "0.1.0"

_HOMES = {name: "tunesmith.recipe" for name in ("Eval", "Model", "Recipe", "Train")}
_HOMES |= dict.fromkeys(("Data", "Source"), "tunesmith.recipe_data")
_HOMES |= dict.fromkeys(("Run", "resume", "train"), "tunesmith.run")
__all__ = ["Data", "Eval", "Model", "Recipe", "Run", "Source", "Train", "__version__", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
