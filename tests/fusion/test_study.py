"""The study end to end, shrunk to seconds: train, evaluate, rank, predict, resume, repeat, real patients."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from quintet import results
from quintet.cli import app
from quintet.errors import InputError, InputProblemsError
from quintet.fusion import study
from quintet.fusion.baselines import clinical_only
from quintet.fusion.comparison import compare
from quintet.fusion.data import load, prepare
from quintet.fusion.evaluation import RECORDED
from quintet.fusion.inference import Model, of_prepared
from quintet.fusion.module import withhold
from quintet.fusion.prediction import evaluate_folder, predict_folder
from quintet.fusion.segmentation import segment
from quintet.params import parse
from tests.conftest import assert_killed_equals_alone, equal, state_of, with_changes
from tests.fusion.conftest import SMALL


def train(params, data, run, *, config=None, seed=0):
    p = params.fusion
    return study.train_run(run, data, config or p, p, params.compute, stage="fusion_train", config="selected", seed=seed)


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory, values):
    """The selected configuration (diffusion) after two epochs, evaluated."""
    params = parse(with_changes(values, SMALL))
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        record = train(params, prepared, folder / "run")
        metrics = study.evaluate_run(folder / "run", prepared, params.fusion, params.compute, curves=True)
    finally:
        os.chdir(before)
    return folder / "run", metrics, record


def test_a_run_folder_has_everything(trained, prepared):
    run, metrics, record = trained
    assert {p.name for p in (run / "model").iterdir()} == {"model.pt", "history.csv"}
    history = pd.read_csv(run / "model" / "history.csv")
    assert {"train_loss", "train_diffusion", "valid_loss", "valid_score", "valid_feature_variance"} <= set(history)
    assert not history.isna().any().any()
    assert record.tags["segmenter"] == "threshold"
    there = {p.name for p in (run / "evaluation").iterdir()}
    assert there == {"predictions.csv", "cases.csv", "metrics.json", "settings.json", "imputation.csv", "curves.csv", "figures"}
    figures = {p.stem for p in (run / "evaluation" / "figures").iterdir()}
    assert figures == {"patterns", "everything_recorded", "test_time_training", "steps", "learning_curves"}
    table = pd.read_csv(run / "evaluation" / "predictions.csv")
    data = load(prepared)
    tested = set(data.table["patient"][data.rows("test")])
    assert set(table["config"]) == {"selected", "selected-ttt"}
    assert set(table["patient"]) == tested
    assert table["pattern"].nunique() == 15 + 3
    assert np.allclose(table.filter(like="probability/").sum(axis=1), 1)
    single = table[table["pattern"] == "pet"]
    assert set(single["modalities"]) == {"pet"}
    assert set(single["patient"]) == tested & set(data.table["patient"][data.present[:, 2]])
    cases = results.read([run / "evaluation" / "cases.csv"])
    assert set(cases["metric"]) == {"brier", "brier_over_subsets"}
    assert 0 <= metrics["ttt/harm_rate"] <= 1
    assert metrics["imputation/pet/mse/ridge"] > 0
    curves = pd.read_csv(run / "evaluation" / "curves.csv")
    assert curves.query("kind == 'sampling'")["steps"].tolist() == [1, 2, 5, 10, 20]  # the diffusion has no more
    assert set(curves["kind"]) == {"sampling", "adaptation"}
    whole = table[(table["pattern"] == RECORDED) & (table["config"] == "selected")]
    assert metrics["brier"] == pytest.approx(whole["brier"].mean())
    assert curves.query("kind == 'adaptation' and steps == 0")["score"].item() == pytest.approx(
        metrics[f"auc/{RECORDED}"], abs=1e-6
    )


@pytest.mark.parametrize("config", ["attention", "diffusion", "concat", "late"])
@pytest.mark.parametrize("task", ["classification", "survival"])
def test_every_method_trains_for_every_task(make_params, heads, tmp_path, monkeypatch, config, task):
    monkeypatch.chdir(tmp_path)
    params = make_params(SMALL | {"fusion.task": task, "fusion.epochs": 1})
    segment(heads, Path("masks"), params.fusion, workers=2)
    prepare(heads, Path("masks"), Path("data"), params.fusion)
    metrics = study.sweep_cell(Path("cell"), Path("data"), config, 0, params.fusion, params.compute)
    score = "auc" if task == "classification" else "concordance"
    assert 0 <= metrics[f"{score}/{RECORDED}"] <= 1
    assert ("ttt/harm_rate" in metrics) == (config in ("attention", "diffusion"))
    assert not list(Path(".checkpoints").glob("*"))


def test_teacher_and_ttt_of_all_parameters(make_params, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = make_params(
        SMALL
        | {"fusion.diffusion.target": "teacher", "fusion.ttt.parameters": "all", "fusion.epochs": 1, "fusion.recompute": True}
    )
    train(params, prepared, Path("run"))
    model, data = Model.load(Path("run"), "cpu"), load(prepared)
    patients = of_prepared(model, data, data.rows("test")[:4])
    plain, _ = model(patients, patients.present)
    adapted, _, fell = model.adapted(patients, patients.present)
    assert fell.any()
    assert not np.allclose(plain[fell], adapted[fell])


def test_same_seed_same_numbers_another_seed_others(small, prepared, trained):
    train(small, prepared, Path("again"))
    assert equal(state_of(Path("again")), state_of(trained[0]))
    train(small, prepared, Path("other"), seed=1)
    assert not equal(state_of(Path("other")), state_of(trained[0]))


def test_killed_and_run_again_equals_left_alone(prepared, values, tmp_path):
    """With the moving-average teacher, whose weights must be resumed too."""
    params = with_changes(values, SMALL | {"fusion.epochs": 4, "fusion.diffusion.target": "teacher"})
    assert_killed_equals_alone("fusion_train.py", prepared, params, tmp_path, kill_after="2")


def test_dropping_never_takes_the_last():
    torch.manual_seed(0)
    present = torch.rand(500, 4) < 0.6
    present[~present.any(1), 0] = True
    kept = withhold(present, 0.9)
    assert kept.any(1).all()
    assert not (kept & ~present).any()
    assert torch.equal(withhold(present, 0.0), present)
    many = torch.ones(2000, 4, dtype=torch.bool)
    assert withhold(many, 0.3).float().mean().item() == pytest.approx(0.7, abs=0.03)


def test_predictions_do_not_depend_on_who_else_is_there(trained, prepared):
    model, data = Model.load(trained[0], "cpu"), load(prepared)
    rows = data.rows("test")
    whole = of_prepared(model, data, rows)
    few = whole.take(np.array([5, 2]))
    for values, own in (
        (model(whole, whole.present), model(few, few.present)),
        (model.adapted(whole, whole.present), model.adapted(few, few.present)),
    ):
        assert own[0] == pytest.approx(values[0][[5, 2]], abs=1e-4)


def test_sweep_baselines_and_ranking(make_params, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = make_params(SMALL | {"fusion.sweep.configs": ["diffusion", "late"], "fusion.sweep.seeds": [0, 1]})
    p = small.fusion
    sweep, fitted = Path("runs/fusion/sweep"), Path("runs/fusion/baselines")
    for config in p.sweep.configs:
        for seed in p.sweep.seeds:
            study.sweep_cell(sweep / config / f"seed{seed}", prepared, config, seed, p, small.compute)
    assert list(study.baseline_runs(fitted, prepared, p)) == ["clinical-only"]
    (sweep / "removed/seed0").mkdir(parents=True)
    verdict = compare(small, sweep, fitted, Path("runs/fusion/rank"), Path("reports/ranking"))
    assert not (sweep / "removed").exists()
    assert "patients" in verdict
    table = pd.read_csv("reports/ranking/ranking.csv").set_index("config")
    assert set(table.index) == {"diffusion", "diffusion-ttt", "late", "clinical-only"}
    assert table.loc["diffusion-ttt", "runs"] == 2
    page = Path("reports/ranking/ranking.html").read_text()
    for heading in (
        "AUC by what is there",
        "Against the best single modality",
        "Diffusion and test-time",
        "What adaptation does",
        "What each modality adds",
        "Imputed features",
        "Cost",
    ):
        assert f"<h2>{heading}" in page
    assert json.loads(Path("runs/fusion/rank/record.json").read_text())["stage"] == "rank"


def test_clinical_baseline_says_the_prevalence_where_it_knows_nothing(prepared):
    data = load(prepared)
    rows = data.rows("test")
    kept = data.present[rows, -1]
    kept[:3] = False
    said = clinical_only(data, rows, kept)
    rest = data.table[data.table["split"] != "test"]
    share = (rest["label"] == "stable").mean()
    assert said[:3, 1] == pytest.approx(np.full(3, share))
    assert said[kept, 1].std() > 0.01
    assert said.sum(1) == pytest.approx(np.ones(len(rows)))


def test_predict_without_labels_with_missing_modalities(trained, heads, tmp_path, small):
    raw = tmp_path / "new"
    names = sorted(p.name for p in heads.iterdir() if p.is_dir())[:4]
    for name in names:
        shutil.copytree(heads / name, raw / name)
    for path in (raw / names[0]).glob("*pet*"):
        path.unlink()
    count = predict_folder([trained[0]], raw, tmp_path / "p.csv", overlays=tmp_path / "seen", device="cpu", skip=False)
    assert count == 4
    table = pd.read_csv(tmp_path / "p.csv").set_index("patient")
    assert "pet" not in table.loc[names[0], "modalities"]
    assert not table["modalities"].str.contains("clinical").any()
    assert np.allclose(table.filter(like="probability_").sum(axis=1), 1)
    assert (table["spread"] > 0).all()
    assert len(list((tmp_path / "seen").iterdir())) == 4
    with_ttt = tmp_path / "t.csv"
    predict_folder([trained[0], trained[0]], raw, with_ttt, overlays=None, device="cpu", skip=False, ttt=True)
    adapted = pd.read_csv(with_ttt).set_index("patient")
    assert adapted["adapted"].any()
    (raw / "nothing").mkdir()
    shutil.copy(next((heads / names[1]).glob("*")), raw / "nothing" / "unheard_of.nii.gz")
    with pytest.raises(InputProblemsError, match="patient nothing: no modality at all"):
        predict_folder([trained[0]], raw, tmp_path / "q.csv", overlays=None, device="cpu", skip=False)
    assert not (tmp_path / "q.csv").exists()
    assert predict_folder([trained[0]], raw, tmp_path / "q.csv", overlays=None, device="cpu", skip=True) == 4


def test_evaluate_a_folder_equals_the_stage(trained, heads, prepared, tmp_path, small):
    data = load(prepared)
    raw = tmp_path / "raw"
    tested = set(data.table["patient"][data.rows("test")])
    for name in tested:
        shutil.copytree(heads / name, raw / name)
    shutil.copy(heads / "clinical_data.csv", raw)
    metrics = evaluate_folder([trained[0]], raw, tmp_path / "out", device="cpu", params=small.fusion)
    assert metrics[f"auc/{RECORDED}"] == pytest.approx(trained[1][f"auc/{RECORDED}"], abs=1e-6)
    assert metrics["patients"] == len(tested)


def test_command_line(checkout, heads, trained):
    run = CliRunner().invoke
    assert "no problem found" in run(app, ["check", "fusion", "--data", str(heads)]).output
    done = run(app, ["predict", "fusion", "--model", str(trained[0]), "--input", str(heads), "--output", "p.csv", "--ttt"])
    assert "60 cases predicted" in done.output, done.exception
    assert "no test-time training" in str(
        run(app, ["predict", "ct", "--model", "x", "--input", "x", "--output", "y.npz", "--ttt"]).exception
    )


def test_real_patients_are_prepared_and_predicted(trained, real_fusion, tmp_path, small):
    """Three naming schemes, other grids, modalities missing, no clinical table."""
    count = predict_folder([trained[0]], real_fusion, tmp_path / "p.csv", overlays=tmp_path / "seen", device="cpu", skip=False)
    assert count == 4
    table = pd.read_csv(tmp_path / "p.csv")
    assert set(table["modalities"]) == {"mri_t1ce+mri_flair"}
    assert (table["spread"] > 0).all()


def test_a_run_of_another_study_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    torch.save({"state_dict": {}, "build": {"arch": "adaptive"}}, tmp_path / "model" / "model.pt")
    with pytest.raises(InputError, match="another study"):
        Model.load(tmp_path, "cpu")
