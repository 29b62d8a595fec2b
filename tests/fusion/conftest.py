"""Phantoms of two hospitals, some without outcome, prepared at 12 voxels, and the parameters that train on them in seconds."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from quintet import experiment
from quintet.fusion.data.prepare import prepare
from quintet.fusion.data.segmentation import segment
from quintet.fusion.synthetic import synthesize
from quintet.params import parse
from tests.conftest import REAL, with_changes

HERE, ELSEWHERE = 44, 6  # patients
PATIENTS = 30  # of a raw folder that a test may change
SMALL = {
    "fusion.data.size": 12,
    "fusion.training.epochs": 2,
    "fusion.training.batch_size": 8,
    "fusion.training.hidden": 16,
    "fusion.training.clinical_units": [8, 16],
    "fusion.training.predictor_units": [8],
    "fusion.training.sampling_steps": 4,
    "fusion.training.diffusion.layers": 1,
    "fusion.training.diffusion.steps": 20,
    "fusion.training.tokens.epochs": 2,
    "fusion.training.flow": {
        "width": 16,
        "layers": 1,
        "iterations": 20,
        "batch_size": 16,
        "rate": 0.002,
        "weight_decay": 0.0,
        "steps": 4,
    },
    "fusion.evaluation.samples": 2,
    "fusion.evaluation.draws": 4,
    "fusion.evaluation.ttt.steps": [0, 2],
    "ranking.bootstrap": 100,
    "fusion.configs": {
        "late": {"method": "late", "encoders": "trained", "modality_dropout": 0.0, "patients": "all"},
        "attention": {"method": "attention", "encoders": "trained", "modality_dropout": 0.3, "patients": "all"},
        "diffusion": {"method": "diffusion", "encoders": "trained", "modality_dropout": 0.3, "patients": "all"},
        "concat": {"method": "concat", "encoders": "trained", "modality_dropout": 0.3, "patients": "all"},
        **{
            name: {"method": name, "encoders": "frozen", "modality_dropout": 0.0, "patients": "all"}
            for name in ("transformer", "shaspec", "mean", "ridge", "gaussian", "flow")
        },
        "flow-complete": {"method": "flow", "encoders": "frozen", "modality_dropout": 0.0, "patients": "complete"},
    },
    "fusion.sweep.configs": ["attention", "diffusion", "concat", "flow"],
    "fusion.sweep.seeds": [0],
}


@pytest.fixture
def small(make_params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_params(SMALL)


@pytest.fixture(scope="session")
def heads(values, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "raw"
    drawn = parse(values).fusion.synthetic
    second = drawn.second_hospital.model_copy(update={"patients": ELSEWHERE})
    drawn = drawn.model_copy(update={"patients": HERE, "unlabelled": 0.1, "second_hospital": second, "seed": 5})
    synthesize(folder, drawn, workers=2)
    return folder


@pytest.fixture
def raw(heads, tmp_path):
    """A copy of most patients, all with an outcome, and without the drawn truth."""
    clinical = pd.read_csv(heads / "clinical_data.csv", dtype=str, keep_default_na=False).iloc[:PATIENTS]
    clinical = clinical.replace({"outcome": {"": "stable"}, "survival_days": {"": "300"}, "event": {"": "1.0"}})
    for patient in clinical["patient"]:
        shutil.copytree(heads / patient, tmp_path / "raw" / patient)
    clinical.to_csv(tmp_path / "raw" / "clinical_data.csv", index=False)
    return tmp_path / "raw"


@pytest.fixture
def table(raw):
    return pd.read_csv(raw / "clinical_data.csv", dtype=str, keep_default_na=False)


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
def trained(prepared, tmp_path_factory, values):
    """The selected configuration (diffusion) after two epochs, evaluated: its run folder, metrics and record."""
    params = parse(with_changes(values, SMALL))
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        record = experiment.train_selected("fusion", params, prepared, folder / "run")
        metrics = experiment.evaluate_selected("fusion", params, prepared, folder / "run", folder / "scores.json")
    finally:
        os.chdir(before)
    return folder / "run", metrics, record


@pytest.fixture(scope="session")
def real_fusion() -> Path:
    if not (REAL / "fusion").is_dir():
        pytest.skip("../shared/real is not here")
    return REAL / "fusion"
