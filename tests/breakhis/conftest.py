"""A small tree of phantoms, prepared, and the study's parameters shrunk to seconds."""

from pathlib import Path

import pytest

from tests.conftest import REAL, with_changes

SMALL = {
    "breakhis.data.folds": 2,
    "breakhis.data.size": 32,
    "breakhis.training.epochs": 2,
    "breakhis.training.samples": 1,
    "breakhis.training.units": [16, 8],
    "breakhis.sweep": {"configs": ["mmnet", "single-400X"], "folds": [0, 1], "seeds": [0]},
    "ranking.bootstrap": 100,
    "compute.device": "cpu",
    "compute.threads": 1,
}


@pytest.fixture(scope="session")
def slides(tmp_path_factory) -> Path:
    """20 patients, 8 of them benign."""
    from quintet.breakhis.synthetic import synthesize

    folder = tmp_path_factory.mktemp("raw") / "breakhis"
    synthesize(folder, patients=20, width=64, separation=1.5, seed=3, workers=2)
    return folder


@pytest.fixture(scope="session")
def slide_arrays(slides, tmp_path_factory, values) -> Path:
    from quintet.breakhis.data.prepare import prepare
    from quintet.params import parse

    folder = tmp_path_factory.mktemp("prepared") / "breakhis"
    prepare(slides, folder, parse(with_changes(values, SMALL)).breakhis)
    return folder


@pytest.fixture
def small(make_params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # checkpoints go here; without a dvc.yaml nothing is mirrored
    return make_params(SMALL)


@pytest.fixture(scope="session")
def real_slides() -> Path:
    if not (REAL / "breakhis").is_dir():
        pytest.skip("../shared/real is not here")
    return REAL / "breakhis"
