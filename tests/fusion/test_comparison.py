"""The ranking's report on tables of predictions with a known truth."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from quintet import results
from quintet.fusion import comparison, sections
from quintet.fusion.comparison import compared_pairs
from quintet.fusion.evaluation.patterns import MAR, MCAR, RECORDED
from quintet.fusion.evaluation.scores import evaluate, predictions
from quintet.fusion.sections import BootstrapScores
from quintet.params import parse
from quintet.resampling import percentile_interval
from quintet.runs import Record
from tests.conftest import with_changes
from tests.fusion.conftest import SMALL

PATTERNS = ("pet", "clinical", "pet+clinical", RECORDED, MCAR, MAR)
# of the log odds: late is the best
NOISE = {"diffusion": 2.0, "diffusion-ttt": 1.0, "late": 0.3, "flow": 4.5, "clinical-only": 6.0}
PATIENTS = 120
COMPLETION = pd.DataFrame(
    {"missing": [1, 2], "mse": 0.0, "mse_of_training_mean": 1.0, "energy": 0.4, "coverage_80": 0.8, "sd": 0.6}
)


def table_of(config, rng, *, task):
    """Predictions of one configuration: pet tells the outcome better than clinical, both together better still."""
    truth = np.arange(PATIENTS) % 2
    target = np.stack([truth, np.ones(PATIENTS)], 1) if task == "classification" else np.stack([500.0 - 300 * truth, truth], 1)
    names, tables = np.array([f"p{i}" for i in range(PATIENTS)]), []
    for pattern in PATTERNS:
        noise = NOISE[config] * {"pet": 1.5, "clinical": 4.0}.get(pattern, 1.0)
        logit = 2 * truth - 1 + rng.normal(0, noise, PATIENTS)
        p = 1 / (1 + np.exp(-logit))
        values = np.stack([1 - p, p], 1) if task == "classification" else logit[:, None]
        classes = ["no", "yes"] if task == "classification" else []
        adapted = np.arange(PATIENTS) < 90 if config.endswith("-ttt") else False
        tables.append(predictions(config, pattern, names, [pattern] * PATIENTS, values, target, classes, adapted=adapted))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module", params=["classification", "survival"])
def evaluated(request, values, tmp_path_factory):
    """Parameters, run folders and the tables of predictions of four configurations; all but the baseline have two seeds."""
    folder = tmp_path_factory.mktemp(request.param)
    sweep = {"fusion.sweep.configs": ["diffusion", "flow"], "fusion.sweep.seeds": [0, 1], "fusion.data.task": request.param}
    params = parse(with_changes(values, SMALL | sweep))
    rng, runs, tables = np.random.default_rng(0), {}, {}
    for config in ("late", "diffusion", "flow", "clinical-only"):
        runs[config] = [folder / config / f"seed{seed}" for seed in ([0] if config == "clinical-only" else [0, 1])]
        for seed, run in enumerate(runs[config]):
            ranked = [config, "diffusion-ttt"] if config == "diffusion" else [config]
            own = {name: table_of(name, rng, task=request.param) for name in ranked}
            record = Record("fusion", "fusion_sweep", config, seed, {}, {}, metrics={"train_seconds": 10.0, "best_epoch": 2.0})
            (run / "evaluation").mkdir(parents=True)
            record.save(run)
            classes = ["no", "yes"] if request.param == "classification" else []
            details = {"completion": COMPLETION.assign(mse=0.5 + seed)} if config == "flow" else {}
            elsewhere = [t[t["pattern"] == RECORDED].assign(patient=lambda t: "x" + t["patient"]) for t in own.values()]
            details["external"] = pd.concat(elsewhere)
            metrics = evaluate(
                own, classes, record=record, out=run / "evaluation", seconds=dict.fromkeys(own, 0.5), details=details
            )
            metrics |= {"ttt/steps": 10.0 * seed} if config == "diffusion" else {}
            (run / "evaluation/metrics.json").write_text(json.dumps(metrics))
            for name, table in own.items():
                tables.setdefault(name, []).append(table)
    return params, runs, tables


def test_the_true_order_is_found(evaluated):
    params, runs, _ = evaluated
    ranking = comparison.rank(params, runs)
    classification = params.fusion.data.task == "classification"
    assert ranking.label == f"{'Brier score' if classification else 'concordance index'}, mean over modality subsets"
    assert ranking.lower_is_better == classification
    assert list(ranking.table["config"]) == ["late", "diffusion-ttt", "diffusion", "flow", "clinical-only"]
    assert ranking.patients == PATIENTS
    pair = ranking.pairs.set_index(["first", "second"]).loc["late", "clinical-only"]
    assert pair["significant"]


def test_visits_of_a_person_count_once(values):
    """Each patient four times: the interval of the scores is that of the people, not of the visits."""
    rng, tables = np.random.default_rng(0), {}
    once = table_of("diffusion", rng, task="classification")
    visits = [once.assign(patient=once["patient"] + f"-v{k}") for k in range(4)]
    for name, table in (("once", once), ("four", pd.concat(visits, ignore_index=True))):
        tables[name] = percentile_interval(BootstrapScores({"x": [table]}).score("x", RECORDED)[1])
    assert tables["four"] == pytest.approx(tables["once"], abs=0.01)


def test_people_are_the_groups_of_the_ranking(tmp_path, values):
    table = table_of("late", np.random.default_rng(0), task="classification")
    table["subject"] = table["patient"].str[:2]
    evaluate({"late": table}, ["no", "yes"], record=Record("fusion", "s", "late", 0, {}, {}), out=tmp_path)
    assert set(results.read([tmp_path / "cases.csv"])["group"]) == set(table["subject"])


def test_report_sections(evaluated):
    params, runs, tables = evaluated
    ranking = comparison.rank(params, runs)
    found = {section.heading: section.table for section in sections.report_sections(params.fusion, ranking, runs)}
    score = "AUC" if params.fusion.data.task == "classification" else "concordance index"
    by_pattern = found[f"{score} by modalities"].set_index("modalities")
    assert list(by_pattern.index) == [*PATTERNS, "mean of subsets", "worst subset"]
    assert set(by_pattern["patients"][list(PATTERNS)]) == {PATIENTS}
    if score == "AUC":
        own = [table[table["pattern"] == "pet"] for table in tables["late"]]
        expected = np.mean([roc_auc_score(table["target"], table["probability/yes"]) for table in own])  # over the seeds
        assert by_pattern.loc["pet", "late"].startswith(f"{expected:.3f} [")
    singles = found["Compared with the best single modality"]
    assert singles["best single"].str.startswith("pet (late)").all()
    differences = found["Pairs over patients: completion, diffusion, test-time training"]
    assert list(zip(differences["first"], differences["second"], strict=True)) == [
        ("diffusion-ttt", "diffusion"),
        ("flow", "late"),
    ]
    assert differences[RECORDED][1].startswith("-")
    if score == "AUC":
        rows = {n: pd.concat(tables[n]).query("pattern in ['pet', 'clinical']") for n in ("flow", "late")}
        gain = rows["late"]["brier"].mean() - rows["flow"]["brier"].mean()
        assert differences["Brier gain, incomplete"][1].startswith(f"{gain:+.3f} [")
    completed = found["Completed tokens"]
    assert completed["config"].tolist() == ["flow", "flow"]
    assert completed["mse"].tolist() == [1.0, 1.0]
    if score == "AUC":
        missing = found["By number of missing modalities"].set_index(["config", "missing"])
        own = [t[t["pattern"].isin(["pet", "clinical"])] for t in tables["late"]]
        assert missing.loc[("late", 1), "Brier score"] == pytest.approx(np.mean([t["brier"].mean() for t in own]))
        assert (missing["ECE"] > 0).all()
    adaptation = found["Effect of test-time training on patients"].set_index(["config", "patients"])
    assert adaptation["adapted"].tolist() == [0.75, 0.75]
    assert adaptation["steps"].tolist() == [5, 5]
    loss, sign = ("log_loss", 1) if score == "AUC" else ("concordance", -1)
    changes = [
        (b[loss].to_numpy() - a[loss].to_numpy())[a["pattern"] == RECORDED]
        for a, b in zip(tables["diffusion"], tables["diffusion-ttt"], strict=True)
    ]
    worse = np.mean([(sign * change > 0).mean() for change in changes])
    for part in ("test", "external"):
        row = adaptation.loc[("diffusion", part)]
        assert row["worse"] == pytest.approx(worse, abs=0.02)  # equal scores are neither
        assert row[f"mean change of the {loss.replace('_', ' ')}"].startswith(f"{np.mean(changes):+.3f} [")
    hospitals = found["Other hospitals"].set_index("config")
    assert set(hospitals.index) == {*tables}
    for config in hospitals.index:  # the same predictions under other names: the draws of patients differ, the scores do not
        here, there = (hospitals.loc[config, c].split()[0] for c in hospitals if "loss" not in c)
        assert here == there == by_pattern.loc[RECORDED, config].split()[0]
    shapley = found["What each modality adds"].set_index("config")
    assert shapley.loc["late", "pet"] > shapley.loc["late", "clinical"] > 0
    assert found["Imputed features"].empty
    cost = found["Cost"].set_index("config")
    assert cost.loc["late", "prediction, s"] == 0.5
    assert np.isnan(cost.loc["late", "with test-time training, s"])


def test_intervals_use_the_same_draws_for_all_configurations(evaluated):
    _, _, tables = evaluated
    scores = BootstrapScores(tables | {"copy": tables["late"]})
    (value, draws), (again, same) = scores.score("late", "pet"), scores.score("copy", "pet")
    assert value == again
    assert np.array_equal(draws, same)
    scores.complete, scores.found = pd.Index(["p0", "p2"]), {}  # the same class, or nobody with an event
    value, draws = scores.score("late", "pet", complete=True)
    assert np.isnan(value)
    assert np.isnan(draws).all()


def test_imputation_is_averaged_over_seeds(evaluated, tmp_path):
    params, runs, _ = evaluated
    runs = {name: [shutil.copytree(run, tmp_path / name / run.name) for run in own] for name, own in runs.items()}
    for run, value in zip(runs["diffusion"], (0.2, 0.4), strict=True):
        table = pd.DataFrame({"modality": ["pet", "clinical"], "patients": 9, "cosine/imputed": [value, 0.5]})
        table.to_csv(run / "evaluation/imputation.csv", index=False)
    ranking = comparison.rank(params, runs)
    found = {section.heading: section.table for section in sections.report_sections(params.fusion, ranking, runs)}
    table = found["Imputed features"]
    assert table["config"].tolist() == ["diffusion", "diffusion"]
    assert table["cosine/imputed"].tolist() == pytest.approx([0.3, 0.5])


def test_cases_have_no_patient_twice(evaluated):
    _, runs, _ = evaluated
    cases = results.read(run / "evaluation/cases.csv" for run in runs["diffusion"])
    assert not cases.duplicated(["config", "seed", "case", "metric"]).any()
    assert set(cases["config"]) == {"diffusion", "diffusion-ttt"}


def test_the_flow_is_compared_with_every_rival_on_the_same_tokens(make_params):
    fusion = make_params().fusion
    found = compared_pairs(fusion)
    assert [b for a, b in found if a == "flow"] == ["late", "concat", "transformer", "shaspec", "ridge"]
    assert [b for a, b in found if a == "flow-complete"] == [
        "late",
        *(f"{name}-complete" for name in ("concat", "transformer", "shaspec", "mean", "ridge", "gaussian")),
    ]
    assert found[-2:] == [("diffusion", "attention"), ("diffusion-ttt", "attention-ttt")]
