"""What the scripts in stages/ share: whose code they run, and what happens if it is edited meanwhile."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

SCRIPT = """
from pathlib import Path

import quintet
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params) -> str:
    {edit}
    return quintet.__file__


if __name__ == "__main__":
    run_stage(main, imports="quintet.runs")
"""
STAGE = {"cmd": "", "deps": ["stages/one.py", "src/quintet/runs.py", "raw"], "params": ["ct.seed", "ct.training"]}


def run(folder: Path, edit: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
    """A stage script in `folder`, with the package of this checkout installed."""
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / "one.py").write_text(SCRIPT.format(edit=edit))
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"one": STAGE}}))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment
    return subprocess.run(
        [sys.executable, "stages/one.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_a_copy_of_the_checkout_runs_its_own_code(tmp_path):
    """As DVC's queued experiments are, in which another checkout's package is installed."""
    assert f"{ROOT}/src/quintet/__init__.py" in run(tmp_path).stdout
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    done = run(tmp_path)
    assert f"one: {tmp_path}/src/quintet/__init__.py" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        ("Path('src/quintet/runs.py').write_text('# edited')", "src/quintet/runs.py"),
        ("Path('params.yaml').write_text(Path('params.yaml').read_text().replace('seed: 0', 'seed: 5'))", "ct.seed"),
        ("Path('src/quintet/files.py').write_text('# no dependency')", ""),
        ("Path('params.yaml').write_text(Path('params.yaml').read_text() + '# a comment')", ""),
    ],
)
def test_a_stage_whose_dependencies_are_edited_meanwhile_fails(tmp_path, edit, changed):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    done = run(tmp_path, edit, DVC_STAGE="one")
    assert done.returncode == (2 if changed else 0), done.stderr
    assert (f"{changed}: edited while this stage ran; run it again" in done.stderr) == bool(changed)
