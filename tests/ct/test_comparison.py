"""The ranking of configurations, baselines and external embeddings."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quintet import experiment, results
from quintet.ct.comparison import rank, report_sections
from quintet.params.ct import BASELINES
from tests.ct.conftest import SMALL


def test_sweep_baselines_and_ranking(make_params, cubes, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = make_params(SMALL | {"ct.external": {"elsewhere": str(trained[0] / "evaluation" / "embeddings.npz")}})
    sweep, baselines = Path("runs/ct/sweep"), Path("runs/ct/baselines")
    for config in params.ct.sweep.configs:
        experiment.run_sweep_entry("ct", params, cubes, sweep / config / "seed0", config, seed=0)
    metrics = experiment.run_baselines("ct", params, cubes, baselines)
    (sweep / "removed/seed0").mkdir(parents=True)
    ranking = experiment.rank_runs("ct", params, sweep, baselines, Path("runs/ct/rank"), Path("reports/ranking"))
    assert not (sweep / "removed").exists()
    assert "patients" in ranking.verdict
    table = pd.read_csv("reports/ranking/ranking.csv").set_index("config")
    assert set(table.index) == {*params.ct.sweep.configs, *metrics}
    assert np.isnan(table.loc["oracle", "rank"])
    assert table.loc["histogram", "covered"] == 0
    cases = results.read([baselines / "prior/seed0/evaluation/cases.csv"])
    by_patient = cases[cases["metric"] == "ndcg_at_10"].groupby("group")["value"].mean()
    assert table.loc["prior", "mean"] == pytest.approx(by_patient.mean(), abs=1e-5)
    page = Path("reports/ranking/ranking.html").read_text()
    for heading in ("Comparison with the baselines", "By cut-off", "Findings", "Cost", "How to read this"):
        assert f"<h2>{heading}" in page
    assert json.loads(Path("runs/ct/rank/record.json").read_text())["stage"] == "rank"
    assert not list(Path(".checkpoints").glob("*"))


PATIENTS, QUERIES = 20, 2


@pytest.fixture
def simulated(make_params, tmp_path):
    """Run folders with known scores: for every query, the graded objective is 0.2 better than each baseline, the oracle 0.25."""
    sweep = {"configs": ["adaptive-graded", "adaptive-semi-hard"], "seeds": [0, 1]}
    params = make_params({"ct.sweep": sweep, "ranking.bootstrap": 100})
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.6, PATIENTS * QUERIES)
    gains = {"adaptive-graded": 0.2, "adaptive-semi-hard": 0.1, "oracle": 0.25} | dict.fromkeys(BASELINES, 0.0)
    runs = {}
    for name, gain in gains.items():
        runs[name] = [tmp_path / name / f"seed{seed}" for seed in ((0, 1) if name.startswith("adaptive") else (0,))]
        for seed, run in enumerate(runs[name]):
            shift = gain + (0.01 if seed else -0.01) * name.startswith("adaptive")
            scores = pd.DataFrame({"ndcg_at_10": base + shift, "ap_at_5": base + 2 * gain})
            scores = scores.join(scores.add_suffix("/pseudo_value"))  # as if no patient mattered to the others
            cases = [f"c{i}" for i in range(len(base))]
            groups = [f"p{i // QUERIES}" for i in range(len(base))]
            tidy = results.to_tidy(scores, "ct", name, fold=0, seed=seed, cases=cases, groups=groups)
            (run / "evaluation").mkdir(parents=True)
            results.write(tidy, run / "evaluation" / "cases.csv")
            found = {"ndcg_at_10": float(scores["ndcg_at_10"].mean()), "f1/nodules": 0.5, "ndcg_at_10/none": 0.25}
            found |= {"evaluation_seconds_per_scan": 0.1 + seed} if name.startswith("adaptive") else {}
            (run / "evaluation" / "metrics.json").write_text(json.dumps(found))
            record = experiment.new_record("ct", "ct_sweep", name, seed=seed, params={}, inputs={})
            record.metrics = {"train_seconds": 10.0 * (seed + 1)}
            record.save(run)
    return params, runs


def test_ranking_counts_patients_and_trusts_baselines_to_be_deterministic(simulated):
    params, runs = simulated
    ranking = rank(params, runs)
    assert (ranking.metric, ranking.label, ranking.patients) == ("ndcg_at_10", "NDCG@10", PATIENTS)
    assert ranking.table["config"].iloc[0] == "adaptive-graded"
    assert ranking.run_sd == pytest.approx(0.02 / 2**0.5)
    gains = dict(zip(ranking.answers["question"], ranking.answers["gain"], strict=True))
    expected = {("graded", "prior"): 0.2, ("graded", "histogram"): 0.2, ("graded", "adaptive-semi-hard"): 0.1}
    expected |= {("semi-hard", "prior"): 0.1, ("semi-hard", "histogram"): 0.1}
    assert gains == pytest.approx({f"Is adaptive-{one} better than {other}?": gain for (one, other), gain in expected.items()})
    covered = ranking.table.set_index("config")["covered"]
    assert covered[["adaptive-graded", "histogram"]].tolist() == pytest.approx([0.8, 0])
    assert ranking.ceiling == "oracle"
    assert "oracle" not in ranking.by_patient.index


def test_report_tables(simulated):
    params, runs = simulated
    sections = {section.heading: section for section in report_sections(params.ct, rank(params, runs), runs)}
    differences = sections["Comparison with the baselines"].table.set_index(["first", "second"])
    assert set(differences.index) == {(f"adaptive-{name}", b) for name in ("graded", "semi-hard") for b in BASELINES}
    differences = differences.loc["adaptive-graded"]
    assert (differences["NDCG@10"] == "+0.200 [+0.200, +0.200]").all()  # seeds are averaged; every query differs by 0.2
    assert (differences["mAP@5"] == "+0.400 [+0.400, +0.400]").all()
    at_k = sections["By cut-off"].table.set_index("config")
    assert at_k.loc["adaptive-graded", "NDCG@10"] == pytest.approx(at_k.loc["prior", "NDCG@10"] + 0.2)
    findings = sections["Findings"].table.set_index("config")
    assert findings.loc["random", ["F1 nodules", "NDCG@10 none"]].tolist() == [0.5, 0.25]
    costs = sections["Cost"].table.set_index("config")
    assert list(costs.index) == ["adaptive-graded", "adaptive-semi-hard"]
    assert costs.loc["adaptive-graded", ["training, s", "embedding, s per scan"]].tolist() == pytest.approx([15, 0.6])
