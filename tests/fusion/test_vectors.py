"""Modalities that are tables of numbers: encoding, reading, and the whole path with and without images."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from quintet import experiment
from quintet.errors import InputError
from quintet.fusion.data.prepare import check, prepare
from quintet.fusion.data.prepared import load
from quintet.fusion.data.raw import read_vectors
from quintet.fusion.data.segmentation import segment
from quintet.fusion.data.vectors import CLIP_SD, VectorEncoder
from quintet.serving.loader import Served
from quintet.training.models import load_model
from tests.served import model_folder

from .conftest import SMALL


def correlated(count: int, seed: int = 0) -> pd.DataFrame:
    """Five columns of very different scale that depend on two traits, and a constant one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2)) @ rng.normal(size=(2, 5)) + 0.1 * rng.normal(size=(count, 5))
    table = pd.DataFrame(x * [1, 1e6, 1e-6, 30, 2] + [0, 5e7, 1, -4, 0], columns=list("abcde")).assign(constant=7.0)
    return table.set_index(pd.Index([f"patient_{i:03d}" for i in range(count)], name="patient"))


def test_components_are_uncorrelated_with_unit_variance_and_do_not_depend_on_units():
    table = correlated(300)
    encoder = VectorEncoder.fit(table, 2)
    values, has = encoder(table)
    assert encoder.columns == list("abcde")
    assert has.all()
    assert np.cov(values.T, bias=True) == pytest.approx(np.eye(2), abs=0.02)
    other = table * [1000, 0.1, 1, 1, 1, 1]
    assert VectorEncoder.fit(other, 2)(other)[0] == pytest.approx(values, abs=1e-4)
    again = VectorEncoder(**encoder.to_dict())
    assert np.array_equal(again(table)[0], values)


def test_missing_numbers_count_as_the_mean_and_strays_are_clipped():
    table = correlated(200)
    encoder = VectorEncoder.fit(table, 5)
    mean = pd.DataFrame([encoder.mean], columns=encoder.columns)
    centre = encoder(mean)[0]
    row = mean.copy()
    row["b"] = np.nan
    assert encoder(row)[0] == pytest.approx(centre)
    far, farther = (mean.assign(b=encoder.mean[1] + factor * encoder.sd[1]) for factor in (CLIP_SD, 1e6))
    assert encoder(far)[0] == pytest.approx(encoder(farther)[0])
    values, has = encoder(mean * np.nan)
    assert (has.tolist(), values.shape) == ([False], (1, 5))


@pytest.mark.parametrize("table", [pd.DataFrame(), correlated(20)[["constant"]], correlated(20) * np.nan])
def test_a_table_without_information_gives_no_feature(table):
    encoder = VectorEncoder.fit(table, 4)
    assert encoder.width == 0
    assert encoder(correlated(3))[0].shape == (3, 0)
    assert not encoder(correlated(3))[1].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient,a\nx,1\ny,high\n", "row 3: a is 'high', expected a number"),
        ("patient,a\nx,1\nx,2\n", "row 3: patient x is listed twice"),
        ("patient,a\n,1\n", "row 2: no patient"),
        ("patient\nx\n", "one column"),
    ],
)
def test_a_bad_table_is_named_with_its_row(tmp_path, text, message):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "dti.csv").write_text(text)
    with pytest.raises(InputError, match=rf"features/dti\.csv: .*{message}"):
        read_vectors(tmp_path, ["dti"])
    with pytest.raises(InputError, match=r"dsc\.csv: no such file; fusion\.data\.vectors names it"):
        read_vectors(tmp_path, ["dsc"])


@pytest.fixture(scope="module")
def with_features(heads, tmp_path_factory) -> Path:
    """The phantoms' folder with two tables: `dti` for every second patient, `dsc` for all, and a patient without images."""
    raw = tmp_path_factory.mktemp("vectors") / "raw"
    shutil.copytree(heads, raw, ignore=shutil.ignore_patterns("truth.csv"))
    clinical = pd.read_csv(raw / "clinical_data.csv", dtype=str)
    clinical = pd.concat([clinical, clinical.iloc[[0]].assign(patient="table_only")])
    clinical.to_csv(raw / "clinical_data.csv", index=False)
    (raw / "features").mkdir()
    values = correlated(len(clinical)).set_index(pd.Index(clinical["patient"]))
    values.to_csv(raw / "features" / "dsc.csv")
    values.iloc[::2].to_csv(raw / "features" / "dti.csv")
    return raw


@pytest.mark.parametrize("images", [["pet"], []])
@pytest.mark.parametrize("method", ["attention", "diffusion", "concat", "late"])
def test_vectors_with_and_without_images(with_features, make_params, tmp_path, monkeypatch, images, method):
    """Prepare, train, evaluate on every subset, predict; a model is the same with a table's rows in another order."""
    monkeypatch.chdir(tmp_path)
    changes = {"fusion.data.modalities": images, "fusion.data.vectors": ["dsc", "dti"], "fusion.data.components": 3}
    own = {"dti": {"clinical_units": [4]}} | {name: {"width": 16} for name in images}
    changes |= {"fusion.training.own_encoders": own, "fusion.method": method, "fusion.training.epochs": 1}
    params = make_params(SMALL | changes)
    assert not check(with_features, params.fusion)
    segment(with_features, tmp_path / "masks", params.fusion)
    data, _ = prepare(with_features, tmp_path / "masks", tmp_path / "data", params.fusion)
    assert data.modalities == [*images, "dsc", "dti", "clinical"]
    assert data.present[:, len(images)].all()
    assert 0.4 < data.present[:, len(images) + 1].mean() < 0.6
    assert "table_only" in set(data.table["patient"])
    assert [v.shape[1] for v in load(tmp_path / "data").vectors[:2]] == [3, 3]
    experiment.train_selected("fusion", params, tmp_path / "data", tmp_path / "run")
    encoders = load_model(tmp_path / "run" / "model" / "model.pt")[1]
    assert [encoder["width"] for encoder in encoders["images"]] == [16] * len(images)
    assert [units for _, *units in encoders["vectors"]] == [[8, 16], [4], [8, 16]]
    metrics = experiment.evaluate_selected("fusion", params, tmp_path / "data", tmp_path / "run", tmp_path / "scores.json")
    assert {"auc/dsc+dti", "auc/recorded"} <= metrics.keys()
    if method == "attention":
        _predict_new(with_features, tmp_path, data.modalities)


def _predict_new(raw: Path, work: Path, modalities: list[str]) -> None:
    new = work / "new"
    (new / "features").mkdir(parents=True)
    table = pd.read_csv(raw / "features" / "dsc.csv", dtype={"patient": str})
    table.iloc[::-1].head(5).to_csv(new / "features" / "dsc.csv", index=False)
    options = {"overlays": work / "cubes", "device": "cpu", "skip": False}
    count = experiment.predict_folder("fusion", [work / "run"], new, work / "out.csv", **options)
    predicted = pd.read_csv(work / "out.csv")
    assert (count, set(predicted["modalities"])) == (5, {"dsc"})
    table.drop(columns="c").to_csv(new / "features" / "dsc.csv", index=False)
    with pytest.raises(InputError, match=r"features/dsc\.csv: no column 'c'"):
        experiment.predict_folder("fusion", [work / "run"], new, work / "out2.csv", overlays=None, device="cpu", skip=False)
    assert "dsc" in modalities
    served = Served(model_folder(work / "run", work / "served"), "cpu")
    columns = list(served.models[0].vector_encoders["dsc"].columns)
    with pytest.raises(MlflowException, match=f"has no dsc/{columns[-1]}; give every column of dsc"):
        served.predict(pd.DataFrame([{f"dsc/{column}": 1.0 for column in columns[:-1]}]))
