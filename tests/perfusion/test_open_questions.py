"""Open questions and recommendations, answered from score tables with a known truth."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from quintet.perfusion.open_questions import difference, least_variable, open_questions, recommendations
from quintet.perfusion.published import PUBLISHED
from quintet.ranking import decide
from tests.ranking.tables import draw


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
    assert recommendations(ranking, costs, params.perfusion)[1].startswith(
        "By run-to-run variation: separate, SD between the means of its runs 0.000"
    )


@pytest.mark.parametrize("noise_sd", [0.0, 0.2, 6.0])
def test_equal_configurations_are_rarely_told_apart_by_their_variation(noise_sd):
    """At most 5 % under the null, whether the noise of people is small or hides the runs."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        decision = decide(draw(rng, configs=4, patients=20, folds=2, seeds=3, run_sd=1.0, noise_sd=noise_sd))
        runs = pd.DataFrame({"square": decision.config_run_square, "df": decision.config_run_df}).sort_values("square")
        found.append(least_variable(runs, 0.05))
    assert np.mean(found) <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


def test_runs_that_differ_by_noise_alone_say_so(simulated):
    params, _, ranking = simulated({}, folds=range(5), seeds=range(3))
    assert "by no more than the noise" in open_questions(replace(ranking, run_sd=0.0), params.perfusion)[1]
