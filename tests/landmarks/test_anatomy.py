"""Mirroring, the annotation template and the axis frame."""

import numpy as np

from quintet.landmarks.data.anatomy import (
    LEVELS,
    MIDLINE,
    PAIRS,
    SWAPPED,
    axis_frame,
    mirror,
    project_on_template,
    to_fractions,
    to_pixels,
)


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


def test_a_label_of_the_mirror_image_is_the_mirrored_label():
    """Pixel 0 becomes the last one."""
    sizes = np.array([[300.0, 200.0]])
    pixels = np.random.default_rng(0).integers(0, 200, (1, 15, 2)).astype(float)
    expected = pixels[:, SWAPPED].copy()
    expected[..., 0] = 299 - expected[..., 0]
    np.testing.assert_allclose(to_pixels(mirror(to_fractions(pixels, sizes)), sizes), expected, atol=1e-9)


def test_the_template_has_right_angles_in_images_that_are_not_square():
    """A turned annotation that follows it stays where it is."""
    axis, n = np.array([60.0, 220.0]), np.array([220.0, -60.0]) / np.hypot(220, 60)
    offsets = np.random.default_rng(0).uniform(-80, 80, 15)
    offsets[list(MIDLINE)] = 0
    pixels = np.array([150.0, 30.0]) + LEVELS[:, None] * axis + offsets[:, None] * n
    sizes = np.array([[500, 300]])
    fractions = to_fractions(pixels[None], sizes)
    np.testing.assert_allclose(project_on_template(fractions, sizes), fractions, atol=1e-9)
    assert np.abs(project_on_template(fractions) - fractions).max() > 0.01
