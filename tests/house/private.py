"""What is private stays private: ours to its module, the libraries' to the one file that says why."""

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from house.tree import Module, modules

LIBRARIES = {"torch", "transformers", "peft", "accelerate"}
ALLOWED = {"engine.trainer", "engine.zero_trainer", "engine.compat"}
PUBLIC_DESPITE_UNDERSCORE = {"_replace", "_asdict", "_fields", "_make"}  # of named tuples, as Python documents
DOCUMENTED = (
    "_foreach_"  # torch documents its functions of lists of tensors by these names (torch.html, Foreach Functions)
)


def check(root: Path) -> list[str]:
    """Uses of a private name that the module does not define itself, in code and in imports."""
    return [line for module in modules(root) if module.name not in ALLOWED for line in _uses(module)]


def _uses(module: Module) -> Iterator[str]:
    own = set(_defined(module.tree))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in own:
            yield f"{module.place}:{node.lineno}: {ast.unparse(node)} is private, and not this module's"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            for name in [*(node.module or "").split("."), *(alias.name for alias in node.names)]:
                if _private(name):
                    yield f"{module.place}:{node.lineno}: {name} is private to {node.module}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in LIBRARIES and any(map(_private, alias.name.split("."))):
                    yield f"{module.place}:{node.lineno}: {alias.name} is private"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if _private(str(name)) and name not in own:
                yield f"{module.place}:{node.lineno}: {name} is private, and not this module's"


def _private(name: str) -> bool:
    public = name in PUBLIC_DESPITE_UNDERSCORE or name.startswith(("__", DOCUMENTED)) or name == "_"
    return name.startswith("_") and not public


def _defined(tree: ast.AST) -> Iterator[str]:
    """Every name a module defines: functions, classes, variables, and attributes set on self or cls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) in ("self", "cls"):
                yield node.attr


def check_overrides(ours: type, theirs: type, listed: Mapping[str, str]) -> list[str]:
    """Methods that a class overrides and nobody listed, and listed ones that upstream dropped or changed."""
    overridden = {name for name in vars(ours) if callable(getattr(ours, name)) and hasattr(theirs, name)}
    overridden -= set(dir(object)) - {"__init__"}
    found = [
        f"{name} overrides {theirs.__name__}.{name} and is not listed" for name in sorted(overridden - listed.keys())
    ]
    for name in sorted(listed):
        if name not in vars(ours):
            found.append(f"{name} is listed and {ours.__name__} does not define it")
        elif not hasattr(theirs, name):
            found.append(f"{name} is listed and {theirs.__name__} does not have it any more")
        elif name != "__init__" and _names(ours, name) != _names(theirs, name):
            found.append(f"{name} takes {_names(ours, name)}, and upstream's takes {_names(theirs, name)}")
    return found


def _names(kind: Any, method: str) -> list[str]:
    return list(inspect.signature(getattr(kind, method)).parameters)
