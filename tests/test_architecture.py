"""Imports run downwards only: stages -> driver -> studies -> shared modules; studies stay apart, statistics import no torch."""

import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from quintet.params import StudyName
from tests.conftest import ROOT
from tests.sources import imports

SOURCE = ROOT / "src" / "quintet"
FILES = sorted(SOURCE.rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))
STUDIES = {study.value for study in StudyName}
REGISTRY = {"study.py", "cli"}  # study.py imports each study's package; the commands index and search are ct's


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


def studies(names: frozenset[str]) -> set[str]:
    return {study for study in STUDIES for name in names if f"{name}.".startswith(f"quintet.{study}.")}


def test_a_study_imports_no_other_and_nothing_shared_imports_a_study():
    seen = set()
    for path in FILES:
        package = path.relative_to(SOURCE).parts[0]
        if package not in REGISTRY:
            assert studies(imports(path)) <= {package} & STUDIES, path
            seen |= {package} & STUDIES
    assert seen == STUDIES
    assert len(FILES) > 100


def test_a_stage_imports_its_own_study_alone():
    assert len(STAGES) > 30
    for path in STAGES:
        assert studies(imports(path)) <= {path.stem.partition("_")[0]} & STUDIES, path


def test_shared_modules_do_not_import_the_driver():
    users = {path.relative_to(SOURCE).parts[0] for path in FILES if "quintet.experiment" in imports(path)}
    assert users == {"cli"}


@pytest.mark.parametrize(
    ("library", "folders"),
    [("mlflow", {"tracking", "serving"}), ("dvc", {"pipeline"})],
)
def test_one_package_alone_imports_it(library, folders):
    users = {path.parent.name for path in [*FILES, *STAGES] if any(f"{n}.".startswith(f"{library}.") for n in imports(path))}
    assert users == folders


def test_no_module_imports_itself_in_a_circle():
    """Imports inside functions included, except the registry's, which imports a study's package when asked for it."""
    known = {module(path) for path in FILES}
    lazy = {"quintet.study": {f"quintet.{study}" for study in STUDIES} | {f"quintet.{study}.study" for study in STUDIES}}
    graph = {name: (imports(path) & known) - {name} - lazy.get(name, set()) for path in FILES for name in [module(path)]}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == known


def test_statistics_parameters_and_commands_import_no_torch():
    """One after the other in one process, which ends at the first that does; describing a study belongs to them."""
    names = (
        "ranking",
        "results",
        "resampling",
        "comparison",
        "report",
        "pipeline",
        "params",
        "cli",
        "stage",
        "study",
        "experiment",
    )
    lines = [
        "import importlib, sys",
        "def check(name):",
        "    if 'torch' in sys.modules or 'mlflow' in sys.modules: sys.exit(name)",
    ]
    lines += [f"importlib.import_module('quintet.{name}'); check('{name}')" for name in names]
    lines += [f"sys.modules['quintet.study'].load_study('{study}'); check('{study}')" for study in sorted(STUDIES)]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
