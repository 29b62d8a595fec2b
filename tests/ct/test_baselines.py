import shutil

import numpy as np
import pytest
import torch

from quintet import experiment
from quintet.ct.baselines import BASELINES, baselines, oracle
from quintet.ct.data.prepared import load
from quintet.ct.metrics import jaccard, retrieve
from quintet.errors import InputError
from tests.ct.conftest import SMALL


def test_baselines_by_their_definitions(cubes, make_params):
    data = load(cubes)
    rows = data.rows("test")
    scans = data.scans(rows)
    different = scans.patients[:, None] != scans.patients[None, :]
    relevant = np.array([[bool(a @ b) or not (a.any() or b.any()) for b in scans.labels] for a in scans.labels])
    training = make_params(SMALL).ct.training
    found = retrieve(BASELINES["random"](data, rows, training), scans)
    assert found.metrics["precision_at_5"] == pytest.approx((relevant & different).sum(1) / different.sum(1))
    prior = BASELINES["prior"](data, rows, training)
    assert (prior == prior[0]).all()
    known = data.labels[data.rows("train")]
    full = scans.labels.sum(1) == 3
    assert prior[0][full] == pytest.approx((known.sum(1) / 3).mean())
    assert prior[0][scans.labels.sum(1) == 0] == pytest.approx((known.sum(1) == 0).mean())
    similarity = BASELINES["histogram"](data, rows, training)
    assert np.allclose(np.diag(similarity), 0)
    assert (similarity <= 0).all()


def test_run_folders_of_baselines_and_external_embeddings(make_params, cubes, trained, tmp_path, monkeypatch):
    """A run's own embeddings, given as a file, have the run's scores."""
    monkeypatch.chdir(tmp_path)
    run, scores, _ = trained
    params = make_params(SMALL | {"ct.external": {"elsewhere": str(run / "evaluation" / "embeddings.npz")}})
    metrics = experiment.run_baselines("ct", params, cubes, tmp_path / "baselines")
    assert list(metrics) == ["random", "prior", "histogram", "random-network", "oracle", "elsewhere"]
    assert metrics["elsewhere"]["ndcg_at_10"] == pytest.approx(scores["ndcg_at_10"])
    written = {path.parent.parent.parent.name for path in (tmp_path / "baselines").glob("*/seed0/evaluation/neighbours.csv")}
    assert written == {"histogram", "random-network", "elsewhere"}  # the neighbours of the others are arbitrary
    record = experiment.Record.load(tmp_path / "baselines/elsewhere/seed0")
    assert record.params == {"neighbours": params.ct.evaluation.neighbours}
    assert set(record.inputs) == {"data", "embeddings"}


def test_the_oracle_has_the_drawn_findings_and_is_absent_without_them(cubes, make_params, tmp_path):
    data, params = load(cubes), make_params(SMALL).ct
    rows = data.rows("test")
    similarity = oracle(data.truth, rows)
    sets = [set(np.flatnonzero(row)) for row in data.truth[rows]]
    expected = [[len(a & b) / len(a | b) if a | b else 1.0 for b in sets] for a in sets]
    assert similarity == pytest.approx(np.array(expected))
    perfect = retrieve(jaccard(data.labels[rows], data.labels[rows]), data.scans(rows)).metrics["ndcg_at_10"]
    assert np.nanmean(perfect) == pytest.approx(1)
    assert np.nanmean(retrieve(similarity, data.scans(rows)).metrics["ndcg_at_10"]) < 1  # the labels have a reader's errors
    own = shutil.copytree(cubes, tmp_path / "own")
    (own / "truth.csv").unlink()
    assert set(baselines(data, params)) - set(baselines(load(own), params)) == {"oracle"}


def test_the_random_network_is_the_same_every_time_and_leaves_the_seed_alone(cubes, make_params):
    data, training = load(cubes), make_params(SMALL).ct.training
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = BASELINES["random-network"](data, data.rows("test"), training)
    assert torch.rand(1) == expected
    assert np.array_equal(first, BASELINES["random-network"](data, data.rows("test"), training))
    assert np.diag(first) == pytest.approx(1, abs=1e-5)
    assert first.std() > 0.05  # it distinguishes scans


def test_a_missing_file_of_embeddings_is_reported_before_anything_is_written(make_params, cubes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.npz: no such embeddings file"):
        experiment.run_baselines("ct", make_params(SMALL | {"ct.external": {"x": "nowhere.npz"}}), cubes, tmp_path / "out")
    assert not (tmp_path / "out").exists()
