"""Mirroring, the annotation template and the axis frame."""

import numpy as np

from quintet.landmarks.data.anatomy import LEVELS, MIDLINE, PAIRS, SWAPPED, axis_frame, mirror, project_on_template


def test_mirror_is_an_involution_and_exchanges_the_pairs():
    points = np.random.default_rng(0).random((5, 15, 2))
    np.testing.assert_allclose(mirror(mirror(points)), points)
    for left, right in PAIRS:
        np.testing.assert_allclose(mirror(points)[:, left, 0], 1 - points[:, right, 0])
        np.testing.assert_allclose(mirror(points)[:, left, 1], points[:, right, 1])
    assert all(SWAPPED[k] == k for k in MIDLINE)


def consistent(seed: int) -> np.ndarray:
    """Points that follow the template exactly."""
    rng = np.random.default_rng(seed)
    a, b = np.array([0.5, 0.1]), np.array([0.55, 0.8])
    along = (b - a) / np.linalg.norm(b - a)
    offsets = rng.uniform(-0.4, 0.4, 15)
    offsets[list(MIDLINE)] = 0
    return (a + LEVELS[:, None] * (b - a) + offsets[:, None] * np.array([along[1], -along[0]]))[None]


def test_template_keeps_consistent_points_and_reduces_noise():
    true = consistent(1)
    np.testing.assert_allclose(project_on_template(true), true, atol=1e-9)
    noisy = true + np.random.default_rng(2).normal(0, 0.02, (200, 15, 2))
    before, after = (np.linalg.norm(p - true, axis=-1).mean() for p in (noisy, project_on_template(noisy)))
    assert after < 0.9 * before


def test_axis_frame_is_orthonormal():
    along, across = axis_frame(np.random.default_rng(3).random((7, 15, 2)))
    np.testing.assert_allclose((along * across).sum(-1), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(across, axis=-1), 1)
