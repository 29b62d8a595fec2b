"""Imports run downwards only: stages -> studies -> shared modules; studies stay apart, statistics know no torch."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from quintet.params import StudyName
from tests.conftest import ROOT

SOURCE = ROOT / "src" / "quintet"
FILES = sorted(SOURCE.rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))


def imports(path: Path, *, inside_functions: bool = True) -> set[str]:
    """The dotted names that a file imports; of `from a import b`, a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


def studies(names: set[str]) -> set[str]:
    return {study.value for study in StudyName for name in names if f"{name}.".startswith(f"quintet.{study.value}.")}


def test_a_study_imports_no_other_and_nothing_shared_imports_a_study():
    rooms = {study.value for study in StudyName}
    seen = set()
    for path in FILES:
        room = path.relative_to(SOURCE).parts[0]
        own = {room} & rooms
        assert studies(imports(path)) <= own, path
        seen |= own
    assert seen == rooms
    assert len(FILES) > 100


def test_a_stage_imports_its_own_study_alone():
    assert len(STAGES) > 30
    for path in STAGES:
        own = {path.stem.partition("_")[0]} & {study.value for study in StudyName}
        assert studies(imports(path)) == own, path


def test_only_tracking_imports_mlflow():
    users = {path.parent.name for path in [*FILES, *STAGES] if any(f"{name}.".startswith("mlflow.") for name in imports(path))}
    assert users == {"tracking"}


def test_no_module_waits_for_itself():
    known = {module(path) for path in FILES}
    graph = {module(path): (imports(path, inside_functions=False) & known) - {module(path)} for path in FILES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == known


@pytest.mark.parametrize("name", ["ranking", "results", "resampling", "comparison", "report", "repro", "params", "cli", "stage"])
def test_knows_no_torch(name):
    code = f"import sys, quintet.{name}; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
