"""What a user may add: a component is a frozen record of options with one method. Its file's name is its name.

`objectives/sft.py` is `objective: sft`. A path (`./my_loss.py`) or a dotted module works the same way, so an addition
outside the package needs no registration.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
    ValidationError,
)
from pydantic_core import PydanticCustomError, core_schema

from tunesmith import other_tools
from tunesmith.errors import RecipeError, near

PACKAGE = "tunesmith"
USER_MODULE = "tunesmith_user_"


class Section(BaseModel):
    """A group of options. The text under a field is its help on the command line, in the docs and in the web form."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Component(Section):
    """An option group that also does something. Subclasses of one seam live in one folder, one to a file."""

    seam: ClassVar[str]  # the folder of its shipped files
    default: ClassVar[str]  # the one that is meant when options come without `type`

    @classmethod
    def aliases(cls) -> dict[str, dict[str, Any]]:
        """Names of this seam that are no file: a component and options of it, {name: {"type": ..., ...}}."""
        return {}

    def refuses(self, other: "Component") -> str | None:
        """Why this cannot be in one recipe with a component of another seam, and what can; None when it can.

        It is the one declaration of what goes together: recipes are checked, and pages and self-tests made, by it.
        """
        return None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        if "seam" not in cls.__dict__:  # a concrete component: the ordinary schema
            return handler(source)
        return core_schema.no_info_plain_validator_function(
            lambda value: pick(cls, value),
            serialization=core_schema.plain_serializer_function_ser_schema(_serialise, info_arg=True),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        if "seam" not in cls.__dict__:
            return handler(schema)
        elsewhere = {"type": "string", "pattern": r"\."}  # a file or a module: its options are not known here
        choices: list[dict[str, Any]] = [{"enum": [*names(cls), *cls.aliases()]}, elsewhere]
        choices.append({"type": "object", "properties": {"type": elsewhere}, "required": ["type"]})
        for name, found in all_of(cls).items():
            shape = _whole(found.model_json_schema())
            shape["properties"] = {"type": {"const": name}, **shape.get("properties", {})}
            shape["required"] = [*(["type"] if name != cls.default else []), *shape.get("required", [])]
            choices.append(shape)
        return {"title": cls.__name__, "anyOf": choices}


def _whole(shape: dict[str, Any]) -> dict[str, Any]:
    """A schema with the sections in it written out, so that it can stand inside another."""
    sections = shape.pop("$defs", {})

    def written(part: Any) -> Any:
        if isinstance(part, list):
            return [written(one) for one in part]
        if not isinstance(part, dict):
            return part
        inner = {key: written(value) for key, value in part.items() if key != "$ref"}
        return written(sections[part["$ref"].rpartition("/")[2]]) | inner if "$ref" in part else inner

    return {key: written(value) for key, value in shape.items()}


def names(base: type[Component]) -> list[str]:
    """The components of a seam that ship with the package, without importing them."""
    folder = Path(__file__).parent / base.seam
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def all_of(base: type[Component]) -> dict[str, type[Component]]:
    """Every shipped component of a seam by name."""
    return {name: find(base, name) for name in names(base)}


def find(base: type[Component], name: str) -> type[Component]:
    """The one component in the file, module or shipped name that `name` says.

    Raises:
        RecipeError: there is none, or the file cannot be imported or defines another number than one.
    """
    if name.endswith(".py"):
        module = _module_of_file(Path(name))
    elif "." in name:
        module = _module_named(name)
    elif name in names(base):
        module = importlib.import_module(f"{PACKAGE}.{base.seam}.{name}")
    else:
        seam, known = base.__name__.lower(), [*names(base), *base.aliases()]
        hint = other_tools.instead(name.lower(), other_tools.NAMES.get(seam, {})) or near(name, known)
        raise RecipeError(f"there is no {seam} {name!r}. {hint}")
    found = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, base) and kind.__module__ == module.__name__ and "seam" not in kind.__dict__
    ]
    if len(found) != 1:
        raise RecipeError(f"{name} must define exactly one {base.__name__}, and it defines {len(found)}")
    return found[0]


def _module_of_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise RecipeError(f"there is no file {path}")
    alias = USER_MODULE + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    if alias not in sys.modules:
        spec = importlib.util.spec_from_file_location(alias, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[alias]
            raise RecipeError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return sys.modules[alias]


def _module_named(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(f"module {name!r} cannot be imported: {error}") from error


def default(base: type[Component]) -> Any:
    """A seam's default component, found when a recipe is built and not when this module is imported."""
    return Field(default_factory=lambda: find(base, base.default)(), json_schema_extra={"default": base.default})


def pick(base: type[Component], value: Any) -> Component:
    """A component from an instance, a bare name, or a mapping with `type`; problems as one pydantic error."""
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        value = {"type": value}
    if isinstance(value, dict):
        value = {"type": base.default, **value}
        if isinstance(value["type"], str) and value["type"].lower() in (*names(base), *base.aliases()):
            value["type"] = value["type"].lower()
        alias = base.aliases().get(value["type"], {}) if isinstance(value["type"], str) else {}
        said_twice = sorted(value.keys() & alias.keys() - {"type"})
        if said_twice:
            problem = f"{value['type']} says {said_twice[0]} itself: leave {said_twice[0]} out"
            raise PydanticCustomError("component", "{problem}", {"problem": problem})
        value = value | alias
    if not isinstance(value, dict) or not isinstance(value["type"], str):
        problem = f"say a name, or a mapping with `type`. {near('', names(base))} (it was {value!r})"
        raise PydanticCustomError("component", "{problem}", {"problem": problem})
    options = {key: option for key, option in value.items() if key != "type"}
    try:
        kind = find(base, value["type"])
    except RecipeError as error:
        raise PydanticCustomError("component", "{problem}", {"problem": str(error)}) from None
    try:
        return kind(**options)
    except ValidationError as error:
        raise PydanticCustomError(
            "component_options",
            "{count} problems",
            {"count": error.error_count(), "kind": kind, "error": error},
        ) from None


def refusal(parts: Sequence[Component]) -> str | None:
    """Why some components cannot be in one recipe, as the first that refuses another says it; None: they can."""
    each = (one.refuses(other) for one in parts for other in parts if other is not one)
    return next((reason for reason in each if reason is not None), None)


def name_of(component: Component) -> str:
    """The word that finds this component again: its shipped name, its module or its file."""
    module = sys.modules[type(component).__module__]
    if module.__name__.startswith(f"{PACKAGE}."):
        return module.__name__.rpartition(".")[2]
    return str(module.__file__) if module.__name__.startswith(USER_MODULE) else module.__name__


def spell(component: Component, only_set: bool = False) -> dict[str, Any]:
    """The mapping that `pick` turns back into this component; `only_set` leaves out what nobody said."""
    return {"type": name_of(component), **component.model_dump(mode="json", exclude_unset=only_set)}


def _serialise(component: Component, info: SerializationInfo) -> Any:
    said = spell(component, bool(info.exclude_unset))
    return said["type"] if info.exclude_unset and len(said) == 1 else said
