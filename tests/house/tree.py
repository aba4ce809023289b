"""The package as syntax trees: what the checkers of this folder read. Nothing of the package is imported.

A checker is a function `check(root) -> list[str]`: one line for each violation, beginning with its place.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "tunesmith"


@dataclass(frozen=True)
class Module:
    """One file of the package: its name without `tunesmith.` ("" is the package itself), and its tree."""

    name: str
    path: Path
    place: str  # the path relative to the repository, for messages
    tree: ast.Module
    num_lines: int

    @property
    def top(self) -> str:
        """The folder or file directly under the package."""
        return self.name.partition(".")[0]


def modules(root: Path) -> list[Module]:
    """Every module of src/tunesmith."""
    return [_module(root, path) for path in sorted((root / "src" / PACKAGE).rglob("*.py"))]


def _module(root: Path, path: Path) -> Module:
    parts = path.relative_to(root / "src" / PACKAGE).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text(encoding="utf-8")
    return Module(name, path, str(path.relative_to(root)), ast.parse(text, str(path)), len(text.splitlines()))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def statements(tree: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    """The nodes that run: all but those under `if TYPE_CHECKING:`, and those in functions only on request."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from statements(other, into_functions)
        elif into_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from statements(child, into_functions)
