"""Losses against hand-computed values, selectors against brute force, degenerate batches."""

import itertools

import numpy as np
import pytest
import torch

from quintet.ct.model.losses import (
    SELECTORS,
    graded_contrastive_loss,
    micro_f1_loss,
    objective_loss,
    shares_finding,
    triplet_loss,
)

MARGIN = 0.2


def unit(rng, count, size=4):
    x = torch.from_numpy(rng.normal(size=(count, size))).float()
    return torch.nn.functional.normalize(x, dim=1)


def shared(one, other):
    return bool(one & other) or (not one and not other)


def brute_force(x, labels):
    """(anchor, positive, negative) -> violation, by loops."""
    found = {}
    sets = [frozenset(np.flatnonzero(row)) for row in labels.numpy()]
    for a, p, n in itertools.product(range(len(x)), repeat=3):
        if a != p and shared(sets[a], sets[p]) and not shared(sets[a], sets[n]):
            found[a, p, n] = float(((x[a] - x[p]) ** 2).sum() - ((x[a] - x[n]) ** 2).sum()) + MARGIN
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("selector", SELECTORS)
def test_selectors_against_brute_force(selector, seed):
    rng = np.random.default_rng(seed)
    x, labels = unit(rng, 9), torch.from_numpy(rng.integers(0, 2, (9, 3)))
    triplets = brute_force(x, labels)
    assert len(triplets) > 20
    torch.manual_seed(seed)
    loss = triplet_loss(x, labels, margin=MARGIN, selector=selector).item()
    pairs = {}
    for (a, p, _), violation in triplets.items():
        pairs.setdefault((a, p), []).append(violation)
    if selector == "all":
        assert loss == pytest.approx(np.mean([max(0, v) for v in triplets.values()]), abs=1e-5)
        return
    limits = {"hardest": None, "random_hard": (0, np.inf), "semi_hard": (0, MARGIN)}[selector]
    if limits is None:
        chosen = [max(v) for v in pairs.values() if max(v) > 0]
        assert loss == pytest.approx(np.mean(chosen), abs=1e-5)
        return
    options = [[v for v in own if limits[0] < v < limits[1]] for own in pairs.values()]
    options = [own for own in options if own]
    assert min(map(min, options)) - 1e-5 <= loss <= max(map(max, options)) + 1e-5
    draws = [triplet_loss(x, labels, margin=MARGIN, selector=selector).item() for _ in range(400)]
    assert np.mean(draws) == pytest.approx(np.mean([np.mean(own) for own in options]), abs=5 * np.std(draws) / 20 + 1e-5)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("labels", [[[1, 0]] * 4, [[1, 0], [0, 1]], [[1, 1]]], ids=["no negative", "no positive", "one scan"])
def test_a_batch_without_a_triplet_has_loss_zero_and_gradient_zero(selector, labels):
    x = torch.randn(len(labels), 4, requires_grad=True)
    loss = triplet_loss(x, torch.tensor(labels), margin=MARGIN, selector=selector)
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_graded_contrast_equals_the_loop(seed):
    rng, temperature = np.random.default_rng(seed), 0.3
    x, labels = unit(rng, 9), torch.from_numpy(rng.integers(0, 2, (9, 3)))
    sets = [frozenset(np.flatnonzero(row)) for row in labels.numpy()]
    anchors = []
    for a in range(9):
        others = [b for b in range(9) if b != a]
        gain = [len(sets[a] & sets[b]) / len(sets[a] | sets[b]) if sets[a] | sets[b] else 1.0 for b in others]
        logits = np.array([float(x[a] @ x[b]) / temperature for b in others])
        log_p = logits - np.log(np.exp(logits).sum())
        if sum(gain):
            anchors.append(-sum(g * p for g, p in zip(gain, log_p, strict=True)) / sum(gain))
    found = graded_contrastive_loss(x, labels, temperature=temperature)
    assert found.item() == pytest.approx(np.mean(anchors), abs=1e-5)


def test_graded_contrast_pulls_a_partial_overlap_less_than_the_same_set():
    """From equal similarities: the gradient on the anchor's similarity to each other scan."""
    labels = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]])
    x = torch.nn.functional.normalize(torch.ones(4, 4) + 4 * torch.eye(4), dim=1).requires_grad_()
    graded_contrastive_loss(x, labels, temperature=0.5).backward()
    pull = [float(-x.grad[0] @ x.detach()[other]) for other in (1, 2, 3)]
    assert pull[0] > pull[1] > pull[2]


@pytest.mark.parametrize("labels", [[[1, 0], [0, 1]], [[1, 1]]], ids=["nothing is relevant", "one scan"])
def test_graded_contrast_without_a_relevant_pair_is_zero_with_gradient_zero(labels):
    x = torch.randn(len(labels), 4, requires_grad=True)
    loss = graded_contrastive_loss(x, torch.tensor(labels), temperature=0.1)
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


def test_graded_contrast_has_no_gradient_where_similarities_have_the_order_and_odds_of_the_relevance():
    """Two equal sets among scans that share nothing: the softmax is already one."""
    labels = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])
    x = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], requires_grad=True)
    loss = graded_contrastive_loss(x, labels, temperature=0.05)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert x.grad.abs().max() < 1e-6


def test_a_negative_shares_no_finding():
    labels = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]])
    expected = [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert shares_finding(labels).int().tolist() == expected


def test_f1_against_hand_computed_values():
    logits = torch.logit(torch.tensor([[0.8, 0.3, 0.1], [0.6, 0.5, 0.9]]))
    targets = torch.tensor([[1, 0, 0], [0, 1, 1.0]])
    first, second = 1.6 / (1.6 + 0.4 + 0.2), 2.8 / (2.8 + 0.6 + 0.6)
    assert micro_f1_loss(logits, targets).item() == pytest.approx(1 - (first + second) / 2, abs=1e-6)
    both = (1.6 + 2.8) / (1.6 + 2.8 + 0.4 + 0.2 + 0.6 + 0.6)
    assert micro_f1_loss(logits, targets, average="micro").item() == pytest.approx(1 - both, abs=1e-6)
    smooth = [(1.6 + 1) / (1.6 + 0.6 + 1), (2.8 + 1) / (2.8 + 1.2 + 1)]
    assert micro_f1_loss(logits, targets, smooth=1).item() == pytest.approx(1 - np.mean(smooth), abs=1e-6)


def test_cross_entropy_has_a_gradient_where_f1_is_flat(make_params):
    logits, targets = torch.tensor([[-20.0, 20.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    f1 = micro_f1_loss(logits, targets)
    assert torch.autograd.grad(f1, logits)[0].abs().max() < 1e-6  # confident in both directions: flat
    training = make_params({"ct.training.f1_smooth": 0.0, "ct.training.cross_entropy.micro_f1": 0.5}).ct.training
    both = objective_loss("micro_f1", torch.ones(1, 2), logits, targets, training, selector="none")
    assert both.item() == pytest.approx(f1.item() + 0.5 * 20, abs=1e-4)
    assert torch.autograd.grad(both, logits)[0][0].tolist() == pytest.approx([-0.25, 0.25], abs=1e-4)


def test_graded_targets():
    """Targets in [0, 1]: soft counts by their definitions."""
    p, t = torch.tensor([[0.7, 0.2]]), torch.tensor([[0.5, 0.25]])
    tp, fp, fn = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
    assert micro_f1_loss(torch.logit(p), t).item() == pytest.approx((1 - 2 * tp / (2 * tp + fp + fn)).item(), abs=1e-6)


@pytest.mark.parametrize("average", ["samples", "micro"])
def test_scans_without_findings_have_a_finite_loss_and_a_gradient_with_smoothing(average):
    for smooth in (0.0, 1.0):
        logits = torch.zeros(3, 2, requires_grad=True)
        loss = micro_f1_loss(logits, torch.zeros(3, 2), average=average, smooth=smooth)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()
        assert (logits.grad > 0).all() == (smooth > 0)  # a descent step lowers the logits


def test_perfect_logits_have_loss_zero():
    targets = torch.tensor([[1.0, 0], [1, 1]])
    assert micro_f1_loss((targets * 2 - 1) * 50, targets).item() == pytest.approx(0, abs=1e-6)
