"""Shared fixtures: the project's parameters shrunk to seconds, a small synthetic study, and the real data where it is."""

import copy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from quintet.params import Params, parse

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "real"


@pytest.fixture(scope="session")
def values() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.fixture
def make_params(values: dict[str, Any]) -> Callable[..., Params]:
    """`make_params({"landmarks.data.size": 32})`: params.yaml with some values changed."""

    return lambda changes=None: parse(with_changes(values, changes or {}))


def with_changes(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    for key, value in changes.items():
        *path, last = key.split(".")
        part = changed
        for name in path:
            part = part[name]
        part[last] = value
    return changed


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the second over the first."""
    both = {
        key: merged(values[key], value) if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        for key, value in changes.items()
    }
    return values | both


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that looks like the repository to commands."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "model" / "model.pt", weights_only=True)["state_dict"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def assert_killed_equals_alone(script: str, data: Path, params: dict[str, Any], folder: Path, *, kill_after: str) -> None:
    """kill -9 a training stage after the epoch `kill_after`, run it again: same weights and history as a run left alone."""
    outcomes = {}
    for name, kill in (("alone", False), ("killed", True)):
        work = folder / name
        work.mkdir()
        (work / "params.yaml").write_text(yaml.safe_dump(params))
        command = [sys.executable, "-u", str(ROOT / "stages" / script), "--data", str(data), "--run", "run"]
        if kill:
            process = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(f"epoch {kill_after}"):
                    process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            assert not (work / "run" / "record.json").exists()
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)
        assert ("resuming from" in done.stdout) == kill
        assert not kill or "epoch 1/" not in done.stdout
        outcomes[name] = (state_of(work / "run"), pd.read_csv(work / "run" / "model" / "history.csv"))
    assert equal(outcomes["alone"][0], outcomes["killed"][0])
    pd.testing.assert_frame_equal(outcomes["alone"][1], outcomes["killed"][1])


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 phantoms of 96 px in the study's on-disk format."""
    from quintet.landmarks.synthetic import synthesize

    folder = tmp_path_factory.mktemp("raw") / "landmarks"
    synthesize(folder, images=40, size=96, seed=3, label_noise_px=0.5)
    return folder


@pytest.fixture(scope="session")
def real_landmarks() -> Path:
    if not (REAL / "landmarks").is_dir():
        pytest.skip("../shared/real is not here")
    return REAL / "landmarks"
