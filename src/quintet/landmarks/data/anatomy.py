"""The fifteen landmarks: names, mirror pairs, midline, and the template that the annotation follows.

Points are `[..., 15, 2]` arrays of (x, y) as fractions of the image's width and height, 0 at the left and top edges.
Pairs, midline weights and distance pairs are those of the reference study (github.com/Rhaink/landmark_prediction).
"""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

PIXELS = 224  # errors are reported in pixels of a 224 x 224 image
LANDMARKS = 15
# Where the labels actually are, with left and right as seen in the image. The reference calls 2-7 apices, hila and bases and
# 11-12 superior borders, but its labels are on the lateral chest wall at quarters of the axis (2-7) and on the apices (11-12).
NAMES = (
    "mediastinum top",
    "mediastinum bottom",
    "wall 1/4 left",
    "wall 1/4 right",
    "wall 1/2 left",
    "wall 1/2 right",
    "wall 3/4 left",
    "wall 3/4 right",
    "midline 1/4",
    "midline 1/2",
    "midline 3/4",
    "apex left",
    "apex right",
    "costophrenic left",
    "costophrenic right",
)
PAIRS = ((2, 3), (4, 5), (6, 7), (11, 12), (13, 14))
MIDLINE = (0, 1, 8, 9, 10)
MIDLINE_WEIGHTS = (1.2, 1.2, 1.5, 1.3, 1.3)
DISTANCES = ((0, 1), (8, 9), (2, 3), (4, 5), (6, 7))
CATEGORIES = ("COVID", "Normal", "Viral Pneumonia")

SWAPPED = np.arange(LANDMARKS)  # index of each landmark's mirror image; on the midline, its own
for _left, _right in PAIRS:
    SWAPPED[[_left, _right]] = _right, _left

# Where each landmark's perpendicular meets the axis, as a fraction of the way from landmark 0 to 1.
LEVELS = np.array([0.0, 1.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.25, 0.5, 0.75, 0.0, 0.0, 1.0, 1.0])


def to_fractions(pixels: Points, sizes: NDArray[np.float64]) -> Points:
    """Pixels, (0, 0) in the middle of the upper left one, as fractions of images of `sizes` `[N, 2]`, (width, height): so that
    the mirror image of a label is the label of the mirror image."""
    return (pixels + 0.5) / sizes[..., None, :]


def to_pixels(fractions: Points, sizes: NDArray[np.float64]) -> Points:
    """The inverse of `to_fractions`."""
    return fractions * sizes[..., None, :] - 0.5


def mirror(points: Points) -> Points:
    """The points of the mirror image: x is mirrored and the paired landmarks are exchanged. An involution."""
    mirrored = points[..., SWAPPED, :].copy()
    mirrored[..., 0] = 1 - mirrored[..., 0]
    return mirrored


def axis_frame(points: Points) -> tuple[Points, Points]:
    """Unit vectors `[..., 1, 2]` along the axis from landmark 0 to 1, and across it (to the right of an upright axis)."""
    along = points[..., 1:2, :] - points[..., 0:1, :]
    along = along / np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-9)
    return along, np.stack([along[..., 1], -along[..., 0]], axis=-1)


def project_on_template(points: Points, sizes: NDArray[np.int64] | None = None) -> Points:
    """A consistent annotation near the points: the axis by least squares through the levels of all landmarks, offsets kept (the
    nearest one would also turn the axis towards the lateral landmarks). `sizes`
    `[N, 2]`: (width, height) of the images that the points are fractions of, where right angles are; None: points are pixels.

    Template: `p_k = a + level_k * (b - a) + offset_k * n`, n perpendicular to b - a, offset 0 on the midline.
    """
    if sizes is not None:
        aspect = (sizes / sizes.max(1, keepdims=True))[:, None]
        return project_on_template(points * aspect) / aspect
    _, across = axis_frame(points)
    design = np.stack([1 - LEVELS, LEVELS], axis=1)  # [15, 2]
    weights = np.linalg.pinv(design)  # [2, 15], every landmark determines the position along the axis
    midline = np.linalg.pinv(design[list(MIDLINE)])  # only the midline determines the position across it
    offset = ((points - points[..., 0:1, :]) * across).sum(-1, keepdims=True) * across
    ends = np.einsum("ek,...kc->...ec", weights, points - offset)
    ends = ends + np.einsum("ek,...kc->...ec", midline, offset[..., MIDLINE, :])
    fitted = np.einsum("ke,...ec->...kc", design, ends)
    _, across = axis_frame(fitted)
    sideways = ((points - fitted) * across).sum(-1, keepdims=True) * across
    sideways[..., MIDLINE, :] = 0
    return fitted + sideways
