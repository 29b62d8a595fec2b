"""A few phantoms, prepared, and the study's parameters shrunk to seconds."""

from pathlib import Path

import pytest

from tests.conftest import REAL, with_changes

SMALL = {
    "ct.synthetic.scans": 40,
    "ct.size": 32,
    "ct.input_size": [6, 65, 65],
    "ct.width": 8,
    "ct.epochs": 2,
    "ct.units": [16, 8],
    "ct.embedding": 8,
    "ct.train_eval": 0.3,
    "ct.test": 0.35,
    "ranking.bootstrap": 100,
    "compute.device": "cpu",
    "compute.threads": 1,
}


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    """40 studies, one in four a NIfTI file."""
    from quintet.ct.synthetic import synthesize

    folder = tmp_path_factory.mktemp("raw") / "ct"
    synthesize(folder, scans=40, matrix=32, seed=3, workers=2)
    return folder


@pytest.fixture(scope="session")
def cubes(scans, tmp_path_factory, values) -> Path:
    from quintet.ct.data import prepare
    from quintet.params import parse

    folder = tmp_path_factory.mktemp("prepared") / "ct"
    prepare(scans, folder, parse(with_changes(values, SMALL)).ct)
    return folder


@pytest.fixture
def small(make_params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # checkpoints go here; without a dvc.yaml nothing is mirrored
    return make_params(SMALL)


@pytest.fixture(scope="session")
def real_scans() -> Path:
    if not (REAL / "ct").is_dir():
        pytest.skip("../shared/real is not here")
    return REAL / "ct"
