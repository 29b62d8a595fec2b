"""From a trained network or a file of embeddings to scores."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from quintet import experiment, results
from quintet.ct.data.prepared import load
from quintet.ct.evaluation.inference import Model
from quintet.ct.evaluation.scores import read_vectors
from quintet.ct.metrics import cosine, retrieve
from quintet.ct.model.networks import network_input
from quintet.errors import InputError


def test_evaluation_covers_the_test_part(trained, cubes):
    run, metrics, _ = trained
    table = load(cubes).table.query("split == 'test'")
    cases = results.read([run / "evaluation" / "cases.csv"])
    of_patients = cases["metric"].str.endswith("/pseudo_value")
    pseudo_values, cases = cases[of_patients], cases[~of_patients]
    assert set(pseudo_values["group"]) == set(table["patient"])
    ap = cases[cases["metric"] == "ap_at_5"].groupby("group")["value"].mean()
    own = pseudo_values[pseudo_values["metric"] == "ap_at_5/pseudo_value"].set_index("group")["value"]
    assert own.mean() == pytest.approx(ap.mean())
    assert own.std() > 0
    assert set(cases["case"]) == set(table["study"])
    assert set(cases["group"]) == set(table["patient"])
    assert metrics["queries"] == len(table)
    assert metrics["map_at_5"] == pytest.approx(cases[cases["metric"] == "ap_at_5"]["value"].mean())
    neighbours = pd.read_csv(run / "evaluation" / "neighbours.csv")
    patients = table.set_index("study")["patient"]
    assert (patients[neighbours["query"]].to_numpy() != patients[neighbours["study"]].to_numpy()).all()
    figures = {p.stem for p in (run / "evaluation" / "figures").iterdir()}
    assert figures == {"retrieval", "precision_recall", "precision_recall_by_epoch", "learning_curves"}


def test_metrics_are_those_of_the_saved_network(trained, cubes):
    run, metrics, _ = trained
    data, model = load(cubes), Model.load(run, "cpu")
    rows = data.rows("test")
    volumes = torch.from_numpy(np.stack([data.volumes[row] for row in rows]))
    with torch.inference_mode():
        vectors = model.net.eval()(network_input(volumes, model.net.input_size)).embedding.numpy()
    assert vectors == pytest.approx(model(data.volumes, rows).vectors, abs=1e-5)
    found = retrieve(cosine(vectors), data.scans(rows))
    assert np.nanmean(found.metrics["ap_at_5"]) == pytest.approx(metrics["map_at_5"], abs=1e-3)


def test_labels_in_an_embeddings_table_are_no_dimensions(tmp_path):
    table = pd.DataFrame({"id": ["a", "b"], "e0": [0.1, 0.2], "e1": [0.3, 0.4]})
    table.to_parquet(tmp_path / "x.parquet")
    assert read_vectors(tmp_path / "x.parquet", np.array(["b"])).tolist() == [pytest.approx([0.2, 0.4])]
    table.assign(nodules=[0, 1]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="but not nodules; remove others"):
        read_vectors(tmp_path / "x.parquet", np.array(["b"]))


BAD_VECTORS = {
    "missing": (lambda d: d | {"id": d["id"][:-1], "vector": d["vector"][:-1]}, "no vector for 1 of 40 scans"),
    "twice": (lambda d: d | {"id": np.r_[d["id"][:1], d["id"][:-1]]}, "an id is listed twice"),
    "lengths": (lambda d: d | {"id": d["id"][:-1]}, "expected one vector per id"),
    "NaN": (lambda d: d | {"vector": np.where(np.arange(40)[:, None] == 3, np.nan, d["vector"])}, "vector of s3 is not finite"),
    "no ids": (lambda d: {"vector": d["vector"]}, "expected `id` and `vector`"),
}


@pytest.mark.parametrize("kind", BAD_VECTORS)
def test_bad_external_embeddings(kind, tmp_path):
    change, message = BAD_VECTORS[kind]
    names = np.array([f"s{i}" for i in range(40)])
    np.savez(tmp_path / "x.npz", **change({"id": names, "vector": np.random.default_rng(0).normal(size=(40, 4))}))
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path / "x.npz", names)
    assert message in str(caught.value)
    assert "x.npz" in str(caught.value)


def test_a_run_of_another_study_or_cube_size_is_refused(trained, cubes, small, tmp_path):
    torch.save({"state_dict": {}, "build": {"magnifications": []}}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="another study"):
        Model.read(tmp_path / "model.pt", "cpu")
    run, data = shutil.copytree(trained[0], tmp_path / "run"), shutil.copytree(cubes, tmp_path / "other")
    about = json.loads((data / "about.json").read_text())
    (data / "about.json").write_text(json.dumps(about | {"cubes": about["cubes"] | {"box_mm": 30}}))
    with pytest.raises(InputError, match="trained on other cubes"):
        experiment.evaluate_selected("ct", small, data, run, tmp_path / "scores.json")
