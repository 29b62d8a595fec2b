"""60 phantoms prepared at 12 voxels, and the parameters that train on them in seconds."""

import os
from pathlib import Path

import pytest

from quintet.fusion.data import prepare
from quintet.fusion.segmentation import segment
from quintet.fusion.synthetic import synthesize
from quintet.params import parse
from tests.conftest import REAL, with_changes

SMALL = {
    "fusion.size": 12,
    "fusion.epochs": 2,
    "fusion.batch_size": 8,
    "fusion.hidden": 16,
    "fusion.clinical_units": [8, 16],
    "fusion.predictor_units": [8],
    "fusion.sampling_steps": 4,
    "fusion.samples": 2,
    "fusion.ttt.steps": 2,
    "fusion.diffusion.layers": 1,
    "fusion.diffusion.steps": 20,
    "ranking.bootstrap": 100,
    "fusion.configs": {
        "attention": {"method": "attention", "dropping": 0.3},
        "diffusion": {"method": "diffusion", "dropping": 0.3},
        "concat": {"method": "concat", "dropping": 0.3},
        "late": {"method": "late", "dropping": 0.0},
    },
}


@pytest.fixture
def small(make_params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_params(SMALL)


@pytest.fixture(scope="session")
def heads(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "raw"
    synthesize(folder, patients=60, seed=5, workers=2)
    return folder


@pytest.fixture(scope="session")
def prepared(heads, values, tmp_path_factory) -> Path:
    params = parse(with_changes(values, SMALL)).fusion
    folder = tmp_path_factory.mktemp("prepared")
    before = Path.cwd()
    os.chdir(folder)
    try:
        segment(heads, folder / "masks", params, workers=2)
        prepare(heads, folder / "masks", folder / "data", params, workers=2)
    finally:
        os.chdir(before)
    return folder / "data"


@pytest.fixture(scope="session")
def real_fusion() -> Path:
    if not (REAL / "fusion").is_dir():
        pytest.skip("../shared/real is not here")
    return REAL / "fusion"
