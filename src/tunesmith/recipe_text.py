"""The text of a recipe: a YAML file, a shipped recipe's name, and `section.option=value` words, as one tree."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, near

BASE_60 = re.compile(r"^[-+]?[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?$")


def recipe_folder() -> Path:
    """Where the shipped recipes lie."""
    return Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """The shipped recipes, without their suffix."""
    return sorted(str(path.relative_to(recipe_folder()).with_suffix("")) for path in recipe_folder().rglob("*.yaml"))


def recipe_file(path: str) -> Path:
    """The file that a path or a shipped recipe's name says. Raises RecipeError when there is none."""
    if Path(path).is_file():
        return Path(path)
    if path in recipe_names():
        return recipe_folder() / f"{path}.yaml"
    if (Path(path) / "recipe.yaml").is_file():
        return Path(path) / "recipe.yaml"
    if Path(path).is_dir():
        raise RecipeError(f"{path} is a folder, and neither a recipe nor a run (it has no recipe.yaml)")
    raise RecipeError(f"there is no file or shipped recipe {path!r}. {near(path, recipe_names())}")


@functools.cache
def _loader() -> Any:
    """YAML's safe loader, to which 12:30 is a text, as in YAML 1.2, and no number of base 60."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [("tag:yaml.org,2002:str", BASE_60), *known] if first in "-+0123456789" else known
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    return Loader


def parse(text: str, where: str) -> dict[str, Any]:
    """The mapping that YAML text says. Raises RecipeError when it says none, or a name twice."""
    import yaml

    try:
        tree = yaml.load(text, _loader())  # noqa: S506  # a safe one
        node = yaml.compose(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RecipeError(f"{place} is not valid YAML: {problem}") from None
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(f"{where} must be a mapping with `model` and `data`, and is {found}")
    _look_at_names(node, where)
    return tree


def _look_at_names(node: Any, where: str) -> None:
    """Raise RecipeError for an option that is said twice, of which YAML takes the last, or whose name is no text."""
    names: set[str] = set()
    for entry in node.value if isinstance(node.value, list) else ():
        name, value = entry if isinstance(entry, tuple) else (None, entry)
        if name is not None:
            place = f"{where}:{name.start_mark.line + 1}"
            if not name.tag.endswith((":str", ":merge")):
                raise RecipeError(f"{place}: the name {name.value!r} is not text to YAML: write it in quotes")
            if name.value in names:
                raise RecipeError(f"{place}: {name.value!r} is said twice")
            names.add(name.value)
        _look_at_names(value, where)


def read_words(tree: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The tree with `section.option=value` words set in it, in order. Raises RecipeError."""
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise RecipeError(f"{word!r} is not `section.option=value`")
        set_in(tree, key, parse_value(text))
    return tree


def parse_value(text: str) -> Any:
    """The value of an `option=value` word, read as YAML, but that a # begins no comment: a shell has taken those."""
    import yaml

    try:
        value = yaml.load(text, _loader())  # noqa: S506  # a safe one
    except yaml.YAMLError:
        return text
    cut_off = "#" in text and (value is None or isinstance(value, str)) and text[0] not in "\"'"
    return text if cut_off else value


def set_in(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in a recipe's tree. `train` in `data.train.0.path` is a list; `objective: dpo` becomes a mapping.

    Raises:
        RecipeError: a list on the way has no such item, or a value on the way has no options.
    """
    *parents, last = key.split(".")
    node: Any = tree
    for depth, name in enumerate(parents):
        place: Any = int(name) if isinstance(node, list) and name.isdigit() else name
        try:
            child = node[place] if isinstance(node, list) else node.get(place)
        except (IndexError, TypeError):
            raise RecipeError(f"{key}: {'.'.join(parents[:depth])} has no item {name}") from None
        following = [*parents, last][depth + 1]
        if following.isdigit() and name in ("train", "eval") and isinstance(child, str | dict):
            child = [child]  # one source, spoken of as the first of a list
        elif isinstance(child, str):  # a bare name or path, then one of its options
            child = {"path": child} if name in ("model", "train", "eval") or isinstance(place, int) else {"type": child}
        elif child is None:
            child = {}
        elif not isinstance(child, dict | list):
            raise RecipeError(f"{key}: {'.'.join(parents[: depth + 1])} is {child!r} and has no options")
        node[place] = child
        node = child
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            raise RecipeError(f"{key}: {'.'.join(parents)} has no item {last}")
        node[int(last)] = value
    else:
        node[last] = value
