"""One walk over the declarations gives the help, the reference page and the list of options."""

import json
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic.fields import FieldInfo

from tunesmith import together
from tunesmith.component import Component, Section, all_of, find
from tunesmith.errors import RecipeError, near

WORDS = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
    "array": "list",
}
VERB = re.compile(r"^(synthesize|evaluate|predict|chat)\.")  # which has its options typed by their own names
TASK = re.compile(r"^task\[(\w+)\]")  # whose options are typed by its name
NAMES = "{names}"  # where a reason names the component that it is about
BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


@dataclass(frozen=True, slots=True)
class Option:
    """One option, in words. Its path has `[lora]` where a component is chosen and `[]` where a list is."""

    path: str
    type: str
    bound: str  # empty when every value of the type is allowed
    default: str  # "required" when there is none
    help: str

    @property
    def word(self) -> str:
        """The path as it is said on the command line and in a recipe."""
        return _without_brackets(self.path)

    @property
    def allowed(self) -> str:
        """Type and bound together."""
        return f"{self.type} {self.bound}".strip()


@dataclass(frozen=True, slots=True)
class Group:
    """A section or a component with its options."""

    path: str  # "recipe" for the recipe itself, empty for options picked out of their sections
    help: str
    options: tuple[Option, ...]


def groups(root: type[Section], **others: type[Section]) -> list[Group]:
    """The recipe's own options, every section and every shipped component; then those of other seams and sections."""
    seen: set[type[Section]] = set()
    found = list(_walk(root, "", seen))
    for path, base in others.items():
        if not issubclass(base, Component):
            found += _walk(base, path, {*seen})  # how a row is read is said once, of a recipe's
            continue
        text = _first_paragraph(base)
        found.append(Group(path, text, (_component_option(path, base, text, base.default),)))
        found += _components(path, base, set())
    return found


def options(root: type[Section], **others: type[Section]) -> list[Option]:
    """Every option, in the order of `groups`."""
    return [option for group in groups(root, **others) for option in group.options]


def _walk(
    section: type[Section], path: str, seen: set[type[Section]], without: Collection[str] = ()
) -> Iterator[Group]:
    shapes = section.model_json_schema()["properties"] if section.model_fields else {}
    prefix = f"{path}." if path else ""
    own: list[Option] = []
    inside: list[Group] = []
    declared = vars(section).get("__annotations__", {})
    for name, field in sorted(section.model_fields.items(), key=lambda item: item[0] not in declared):  # its own first
        if name in without:
            continue
        here, inner, text = prefix + name, section_of(field.annotation), one_line(field.description or "")
        if inner is not None and issubclass(inner, Component):
            own.append(_component_option(here, inner, text, None if field.default is None else inner.default))
            if inner not in seen:
                seen.add(inner)
                inside += _components(here, inner, seen)
        elif inner is field.annotation and inner is not None:
            inside += _walk(inner, here, seen)
        else:
            own.append(Option(here, said(shapes[name]), bound(shapes[name]), _default(field), text))
            if inner is not None and inner not in seen:
                seen.add(inner)
                inside += _walk(inner, f"{here}[]", seen)
    yield Group(path or "recipe", _first_paragraph(section), tuple(own))
    yield from inside


def section_of(annotation: Any) -> type[Section] | None:
    """The Section in a type such as `Section`, `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, Section) else None
    found = (section_of(inner) for inner in typing.get_args(annotation))
    return next((inner for inner in found if inner is not None), None)


def _components(path: str, base: type[Component], seen: set[type[Section]]) -> Iterator[Group]:
    """The options that all components of a seam share, once; then each with those of its own."""
    if base.model_fields:
        shapes = find(base, base.default).model_json_schema()["properties"]
        shared = (
            Option(
                f"{path}.{name}", said(shapes[name]), bound(shapes[name]), _default(field), one_line(field.description)
            )
            for name, field in base.model_fields.items()
            if field.description is not None
        )
        yield Group(path, _first_paragraph(base), tuple(shared))
    for name, kind in all_of(base).items():
        own = {
            each for one in kind.__mro__[: kind.__mro__.index(base)] for each in vars(one).get("__annotations__", {})
        }
        first, *inside = _walk(kind, f"{path}[{name}]", seen, base.model_fields.keys() - own)
        yield replace(first, help=f"{first.help}{_not_with(base, name)}")
        yield from inside


def _not_with(base: type[Component], name: str) -> str:
    """What a component does not go with, and why, as a sentence behind its help."""
    if base not in together.SEAMS:
        return ""
    told: dict[str, list[str]] = {}  # reasons that differ by nothing but a name are one
    for reason, others in together.refused(base, name).items():
        own = others[0].partition("=")[2]
        told.setdefault(re.sub(rf"\b{own}\b", NAMES, reason) if len(others) == 1 else reason, []).extend(others)
    said = {reason.replace(NAMES, _or(others)): others for reason, others in told.items()}
    return "".join(f" Not with {', '.join(others)}: {reason}." for reason, others in said.items())


def _or(others: list[str]) -> str:
    """Names of components of a seam, as in `freeze, full or lora`."""
    *most, last = [other.partition("=")[2] for other in others]
    return f"{', '.join(most)} or {last}" if most else last


def _component_option(path: str, base: type[Component], text: str, default: str | None) -> Option:
    known = " | ".join([*all_of(base), *base.aliases()])
    return Option(path, f"{known} | a file or module", "", json.dumps(default) if default is None else default, text)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _first_paragraph(kind: type[Section]) -> str:
    return one_line((kind.__doc__ or "").partition("\n\n")[0])


def one_line(text: str) -> str:
    """Text without line breaks."""
    return " ".join(text.split())


def said(shape: dict[str, Any]) -> str:
    """The type in a JSON Schema, in plain words."""
    if "enum" in shape:
        return " | ".join(map(str, shape["enum"]))
    if "const" in shape:
        return str(shape["const"])
    if "anyOf" in shape:
        return " or ".join(said(one) for one in shape["anyOf"] if one.get("type") != "null")
    if "$ref" in shape:
        return shape["$ref"].rpartition("/")[2].lower()
    if "prefixItems" in shape:
        return f"list of {len(shape['prefixItems'])} {_plural(said(shape['prefixItems'][0]))}"
    if "items" in shape:
        least = f"{shape['minItems']} or more " if "minItems" in shape else ""
        of = "of " if least and "enum" in shape["items"] else ""
        return f"list of {least}{of}{_plural(said(shape['items']))}"
    return WORDS[shape["type"]]


def _plural(word: str) -> str:
    return word if word == "text" or " | " in word else word + "s"


def bound(shape: dict[str, Any]) -> str:
    """The bounds in a JSON Schema, as in `> 0 and <= 10`."""
    for inner in (*shape.get("anyOf", ()), *shape.get("prefixItems", ())[:1]):
        if bound(inner):
            return ("each " if "prefixItems" in shape else "") + bound(inner)
    found = [f"{sign} {shape[key]}" for key, sign in BOUNDS.items() if key in shape]
    if "pattern" in shape:
        found.append(f"matching {shape['pattern']}")
    return " and ".join(found)


def choose(found: list[Group], query: str) -> list[Group]:
    """The groups and options that `train`, `adapter`, `lora`, `train.max_steps` or `max_steps` means.

    Raises:
        RecipeError: there is no such section, component or option; with near names.
    """
    if not query:
        return found
    for names in (_whole_names, _last_names):
        parts = [group for group in found if query in names(group.path)]
        others = [option for group in found if group not in parts for option in group.options]
        own = [option for option in others if query in names(option.path)]
        if parts or own:
            chosen = [group.path for group in parts] + [option.path for option in own]
            inside = tuple(path + mark for path in chosen for mark in (".", "["))
            head = [Group("", "", tuple(own))] if own else []
            return head + [one for one in found if one in parts or one.path.startswith(inside)]
    paths = [group.path for group in found] + [one.path for group in found for one in group.options]
    known = {name for path in paths for name in (*_whole_names(path), *_last_names(path))}
    raise RecipeError(f"there is no section or option {query!r}. {near(query, known)}")


def _whole_names(path: str) -> tuple[str, ...]:
    """The path, the path as it is said in a recipe, and as one types it for a verb, where that is more than a name."""
    typed = _without_brackets(VERB.sub("", TASK.sub(r"\1", path)))
    return path, _without_brackets(path), *([typed] if "." in typed else [])


def _last_names(path: str) -> tuple[str, ...]:
    """The option, section or component that a path ends in."""
    return tuple(re.findall(r"\w+", path)[-1:])


def _without_brackets(path: str) -> str:
    return re.sub(r"\[.*?\]", "", path)


def as_lines(found: Iterable[Group]) -> Iterator[str]:
    """Plain text, one line an option."""
    rows = [group for group in found if group.options or group.help]
    width = max((len(one.path) for group in rows for one in group.options), default=0)
    for number, group in enumerate(rows):
        if number:
            yield ""
        if group.path:
            yield f"{group.path}: {group.help}" + ("" if group.options else " (no options)")
        for one in group.options:
            yield f"  {one.path:{width}}  {one.help} ({one.allowed}; {_spoken_default(one)})"


def _spoken_default(option: Option) -> str:
    return option.default if option.default == "required" else f"default {option.default}"


def show(found: Iterable[Group]) -> None:
    """The same for a terminal: two lines an option, in colour and wrapped."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for group in found:
        if group.path:
            console.print(Text.assemble("\n", (group.path, "bold underline"), "  ", (group.help, "italic")))
        for one in group.options:
            facts = f"{one.allowed}; {_spoken_default(one)}"
            console.print(Padding(Text.assemble((one.path, "bold cyan"), "  ", (facts, "dim")), (0, 0, 0, 2)))
            console.print(Padding(one.help, (0, 0, 0, 6)), markup=False)


def as_markdown(found: Iterable[Group]) -> Iterator[str]:
    """The reference page."""
    yield "# Options"
    yield ""
    yield "Written by `tunesmith options --markdown`; a test compares the two."
    yield ""
    yield "`train.max_steps` is `max_steps` in the section `train`; as a word `train.max_steps=100`."
    yield "`adapter[lora].r` is `adapter.r` where `adapter` is `lora`. `data.train[].path` belongs to every"
    yield "source of the list; that of the first is `data.train.0.path` on the command line."
    yield "`synthesize`, `evaluate`, `predict` and `chat` are verbs, whose options are typed without that name, as in"
    yield "`device=cpu`; `task[gsm8k].num_shots` is typed `gsm8k.num_shots=2`."
    for group in found:
        if group.path:
            yield f"\n## {group.path}\n\n{group.help}"
        if group.options:
            yield "\n| option | is | default | |\n|---|---|---|---|"
        for one in group.options:
            cells = (f"`{one.path}`", one.allowed, f"`{one.default}`", one.help)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def json_schema(root: type[Section]) -> dict[str, Any]:
    """The JSON Schema of a recipe, with its short forms: a bare path, and one source in place of a list."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **root.model_json_schema()}
    for name, shape in schema["$defs"].items():
        if "path" in shape.get("required", ()):
            schema["$defs"][name] = {
                "anyOf": [{"type": "string"}, shape],
                "description": shape["description"],
            }
        for name, option in shape.get("properties", {}).items():
            kinds = option.get("anyOf", [option])
            listed = [one["items"] for one in kinds if "$ref" in one.get("items", {})]
            if listed:
                about = {key: option[key] for key in ("title", "description", "default") if key in option}
                shape["properties"][name] = {**about, "anyOf": [*kinds, *listed]}
    return schema
