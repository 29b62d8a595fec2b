"""Losses against hand-computed values, selectors against brute force, degenerate batches."""

import itertools

import numpy as np
import pytest
import torch

from quintet.ct.model.losses import SELECTORS, micro_f1_loss, shares_finding, triplet_loss

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


def test_cross_entropy_has_a_gradient_where_f1_is_flat():
    logits, targets = torch.tensor([[-20.0, 20.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    f1 = micro_f1_loss(logits, targets)
    assert torch.autograd.grad(f1, logits)[0].abs().max() < 1e-6  # confident in both directions: flat
    both = micro_f1_loss(logits, targets, cross_entropy=0.5)
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
