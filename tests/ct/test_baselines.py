import numpy as np
import pytest

from quintet import experiment
from quintet.ct.baselines import BASELINES
from quintet.ct.data.prepared import load
from quintet.ct.metrics import retrieve
from quintet.errors import InputError
from tests.ct.conftest import SMALL


def test_baselines_by_their_definitions(cubes):
    data = load(cubes)
    rows = data.rows("test")
    scans = data.scans(rows)
    different = scans.patients[:, None] != scans.patients[None, :]
    relevant = np.array([[bool(a @ b) or not (a.any() or b.any()) for b in scans.labels] for a in scans.labels])
    found = retrieve(BASELINES["random"](data, rows), scans)
    assert found.metrics["precision_at_5"] == pytest.approx((relevant & different).sum(1) / different.sum(1))
    prior = BASELINES["prior"](data, rows)
    assert (prior == prior[0]).all()
    known = data.labels[data.rows("train")]
    full = scans.labels.sum(1) == 3
    assert prior[0][full] == pytest.approx((known.sum(1) > 0).mean())
    assert prior[0][scans.labels.sum(1) == 0] == pytest.approx((known.sum(1) == 0).mean())
    similarity = BASELINES["histogram"](data, rows)
    assert np.allclose(np.diag(similarity), 0)
    assert (similarity <= 0).all()


def test_run_folders_of_baselines_and_external_embeddings(make_params, cubes, trained, tmp_path, monkeypatch):
    """A run's own embeddings, given as a file, have the run's scores."""
    monkeypatch.chdir(tmp_path)
    run, scores, _ = trained
    params = make_params(SMALL | {"ct.external": {"elsewhere": str(run / "evaluation" / "embeddings.npz")}})
    metrics = experiment.run_baselines("ct", params, cubes, tmp_path / "baselines")
    assert list(metrics) == ["random", "prior", "histogram", "elsewhere"]
    assert metrics["elsewhere"]["map_at_5"] == pytest.approx(scores["map_at_5"])
    written = {path.parent.parent.parent.name for path in (tmp_path / "baselines").glob("*/seed0/evaluation/neighbours.csv")}
    assert written == {"histogram", "elsewhere"}  # the neighbours of the others are arbitrary
    record = experiment.Record.load(tmp_path / "baselines/elsewhere/seed0")
    assert record.params == {"neighbours": params.ct.evaluation.neighbours}
    assert set(record.inputs) == {"data", "embeddings"}


def test_a_missing_file_of_embeddings_is_reported_before_anything_is_written(make_params, cubes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.npz: no such embeddings file"):
        experiment.run_baselines("ct", make_params(SMALL | {"ct.external": {"x": "nowhere.npz"}}), cubes, tmp_path / "out")
    assert not (tmp_path / "out").exists()
