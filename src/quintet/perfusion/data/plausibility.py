"""Cheap questions about a case's sides, background and outliers: a doubt is no fault, but the study is about sides.

In the left artery's territory flow of the left map is larger, and it lies on the patient's left. Maps are 0 outside the brain,
and few voxels are far above the others.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.imaging.volumes import Grid

MIN_BACKGROUND = 0.02  # share of voxels that are 0 in every map
MAX_OUTSIDE = 0.05  # share of a label outside the brain
BRAIN_MM = (60.0, 300.0)  # shortest and longest edge, also of maps that are not masked
OUTLIER = 30.0  # times the 99th percentile of the magnitudes


def image_doubts(images: NDArray[np.float32]) -> list[str]:
    """Of channels `[C, X, Y, Z]`."""
    doubts = []
    if (background := float((images == 0).all(0).mean())) < MIN_BACKGROUND:
        doubts.append(f"{background:.1%} of the voxels are 0 in every map; maps must be 0 outside the brain: mask them")
    for channel, image in enumerate(images[:2]):
        if not doubts and (image != 0).any() and np.median(image[image != 0]) < 0:
            doubts.append(f"most voxels of channel {channel} are below 0; was the map negated?")
        size = np.abs(image[image != 0])
        usual = float(np.percentile(size, 99)) if size.size else 0.0
        if usual and size.max() > OUTLIER * usual:
            count = int((size > OUTLIER * usual).sum())
            doubts.append(
                f"{count} voxel(s) of channel {channel} reach {size.max():.4g}, 99 % stay below {usual:.3g}; correct them"
            )
    return doubts


def size_doubts(images: NDArray[np.float32], grid: Grid) -> list[str]:
    """Of channels `[C, X, Y, Z]`: the longest edge of the box around the voxels that are not 0."""
    inside = (images != 0).any(0)
    voxels = [int(np.ptp(np.flatnonzero(inside.any(tuple({0, 1, 2} - {axis}))))) + 1 if inside.any() else 0 for axis in range(3)]
    longest = max(voxels * np.linalg.norm(grid.affine[:3, :3], axis=0))
    if not voxels[0] or BRAIN_MM[0] <= longest <= BRAIN_MM[1]:
        return []
    return [f"what is not 0 is {longest:.0f} mm long, which no brain is; is the voxel size right?"]


def side_doubts(images: NDArray[np.float32], grid: Grid) -> list[str]:
    """Of channels `[C, X, Y, Z]` without a label, with which `label_doubts` compares them otherwise."""
    x_left, x_right = (_centre_x(np.clip(image, 0, None), grid) for image in images[:2])
    return (
        ["the left artery's map lies to the right of the other; are the two maps exchanged, or was the case mirrored?"]
        if x_left > x_right
        else []
    )


def _centre_x(weights: NDArray[Any], grid: Grid) -> float:
    """The centre of `[X, Y, Z]` from left to right, in voxels; 0 of nothing."""
    flow = grid.to_canonical(weights).sum((0, 1), dtype=float)
    return float(flow @ np.arange(len(flow)) / max(flow.sum(), 1e-9))


def label_doubts(images: NDArray[np.float32], grid: Grid, label: NDArray[np.bool_]) -> list[str]:
    """Of channels `[C, X, Y, Z]` and territories `[2, X, Y, Z]` (left, right) on one grid."""
    doubts, brain, either = [], (images != 0).any(0), label.any(0)
    if (outside := float((either & ~brain).sum() / either.sum())) > MAX_OUTSIDE:
        doubts.append(f"{outside:.0%} of the label lie outside the brain, where every map is 0; does it belong to these images?")
    left, right = (label[k] & ~label[1 - k] & brain for k in (0, 1))
    for side, own in (("left", left), ("right", right)):
        if not own.any():
            doubts.append(f"no voxel of the brain is of the {side} territory alone; is its label missing?")
    if not (left.any() and right.any()):
        return doubts
    excess = images[0] - images[1]
    if excess[left].mean() < excess[right].mean():
        values = f"{excess[left].mean():.3g} in the left territory, {excess[right].mean():.3g} in the right one"
        doubts.append(f"channel 0 minus channel 1 is {values}; are the two maps, or the sides of the label, exchanged?")
    x_left, x_right = (_centre_x(side, grid) for side in (left, right))
    if x_left > x_right:
        doubts.append("the left territory lies on the patient's right; was the case mirrored without its affine?")
    return doubts
