"""A few phantoms, prepared; the study's parameters shrunk to seconds; a trained run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quintet import experiment
from quintet.params import CtConfig, Params, parse
from quintet.runs import Record
from tests.conftest import REAL, with_changes

SMALL = {
    "ct.synthetic.scans": 40,
    "ct.synthetic.matrix": 32,
    "ct.data.size": 32,
    "ct.data.train_eval": 0.3,
    "ct.data.test": 0.35,
    "ct.training.input_size": [6, 65, 65],
    "ct.training.width": 8,
    "ct.training.epochs": 2,
    "ct.training.units": [16, 8],
    "ct.training.embedding": 8,
    "ct.sweep.seeds": [0],
    "ranking.bootstrap": 100,
    "compute.device": "cpu",
    "compute.threads": 1,
}


@pytest.fixture(scope="session")
def scans(tmp_path_factory, values) -> Path:
    """40 scans, one in four a NIfTI file."""
    from quintet.ct.synthetic import synthesize

    folder = tmp_path_factory.mktemp("raw") / "ct"
    synthesize(folder, parse(with_changes(values, SMALL)).ct.synthetic, workers=2)
    return folder


@pytest.fixture(scope="session")
def cubes(scans, tmp_path_factory, values) -> Path:
    from quintet.ct.data.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared") / "ct"
    prepare(scans, folder, parse(with_changes(values, SMALL)).ct)
    return folder


@pytest.fixture
def small(make_params, tmp_path, monkeypatch) -> Params:
    monkeypatch.chdir(tmp_path)  # checkpoints go here; without a dvc.yaml nothing is mirrored
    return make_params(SMALL)


def train(params: Params, data: Path, run: Path, *, config: CtConfig | None = None, seed: int = 0) -> Record:
    """Train a configuration (default: the selected one) into a run folder."""
    changes: Mapping[str, Any] = {"seed": seed} | (config.model_dump() if config else {})
    changed = params.model_copy(update={"ct": params.ct.model_copy(update=changes)})
    return experiment.train_selected("ct", changed, data, run)


@pytest.fixture(scope="session")
def trained(cubes, tmp_path_factory, values) -> tuple[Path, dict[str, float], Record]:
    """The selected configuration after two epochs, evaluated."""
    params = parse(with_changes(values, SMALL))
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        record = train(params, cubes, folder / "run")
        metrics = experiment.evaluate_selected("ct", params, cubes, folder / "run", folder / "scores.json")
    return folder / "run", metrics, record


@pytest.fixture(scope="session")
def real_scans() -> Path:
    if not (REAL / "ct").is_dir():
        pytest.skip("../shared/real is not here")
    return REAL / "ct"
