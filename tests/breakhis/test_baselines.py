"""The baselines against their definitions, on a small prepared tree."""

from dataclasses import replace

import numpy as np
import pytest

from quintet import results
from quintet.breakhis.baselines import BASELINES, baselines, mean_colours
from quintet.breakhis.data.prepared import load
from quintet.runs import Record


def test_prior_is_the_training_patients_share(slide_arrays):
    data = load(slide_arrays)
    train = data.patients("train", 0)
    assert BASELINES["prior"](data, train, ["a", "b"]).tolist() == [data.classes(train).mean()] * 2


def test_mean_colour_is_that_of_all_images(slide_arrays):
    data = load(slide_arrays)
    name = data.patients("test", 0)[0]
    own = data.table[data.table["patient"] == name]
    pixels = np.concatenate([data.images[m][r].reshape(-1, 3) for m, r in zip(own["magnification"], own["row"], strict=True)])
    np.testing.assert_allclose(mean_colours(data, [name])[0], pixels.mean(0))


def test_stain_learns_a_class_that_differs_in_colour(slide_arrays):
    data = load(slide_arrays)
    malignant = set(data.table["patient"][data.table["class"] == "malignant"])
    images = {m: np.array(stack) for m, stack in data.images.items()}
    for row in data.table.to_dict("records"):
        images[row["magnification"]][row["row"], ..., 0] = 200 if row["patient"] in malignant else 100
    coloured, test = replace(data, images=images), data.patients("test", 0)
    p = BASELINES["stain"](coloured, data.patients("train", 0), test)
    assert ((p > 0.5) == data.classes(test)).all()


def test_the_oracle_exists_for_phantoms_only_and_reads_their_truth(slide_arrays, tmp_path):
    data = load(slide_arrays)
    assert set(baselines(replace(data, truth=None))) == {"prior", "stain"}
    record = Record("breakhis", "s", "oracle", 0, {}, {}, fold=1)
    metrics = baselines(data)["oracle"].evaluate(tmp_path, record)
    cases = results.read([tmp_path / "cases.csv"]).pivot(index="group", columns="metric", values="value")
    assert sorted(cases.index) == data.patients("test", 1)
    truth = data.truth.set_index("patient")["probability"][cases.index]
    np.testing.assert_allclose(cases["probability"], truth)
    assert metrics["brier"] == pytest.approx(((truth - cases["malignant"]) ** 2).mean())
