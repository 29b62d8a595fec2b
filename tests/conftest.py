"""Shared fixtures: the project's parameters shrunk to seconds, a small synthetic study, and the real data where it is."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure

from quintet.params import Params, parse

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "real"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: the tests of a folder, or of a study in test_contract.py, share session fixtures and run in one process.

    (`--dist loadgroup` of pytest-xdist 3.8 has no effect with pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, parameters = nodeid.partition("[")
            folder = path.split("/")[1].partition("::")[0]
            return f"contract {parameters}" if folder == "test_contract.py" else folder

    return ByFolder(config, log)


@pytest.fixture(scope="session", autouse=True)
def _coarse_figures() -> Iterator[None]:
    """Draw every figure, but without its layout and at a low resolution: they take a third of the time of an evaluation."""
    save = Figure.savefig

    def save_coarsely(figure: Figure, *arguments: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        save(figure, *arguments, **options | {"dpi": 30})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_coarsely)
        yield


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
