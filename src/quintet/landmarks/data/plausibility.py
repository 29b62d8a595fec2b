"""Cheap tests that tell landmarks in other units, of another picture or in another order from real annotations.

The bounds leave a margin around what 813 annotated X-rays and 400 phantoms have: the axis turned by at most 18 degrees, each left
landmark at least 16 % of the width left of its partner, the cloud's centre between 36 and 65 % of the width, 50 % on average.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quintet.landmarks.data.anatomy import PAIRS, project_on_template

MAX_TILT_DEG = 45.0
CENTRE, MEAN_CENTRE = (0.25, 0.75), (0.42, 0.58)  # of the width: of one annotation, of many on average
MIN_FOR_MEAN = 10
MAX_AWAY = 0.2  # from the template, as a fraction of the axis; of 813 annotated X-rays and 400 phantoms at most 0.05
MIN_CONTRAST = -0.03  # midline minus lungs, of the grey range; of 813 annotated X-rays at least 0.06, of 400 phantoms 0.03
Points = NDArray[np.float64]


def problem(points_px: Points, width: int, height: int) -> str:
    """What is wrong with the landmarks `[15, 2]` of one image, and the remedy; empty if nothing is."""
    outside = (points_px > [width, height]).any(axis=1)
    if outside.any():
        landmark = int(np.flatnonzero(outside)[0])
        position = points_px[landmark].tolist()
        return f"landmark {landmark} at {position} is outside the image of {width} x {height} pixels"
    if np.ptp(points_px, axis=0).max() <= 2:
        return "all landmarks lie within two pixels; multiply fractions by the image's width and height"
    x, y = points_px[1] - points_px[0]
    tilt = np.degrees(np.arctan2(abs(x), abs(y)))
    if tilt > MAX_TILT_DEG:
        return f"the axis from landmark 0 to 1 is turned by {tilt:.0f} degrees; are x and y exchanged?"
    if y < 0:
        return "landmark 0, the top of the axis, lies below landmark 1; does y run upwards? It must run downwards"
    if crossed := [pair for pair in PAIRS if points_px[pair[0], 0] >= points_px[pair[1], 0]]:
        left, right = crossed[0]
        return f"landmark {left} is not left of landmark {right}, as seen in the image; exchange the pairs"
    away = np.linalg.norm(points_px - project_on_template(points_px), axis=-1) / np.linalg.norm(points_px[1] - points_px[0])
    if away.max() > MAX_AWAY:
        landmark = int(away.argmax())
        missing = "; an annotation that is missing? Leave the row out" if not points_px[landmark].any() else ""
        return (
            f"landmark {landmark} at {points_px[landmark].tolist()} is {away.max():.0%} of the axis away from its place in the "
            f"scheme: 8, 9, 10 and the pairs lie at quarters of the axis, from above{missing}"
        )
    centre = points_px[:, 0].mean() / width
    if not CENTRE[0] < centre < CENTRE[1]:
        return (
            f"the landmarks' centre is at {centre:.0%} of the width; write pixels of this image, not of a smaller or larger copy"
        )
    return ""


def inverted(points_px: Points, grey: NDArray[np.float32]) -> str:
    """A sentence if, according to the landmarks `[15, 2]` of an image `[H, W]` in [0, 1], bone is dark and air bright."""
    along = np.linspace(0, 1, 20)[:, None]
    across = np.linspace(0.3, 0.7, 9)[:, None, None]  # of the way from the midline to the wall, at three levels on both sides
    midline = points_px[8] + (points_px[10] - points_px[8]) * along
    lungs = points_px[[8, 8, 9, 9, 10, 10]] * (1 - across) + points_px[2:8] * across
    if _mean_at(midline, grey) - _mean_at(lungs, grey) > MIN_CONTRAST * np.ptp(grey):
        return ""
    return (
        "between the landmarks, the lungs are brighter than the midline; is the picture inverted? Write bone bright and air dark "
        "(or is it mirrored or turned, or do the landmarks belong to another picture?)"
    )


def _mean_at(points_px: Points, grey: NDArray[np.float32]) -> float:
    height, width = grey.shape
    columns, rows = points_px.reshape(-1, 2).round().astype(int).T
    return float(grey[rows.clip(0, height - 1), columns.clip(0, width - 1)].mean())


def problem_of_all(fractions: Points, sizes: Sequence[tuple[int, int]]) -> str:
    """The same for the annotations `[N, 15, 2]` of a whole folder, as fractions of images of these (width, height): what one
    alone does not show. Images of each size are one group, as copies of another size often are only some of them."""
    for size in sorted(set(sizes)):
        own = fractions[[s == size for s in sizes]]
        centre = float(own[..., 0].mean()) if len(own) >= MIN_FOR_MEAN else 0.5
        if not MEAN_CENTRE[0] < centre < MEAN_CENTRE[1]:
            return (
                f"annotations.csv: in {len(own)} images of {size[0]} x {size[1]} pixels the landmarks' centre is on average at "
                f"{centre:.0%} of the width, expected 50 %; write pixels of these images, not of smaller or larger copies"
            )
    return ""
