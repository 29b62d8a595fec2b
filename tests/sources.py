"""Which source files a stage uses, by the import statements of its script and of everything that they lead to."""

import ast
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

SOURCE = ROOT / "src"
# Carries values from params, data and records around without changing any result: no stage depends on it.
PLUMBING = ("errors", "files", "registry", "runs", "stage", "study", "experiment", "params", "tracking", "serving")


@cache
def imports(path: Path) -> frozenset[str]:
    """The dotted names that a file imports, inside functions too; of `from a import b`, both a and a.b. Imports that only type
    checkers see are left out."""
    found: set[str] = set()
    left: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            left += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        left += ast.iter_child_nodes(node)
    return frozenset(found)


def module_file(name: str) -> Path | None:
    """The source file of one of our modules; None for names of other packages, and for functions and classes."""
    path = SOURCE / name.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def is_plumbing(path: Path) -> bool:
    parts = path.relative_to(SOURCE / "quintet").with_suffix("").parts
    return parts[0] in PLUMBING or parts == ("__init__",)


def stage_imports(script: Path) -> set[str]:
    """The modules that a stage names in `run_stage(main, imports=...)`, and those that its script imports."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_stage"]
    named = ast.literal_eval(calls[0].keywords[0].value)
    return {*imports(script), *((named,) if isinstance(named, str) else named)}


def sources(script: Path) -> set[str]:
    """The files below src/ whose change may change what a stage writes, relative to the repository."""
    found: set[Path] = set()
    left = stage_imports(script)
    while left:
        path = module_file(left.pop())
        if path is None or path in found or is_plumbing(path):
            continue
        found.add(path)
        left |= imports(path)
    return {path.relative_to(ROOT).as_posix() for path in found if path.read_text(encoding="utf-8").count("\n") > 1}
