"""What is wrong with a recipe, one line a problem: where, what it was, what is allowed, and near names."""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from tunesmith import other_tools, passthrough
from tunesmith.component import Component, Section, pick
from tunesmith.errors import RecipeError, near
from tunesmith.schema import groups, options, section_of

KINDS = {  # what pydantic calls a value of the wrong kind: what it must be instead
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
LENGTHS = {  # of a list: said only when nothing is wrong with its items
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
}
PLAIN = {
    "missing": "is required and missing",
    "string_pattern_mismatch": "must match the regular expression {pattern}",
    "finite_number": "must be a finite number",
}
PATTERNS = {  # in words
    r"^[\w.-]+$": "must be letters, digits, and any of _ . -",
    r"^[\w.-]+/[\w.-]+$": "must be OWNER/NAME",
    r"^\d+(\.\d+)?(KB|MB|GB|TB)$": "must be a size as 5GB or 500MB",
    r"^\S+:\d+$": "must be HOST:PORT",
    r"^pissa_niter_[1-9]\d*$": "must be pissa_niter_N",
    r"^[1-9][0-9]*(-[1-9][0-9]*)?/[1-9][0-9]*$": "must be FIRST-LAST/PARTS, as 1-2/10 for the first two tenths",
    r"^[1-9]\d*(:[1-9]\d*)?$": "must be a number, or LEAST:MOST as 1:4",
    r"^\S+$": "must be text without a blank",
    r"^(auto|[^\s:/]+:\d+)$": "must be auto or HOST:PORT",
    r"^[\w.,:@%+=/()-]+$": "must be letters, digits, and any of _ . , : @ % + = / ( ) -",
    r"^(\d+-)?\d+(:\d+){0,2}$": "must be minutes, or a time as 12:00:00 or 1-12:00:00 (a day and 12 hours)",
}
CHOSEN = ("literal_error", "string_pattern_mismatch")  # of an option with several kinds: all of them are told
BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}  # pydantic's names of bounds
OF_TYPES = {int: "an integer", float: "a number", str: "text", tuple: "a list", list: "a list"}
OUR_WORDS = {"Input should be": "must be", "String should": "must", "Value error, ": ""}
KEY = "[key]"  # pydantic's part of a place for the key itself of a mapping
OF_FIELD = "of_field"  # an error that a section finds in one of its options, beside others: {field, text}
NAME_OR_MAPPING = "name_or_mapping"  # a mapping where a name is wanted, which an option may take beside mappings
LONGEST_VALUE = 80  # characters of a value that are repeated in a message
MOST_TOLD = 10  # problems of which each has its line


class Explained(Section):
    """Options that are made of words: what is wrong with them is said in a line each, as RecipeError."""

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise RecipeError(explain(error, type(self))) from None


@dataclass(frozen=True, slots=True)
class _Problem:
    where: tuple[str, ...]
    type: str  # pydantic's name of the error
    text: str
    value: str  # "(it was ...)", or empty
    hint: str = ""
    kinds: str = ""  # what the option may be, where it may be of several kinds

    def line(self, whole: str) -> str:
        place = ".".join(part if part.isprintable() else repr(part) for part in self.where)
        return f"{place or whole}: {self.text}{self.value}{self.hint}"


def explain(error: ValidationError, section: type[Section]) -> str:
    """One line for each problem of a section's options; the number of those that are too many to read."""
    whole = section.__name__.lower()
    told = list(dict.fromkeys(one.line(whole) for one in _settled(list(_problems(error, section, (), section)))))
    if len(told) > MOST_TOLD + 1:
        told[MOST_TOLD:] = [f"and {len(told) - MOST_TOLD:,} more"]
    return "\n".join(told)


def wrong(field: str, text: str) -> PydanticCustomError:
    """The error of an option that does not go with others of its section, to be raised where those are known."""
    return PydanticCustomError(OF_FIELD, "{field}: {text}", {"field": field, "text": text})


def choose(base: type[Component], value: Any) -> Component:
    """A component as `pick` makes it. Raises RecipeError, one line for each problem."""
    try:
        return pick(base, value)
    except PydanticCustomError as error:
        context = error.context or {}
        if "error" in context:
            raise RecipeError(explain(context["error"], context["kind"])) from None
        raise RecipeError(f"{base.__name__.lower()}: {error}") from None


def _problems(
    error: ValidationError, section: type[Section], prefix: tuple[str, ...], root: type[Section]
) -> Iterator[_Problem]:
    for item in error.errors(include_url=False):
        inside = _said(item, section)
        where = (*prefix, *inside)
        context = item.get("ctx", {})
        if item["type"] == "component_options":
            yield from _problems(context["error"], context["kind"], where, root)
        elif item["type"] == OF_FIELD:
            yield _Problem((*where, context["field"]), OF_FIELD, context["text"], "")
        elif item["type"] == "component":
            yield _Problem(where, item["type"], item["msg"], "")
        elif item["type"] == "extra_forbidden":
            yield _Problem(where, item["type"], f"no such option. {_known(item, section, where, root)}", "")
        elif item["type"] == "missing":
            yield _Problem(where, item["type"], PLAIN["missing"], "")
        else:
            text, value, annotation = _text(item), item["input"], _annotation(section, inside)
            told_of_one = " must be " in text or typing.get_origin(annotation) is dict
            if isinstance(value, dict) and told_of_one:  # of options beside others, the value of the one named first
                value = value.get(text.partition(" ")[0], value)
            told = " (it was a mapping)" if item["type"] in KINDS and value is item["input"] else ""
            named = item["type"] == "literal_error" and isinstance(value, dict)
            kind, kinds = NAME_OR_MAPPING if named else item["type"], kinds_of(annotation)
            yield _Problem(where, kind, text, _value(value) or told, _hint(item, ".".join(where)), kinds)


def _settled(found: list[_Problem]) -> Iterator[_Problem]:
    """The problems to tell: where a value may be of several kinds, those of the kind that was meant."""
    wrongs: dict[tuple[str, ...], dict[str, None]] = {}  # types of the problems of a place, as they came
    above: set[tuple[str, ...]] = set()  # the places that have a problem inside of them
    for one in found:
        wrongs.setdefault(one.where, {})[one.type] = None
        above.update(one.where[:depth] for depth in range(len(one.where)))
    hints = {one.where: one.hint for one in found if one.hint}
    for one in found:
        same, deeper = wrongs[one.where], one.where in above
        if one.kinds and not deeper and NAME_OR_MAPPING not in same and any(other in CHOSEN for other in same):
            yield _Problem(one.where, one.type, f"must be {one.kinds}", one.value, hints.get(one.where, ""))
        elif one.type in KINDS:
            kinds = " or ".join(dict.fromkeys(KINDS[other] for other in same if other in KINDS))
            if not deeper and all(other in KINDS for other in same):
                yield _Problem(one.where, one.type, f"must be {kinds}", one.value, one.hint)
        elif one.type == NAME_OR_MAPPING:  # what is wrong in the mapping is what was meant
            if not deeper and all(other in (*KINDS, NAME_OR_MAPPING) for other in same):
                yield one
        elif not (one.type in LENGTHS and deeper):
            yield one


def _text(item: ErrorDetails) -> str:
    """The message without the value."""
    context = item.get("ctx", {})
    plain = PATTERNS.get(context.get("pattern", ""), (PLAIN | LENGTHS).get(item["type"]))
    if plain is not None:
        return plain.format(**context).replace("1 items", "1 item")
    message = item["msg"]
    for theirs, ours in OUR_WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _value(value: Any) -> str:
    if isinstance(value, dict | Section):
        return ""
    shown = "null" if value is None else repr(list(value) if isinstance(value, tuple) else value)
    return f" (it was {shown if len(shown) <= LONGEST_VALUE else shown[:LONGEST_VALUE] + '...'})"


def _hint(item: ErrorDetails, written: str) -> str:
    value = item["input"]
    if isinstance(value, str):
        theirs = other_tools.instead(value.lower(), other_tools.VALUES.get(written, {}))
        if theirs:
            return f". {theirs}"
        if written == "train.lr_scheduler_type" and value in other_tools.REASONS:
            return f". It is left out: {other_tools.REASONS[value]}"
    if item["type"] == "literal_error" and isinstance(value, str):
        choices = item["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        hint = near(value, choices)
        return f". {hint}" if hint.startswith("Did") else ""
    if value is None:
        return ". Leave it out, or give it a value"
    if isinstance(value, str) and value.lower() == "none":
        return ". YAML's word for none is null"
    return ""


def _said(item: ErrorDetails, section: type[Section]) -> tuple[str, ...]:
    """The part of an error's location that the user wrote: names of union branches and of validators go."""
    said: list[str] = []
    place: type[Section] | None = section
    kind: Any = None  # the annotation of the option we are in
    for part in item["loc"]:
        if isinstance(part, int):
            said.append(str(part))
        elif place is not None and part in place.model_fields:
            said.append(part)
            kind = place.model_fields[part].annotation
            place = section_of(kind)
        elif typing.get_origin(kind) is dict and part != KEY:
            said.append(part)
    return (*said, str(item["loc"][-1])) if item["type"] == "extra_forbidden" else tuple(said)


def _annotation(section: type[Section], inside: tuple[str, ...]) -> Any:
    """The annotation of the option that a place ends in; None where it ends in an item of one."""
    place: type[Section] | None = section
    kind: Any = None
    for part in inside:
        if place is None or (part not in place.model_fields and not part.isdigit()):
            return None
        kind = None if part.isdigit() else place.model_fields[part].annotation
        place = place if part.isdigit() else section_of(kind)
    return kind


def kinds_of(annotation: Any) -> str:
    """What an option of several kinds may be, as in `true, false, selective or an integer above 1`; else empty."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (types.UnionType, typing.Union) else ()
    kinds = [one for one in parts if one is not type(None)]
    said = [word for one in kinds for word in _kind(one)]
    return f"{', '.join(said[:-1])} or {said[-1]}" if len(kinds) > 1 else ""


def _kind(annotation: Any) -> list[str]:
    """The words for one kind of value."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return [str(one) for one in typing.get_args(annotation)]
    if origin is Annotated:
        inner, *about = typing.get_args(annotation)
        metadata = [each for one in about for each in (one.metadata if isinstance(one, FieldInfo) else (one,))]
        patterns = [PATTERNS.get(getattr(one, "pattern", None) or "") for one in metadata]
        named = [text.removeprefix("must be ") for text in patterns if text is not None]
        bounds = [
            f" {word} {getattr(one, key)}" for one in metadata for key, word in BOUNDS.items() if hasattr(one, key)
        ]
        return named or ["".join([*_kind(inner), *bounds])]
    if annotation is bool:
        return ["true", "false"]
    if origin in (types.UnionType, typing.Union):
        return [word for one in typing.get_args(annotation) for word in _kind(one)]
    return [OF_TYPES.get(origin or annotation, "a mapping")]


def _known(item: ErrorDetails, section: type[Section], where: tuple[str, ...], root: type[Section]) -> str:
    """A hint for an unknown option: where an option of that name stands, or near names in its section."""
    place = _place(section, _said(item, section)[:-1])
    wrong = where[-1]
    written = ".".join(part for part in where if not part.isdigit())
    called = [option for option in options(root) if option.word.rpartition(".")[2] == wrong]
    if issubclass(section, Component):  # one component's own option is not what was meant in another seam
        called = [option for option in called if "[" not in option.path or option.word.startswith(f"{where[0]}.")]
    if any(option.word == written for option in called):
        paths = [option.path for option in called if option.word == written]
        usual = f"[{place.default}]" if issubclass(place, Component) else ""
        paths = sorted(paths, key=lambda path: usual not in path)[:3]  # the default's first
        kinds = " or ".join(path.rpartition("]")[0].rpartition("[")[2] for path in paths)
        return f"It is an option of {' or '.join(paths)}: say {'.'.join(where[:-1])}.type={kinds}"
    theirs = other_tools.option(wrong, item["input"])
    if theirs and theirs.partition("=")[0].replace(".0.", ".") in _said_here(root):
        return f"Did you mean {theirs!r}?"
    sections = () if called else (group.path for group in groups(root) if "[" not in group.path)
    words = dict.fromkeys(option.word for option in called)
    words |= dict.fromkeys(path for path in sections if path.rpartition(".")[2] == wrong)
    if words:
        return "Did you mean " + " or ".join(map(repr, list(words)[:3])) + "?"
    return _elsewhere(wrong) or _near(wrong, place, where)


def _place(section: type[Section], inside: tuple[str, ...]) -> type[Section]:
    """The section that a place inside of one is in."""
    for part in inside:
        if not part.isdigit():
            section = section_of(section.model_fields[part].annotation) or section
    return section


def _elsewhere(wrong: str) -> str:
    """A hint for a name of TrainingArguments or of another tool that stands for something else here, or nothing."""
    if wrong in passthrough.OWNED:
        return f"Did you mean {passthrough.OWNED[wrong]!r}?"
    return f"It is not here: {other_tools.NEEDLESS[wrong]}" if wrong in other_tools.NEEDLESS else ""


def _near(wrong: str, place: type[Section], where: tuple[str, ...]) -> str:
    """A hint for an unknown option by the names that its section has."""
    if not place.model_fields:
        return f"{place.__name__} has no options"
    if wrong in passthrough.REFUSED:
        return f"It cannot be set: {passthrough.REFUSED[wrong]}"
    if "transformers" in place.model_fields and wrong in passthrough.ALLOWED:
        return f"Did you mean 'train.transformers.{wrong}'?"
    hint = near(wrong, place.model_fields)
    return f"{hint} tunesmith options {where[0]} has all" if " others" in hint and len(where) > 1 else hint


def _said_here(root: type[Section]) -> set[str]:
    """The options of a recipe, or of a component by its seam, as they are written on the command line."""
    if not issubclass(root, Component):
        return {option.word for option in options(root)}
    seam = next(kind.__name__.lower() for kind in root.__mro__ if "seam" in vars(kind))
    return {f"{seam}.{name}" for name in root.model_fields}
