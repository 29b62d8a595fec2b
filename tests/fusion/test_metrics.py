"""AUC and concordance index against scikit-learn, loops and torchsurv."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchsurv.metrics.cindex import ConcordanceIndex

from quintet.fusion.metrics import auc_or_concordance, auc_or_concordance_of


def test_auc_equals_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 2)), rng.integers(0, 2, 50)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert auc_or_concordance(scores, np.stack([labels, np.ones(50)], 1)) == pytest.approx(roc_auc_score(labels, p[:, 1]))
    scores, labels = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = roc_auc_score(labels, p, multi_class="ovr")
    assert auc_or_concordance(scores, np.stack([labels, np.ones(60)], 1)) == pytest.approx(expected)


def test_concordance_by_loops():
    rng = np.random.default_rng(0)
    risk, time, event = rng.normal(size=30).round(1), rng.integers(1, 20, 30), rng.integers(0, 2, 30)
    correct = pairs = 0.0
    for i in range(30):
        for j in range(30):
            if event[i] and time[i] < time[j]:
                correct += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
                pairs += 1
    assert auc_or_concordance(risk[:, None], np.stack([time, event], 1).astype(float)) == pytest.approx(correct / pairs)


def test_concordance_equals_torchsurv_where_no_times_are_equal():
    """With equal times the values differ: torchsurv also compares an event with a patient censored at the same time."""
    rng = np.random.default_rng(0)
    risk, event = rng.normal(size=40).round(1), rng.integers(0, 2, 40)
    for time, equal in ((rng.permutation(40) + 1.0, True), (rng.integers(1, 20, 40).astype(float), False)):
        theirs = ConcordanceIndex()(torch.tensor(risk), torch.tensor(event).bool(), torch.tensor(time)).item()
        assert (auc_or_concordance(risk[:, None], np.stack([time, event], 1)) == pytest.approx(theirs, abs=1e-12)) == equal


def test_no_comparable_pair_gives_nan():
    table = pd.DataFrame({"risk": [0.1, 0.2], "target": [5.0, 7.0], "event": [0, 0]})
    assert np.isnan(auc_or_concordance_of(table, ["risk"]))
    assert auc_or_concordance_of(table.assign(event=1), ["risk"]) == 0
