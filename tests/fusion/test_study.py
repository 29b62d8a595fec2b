"""The study end to end, shrunk to seconds: train, evaluate, rank, resume with a teacher, evaluation parameters."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.special import expit

from quintet import experiment, results
from quintet.errors import InputError
from quintet.fusion.baselines import baselines, fit_clinical_only, oracle
from quintet.fusion.data.prepare import prepare
from quintet.fusion.data.prepared import load
from quintet.fusion.data.segmentation import segment
from quintet.fusion.evaluation.inference import Model, encode_prepared
from quintet.fusion.evaluation.patterns import RECORDED
from quintet.fusion.model.module import mask_modalities
from quintet.fusion.synthetic import draw_traits, outcome_logit, outcome_probability
from quintet.params import parse
from quintet.params.fusion import ADAPTS, IMPUTES, SWEEP
from quintet.training.models import load_model
from tests.conftest import ROOT, with_changes
from tests.fusion.conftest import SMALL


def test_a_run_folder_has_everything(trained, prepared):
    run, metrics, record = trained
    assert {p.name for p in (run / "model").iterdir()} == {"model.pt", "history.csv"}
    history = pd.read_csv(run / "model" / "history.csv")
    assert {"train_loss", "train_diffusion", "valid_loss", "valid_score", "valid_feature_variance"} <= set(history)
    assert not history.isna().any().any()
    assert record.tags["segmenter"] == "threshold"
    files = {p.name for p in (run / "evaluation").iterdir()}
    assert files == {
        "predictions.csv",
        "external.csv",
        "cases.csv",
        "metrics.json",
        "settings.json",
        "imputation.csv",
        "curves.csv",
        "figures",
    }
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
    recorded = table[(table["pattern"] == RECORDED) & (table["config"] == "selected")]
    assert metrics["brier"] == pytest.approx(recorded["brier"].mean())
    assert curves.query("kind == 'adaptation' and steps == 0")["score"].item() == pytest.approx(
        metrics[f"auc/{RECORDED}"], abs=1e-6
    )


def with_evaluation(params, **changes):
    fusion = params.fusion
    evaluation = fusion.evaluation.model_copy(update=changes)
    return params.model_copy(update={"fusion": fusion.model_copy(update={"evaluation": evaluation})})


def test_evaluation_parameters_change_the_evaluation_and_not_the_model(small, prepared, trained):
    """Other samples and test-time training: the same trained model, other predictions, and `predict` uses the latest values."""
    run, model = Path("run"), Path("run/model/model.pt")
    shutil.copytree(trained[0], run, ignore=shutil.ignore_patterns("evaluation"))
    weights = model.read_bytes()
    with pytest.raises(InputError, match="run: trained but not evaluated"):
        Model.load(run, "cpu")
    spreads, adapted = [], []
    ttt = small.fusion.evaluation.ttt
    for changes in ({"samples": 2}, {"samples": 3}, {"samples": 3, "ttt": ttt.model_copy(update={"steps": [0]})}):
        params = with_evaluation(small, **changes)
        metrics = experiment.evaluate_selected("fusion", params, prepared, run, Path("scores.json"))
        table = pd.read_csv(run / "evaluation/predictions.csv")
        spreads.append(table.loc[table["config"] == "selected", "spread"].to_numpy())
        adapted.append(metrics["ttt/adapted_rate"])
        assert Model.load(run, "cpu").evaluation == params.fusion.evaluation
        assert model.read_bytes() == weights
    assert not np.allclose(spreads[0], spreads[1])
    assert np.array_equal(spreads[1], spreads[2])
    assert adapted[2] == 0
    build = torch.load(model, weights_only=True)["build"]
    assert not {"samples", "ttt"} & (set(build) | set(build["about"]) | set(trained[2].params))


@pytest.fixture(scope="module", params=["classification", "survival"])
def task(request, heads, values, tmp_path_factory):
    """The task, its parameters, and the patients prepared for it."""
    changes = {"fusion.data.task": request.param, "fusion.training.epochs": 1}
    params, folder = parse(with_changes(values, SMALL | changes)), tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        segment(heads, folder / "masks", params.fusion, workers=2)
        prepare(heads, folder / "masks", folder / "data", params.fusion)
    return request.param, params, folder / "data"


@pytest.mark.parametrize(
    "config", ["attention", "diffusion", "concat", "transformer", "shaspec", "mean", "ridge", "gaussian", "flow"]
)
def test_every_method_trains_for_every_task(task, monkeypatch, config):
    task, params, data = task
    monkeypatch.chdir(data.parent)
    if not SWEEP.is_dir():
        experiment.run_sweep_config("fusion", params, data, SWEEP / "late", "late")
    base = load_model(next(SWEEP.glob("late/*/model/model.pt")))[0]["base"]
    assert base[:, 0].isfinite().all()
    assert len(base.unique()) > 1
    assert task == "survival" or torch.allclose(base.exp().sum(1), torch.ones(len(base)))
    metrics = experiment.run_sweep_entry("fusion", params, data, SWEEP / config / "seed0", config, seed=0)
    score = "auc" if task == "classification" else "concordance"
    assert f"{score}/{RECORDED}" in metrics
    assert ("ttt/harm_rate" in metrics) == (config in ADAPTS)
    assert ("completion/2 missing/mse" in metrics) == (config in IMPUTES)
    assert not list(Path(".checkpoints").glob("*"))


def test_teacher_and_recomputation(make_params, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"fusion.training.diffusion.target": "teacher", "fusion.training.recompute": True, "fusion.training.epochs": 1}
    params = make_params(SMALL | changes)
    experiment.train_selected("fusion", params, prepared, Path("run"))
    model, data = Model.load(Path("run"), "cpu", evaluation=params.fusion.evaluation), load(prepared)
    patients = encode_prepared(model, data, data.rows("test")[:4])
    assert np.isfinite(model(patients, patients.present)[0]).all()


def test_the_steps_of_adaptation_are_those_with_the_lowest_loss(trained, prepared):
    model, data = Model.load(trained[0], "cpu"), load(prepared)
    assert model.adaptation_steps == trained[1]["ttt/steps"]
    patients = encode_prepared(model, data, data.rows("valid"))
    ttt = model.evaluation.ttt.model_copy(update={"steps": [0, 1, 3], "rate": 1.0})
    model = replace(model, evaluation=model.evaluation.model_copy(update={"ttt": ttt}))
    values = {steps: model.adapted(patients, patients.present, steps=steps)[0] for steps in ttt.steps}

    def farthest_from(steps):
        return model.choose_adaptation(patients, lambda v: -np.abs(v - values[steps]).sum()).adaptation_steps

    assert model.choose_adaptation(patients, lambda v: np.abs(v - values[3]).sum()).adaptation_steps == 3
    assert model.choose_adaptation(patients, lambda _: 0.0).adaptation_steps == 0
    assert farthest_from(3) != 3


def test_modality_dropout_never_masks_the_last_modality():
    torch.manual_seed(0)
    present = torch.rand(500, 4) < 0.6
    present[~present.any(1), 0] = True
    kept = mask_modalities(present, 0.9)
    assert kept.any(1).all()
    assert not (kept & ~present).any()
    assert torch.equal(mask_modalities(present, 0.0), present)
    many = torch.ones(2000, 4, dtype=torch.bool)
    assert mask_modalities(many, 0.3).float().mean().item() == pytest.approx(0.7, abs=0.03)


def test_sweep_baselines_and_ranking(make_params, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"fusion.sweep.configs": ["diffusion", "flow-complete"], "fusion.sweep.seeds": [0, 1], "fusion.training.epochs": 1}
    params = make_params(SMALL | changes)
    sweep, baselines = Path("runs/fusion/sweep"), Path("runs/fusion/baselines")
    for config in ("late", *params.fusion.sweep.configs):
        experiment.run_sweep_config("fusion", params, prepared, sweep / config, config)
    assert list(experiment.run_baselines("fusion", params, prepared, baselines)) == ["clinical-only", "oracle"]
    (sweep / "removed/seed0").mkdir(parents=True)
    ranking = experiment.rank_runs("fusion", params, sweep, baselines, Path("runs/fusion/rank"), Path("reports/ranking"))
    assert not (sweep / "removed").exists()
    assert "patients" in ranking.verdict
    table = pd.read_csv("reports/ranking/ranking.csv").set_index("config")
    assert set(table.index) == {"diffusion", "diffusion-ttt", "flow-complete", "late", "clinical-only", "oracle"}
    assert table.loc["diffusion-ttt", "runs"] == 2
    page = Path("reports/ranking/ranking.html").read_text()
    for heading in (
        "AUC by modalities",
        "Compared with the best single modality",
        "Pairs over patients: completion, diffusion, test-time training",
        "Effect of test-time training on patients",
        "Other hospitals",
        "What each modality adds",
        "Completed tokens",
        "By number of missing modalities",
        "Imputed features",
        "Cost",
    ):
        assert f"<h2>{heading}" in page
    assert "Brier score, mean over modality subsets" in page
    assert json.loads(Path("runs/fusion/rank/record.json").read_text())["stage"] == "rank"


def test_the_clinical_baseline_predicts_class_frequencies_without_clinical_features(prepared):
    data = load(prepared)
    rows = data.rows("test")
    present = data.present[rows]
    present[:3, -1] = False
    kept = present[:, -1]
    probabilities = fit_clinical_only(data)(rows, present)
    others = data.table[data.table["split"].isin(["train", "valid"])]
    share = (others["label"] == "stable").mean()
    assert probabilities[:3, 1] == pytest.approx(np.full(3, share))
    assert probabilities[kept, 1].std() > 0.01
    assert probabilities.sum(1) == pytest.approx(np.ones(len(rows)))


def test_the_oracle_has_the_drawn_probability_of_each_set_of_modalities(prepared, small):
    data = load(prepared)
    rows = data.rows("test")
    kept = np.tile([True, False, True, False], (len(rows), 1))
    found = oracle(data, data.truth)(rows, kept)
    expected = data.truth.loc[data.table["patient"].iloc[rows], "mri_t1ce+pet"]
    assert found[:, data.classes.index("progression")] == pytest.approx(expected)
    assert found.sum(1) == pytest.approx(np.ones(len(rows)))
    turned = replace(data, modalities=["pet", "mri_t1ce"])  # in another order
    assert oracle(turned, data.truth)(rows, np.ones((len(rows), 2), bool)) == pytest.approx(found)
    assert list(baselines(replace(data, modalities=["pet", "dti"]), small.fusion)) == ["clinical-only"]


def test_the_drawn_probability_is_that_of_the_outcome():
    """Calibrated in the large, better with more modalities, and the outcome's own probability when all are known."""
    drawn = parse(yaml.safe_load((ROOT / "params.yaml").read_text())).fusion.synthetic
    rng = np.random.default_rng(0)
    traits = draw_traits(4000, drawn.phenotypes, rng)
    assert traits.std(0) == pytest.approx(np.ones(4), abs=0.05)
    exact = expit(outcome_logit(traits, drawn.interaction))
    outcome = rng.random(4000) < exact
    briers = []
    for known in ([3], [0, 3], [0, 2, 3], [0, 1, 2, 3]):
        p = outcome_probability(traits, known, drawn, rng)
        assert p.mean() == pytest.approx(outcome.mean(), abs=0.03)
        briers.append(np.mean((p - outcome) ** 2))
    assert briers == sorted(briers, reverse=True)
    assert p == pytest.approx(exact)


def test_predictions_do_not_depend_on_the_other_patients(trained, prepared):
    model, data = Model.load(trained[0], "cpu"), load(prepared)
    everyone = encode_prepared(model, data, data.rows("test"))
    two = everyone.take(np.array([5, 2]))
    for values, own in (
        (model(everyone, everyone.present), model(two, two.present)),
        (model.adapted(everyone, everyone.present), model.adapted(two, two.present)),
    ):
        assert own[0] == pytest.approx(values[0][[5, 2]], abs=1e-4)


def test_a_run_of_another_study_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    torch.save({"state_dict": {}, "build": {"arch": "adaptive"}}, tmp_path / "model" / "model.pt")
    with pytest.raises(InputError, match="another study"):
        Model.load(tmp_path, "cpu")


def test_data_that_were_prepared_in_another_way_are_refused(trained, make_params, heads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = make_params(SMALL | {"fusion.data.percentiles": [2.0, 98.0]})
    segment(heads, Path("masks"), params.fusion, workers=2)
    prepare(heads, Path("masks"), Path("data"), params.fusion)
    before = (trained[0] / "evaluation/metrics.json").read_bytes()
    with pytest.raises(InputError, match="prepared in another way"):
        experiment.evaluate_selected("fusion", params, Path("data"), trained[0], Path("scores.json"))
    assert (trained[0] / "evaluation/metrics.json").read_bytes() == before
