"""How errors are raised, caught and told: a message for the user names the value that was wrong."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from house.tree import Module, modules


def check(root: Path, allowed: Mapping[tuple[str, str], str] = MappingProxyType({})) -> list[str]:
    """Errors that name no value, bare excepts, and prints outside the command line.

    `allowed` has the reason for each message that rightly names none, by (file, start of the message).
    """
    found, used = [], set()
    package = modules(root)
    kinds = _kinds(package)
    for module in package:
        for line, kind, message in _raised(module, kinds):
            if message is None or _names_a_value(message):
                continue
            text = _constant(message)
            excuse = next((key for key in allowed if key[0] == module.place and text.startswith(key[1])), None)
            if excuse is None:
                found.append(f"{module.place}:{line}: {kind} names no value: {text!r}")
            else:
                used.add(excuse)
        found += _careless(module)
    return found + [
        f"{file}: no error begins with {text!r}: drop it from ALLOWED" for file, text in allowed.keys() - used
    ]


def _kinds(package: list[Module]) -> set[str]:
    """TunesmithError and every class below it, by name."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for module in package
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }
    kinds = {"TunesmithError"}
    while more := {name for name, above in bases.items() if above & kinds} - kinds:
        kinds |= more
    return kinds


def _raised(module: Module, kinds: set[str]) -> Iterator[tuple[int, str, ast.expr | None]]:
    """The line, the kind and the message of each of the package's own errors."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        kind = ast.unparse(called).rpartition(".")[2]
        if kind in kinds:
            has_message = isinstance(node.exc, ast.Call) and node.exc.args
            yield node.lineno, kind, node.exc.args[0] if has_message else ast.Constant("")  # type: ignore[union-attr]


def _names_a_value(message: ast.expr) -> bool:
    """Whether anything but fixed text is in a message; what a variable or call holds is taken on trust."""
    if isinstance(message, ast.BinOp):
        return _names_a_value(message.left) or _names_a_value(message.right)
    if isinstance(message, ast.JoinedStr):
        return any(isinstance(part, ast.FormattedValue) for part in message.values)
    return not isinstance(message, ast.Constant)


def _constant(message: ast.expr) -> str:
    return str(ast.literal_eval(message)) if isinstance(message, ast.Constant) else ast.unparse(message)


def _careless(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{module.place}:{node.lineno}: bare except"
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if is_print and module.top != "cli":
            yield f"{module.place}:{node.lineno}: print outside the command line"
