"""How long things may be."""

from pathlib import Path

from house.tree import functions, modules

FILE_LINES, FUNCTION_LINES, VERB_LINES = 400, 60, 40
MAIN = "main"  # the one file of cli/ that is not a verb


def check(root: Path) -> list[str]:
    """Files, functions and verbs that are too long."""
    found = []
    for module in modules(root):
        folder, _, name = module.name.rpartition(".")
        is_verb = folder == "cli" and name != MAIN and not name.startswith("_")
        most = VERB_LINES if is_verb else FILE_LINES
        if module.num_lines > most:
            found.append(f"{module.place}: {module.num_lines} lines, and at most {most} are allowed")
        for function in functions(module.tree):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > FUNCTION_LINES:
                place = f"{module.place}:{function.lineno}"
                found.append(f"{place}: {function.name} has {length} lines, and at most {FUNCTION_LINES} are allowed")
    for folder in ("tests", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            length = len(path.read_text(encoding="utf-8").splitlines())
            if length > FILE_LINES:
                place = path.relative_to(root)
                found.append(f"{place}: {length} lines, and at most {FILE_LINES} are allowed")
    return found
