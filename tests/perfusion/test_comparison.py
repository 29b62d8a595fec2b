"""Analysis tables, open questions and recommendations, on score tables with a known truth."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quintet import results
from quintet.comparison import sweep_runs
from quintet.perfusion import answers, comparison
from quintet.perfusion.published import PUBLISHED
from tests.perfusion.conftest import SMALL

NAMES = list(PUBLISHED)


@pytest.fixture
def simulated(make_params, tmp_path, monkeypatch):
    """`simulated(better={...}, folds, seeds, run_sd)`: a sweep's tables with a mean of 0.9 plus what is named as better."""
    monkeypatch.chdir(tmp_path)

    def make(better, *, folds=(0,), seeds=(0,), run_sd=0.0, people=30, visits=2):
        sweep = {"configs": NAMES, "folds": list(folds), "seeds": list(seeds)}
        params = make_params(SMALL | {"perfusion.folds": 5, "perfusion.sweep": sweep})
        rng = np.random.default_rng(0)
        common = rng.normal(0, 0.04, people)
        fold_of = np.arange(people) % len(folds)
        for name, runs in sweep_runs(params.perfusion.sweep, comparison.SWEEP).items():
            own = rng.normal(0, 0.01, people)
            for run in runs:
                fold, seed = (int(part.lstrip("foldse")) for part in run.name.split("-"))
                chosen = np.repeat(np.flatnonzero(fold_of == list(folds).index(fold)), visits)
                dice = 0.9 + better.get(name, 0) + common[chosen] + own[chosen] + rng.normal(0, run_sd)
                table = pd.DataFrame({"dice": dice, "dice_left": dice + 0.006, "dice_right": dice - 0.006, "gap": 0.012})
                cases = [f"p{c}-v{i % visits}" for i, c in enumerate(chosen)]
                tidy = results.tidy(table, "perfusion", name, fold=fold, seed=seed, cases=cases, groups=[f"p{c}" for c in chosen])
                results.write(tidy, run / "evaluation" / "cases.csv")
        return params, comparison.ranked(params)

    return make


def test_one_seed_speaks_of_trained_models_and_leaves_questions_open(simulated):
    params, ranked = simulated({})
    assert "trained models, not of the configurations" in ranked.verdict
    said = " ".join(answers.open_questions(ranked, params.perfusion))
    assert "of these trained models" in said
    assert "Not answered, folds 1, 2, 3, 4" in said
    assert "needs two or more seeds" in said


def test_a_true_anomaly_is_found_and_chance_is_not(simulated):
    params, ranked = simulated({"shared-spatial": -0.06}, folds=range(5), seeds=range(3), run_sd=0.005)
    said = answers.open_questions(ranked, params.perfusion)
    assert "13 of the others are separated above it" in said[1]
    assert "13 of 91 pairs are separated" in said[0]
    assert "0 of their 33 comparisons" not in said[2]  # each of the three beats the last one
    params, ranked = simulated({}, folds=range(5), seeds=range(3), run_sd=0.012)
    said = answers.open_questions(ranked, params.perfusion)
    assert "0 of 91 pairs are separated" in said[0]
    assert "has a chance of" in said[1]
    assert "in 5-fold cross-validation?" in said[2]
    assert "Not answered" not in said[2]
    assert "0 of their 33" in said[2]


def test_recommendations_need_the_decision_rule(simulated):
    costs = pd.DataFrame({"parameters": 100.0, "train_seconds": 9.0}, index=NAMES)
    costs.loc["separate", ["parameters", "train_seconds"]] = [50.0, 5.0]
    params, ranked = simulated({})
    score, steady, cost = answers.recommendations(ranked, costs, params.perfusion)
    assert score.startswith("By score: none.")
    assert "not known" in steady
    assert cost.startswith("By cost: separate ")
    params, ranked = simulated({"crossattention": 0.05}, folds=range(5), seeds=range(3), run_sd=0.004)
    score, steady, cost = answers.recommendations(ranked, costs, params.perfusion)
    assert score.startswith("By score: crossattention;")
    assert "too few to tell" in steady
    assert cost.startswith("By cost: crossattention ")


def test_changes_against_the_own_baseline(simulated):
    params, ranked = simulated({"separate-spatial": 0.05})
    configs = {name: params.perfusion.configs[name] for name in ranked.table["config"]}
    table = comparison._by_loss(ranked, configs).table.set_index("architecture")
    assert list(table.columns) == ["baseline", "spatial", "complementary", "combined", "adaptive", "multiscale"]
    change = float(table.loc["separate", "spatial"].split("(")[1].split(" ")[0])
    assert change == pytest.approx(0.05, abs=0.01)
    assert table.loc["separate", "spatial"].endswith("separated)")
    assert "separated" not in table.loc["shared", "spatial"]
    mean = ranked.table.set_index("config")["mean"]
    assert change == pytest.approx(mean["separate-spatial"] - mean["separate"], abs=1e-4)
    spread = comparison._by_architecture(ranked, configs).table.set_index("architecture")
    assert spread.loc["shared", "configurations"] == 6
    assert spread.loc["separate", "best"] == "separate-spatial"


def test_sides_and_published_tables(simulated):
    params, ranked = simulated({})
    configs = {name: params.perfusion.configs[name] for name in ranked.table["config"]}
    sides = comparison._sides(sweep_runs(params.perfusion.sweep, comparison.SWEEP), configs)
    np.testing.assert_allclose(sides["gap"], 0.012, atol=1e-9)
    np.testing.assert_allclose(sides["left"] - sides["right"], 0.012, atol=1e-9)
    table = comparison._published(ranked, sides, configs).table.set_index("config")
    assert table.loc["shared-spatial", "published rank"] == "14"
    assert table.loc["shared", "published mean"] == 0.9057


def test_the_published_table_has_the_14_configurations_of_params(values):
    assert set(NAMES) == set(values["perfusion"]["configs"]) == set(values["perfusion"]["sweep"]["configs"])
    means = [mean for mean, _, _ in PUBLISHED.values()]
    assert means == sorted(means, reverse=True)
    assert all(abs((left + right) / 2 - mean) < 0.011 for mean, left, right in PUBLISHED.values())


def test_duplicated_cases_of_a_patient_change_nothing(simulated):
    params, ranked = simulated({"separate": 0.01}, seeds=(0, 1), run_sd=0.004)
    tables = list(Path("runs").rglob("cases.csv"))
    for path in tables:
        table = results.read([path])
        twin = table[table["group"] == "p3"]
        results.write(pd.concat([table, twin.assign(case=twin["case"] + "-again")], ignore_index=True), path)
    assert len(tables) == 28
    again = comparison.ranked(params)
    assert again.cases == ranked.cases + 2
    own = [c for c in ranked.table if c != "mean_over_cases"]  # that one counts cases, and says so
    pd.testing.assert_frame_equal(again.table[own], ranked.table[own])
