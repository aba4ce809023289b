"""How many classes there are, and what they are called."""

from collections.abc import Sequence

from tunesmith.errors import RecipeError


def names(named: tuple[str, ...], number: int | None, weights: Sequence[float], format_: str) -> tuple[str, ...]:
    """The names of the classes, those that the data name or LABEL_0 and so on.

    `number` and `weights` are what the objective's options say of them. Raises RecipeError when it is not clear how
    many there are.
    """
    total = len(named) or number
    if total is None:
        raise RecipeError(
            f"objective.num_labels is {number}, and the data name no classes: say how many there are, or name them "
            f"(format: {{type: {format_}, classes: [NAME, ...]}})"
        )
    for option, said in {"num_labels": number, "class_weights": len(weights) or None}.items():
        if said is not None and said != total:
            raise RecipeError(f"objective.{option} is for {said} classes, and there are {total}: change one")
    return named or tuple(f"LABEL_{place}" for place in range(total))


def beyond(label: float, number: int | None, names: tuple[str, ...] = ()) -> str | None:
    """Why a label is none of so many classes, or of the named ones; None when it is one, or nothing is said of them."""
    known = number or len(names)
    if not known or label < known:
        return None
    said = f"objective.num_labels={number}" if number else "objective.names"
    return f"the label is class {label:g}, and {said} has the classes 0 to {known - 1}: add to it, or mend the row"
