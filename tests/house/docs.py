"""What is written for people: public names have a sentence, links lead somewhere, versions agree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from house.tree import PACKAGE, modules

LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)|(?:src|href)=["']([^"']+)["']""")
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.DOTALL | re.MULTILINE)
ELSEWHERE = re.compile(r"^(https?:|mailto:|#)")
ALREADY_SAID = {"overload", "override"}  # decorators of functions that another docstring covers


def check(root: Path) -> list[str]:
    """Public names without a docstring, broken links, and a change log that is behind the version."""
    return [*_undocumented(root), *_broken_links(root), *_version(root)]


def _undocumented(root: Path) -> Iterator[str]:
    for module in modules(root):
        if not ast.get_docstring(module.tree):
            yield f"{module.place}: the module has no docstring"
        for name, node in _public(module.tree):
            if not ast.get_docstring(node):
                yield f"{module.place}:{node.lineno}: {name} has no docstring"


def _public(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The public classes, their public methods, and the public functions of a module."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        yield node.name, node
        for child in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
                said = {ast.unparse(decorator).rpartition(".")[2] for decorator in child.decorator_list}
                if not said & (ALREADY_SAID | {"setter"}):
                    yield f"{node.name}.{child.name}", child


def _broken_links(root: Path) -> Iterator[str]:
    for page in [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]:
        text = CODE.sub("", page.read_text(encoding="utf-8"))
        for match in LINK.finditer(text):
            target = match[1] or match[2]
            if not ELSEWHERE.match(target) and not (page.parent / target.partition("#")[0]).exists():
                yield f"{page.relative_to(root)}: there is no {target}"


def _version(root: Path) -> Iterator[str]:
    source = (root / "src" / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    top = re.search(r"^## \[(\d.*?)\]", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if not version or not top or version[1] != top[1]:
        said = (version[1] if version else None, top[1] if top else None)
        yield f"CHANGELOG.md: the package is {said[0]}, and the newest version described is {said[1]}"
