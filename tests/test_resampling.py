"""Draws of patients and what is computed in each."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from quintet.resampling import bootstrap_concordance, bootstrap_means, bootstrap_weights, percentile_interval


def test_a_patients_rows_are_drawn_together_within_its_stratum():
    groups, strata = np.array(list("aabbbcdd")), np.array([0, 0, 0, 0, 0, 1, 1, 1])
    weights = bootstrap_weights(groups, strata, draws=500)
    for name in "abd":
        own = weights[:, groups == name]
        assert (own == own[:, :1]).all()
    first = [np.flatnonzero(groups == name)[0] for name in "abcd"]
    assert (weights[:, first[:2]].sum(1) == 2).all()
    assert (weights[:, first[2:]].sum(1) == 2).all()
    assert weights.mean(0) == pytest.approx(np.ones(8), abs=0.1)


def test_means_and_orders_of_a_draw_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    labels, score = rng.integers(0, 2, 40), rng.normal(size=40).round(1)
    weights = bootstrap_weights(np.arange(40), draws=20)
    pairs = (labels[:, None] == 1) & (labels[None, :] == 0)
    aucs, means = bootstrap_concordance(score, pairs, weights), bootstrap_means(score, weights)
    for k in range(20):
        rows = np.repeat(np.arange(40), weights[k].astype(int))
        assert aucs[k] == pytest.approx(roc_auc_score(labels[rows], score[rows]))
        assert means[k] == pytest.approx(score[rows].mean())


def test_interval_of_a_mean():
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    low, high = percentile_interval(bootstrap_means(values, bootstrap_weights(np.arange(400))))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high
