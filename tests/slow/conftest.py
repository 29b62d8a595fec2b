"""Clones of the project at the smoke scale, in which commands are run as a user would."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOREIGN = ("MLFLOW_", "DVC_", "QUINTET_", "RAY_", "GIT_")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    **{f"GIT_{who}_{what}": "tester" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}
NO_NETWORK = "unshare --net --"  # a network namespace whose only device, lo, is down


def sh(command: str, cwd: Path, *, status: int | None = 0, timeout_s: float = 1200, **more: str) -> str:
    """Run a shell command with `more` environment variables; returns both streams. `status` is the expected one, None: any."""
    process = subprocess.Popen(
        command,
        shell=True,
        cwd=cwd,
        env=ENVIRONMENT | more,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        text = process.communicate(timeout=timeout_s)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert status is None or process.returncode == status, f"{command}: exit status {process.returncode}\n{text[-4000:]}"
    return text


def can(command: str) -> bool:
    return subprocess.run(command, shell=True, capture_output=True, check=False).returncode == 0


def clone(target: Path) -> Path:
    """A clone of this checkout, including uncommitted changes, with the smoke preset committed."""
    sh(f"git clone -q '{ROOT}' '{target}'", ROOT)
    changed = sh("git diff --no-renames --name-only HEAD; git ls-files --others --exclude-standard", ROOT).splitlines()
    for name in changed:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)
    sh("quintet preset smoke", target)
    sh("git add -A && git commit -qm 'smoke scale'", target)
    return target


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A clone in which `quintet repro` has run every stage, without a network if the kernel allows it."""
    root = clone(tmp_path_factory.mktemp("finished") / "quintet")
    text = sh(f"{NO_NETWORK if can(f'{NO_NETWORK} true') else ''} quintet repro --jobs 2", root)
    assert "FAILED" not in text
    sh("git add -A && git commit -qm results", root)
    return root


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished clone that a test may change. Its MLflow store is empty, because a store cannot be moved."""
    root = tmp_path / "quintet"
    shutil.copytree(finished, root, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".mlflow*"))
    return root


# these contain times: a run's record, and the tables, pages and figures that show it
FILES_WITH_TIMES = {"record.json", "ranking.md", "ranking.html", "index.html", "curves.csv", "steps.png"}


def results(root: Path, *folders: str) -> dict[str, str]:
    """File -> MD5 of every file that must be equal in two runs of the same stages."""
    files = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): _digest(path) for path in files if path.name not in FILES_WITH_TIMES}


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".json" and path.name in ("metrics.json", "selected.json"):
        values = {name: value for name, value in json.loads(content).items() if "seconds" not in name and "_mb" not in name}
        content = json.dumps(values).encode()
    return hashlib.md5(content).hexdigest()


def ran(text: str) -> list[str]:
    """The stages that DVC ran."""
    return [line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")]


def complete_runs(root: Path) -> set[str]:
    """The keys of the complete runs in the checkout's MLflow."""
    import sqlite3

    query = (
        "select key.value from tags key join tags state on key.run_uuid = state.run_uuid "
        "join runs on runs.run_uuid = key.run_uuid where key.key = 'key' and state.key = 'quintet.state' "
        "and state.value = 'complete' and runs.lifecycle_stage = 'active'"
    )
    with sqlite3.connect(root / "mlflow.db") as database:
        return {row[0] for row in database.execute(query)}
