"""Open questions and recommendations, answered from score tables with a known truth."""

import pandas as pd
import pytest

from quintet.perfusion.open_questions import difference, open_questions, recommendations
from quintet.perfusion.published import PUBLISHED


def test_one_seed_is_about_trained_models_and_leaves_questions_open(simulated):
    params, _, ranking = simulated({})
    assert "trained models, not to the configurations" in ranking.verdict
    significant, anomaly, top_three = open_questions(ranking, params.perfusion)
    assert "0 of 91 pairs of these trained models are significantly different" in significant
    assert "nothing can be concluded about the configurations" in significant
    assert "Two or more seeds are needed to see whether" in anomaly
    assert "Not answered, because folds 1, 2, 3, 4 were not run" in top_three


def test_a_true_anomaly_is_found(simulated):
    params, _, ranking = simulated({"shared-spatial": -0.06}, folds=range(5), seeds=range(3), run_sd=0.005)
    significant, anomaly, top_three = open_questions(ranking, params.perfusion)
    assert "13 of 91 pairs are significantly different" in significant
    assert "it has rank 14 of 14; 13 of the others are significantly better, 0 significantly worse" in anomaly
    assert "3 of their 33 comparisons" in top_three  # each of the three is better than the last one


def test_chance_is_not_taken_for_an_anomaly(simulated):
    params, _, ranking = simulated({}, folds=range(5), seeds=range(3), run_sd=0.012)
    significant, anomaly, top_three = open_questions(ranking, params.perfusion)
    assert "0 of 91 pairs are significantly different" in significant
    assert "has a probability of" in anomaly
    assert "hold in 5-fold cross-validation?" in top_three
    assert "Not answered" not in top_three
    assert "0 of their 33 comparisons" in top_three


def test_questions_about_configurations_that_were_not_run_are_left_out(simulated):
    params, _, ranking = simulated({}, configs=["shared", "separate", "crossattention"])
    (significant,) = open_questions(ranking, params.perfusion)
    assert "of 3 pairs" in significant


def test_a_difference_changes_sign_with_its_order(simulated):
    _, _, ranking = simulated({"separate": 0.05}, folds=range(5), seeds=range(3), run_sd=0.004)
    value, half_width, significant = difference(ranking, "separate", "shared")
    assert difference(ranking, "shared", "separate") == (-value, half_width, significant)
    assert value == pytest.approx(0.05, abs=0.01)
    assert 0 < half_width < value
    assert significant


def test_recommendations_need_the_decision_rule(simulated):
    costs = pd.DataFrame({"parameters": 100.0, "train_seconds": 9.0}, index=list(PUBLISHED))
    costs.loc["separate", ["parameters", "train_seconds"]] = [50.0, 5.0]
    params, _, ranking = simulated({})
    score, variation, cost = recommendations(ranking, costs, params.perfusion)
    assert score.startswith("By score: none.")
    assert "unknown, because one seed" in variation
    assert cost.startswith("By cost: separate ")
    params, _, ranking = simulated({"crossattention": 0.05}, folds=range(5), seeds=range(3), run_sd=0.004)
    score, variation, cost = recommendations(ranking, costs, params.perfusion)
    assert score.startswith("By score: crossattention;")
    assert "too few to distinguish" in variation
    assert cost.startswith("By cost: crossattention ")


def test_a_run_sd_far_below_the_others_is_recommended(simulated):
    run_sd = {"shared": 0.02, "separate": 0.0005, "crossattention": 0.02}
    params, _, ranking = simulated({}, configs=list(run_sd), folds=range(5), seeds=range(4), run_sd=run_sd)
    costs = pd.DataFrame({"parameters": 100.0, "train_seconds": 9.0}, index=list(run_sd))
    assert recommendations(ranking, costs, params.perfusion)[1].startswith("By run-to-run variation: separate, run SD 0.000")
