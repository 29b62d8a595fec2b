"""Retrieval metrics against naive loops: without ties, and with ties against the mean over all orders."""

import itertools

import numpy as np
import pytest

from quintet.ct.metrics import Scans, cosine, f1_scores, hubness, jaccard, retrieve
from quintet.errors import InputError

KS = (1, 3, 5)


def random_scans(count, seed=0, *, patients=None, share=0.4):
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 3)) < share).astype(np.float32)
    names = np.array([f"s{i}" for i in range(count)])
    owners = np.array([f"p{i}" for i in (patients if patients is not None else range(count))])
    return Scans(names, owners, labels, ["a", "b", "c"]), rng


def set_jaccard(one, other):
    a, b = set(np.flatnonzero(one)), set(np.flatnonzero(other))
    return len(a & b) / len(a | b) if a | b else 1.0


def ranking_metrics(order, gains, available, ideal):
    """Metrics of one ranking by their definitions."""
    found = {}
    relevant = [gains[g] > 0 for g in order]
    for k in KS:
        hits = sum(relevant[:k])
        terms = [sum(relevant[: i + 1]) / (i + 1) for i in range(min(k, len(order))) if relevant[i]]
        found[f"precision_at_{k}"] = hits / k
        found[f"recall_at_{k}"] = hits / available if available else np.nan
        found[f"ap_at_{k}"] = sum(terms) / min(k, available) if available else np.nan
        gained = sum(gains[g] / np.log2(i + 2) for i, g in enumerate(order[:k]))
        best = sum(g / np.log2(i + 2) for i, g in enumerate(ideal[:k]))
        found[f"ndcg_at_{k}"] = gained / best if best else np.nan
        found[f"jaccard_at_{k}"] = sum(gains[g] for g in order[:k]) / k
    return found


def naive(similarity, scans):
    """A loop over queries; with ties, the mean over every order of the tied scans."""
    rows = []
    for q in range(len(scans)):
        gallery = [g for g in range(len(scans)) if scans.patients[g] != scans.patients[q]]
        gains = {g: set_jaccard(scans.labels[q], scans.labels[g]) for g in gallery}
        available = sum(v > 0 for v in gains.values())
        ideal = sorted(gains.values(), reverse=True)
        levels = sorted({similarity[q, g] for g in gallery}, reverse=True)
        groups = [[g for g in gallery if similarity[q, g] == level] for level in levels]
        orders = [list(itertools.chain(*p)) for p in itertools.product(*(list(itertools.permutations(g)) for g in groups))]
        found = [ranking_metrics(order, gains, available, ideal) for order in orders]
        rows.append({name: np.mean([f[name] for f in found]) for name in found[0]})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop(seed):
    scans, rng = random_scans(24, seed, patients=np.arange(24) // 2)
    similarity = cosine(rng.normal(size=(24, 6)))
    found = retrieve(similarity, scans, ks=KS)
    expected = naive(similarity, scans)
    assert set(found.metrics) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found.metrics[name], values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ties_are_the_mean_over_all_orders(levels):
    """With one level all scans are tied (a random order)."""
    scans, rng = random_scans(8, levels)
    similarity = rng.integers(0, levels, (8, 8)).astype(float)
    found, expected = retrieve(similarity, scans, ks=KS), naive(similarity, scans)
    for name, values in expected.items():
        np.testing.assert_allclose(found.metrics[name], values, atol=1e-6, err_msg=name)


def test_two_empty_sets_have_jaccard_one_and_a_single_one_has_zero():
    assert jaccard(np.zeros((1, 3)), np.array([[0, 0, 0], [1, 0, 0]])).tolist() == [[1, 0]]
    labels = np.array([[0, 0], [0, 0], [1, 0]], np.float32)
    scans = Scans(np.array(list("xyz")), np.array(list("xyz")), labels, ["a", "b"])
    found = retrieve(np.array([[0, 0.1, 0.9], [0.1, 0, 0.9], [0.5, 0.4, 0]]), scans, ks=(1, 2), neighbours=1)
    assert found.metrics["precision_at_1"].tolist() == [0, 0, 0]
    assert found.metrics["ap_at_2"][:2].tolist() == [0.5, 0.5]
    assert np.isnan(found.metrics["ap_at_2"][2])  # no scan is relevant
    assert np.isnan(found.metrics["recall_at_1"][2])


def test_a_patients_own_scans_are_never_retrieved():
    scans, rng = random_scans(30, patients=np.arange(30) // 3)
    same_patient = np.equal.outer(scans.patients, scans.patients)
    similarity = same_patient * 10.0 + rng.random((30, 30))  # by far the nearest
    found = retrieve(similarity, scans)
    listed = found.nearest
    assert (listed >= 0).sum() == 30 * 20
    assert (scans.patients[listed] != scans.patients[:, None]).all()
    single, _ = random_scans(30)  # every scan of another patient: only the query itself is excluded
    listed = retrieve(similarity, single).nearest
    assert (listed != np.arange(30)[:, None]).all()


def test_fewer_scans_than_places():
    scans, rng = random_scans(4)
    found = retrieve(rng.random((4, 4)), scans)
    assert (found.nearest[:, 3] == -1).all()
    assert (found.metrics["precision_at_20"] <= 3 / 20).all()


def test_votes_are_shares_of_the_nearest():
    scans, rng = random_scans(20, 5)
    similarity = rng.random((20, 20))
    found = retrieve(similarity, scans, neighbours=5)
    for q in range(20):
        others = [g for g in np.argsort(-similarity[q]) if g != q][:5]
        assert found.votes[q] == pytest.approx(scans.labels[others].mean(0))


def test_chunks_change_nothing(monkeypatch):
    scans, rng = random_scans(50, patients=np.arange(50) // 2)
    similarity = rng.random((50, 50)).round(1)
    whole = retrieve(similarity, scans)
    monkeypatch.setattr("quintet.ct.metrics.CHUNK", 7)
    parts = retrieve(similarity, scans)
    assert all(np.array_equal(whole.metrics[name], parts.metrics[name], equal_nan=True) for name in whole.metrics)


def test_f1_equals_scikit_learn():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(1)
    predicted, true = rng.integers(0, 2, (40, 3)), rng.integers(0, 2, (40, 3))
    found = f1_scores(predicted, true, ["a", "b", "c"])
    for kind in ("micro", "macro", "weighted"):
        assert found[f"{kind}_f1"] == pytest.approx(f1_score(true, predicted, average=kind))
    assert found["f1/b"] == pytest.approx(f1_score(true[:, 1], predicted[:, 1]))
    assert f1_scores(predicted * 0, true * 0, ["a", "b", "c"])["micro_f1"] == 0


def test_hubness_of_a_hub():
    ring = (np.arange(20)[:, None] + np.arange(1, 4)) % 20
    assert hubness(ring, 20, 3) == 0  # every scan is listed equally often
    hub = ring.copy()
    hub[1:, 0] = 0
    assert hubness(hub, 20, 3) > 2


def test_a_similarity_that_is_not_finite_is_refused():
    scans, rng = random_scans(5)
    similarity = rng.random((5, 5))
    similarity[2, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        retrieve(similarity, scans)
