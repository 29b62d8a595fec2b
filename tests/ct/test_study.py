"""The study end to end, shrunk to seconds: train, evaluate, rank, index, search, resume, repeat, real scans, person tags."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch

from quintet import results
from quintet.ct import study
from quintet.ct.analysis import analyze
from quintet.ct.baselines import BASELINES
from quintet.ct.comparison import compare
from quintet.ct.data import load, prepare
from quintet.ct.evaluation import read_vectors, scans_of
from quintet.ct.inference import Model
from quintet.ct.metrics import cosine, retrieve
from quintet.ct.networks import see
from quintet.ct.prediction import evaluate_folder, predict_folder
from quintet.ct.search import Index, build, search
from quintet.errors import InputError, InputProblemsError
from quintet.params import parse
from tests.conftest import assert_killed_equals_alone, equal, state_of, with_changes
from tests.ct.conftest import SMALL


def train(params, data, run, *, config=None, seed=0):
    p = params.ct
    return study.train_run(run, data, config or p, p, params.compute, stage="ct_train", config="selected", seed=seed)


@pytest.fixture(scope="session")
def trained(cubes, tmp_path_factory, values):
    """The selected configuration after two epochs, evaluated."""
    params = parse(with_changes(values, SMALL))
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        record = train(params, cubes, folder / "run")
        metrics = study.evaluate_run(folder / "run", cubes, params.ct, params.compute)
    finally:
        os.chdir(before)
    return folder / "run", metrics, record


def test_a_run_folder_has_everything(trained, cubes):
    run, metrics, record = trained
    assert {p.name for p in (run / "model").iterdir()} == {"model.pt", "final.pt", "history.csv", "pr_curves.csv"}
    history = pd.read_csv(run / "model" / "history.csv")
    assert {"train_loss", "valid_loss", "valid_map_at_5", "valid_micro_f1", "train_eval_map_at_5"} <= set(history)
    assert not history.isna().any().any()
    assert len(record.epochs) == 2
    assert all(row["peak_memory_mb"] > 100 for row in record.epochs)
    name = record.copies["model/model.pt"]
    best = int(record.metrics["best_epoch"])
    assert name.startswith("checkpoints/microf1_20")
    assert name.endswith(f"_epoch={best:03d}_metric={history['valid_micro_f1'][best]:.4f}.pt")
    curves = pd.read_csv(run / "model" / "pr_curves.csv")
    assert set(curves["epoch"]) == {0, 1}
    assert len(curves) == 2 * 3 * 21
    tested = load(cubes).index.query("split == 'test'")
    cases = results.read([run / "evaluation" / "cases.csv"])
    assert set(cases["case"]) == set(tested["study"])
    assert set(cases["group"]) == set(tested["patient"])
    assert metrics["queries"] == len(tested)
    assert metrics["map_at_5"] == pytest.approx(cases[cases["metric"] == "ap_at_5"]["value"].mean())
    listed = pd.read_csv(run / "evaluation" / "neighbours.csv")
    whose = tested.set_index("study")["patient"]
    assert (whose[listed["query"]].to_numpy() != whose[listed["study"]].to_numpy()).all()
    figures = {p.stem for p in (run / "evaluation" / "figures").iterdir()}
    assert figures == {"retrieval", "precision_recall", "precision_recall_by_epoch", "learning_curves"}


def test_what_was_measured_is_what_the_saved_network_says(trained, cubes):
    run, metrics, _ = trained
    data, model = load(cubes), Model.load(run, "cpu")
    rows = data.rows("test")
    volumes = torch.from_numpy(np.stack([data.volumes[row] for row in rows]))
    with torch.inference_mode():
        vectors = model.net.eval()(see(volumes, model.net.input_size)).embedding.numpy()
    assert vectors == pytest.approx(model(data.volumes, rows).vectors, abs=1e-5)
    assert vectors == pytest.approx(model.get_embeddings(volumes, mixed_precision=True).vectors, abs=0.05)
    found = retrieve(cosine(vectors), scans_of(data, rows))
    assert np.nanmean(found.metrics["ap_at_5"]) == pytest.approx(metrics["map_at_5"], abs=1e-3)


@pytest.mark.parametrize(
    "config", ["adaptive-micro-f1", "adaptive-all", "adaptive-hardest", "adaptive-random-hard", "adaptive-semi-hard"]
)
def test_every_objective_and_selector_trains(config, small, cubes):
    record = train(small, cubes, Path("run"), config=small.ct.configs[config])
    state = state_of(Path("run"))
    assert ("head.weight" in state) == (config == "adaptive-micro-f1")
    assert np.isfinite(record.metrics["last_valid_choice"])


def test_same_seed_same_numbers_another_seed_others(small, cubes, trained):
    train(small, cubes, Path("again"))
    assert equal(state_of(Path("again")), state_of(trained[0]))
    train(small, cubes, Path("other"), seed=1)
    assert not equal(state_of(Path("other")), state_of(trained[0]))


def test_killed_and_run_again_equals_left_alone(cubes, values, tmp_path):
    """With randomly drawn triplets, the step schedule and early stopping; the curves of the epochs before the kill are kept."""
    params = with_changes(
        values,
        SMALL
        | {
            "ct.objective": "triplet",
            "ct.selector": "semi_hard",
            "ct.epochs": 4,
            "ct.schedule": "step",
            "ct.step_epochs": 2,
            "ct.patience": 4,
        },
    )
    assert_killed_equals_alone("ct_train.py", cubes, params, tmp_path, kill_after="2")
    curves = [(tmp_path / name / "run" / "model" / "pr_curves.csv").read_bytes() for name in ("alone", "killed")]
    assert curves[0] == curves[1]


def test_loader_processes_started_by_spawn_read_the_file_themselves(cubes):
    """As on Windows: nothing but a path and the labels is sent to them."""
    import pickle

    from torch.utils.data import DataLoader

    from quintet.ct.module import Volumes

    source = Volumes(load(cubes))
    here = source[[3, 5]]
    assert len(pickle.dumps(source)) < 20_000 < source.volumes.nbytes
    loader = DataLoader(source, sampler=[[3, 5]], batch_size=None, num_workers=1, multiprocessing_context="spawn")
    (there,) = list(loader)
    assert torch.equal(here["volumes"], there["volumes"])
    assert there["case"] == here["case"]


def test_baselines_by_their_definitions(cubes):
    data = load(cubes)
    rows = data.rows("test")
    scans = scans_of(data, rows)
    other = scans.patients[:, None] != scans.patients[None, :]
    share = np.array([[bool(a @ b) or not (a.any() or b.any()) for b in scans.labels] for a in scans.labels])
    found = retrieve(BASELINES["random"](data, rows), scans)
    assert found.metrics["precision_at_5"] == pytest.approx((share & other).sum(1) / other.sum(1))
    prior = BASELINES["prior"](data, rows)
    assert (prior == prior[0]).all()
    known = data.labels[data.rows("train")]
    full = scans.labels.sum(1) == 3
    assert prior[0][full] == pytest.approx((known.sum(1) > 0).mean())
    assert prior[0][scans.labels.sum(1) == 0] == pytest.approx((known.sum(1) == 0).mean())
    near = BASELINES["histogram"](data, rows)
    assert np.allclose(np.diag(near), 0)
    assert (near <= 0).all()


def test_sweep_baselines_and_ranking(make_params, cubes, trained, tmp_path, monkeypatch):
    """Embeddings from elsewhere stand in the same table; given a run's own they have its numbers."""
    monkeypatch.chdir(tmp_path)
    external = {"elsewhere": str(trained[0] / "evaluation" / "embeddings.npz")}
    small = make_params(SMALL | {"ct.external": external})
    p = small.ct
    sweep, fitted = Path("runs/ct/sweep"), Path("runs/ct/baselines")
    for config in p.sweep.configs:
        study.sweep_cell(sweep / config / "seed0", cubes, config, 0, p, small.compute)
    measured = study.baseline_runs(fitted, cubes, p)
    assert list(measured) == ["random", "prior", "histogram", "elsewhere"]
    assert measured["elsewhere"]["map_at_5"] == pytest.approx(trained[1]["map_at_5"])
    (sweep / "removed/seed0").mkdir(parents=True)
    verdict = compare(small, sweep, fitted, Path("runs/ct/rank"), Path("reports/ranking"))
    assert not (sweep / "removed").exists()
    assert "patients" in verdict
    table = pd.read_csv("reports/ranking/ranking.csv").set_index("config")
    assert set(table.index) == {*p.sweep.configs, *measured}
    cases = results.read([fitted / "prior/seed0/evaluation/cases.csv"])
    by_patient = cases[cases["metric"] == "ap_at_5"].groupby("group")["value"].mean()
    assert table.loc["prior", "mean"] == pytest.approx(by_patient.mean(), abs=1e-5)
    page = Path("reports/ranking/ranking.html").read_text()
    for heading in ("Against the baselines", "By cut-off", "Findings", "Cost", "How to read this"):
        assert f"<h2>{heading}" in page
    assert json.loads(Path("runs/ct/rank/record.json").read_text())["stage"] == "rank"
    assert not list(Path(".checkpoints").glob("*"))


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_predict_writes_what_evaluate_takes(trained, scans, small, tmp_path, suffix):
    run = trained[0]
    out = tmp_path / f"vectors{suffix}"
    assert predict_folder([run], scans, out, overlays=None, device="cpu", skip=False) == 40
    if suffix == ".csv":
        table = pd.read_csv(out)
        assert {"id", "probability_nodules", "e0", "e7"} <= set(table)
        assert table["probability_nodules"].between(0, 1).all()
        return
    direct = evaluate_folder([run], scans, tmp_path / "direct", device="cpu", params=small.ct)
    there = evaluate_folder([out], scans, tmp_path / "file", device="cpu", params=small.ct)
    assert direct["queries"] == 40
    assert all(there[name] == pytest.approx(direct[name], abs=1e-6) for name in there)


def test_several_runs_are_joined(trained, scans, small, cubes, tmp_path):
    train(small, cubes, Path("other"), seed=1)
    predict_folder([trained[0], Path("other")], scans, tmp_path / "both.npz", overlays=None, device="cpu", skip=False)
    each = []
    for run in (trained[0], Path("other")):
        predict_folder([run], scans, tmp_path / "one.npz", overlays=None, device="cpu", skip=False)
        each.append(np.load(tmp_path / "one.npz")["vector"])
    both = np.load(tmp_path / "both.npz")["vector"]
    assert both @ both.T == pytest.approx((each[0] @ each[0].T + each[1] @ each[1].T) / 2, abs=1e-5)


BAD_VECTORS = {
    "missing": (lambda d: d | {"id": d["id"][:-1], "vector": d["vector"][:-1]}, "no vector for 1 of 40 scans"),
    "twice": (lambda d: d | {"id": np.r_[d["id"][:1], d["id"][:-1]]}, "an id stands twice"),
    "lengths": (lambda d: d | {"id": d["id"][:-1]}, "expected one vector an id"),
    "NaN": (lambda d: d | {"vector": np.where(np.arange(40)[:, None] == 3, np.nan, d["vector"])}, "is not finite"),
    "no ids": (lambda d: {"vector": d["vector"]}, "expected `id` and `vector`"),
}


@pytest.mark.parametrize("kind", BAD_VECTORS)
def test_bad_embeddings_from_elsewhere(kind, tmp_path):
    change, says = BAD_VECTORS[kind]
    names = np.array([f"s{i}" for i in range(40)])
    np.savez(tmp_path / "x.npz", **change({"id": names, "vector": np.random.default_rng(0).normal(size=(40, 4))}))
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path / "x.npz", names)
    assert says in str(caught.value)
    assert "x.npz" in str(caught.value)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
def test_index_and_search(trained, scans, tmp_path, kind):
    if kind != "exact":
        pytest.importorskip("faiss")
    about = build([trained[0]], scans, tmp_path / "index", kind=kind, device="cpu", skip=False)
    assert about["scans"] == 40
    index = Index.load(tmp_path / "index")
    labels = pd.read_csv(scans / "labels.csv").set_index("study")
    name = labels.index[5]
    found = search(tmp_path / "index", name, 10, picture=tmp_path / "m.png", device="cpu")
    assert (tmp_path / "m.png").stat().st_size > 10_000
    assert found["similarity"].is_monotonic_decreasing
    assert name not in set(found["study"])
    assert (labels.loc[found["study"], "patient"] != labels.loc[name, "patient"]).all()
    expected = ", ".join(f for f in ("consolidation", "nodules", "cysts") if labels.loc[found["study"][0], f]) or "none"
    assert found["findings"][0] == expected
    if kind == "exact":
        row = int(np.flatnonzero(index.studies["study"] == name)[0])
        order = [index.studies["study"][i] for i in np.argsort(-(index.vectors @ index.vectors[row]), kind="stable")]
        assert list(found["study"]) == [s for s in order if labels.loc[s, "patient"] != labels.loc[name, "patient"]][:10]
    else:
        assert 0.3 < about["recall_at_10_against_exact"] <= 1
    # a scan that the index does not know, by its path
    copy = shutil.copytree(scans / name, tmp_path / "new scan")
    again = search(tmp_path / "index", str(copy), 3, picture=None, device="cpu")
    assert again["similarity"][0] == pytest.approx(1, abs=1e-3)
    with pytest.raises(InputError, match="neither a study of the index"):
        search(tmp_path / "index", "nobody", 3, picture=None, device="cpu")


def test_index_without_labels_and_with_unreadable_studies(trained, scans, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("study-0000", "study-0001", "study-0002"):
        shutil.copytree(scans / name, raw / name)
    next((raw / "study-0001").iterdir()).write_bytes(b"")
    with pytest.raises(InputProblemsError, match="study-0001"):
        build([trained[0]], raw, tmp_path / "index", kind="exact", device="cpu", skip=False)
    assert not (tmp_path / "index").exists()
    build([trained[0]], raw, tmp_path / "index", kind="exact", device="cpu", skip=True)
    found = search(tmp_path / "index", "study-0000", 5, picture=tmp_path / "m.png", device="cpu")
    assert list(found["study"]) == ["study-0002"]
    assert "findings" not in found
    (tmp_path / "index" / "vectors.npy").unlink()
    with pytest.raises(InputError, match="damaged"):
        Index.load(tmp_path / "index")


def test_real_scans_prepare_index_and_search(trained, real_scans, small, tmp_path):
    raw = tmp_path / "real"
    raw.mkdir()
    shutil.copytree(next((real_scans / "dicom").iterdir()), raw / "series")
    shutil.copy(next((real_scans / "nifti").iterdir()), raw / "example.nii.gz")
    build([trained[0]], raw, tmp_path / "index", kind="exact", device="cpu", skip=False)
    found = search(tmp_path / "index", "series", 5, picture=tmp_path / "m.png", device="cpu")
    assert list(found["study"]) == ["example"]


def test_person_tags_never_appear_in_any_output(scans, small, tmp_path):
    """Every tag about a person marked, in every slice; then every stage's and command's output searched for the marks."""
    raw = shutil.copytree(scans, tmp_path / "raw")
    marks = {
        "PatientName": "MARK^NAME",
        "PatientID": "MARKID",
        "PatientBirthDate": "19010203",
        "InstitutionName": "MARKHOUSE",
        "ReferringPhysicianName": "MARK^DOCTOR",
        "AccessionNumber": "MARKACC",
        "PatientComments": "MARKCOMMENT",
        "StudyDescription": "MARKSTUDY",
        "PatientAddress": "MARKSTREET",
    }
    for path in raw.glob("*/*.dcm"):
        one = pydicom.dcmread(path)
        for tag, value in marks.items():
            setattr(one, tag, value)
        one.save_as(path)
    out = tmp_path / "out"
    data, _ = prepare(raw, out / "prepared", small.ct)
    analyze(raw, out / "page.html", small.ct)
    train(small, out / "prepared", out / "run")
    study.evaluate_run(out / "run", out / "prepared", small.ct, small.compute)
    build([out / "run"], raw, out / "index", kind="exact", device="cpu", skip=False)
    search(out / "index", "study-0000", 5, picture=out / "m.png", device="cpu")
    predict_folder([out / "run"], raw, out / "e.csv", overlays=None, device="cpu", skip=False)
    next((raw / "study-0001").iterdir()).write_bytes(b"")
    with pytest.raises(InputProblemsError) as caught:
        prepare(raw, out / "again", small.ct)
    texts = [str(caught.value).encode()] + [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and raw not in p.parents]
    assert len(texts) > 20
    for mark in (b"MARK", b"19010203"):
        assert not any(mark in text for text in texts), mark
    assert len(data.index) == 40


def test_a_run_of_another_study_or_size_is_refused(trained, cubes, small, tmp_path):
    torch.save({"state_dict": {}, "build": {"magnifications": []}}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="another study"):
        Model.read(tmp_path / "model.pt", "cpu")
    copy = shutil.copytree(cubes, tmp_path / "other")
    np.save(copy / "volumes.npy", np.zeros((40, 16, 16, 16), np.uint8))
    with pytest.raises(InputError, match="trained on cubes of 32"):
        study.evaluate_run(trained[0], copy, small.ct, small.compute)
