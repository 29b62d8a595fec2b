"""Cheap tests that tell landmarks in other units, of another picture or in another order from real annotations.

The bounds leave a margin around what 813 annotated X-rays and 400 phantoms have: the axis turned by at most 18 degrees, each left
landmark at least 16 % of the width left of its partner, the cloud's centre between 36 and 65 % of the width, 50 % on average.
"""

import numpy as np
from numpy.typing import NDArray

from quintet.landmarks.data.anatomy import PAIRS

MAX_TILT_DEG = 45.0
CENTRE, MEAN_CENTRE = (0.25, 0.75), (0.42, 0.58)  # of the width: of one annotation, of many on average
MIN_FOR_MEAN = 10
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
    centre = points_px[:, 0].mean() / width
    if not CENTRE[0] < centre < CENTRE[1]:
        return (
            f"the landmarks' centre is at {centre:.0%} of the width; write pixels of this image, not of a smaller or larger copy"
        )
    return ""


def problem_of_all(fractions: Points) -> str:
    """The same for the annotations `[N, 15, 2]` of a whole folder, as fractions of the image: what one alone does not show."""
    centre = float(fractions[..., 0].mean()) if len(fractions) >= MIN_FOR_MEAN else 0.5
    if MEAN_CENTRE[0] < centre < MEAN_CENTRE[1]:
        return ""
    return (
        f"annotations.csv: on average the landmarks' centre is at {centre:.0%} of the width, expected 50 %; "
        "write pixels of the images in images/, not of smaller or larger copies"
    )
