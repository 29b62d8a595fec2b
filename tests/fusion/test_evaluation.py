"""Patterns of modalities, scores by hand, Shapley values by all orders, imputation."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss

from quintet.fusion.evaluation.patterns import MAR, MCAR, RECORDED, patterns
from quintet.fusion.evaluation.scores import concordance_scores, imputation, patient_scores, shapley, summary

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
    level = clinical.mean(1)
    lost = ~found[MAR][:, 0] & present[:, 0]
    assert level[lost].mean() > level[~lost].mean() + 0.2
    assert found[MAR][:, 2].all()
    for missing in (0.3, 0.5, 0.8):
        whole = patterns(NAMES, np.ones_like(present), clinical, people, missing=missing)
        assert 1 - whole[MAR][:, :2].mean() == pytest.approx(missing, abs=0.04)
    some = patterns(NAMES, present[10:20], clinical[10:20], people[10:20], missing=0.3)
    assert (some[MCAR] == found[MCAR][10:20]).all()  # does not depend on the other patients


def test_brier_score_equals_scikit_learn():
    rng = np.random.default_rng(0)
    p, labels = rng.random(50), rng.integers(0, 2, 50)
    scores = patient_scores(np.stack([1 - p, p], 1), np.stack([labels, np.ones(50)], 1), classes=2)
    assert scores["brier"].mean() == pytest.approx(brier_score_loss(labels, p))


def test_concordance_of_each_patient_by_loops():
    rng = np.random.default_rng(0)
    risk, time, event = rng.normal(size=30).round(1), rng.integers(1, 20, 30), rng.integers(0, 2, 30)
    own = np.zeros((30, 2))
    for i in range(30):
        for j in range(30):
            if event[i] and time[i] < time[j]:
                own[[i, j]] += [1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0, 1]
    scores = patient_scores(risk[:, None], np.stack([time, event], 1).astype(float), classes=0)["concordance"]
    own = own[own[:, 1] > 0]
    assert scores.dropna().tolist() == pytest.approx((own[:, 0] / own[:, 1]).tolist())


def concordance(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    pairs = [(i, j) for i in range(len(risk)) for j in range(len(risk)) if event[i] and time[i] < time[j]]
    return float(np.mean([1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0 for i, j in pairs]))


def test_concordance_pseudo_values_by_leaving_out_each_patient():
    """Two subsets of different size: the pseudo-values' mean is the mean of the two indices, and leaving out a patient changes it
    by the patient's deviation / (patients - 1), but for the change of the other patients' weights."""
    rng = np.random.default_rng(1)
    n, have = 24, {"mri": np.arange(24), "mri+ct": np.arange(0, 24, 2), RECORDED: np.arange(24)}
    time, event = rng.integers(1, 20, n), rng.integers(0, 2, n)
    parts = []
    for name, rows in have.items():
        columns = {"pattern": name, "patient": [f"p{i:02d}" for i in rows], "risk": rng.normal(size=len(rows)).round(1)}
        parts.append(pd.DataFrame(columns | {"target": time[rows], "event": event[rows]}))
    scores = concordance_scores(pd.concat(parts, ignore_index=True))
    deviations = np.zeros(n)
    for part, (name, rows) in zip(parts, have.items(), strict=True):
        whole = concordance(part["risk"].to_numpy(), time[rows], event[rows])
        own = (part["risk"].to_numpy(), time[rows], event[rows])
        without = [concordance(*(np.delete(v, k) for v in own)) for k in range(len(rows))]
        expected = whole + (len(rows) - 1) * (np.mean(without) - np.array(without))
        if name == RECORDED:
            assert scores["concordance"].to_numpy() == pytest.approx(expected)
        else:
            deviations[rows] += (expected - whole) * n / len(rows) / 2
    means = [
        concordance(p["risk"].to_numpy(), time[r], event[r]) for p, r in zip(parts[:2], list(have.values())[:2], strict=True)
    ]
    assert scores["concordance_over_subsets"].to_numpy() == pytest.approx(np.mean(means) + deviations)


def test_shapley_by_all_orders():
    rng = np.random.default_rng(0)
    players = ["a", "b", "c", "d"]
    value = {frozenset(p for k, p in enumerate(players) if n >> k & 1): float(rng.random()) for n in range(16)}
    by_hand = dict.fromkeys(players, 0.0)
    for order in permutations(players):
        coalition: frozenset[str] = frozenset()
        for player in order:
            by_hand[player] += (value[coalition | {player}] - value[coalition]) / 24
            coalition |= {player}
    found = shapley(value, players)
    assert found == pytest.approx(by_hand)
    assert sum(found.values()) == pytest.approx(value[frozenset(players)] - value[frozenset()])


def test_imputation_tells_a_good_estimate_from_the_mean():
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
