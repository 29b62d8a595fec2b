"""Bootstrap draws of patients, and the statistics computed in each draw."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from quintet.resampling import bootstrap_concordance, bootstrap_means, bootstrap_weights, percentile_interval


def test_the_rows_of_a_patient_are_drawn_together_within_its_stratum() -> None:
    groups, strata = np.array(list("aabbbcdd")), np.array([0, 0, 0, 0, 0, 1, 1, 1])
    weights = bootstrap_weights(groups, strata, draws=500)
    for name in "abd":
        group_weights = weights[:, groups == name]
        assert (group_weights == group_weights[:, :1]).all()
    first_rows = [np.flatnonzero(groups == name)[0] for name in "abcd"]
    assert (weights[:, first_rows[:2]].sum(1) == 2).all()
    assert (weights[:, first_rows[2:]].sum(1) == 2).all()
    assert weights.mean(0) == pytest.approx(np.ones(8), abs=0.1)


def test_mean_and_concordance_of_a_draw_equal_those_of_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    labels, score = rng.integers(0, 2, 40), rng.normal(size=40).round(1)
    weights = bootstrap_weights(np.arange(40), draws=20)
    pairs = (labels[:, None] == 1) & (labels[None, :] == 0)
    aucs, means = bootstrap_concordance(score, pairs, weights), bootstrap_means(score, weights)
    for k in range(20):
        rows = np.repeat(np.arange(40), weights[k].astype(int))
        assert aucs[k] == pytest.approx(roc_auc_score(labels[rows], score[rows]))
        assert means[k] == pytest.approx(score[rows].mean())


def test_percentile_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    low, high = percentile_interval(bootstrap_means(values, bootstrap_weights(np.arange(400))))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high


def test_a_draw_without_a_comparable_pair_has_no_value() -> None:
    """Three of twenty are positive: some draws have none of them."""
    score, positive = np.arange(20.0), np.arange(20) > 16
    draws = bootstrap_concordance(score, positive[:, None] & ~positive, bootstrap_weights(np.arange(20)))
    assert np.isnan(draws).any()
    assert percentile_interval(draws) == (1, 1)
    means = bootstrap_means(score[positive], bootstrap_weights(np.arange(20))[:, positive])
    assert np.isnan(means).any()
    assert 17 <= percentile_interval(means)[0] < percentile_interval(means)[1] <= 19
    assert np.isnan(percentile_interval(np.full(5, np.nan))).all()
