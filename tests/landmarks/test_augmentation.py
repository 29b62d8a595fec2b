"""Landmarks move with the image, two flips are the identity, and the same seed gives the same batch."""

import math

import pytest
import torch

from quintet.landmarks.data.anatomy import LANDMARKS, SWAPPED
from quintet.landmarks.model.augmentation import augment, mirror_images, transform

SIZE = 96


def dots(points: torch.Tensor) -> torch.Tensor:
    """One Gaussian dot per landmark: [15, 1, S, S]."""
    centres = (torch.arange(SIZE) + 0.5) / SIZE
    dx = centres[None, None, :] - points[:, 0, None, None]
    dy = centres[None, :, None] - points[:, 1, None, None]
    return torch.exp(-(dx**2 + dy**2) / (2 * 0.02**2))[:, None]


def centre_of(image: torch.Tensor) -> torch.Tensor:
    centres = (torch.arange(SIZE) + 0.5) / SIZE
    mass = image / image.sum()
    return torch.stack([(mass.sum(-2) @ centres).squeeze(), (mass.sum(-1) @ centres).squeeze()])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0, 15, -15])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, (0.0, 0.0)), (1.1, (0.05, -0.03))])
def test_each_landmark_stays_on_its_dot(flip, degrees, scale, shift):
    points = 0.3 + 0.4 * torch.rand(LANDMARKS, 2, generator=torch.Generator().manual_seed(0))
    images = dots(points)  # image k shows landmark k alone
    arguments = {
        "flip": torch.full((LANDMARKS,), flip),
        "angle": torch.full((LANDMARKS,), math.radians(degrees)),
        "scale": torch.full((LANDMARKS,), scale),
        "shift": torch.tensor([shift] * LANDMARKS),
    }
    moved, landmarks = transform(images, points.expand(LANDMARKS, -1, -1), **arguments)
    for k in range(LANDMARKS):
        index = SWAPPED[k] if flip else k  # after a flip, the dot of landmark k marks its mirror partner
        assert (centre_of(moved[k, 0]) - landmarks[k, index]).abs().max() * SIZE < 0.05


def test_two_flips_are_the_identity():
    torch.manual_seed(1)
    images, points = torch.rand(3, 1, SIZE, SIZE), torch.rand(3, LANDMARKS, 2)
    flip = torch.ones(3, dtype=torch.bool)
    flip_only = {"flip": flip, "angle": torch.zeros(3), "scale": torch.ones(3), "shift": torch.zeros(3, 2)}
    once = transform(images, points, **flip_only)
    torch.testing.assert_close(once[0], mirror_images(images), atol=1e-4, rtol=0)
    twice = transform(*once, **flip_only)
    torch.testing.assert_close(twice[0], images, atol=1e-4, rtol=0)
    torch.testing.assert_close(twice[1], points)
    assert not torch.equal(once[1], points)


def test_same_seed_same_batch(make_params):
    params = make_params().landmarks.training.augment
    images, points = torch.rand(8, 1, SIZE, SIZE), torch.rand(8, LANDMARKS, 2)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images, points, params))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not torch.equal(results[0][0], results[2][0])
    assert results[0][0].min() >= 0
    assert results[0][0].max() <= 1


def test_share_of_flips_and_largest_rotation_are_those_of_the_parameters(make_params):
    changes = {"landmarks.training.augment.scale": 0.0, "landmarks.training.augment.shift": 0.0}
    params = make_params(changes).landmarks.training.augment
    torch.manual_seed(0)
    count = 2000
    points = torch.full((count, LANDMARKS, 2), 0.5)
    points[:, 0, 1] = 0.0  # straight above the centre
    points[:, 2, 0], points[:, 3, 0] = 0.2, 0.9  # 0.3 left and 0.4 right of the centre
    _, moved = augment(torch.zeros(count, 1, 4, 4), points, params)
    angles = torch.rad2deg(torch.atan2(moved[:, 0, 0] - 0.5, 0.5 - moved[:, 0, 1])).abs()
    assert 14 < angles.max() <= params.rotation_deg + 1e-3
    # a flip exchanges 2 and 3, so landmark 2 stays on the left, but at the other distance
    assert (moved[:, 2, 0] < 0.5).all()
    distance = (moved[:, 2] - 0.5).norm(dim=-1)
    assert (distance > 0.35).float().mean() == pytest.approx(params.flip, abs=0.05)
