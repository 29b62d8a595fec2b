"""Loss terms compared with hand-computed values and naive loops."""

import math

import numpy as np
import pytest
import torch

from quintet.landmarks.data.anatomy import DISTANCES, MIDLINE, MIDLINE_WEIGHTS, PAIRS
from quintet.landmarks.model.losses import LOSSES, distance, symmetry, wing

WING = {"omega": 10.0, "epsilon": 2.0}


def points(seed: int) -> torch.Tensor:
    return torch.rand(4, 15, 2, generator=torch.Generator().manual_seed(seed)) * 224


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (0.0, 0.0),
        (2.0, 10 * math.log(2)),  # 6.9315
        (4.0, 10 * math.log(3)),  # 10.9861
        (10.0, 10 * math.log(6)),  # 17.9176, where both branches meet
        (20.0, 20 - (10 - 10 * math.log(6))),  # 27.9176
    ],
)
def test_wing_by_hand(error, value):
    true = torch.zeros(1, 15, 2)
    assert wing(true + error, true, **WING).item() == pytest.approx(value, rel=1e-5)
    assert wing(true - error, true, **WING).item() == pytest.approx(value, rel=1e-5)


def test_wing_on_fractions_is_the_references_near_l1():
    """On [0, 1] omega = 10 is never reached: a small error costs omega / epsilon times its size, as in an L1 loss."""
    true = torch.zeros(1, 15, 2)
    assert wing(true + 0.01, true, **WING).item() == pytest.approx(0.05, rel=0.01)
    assert wing(true + 0.02, true, **WING).item() / wing(true + 0.01, true, **WING).item() == pytest.approx(2, rel=0.01)


def test_symmetry_against_a_naive_loop():
    predicted = points(1)
    total = []
    for image in predicted.numpy():
        axis = sum(w * image[k][0] for k, w in zip(MIDLINE, MIDLINE_WEIGHTS, strict=True)) / sum(MIDLINE_WEIGHTS)
        for left, right in PAIRS:
            for one, other in ((left, right), (right, left)):
                mirrored = np.array([2 * axis - image[other][0], image[other][1]])
                total.append(np.linalg.norm(image[one] - mirrored))
    assert symmetry(predicted, points(2)).item() == pytest.approx(np.mean(total), rel=1e-5)


def test_symmetry_of_a_symmetric_shape_is_zero():
    shape = points(3)[:1]
    shape[:, list(MIDLINE), 0] = 112
    for left, right in PAIRS:
        shape[:, right, 0], shape[:, right, 1] = 224 - shape[:, left, 0], shape[:, left, 1]
    assert symmetry(shape, shape).item() == pytest.approx(0, abs=1e-4)


def test_distance_against_a_naive_loop():
    predicted, true = points(4), points(5)
    total = [
        abs(np.linalg.norm(p[a] - p[b]) - np.linalg.norm(t[a] - t[b]))
        for p, t in zip(predicted.numpy(), true.numpy(), strict=True)
        for a, b in DISTANCES
    ]
    assert distance(predicted, true).item() == pytest.approx(np.mean(total), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_term_has_finite_gradients_even_at_a_perfect_prediction(name):
    true = points(6)
    predicted = true.clone().requires_grad_()
    LOSSES[name](predicted, true, **WING).backward()
    assert torch.isfinite(predicted.grad).all()
