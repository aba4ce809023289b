"""`parallel.strategy: auto` of several processes, chosen from the plan."""

from typing import TYPE_CHECKING, Any

from tunesmith.defaults import with_values
from tunesmith.errors import ModelError, RecipeError
from tunesmith.planner.fleet import ROOM
from tunesmith.planner.layout import Layout
from tunesmith.planner.shapes import shape_of
from tunesmith.planner.spread import share
from tunesmith.recipe import Recipe
from tunesmith.recipe_parallel import problem_among

if TYPE_CHECKING:
    from tunesmith.defaults import Device


def strategy(recipe: Recipe, device: "Device", memory: int, number: int, config: Any | None = None) -> tuple[str, str]:
    """What a resolved recipe's processes share, and why: `ddp` where a whole model fits on each device, `fsdp` else.

    `memory` is what each of so many may take; `config` is that of the model, in place of `model.path`'s.
    """
    if recipe.train.row_tokens == "auto":
        return "ddp", "train.row_tokens=auto fits rows beside a whole model"
    copies, parts = (problem_among(with_values(recipe, {"parallel.strategy": one}), number) for one in ("ddp", "fsdp"))
    if copies is not None and parts is None:
        return "fsdp", f"whole models will not do: {copies}"
    tensor, context = recipe.parallel.tensor, recipe.parallel.context
    layout = Layout("ddp", max(1, number // recipe.parallel.sharers), tensor=tensor, context=context)
    try:
        needed = share(recipe, shape_of(recipe, config), device, layout).peak.total
    except (ModelError, RecipeError) as error:
        return "ddp", f"the plan does not say what a whole model needs: {error}"
    said = f"a whole model with its states needs {needed / 1e9:,.2f} GB of the {memory / 1e9:,.2f} GB that each has"
    if needed <= ROOM * memory:
        return "ddp", said
    if parts is not None:
        return "ddp", f"{said}, which will not do, and its weights cannot be shared out: {parts}"
    return "fsdp", said
