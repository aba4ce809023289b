"""Who imports whom: downward only, without a cycle, and nothing heavy where a recipe is read.

Imports inside functions count, and `importlib.import_module("tunesmith...")` too; those for types do not.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from house.tree import PACKAGE, Module, modules, statements

LAYERS = (
    {"", "errors", "types", "atomic", "drawing", "journal", "other_tools", "rouge", "way_on"},
    {"component", "extras"},
    {"seams"},
    {
        "explain",
        "together",
        "recipe",
        "recipe_data",
        "recipe_fsdp",
        "recipe_parallel",
        "recipe_rope",
        "recipe_text",
        "recipe_train",
        "recipe_zero",
        "schema",
        "defaults",
        "passthrough",
    },
    {"compat", "formats", "templates", "data"},
    {"objectives", "adapters", "optimizers", "quantizations", "engine"},
    {"generate"},
    {"run", "parts", "adapted", "beside", "referenced", "taught", "record", "folder", "health", "ending", "planner"},
    {
        "exports",
        "synthesis",
        "prediction",
        "evaluation",
        "evaluate",
        "bench",
        "bench_against",
        "compare",
        "selftest",
        "verify",
        "launching",
        "launchers",
    },
    {"serve"},
    {"cli", "__main__"},
)
LEAVES = {"builtin"}  # data that this package made: imports nothing of it, and whoever wants may import it

HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets"}
LIGHT = {
    "", "errors", "types", "atomic", "component", "extras", "seams", "explain", "together", "recipe", "recipe_data",
    "recipe_parallel", "recipe_rope", "recipe_text", "recipe_train", "recipe_zero", "schema", "defaults", "passthrough",
    "cli", "formats", "templates", "objectives", "adapters", "optimizers", "quantizations", "exports", "evaluation",
    "data.source", "planner", "launching", "launchers", "other_tools",
}  # fmt: skip
"""Imported, or read for their options, before anything is trained: they answer in a fraction of a second."""


def check(root: Path) -> list[str]:
    """Imports that go upward, cycles, and heavy imports where a recipe is read."""
    found = {module.name: module for module in modules(root)}
    lazy = {name: _edges(module, found, into_functions=True) for name, module in found.items()}
    eager = {name: _edges(module, found, into_functions=False) for name, module in found.items()}
    return [*_upward(found, lazy), *_cycles(found, lazy), *_heavy(found, eager)]


def _upward(found: dict[str, Module], edges: dict[str, dict[str, int]]) -> Iterator[str]:
    height = {unit: index for index, layer in enumerate(LAYERS) for unit in layer} | dict.fromkeys(LEAVES, -1)
    for name, module in found.items():
        if module.top not in height:
            yield f"{module.place}: {module.top} is in no layer: give it one in tests/house/layers.py"
            continue
        for target, line in edges[name].items():
            if height.get(found[target].top, -1) > height[module.top]:
                yield f"{module.place}:{line}: {name or PACKAGE} imports {target}, which is in a higher layer"
        for node, full_name in _imports(module, into_functions=True):
            public = full_name.removeprefix(f"{PACKAGE}.")
            if public != full_name and public.partition(".")[0] not in _units(found) | {"__version__"}:
                yield f"{module.place}:{node.lineno}: imports {public} of the package itself: name its module"


def _units(found: dict[str, Module]) -> set[str]:
    return {module.top for module in found.values()}


def _cycles(found: dict[str, Module], edges: dict[str, dict[str, int]]) -> Iterator[str]:
    """One line for each strongly connected group of modules (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in edges[name]:
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            at = stack.index(name)
            groups.append(stack[at:])
            del stack[at:]

    for name in edges:
        if name not in order:
            visit(name)
    for group in groups:
        if len(group) > 1:
            yield f"{found[min(group)].place}: import cycle of {', '.join(sorted(group))}"


def _heavy(found: dict[str, Module], eager: dict[str, dict[str, int]]) -> Iterator[str]:
    """Heavy imports of light modules, and the shortest way from each to another's heavy import."""
    heavy = {name: _heavy_imports(module) for name, module in found.items()}
    for name, module in found.items():
        if not _is_light(module):
            continue
        for what, line in heavy[name].items():
            yield f"{module.place}:{line}: imports {what} at module level"
        ways, seen = [[target] for target in _loaded(name, eager)], {name}
        while ways:
            way = ways.pop(0)
            end = way[-1]
            if end in seen or _is_light(found[end]):  # a light one is looked at for itself
                continue
            if heavy[end]:
                yield f"{module.place}: imports {' > '.join([*way, *heavy[end]])} at module level"
                break
            seen.add(end)
            ways += [[*way, target] for target in _loaded(end, eager)]


def _is_light(module: Module) -> bool:
    below = module.name.count(".") > 1  # in a folder of a folder
    helper = below or module.name.rpartition(".")[2].startswith("_")  # loaded only by those that import it
    return module.name in LIGHT or (not helper and module.top in LIGHT - {""})


def _heavy_imports(module: Module) -> dict[str, int]:
    names = ((name.partition(".")[0], node.lineno) for node, name in _imports(module, into_functions=False))
    return {name: line for name, line in names if name in HEAVY}


def _loaded(name: str, eager: dict[str, dict[str, int]]) -> list[str]:
    """What importing a module loads next: what it imports, and the packages it lies in."""
    parts = name.split(".")
    return [*eager[name], *(".".join(parts[:end]) for end in range(1, len(parts)))]


def _edges(module: Module, found: dict[str, Module], into_functions: bool) -> dict[str, int]:
    """The package's modules that a module imports, and the line."""
    edges: dict[str, int] = {}
    for node, name in _imports(module, into_functions):
        if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
            continue
        target = name.removeprefix(PACKAGE).removeprefix(".")
        while target not in found:  # `from module import name`: the name is not a module
            target = target.rpartition(".")[0]
        if target != module.name:
            edges.setdefault(target, node.lineno)
    return edges


def _imports(module: Module, into_functions: bool) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """Each import and the full name of what it imports; `from a import b` is `a.b`."""
    for node in statements(module.tree, into_functions):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, f"{_base(module, node)}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
        ):
            if isinstance(node.args[0], ast.Constant):
                yield node, str(node.args[0].value)


def _base(module: Module, node: ast.ImportFrom) -> str:
    """What `from ... import` names, with the leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    package = [PACKAGE, *(module.name.split(".") if module.name else [])]
    if module.path.name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])
