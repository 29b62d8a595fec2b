"""Every loss term against numbers computed by hand, and where it must be zero."""

import math

import numpy as np
import pytest
import torch

from quintet.params.perfusion import PerfusionLoss, PerfusionLossWeights
from quintet.perfusion.model.losses import LOSSES, base, complementary, multiscale, spatial, weight_at

# one image of 1 x 4 pixels: background, left only, right only, both
T = torch.tensor([[[[0.0, 1.0, 0.0, 1.0]], [[0.0, 0.0, 1.0, 1.0]]]])
P = torch.tensor([[[[0.2, 0.9, 0.4, 0.8]], [[0.5, 0.3, 0.6, 0.7]]]])


def test_base_by_hand():
    """Logit 0 everywhere: BCE ln 2 per pixel; soft Dice over both channels 2 * 4 * 0.5 / (8 * 0.5 + 4)."""
    assert base(torch.zeros(1, 2, 1, 4), T).item() == pytest.approx(math.log(2) + 1 - 4 / 8, abs=1e-5)


def test_base_weighs_both_sides_equally():
    wrong_left = torch.where(T > 0, 5.0, -5.0)
    wrong_right = wrong_left.flip(1).clone()
    assert base(wrong_left * torch.tensor([-1.0, 1.0])[None, :, None, None], T).item() == pytest.approx(
        base(wrong_right * torch.tensor([1.0, -1.0])[None, :, None, None], T.flip(1)).item()
    )


def test_spatial_by_hand():
    overlap = (0.2 * 0.5 + 0.9 * 0.3 + 0.4 * 0.6) / 4  # the last pixel belongs to both
    coverage = ((0.7 - 0) ** 2 + (1 - 1) ** 2 + (1 - 1) ** 2 + (1 - 1) ** 2) / 4  # 0.9 + 0.3 and 0.8 + 0.7 are clamped
    exclusivity = 0.3 / 4 + 0.4 / 4  # right where only left is, left where only right is
    assert spatial(P, T).item() == pytest.approx(overlap + coverage + exclusivity)


def test_complementary_by_hand():
    outside = 0.2 * 0.5 / 4
    covered = abs((0.7 + 1 + 1 + 1) / 4 - 3 / 4)
    assert complementary(P, T).item() == pytest.approx(outside + covered)


def test_multiscale_is_the_mean_over_three_scales():
    """Constant images are the same at every scale."""
    p, t = torch.full((1, 2, 8, 8), 0.25), torch.zeros(1, 2, 8, 8)
    assert multiscale(p, t).item() == pytest.approx(spatial(p, t).item())
    corner = torch.zeros(1, 2, 8, 8)
    corner[..., :4, :4] = 1
    scales = [
        spatial(p, corner),
        spatial(p[..., ::2, ::2], corner[..., ::2, ::2]),
        spatial(p[..., ::4, ::4], corner[..., ::4, ::4]),
    ]
    assert multiscale(p, corner).item() == pytest.approx(torch.stack(scales).mean().item())


def test_multiscale_hardly_sees_a_fault_in_a_perfect_prediction():
    """Targets that are displaced within their cells cost 0.06."""
    y, x = np.mgrid[:64, :64]
    t = torch.from_numpy(np.stack([(y - 30) ** 2 + (x - c) ** 2 < 14**2 for c in (24, 40)])[None]).float()
    assert 3 * multiscale(t, t).item() - spatial(t, t).item() < 0.04


def test_adaptive_weight_rises_linearly():
    assert [weight_at([0.05, 0.15], at) for at in (0, 0.5, 1)] == pytest.approx([0.05, 0.1, 0.15])
    assert weight_at(0.1, 0.7) == 0.1


@pytest.mark.parametrize("name", LOSSES)
def test_terms_vanish_at_the_truth_and_have_finite_gradients(name):
    t = T.repeat_interleave(8, 2).repeat_interleave(8, 3)  # large enough for a quarter of the size
    value = LOSSES[name](t.clone(), t)
    assert value.shape == (1,)
    assert value.item() == 0
    q = torch.full_like(t, 0.5).requires_grad_()
    LOSSES[name](q, torch.zeros_like(t)).sum().backward()
    assert torch.isfinite(q.grad).all()
    assert q.grad.abs().max() > 0


def test_an_empty_image_predicted_empty_costs_nothing():
    logits = torch.full((2, 2, 4, 4), -40.0, requires_grad=True)
    loss = base(logits, torch.zeros(2, 2, 4, 4))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, 0], abs=1e-4)
    assert torch.isfinite(logits.grad).all()


def test_images_of_a_batch_are_independent():
    p, t = torch.rand(3, 2, 8, 8), (torch.rand(3, 2, 8, 8) > 0.5).float()
    for term in (lambda a, b: base(torch.logit(a), b), *LOSSES.values()):
        one_by_one = torch.cat([term(p[i : i + 1], t[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(term(p, t), one_by_one)


def test_names_in_params_are_the_registry():
    from typing import get_args

    assert set(get_args(PerfusionLoss)) == set(LOSSES) == set(PerfusionLossWeights.model_fields)
