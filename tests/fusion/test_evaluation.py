"""Patterns, scores by hand, Shapley values by all orders, imputation."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from quintet.fusion.evaluation import (
    MAR,
    MCAR,
    RECORDED,
    headline,
    imputation,
    patient_scores,
    patterns,
    shapley,
    summary,
)

NAMES = ["a", "b", "clinical"]


def test_patterns():
    rng = np.random.default_rng(0)
    present = rng.random((400, 3)) < 0.8
    present[:, 2] = True
    clinical = rng.normal(size=(400, 2)).astype(np.float32)
    people = [f"p{i}" for i in range(400)]
    found = patterns(NAMES, present, clinical, people, missing=0.3)
    assert len(found) == 7 + 3
    assert (found["a+b"].any(1) == present[:, :2].all(1)).all()
    assert not found["a+b"][:, 2].any()
    assert (found[RECORDED] == present).all()
    for name in (MCAR, MAR):
        assert found[name].any(1).all()
        assert not (found[name] & ~present).any()
    assert 1 - found[MCAR][present].mean() == pytest.approx(0.3, abs=0.05)
    height = clinical.mean(1)
    lost = ~found[MAR][:, 0] & present[:, 0]
    assert height[lost].mean() > height[~lost].mean() + 0.2
    assert found[MAR][:, 2].all()
    some = patterns(NAMES, present[10:20], clinical[10:20], people[10:20], missing=0.3)
    assert (some[MCAR] == found[MCAR][10:20]).all()  # nobody else's draw matters


def test_auc_and_brier_as_scikit_learn_has_them():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 2)), rng.integers(0, 2, 50)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    target = np.stack([labels, np.ones(50)], 1)
    assert headline(scores, target) == pytest.approx(roc_auc_score(labels, p[:, 1]))
    assert patient_scores(p, target, classes=2)["brier"].mean() == pytest.approx(brier_score_loss(labels, p[:, 1]))
    three, labels = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    p = np.exp(three) / np.exp(three).sum(1, keepdims=True)
    expected = roc_auc_score(labels, p, multi_class="ovr")
    assert headline(three, np.stack([labels, np.ones(60)], 1)) == pytest.approx(expected)


def test_concordance_by_loops():
    rng = np.random.default_rng(0)
    risk, time, event = rng.normal(size=30).round(1), rng.integers(1, 20, 30), rng.integers(0, 2, 30)
    right = pairs = 0
    own = np.zeros((30, 2))
    for i in range(30):
        for j in range(30):
            if event[i] and time[i] < time[j]:
                value = 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
                right, pairs = right + value, pairs + 1
                own[[i, j]] += [value, 1]
    target = np.stack([time, event], 1).astype(float)
    assert headline(risk[:, None], target) == pytest.approx(right / pairs)
    scores = patient_scores(risk[:, None], target, classes=0)["concordance"]
    assert scores.dropna().tolist() == pytest.approx((own[:, 0] / own[:, 1])[own[:, 1] > 0].tolist())
    torchsurv = pytest.importorskip("torchsurv.metrics.cindex")
    import torch

    theirs = torchsurv.ConcordanceIndex()(torch.tensor(risk), torch.tensor(event).bool(), torch.tensor(time).double())
    assert right / pairs == pytest.approx(theirs.item(), abs=0.02)  # ties in time are counted otherwise there


def test_shapley_by_all_orders():
    rng = np.random.default_rng(0)
    players = ["a", "b", "c", "d"]
    value = {frozenset(p for k, p in enumerate(players) if n >> k & 1): float(rng.random()) for n in range(16)}
    by_hand = dict.fromkeys(players, 0.0)
    for order in permutations(players):
        there: frozenset[str] = frozenset()
        for player in order:
            by_hand[player] += (value[there | {player}] - value[there]) / 24
            there |= {player}
    found = shapley(value, players)
    assert found == pytest.approx(by_hand)
    assert sum(found.values()) == pytest.approx(value[frozenset(players)] - value[frozenset()])


def test_imputation_tells_a_good_guess_from_the_mean():
    rng = np.random.default_rng(0)
    others, known_others = rng.normal(size=(40, 6)), rng.normal(size=(200, 6))
    weights = rng.normal(size=(6, 5))
    real, known = others @ weights, known_others @ weights
    found = imputation(real, real + 0.1, others, known, known_others)
    assert found["mse/imputed"] == pytest.approx(0.01)
    assert found["cosine/ridge"] > 0.99
    assert found["mse/mean"] == pytest.approx(((real - known.mean(0)) ** 2).mean())


def test_summary_of_subsets():
    rows = []
    for pattern, p in (("a", [0.9, 0.2, 0.4, 0.3]), ("a+b", [0.9, 0.2, 0.8, 0.3]), (RECORDED, [0.9, 0.2, 0.8, 0.6])):
        for value, label in zip(p, [1, 0, 1, 0], strict=True):
            rows.append((pattern, 1 - value, value, label, 1, (value - label) ** 2, 0.0))
    table = pd.DataFrame(rows, columns=["pattern", "probability/n", "probability/y", "target", "event", "brier", "log_loss"])
    found = summary(table, ["probability/n", "probability/y"])
    assert found["auc/a"] == found["auc/a+b"] == 1
    assert found["auc_worst_subset"] == 1
    assert found["balanced_accuracy"] == 0.75
    assert found["brier"] == pytest.approx(np.mean([0.01, 0.04, 0.04, 0.36]))
