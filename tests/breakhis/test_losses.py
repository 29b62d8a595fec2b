import math

import numpy as np
import pytest
import torch

from quintet.breakhis.model.losses import focal_loss, mixup, soft_targets


def test_focal_loss_against_hand_values():
    """p = (0.8, 0.2), smoothing 0.2: q = (0.9, 0.1)."""
    logits = torch.tensor([[math.log(0.8), math.log(0.2)]])
    targets = soft_targets(torch.tensor([[1.0, 0.0]]), 0.2)
    assert targets.tolist() == [[pytest.approx(0.9), pytest.approx(0.1)]]
    by_hand = 0.7 * (1.5 * 0.9 * 0.2**2 * -math.log(0.8) + 0.5 * 0.1 * 0.8**2 * -math.log(0.2))
    found = focal_loss(logits, targets, weights=torch.tensor([1.5, 0.5]), alpha=0.7, gamma=2.0)
    assert found.item() == pytest.approx(by_hand, rel=1e-6)


def test_without_focus_weights_and_smoothing_it_is_cross_entropy():
    torch.manual_seed(0)
    logits, classes = torch.randn(20, 8), torch.randint(8, (20,))
    own = focal_loss(logits, torch.nn.functional.one_hot(classes, 8).float(), weights=torch.ones(8), alpha=1.0, gamma=0.0)
    assert own.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, classes).item(), rel=1e-6)


def test_extreme_logits_have_finite_loss_and_gradient():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), weights=torch.ones(2), alpha=0.7, gamma=2.0).backward()
    assert torch.isfinite(logits.grad).all()


def test_mixup_is_the_same_for_the_four_images_and_the_targets():
    torch.manual_seed(1)
    values = torch.rand(6)
    images = [values.view(6, 1, 1, 1).expand(6, 3, 4, 4) * (m + 1) for m in range(4)]
    present = torch.ones(6, 4, dtype=torch.bool)
    mixed, targets = mixup(images, present, [torch.eye(6), values[:, None].repeat(1, 2)], alpha=0.4)
    for m in range(4):
        np.testing.assert_allclose(mixed[m][:, 0, 0, 0], (targets[0] @ values) * (m + 1), rtol=1e-5)
    np.testing.assert_allclose(targets[1][:, 0], targets[0] @ values, rtol=1e-5)
    np.testing.assert_allclose(targets[0].sum(1), 1, rtol=1e-6)
    assert (targets[0].max(1).values < 1).any()  # something was mixed


def test_mixup_leaves_alone_what_has_no_equal_partner():
    torch.manual_seed(0)
    present = torch.ones(4, 4, dtype=torch.bool)
    present[0, 2] = False
    images = [torch.rand(4, 3, 2, 2) for _ in range(4)]
    for _ in range(10):
        mixed, targets = mixup(images, present, [torch.eye(4)], alpha=1.0)
        assert torch.allclose(targets[0][0], torch.eye(4)[0])
        assert all(torch.allclose(mixed[m][0], images[m][0]) for m in range(4))
