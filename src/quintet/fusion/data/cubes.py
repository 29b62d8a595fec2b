"""One patient's images on one grid, with intensities that can be compared."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.fusion.data.preparation import Preparation
from quintet.fusion.data.raw import read_image
from quintet.fusion.data.segmentation import Mask
from quintet.fusion.data.tabular import Files
from quintet.imaging.boxes import bounds_mm, sample_cube
from quintet.imaging.places import has_lost_its_place
from quintet.imaging.volumes import Grid
from quintet.subjects import digest_of

MIN_OVERLAP = 0.3  # of the smaller one of two images' boxes
MAX_INTENSITY = 4.0  # times the upper percentile: lesions may be brighter than it, stray voxels are clipped
Cubes = NDArray[np.float16]  # [M, S, S, S], in the order of Preparation.cubes
Image = tuple[NDArray[np.float32], Grid]  # one modality [C, X, Y, Z]


def make_cubes(
    files: Files,
    masks: Mapping[str, Mask],
    preparation: Preparation,
    digests: list[str] | None = None,
    images: Mapping[str, Image] | None = None,
) -> Cubes:
    """One patient's images in one cube, each resampled from its own grid; adds a hash of each channel's voxels to `digests`.
    `images`: those that were read already; None: read the files.

    The cube is centred on the box around all masks; its side is the longest edge of the box or, with a spacing, as long as its
    voxels make it: what is larger is cropped, what is smaller is padded. In each channel, the two percentiles inside the image's
    mask become 0 and 1; brighter voxels stay brighter."""
    size, read = preparation.size, images or {}
    own = [m for m in preparation.modalities if m in files and m in masks]
    images = {m: read[m] if read else read_image(files[m], preparation.channels_of(m)) for m in own}
    hashes = [(files[m], digest_of(channel)) for m, (array, _) in images.items() for channel in array]
    if digests is not None:
        digests += [value for _, value in hashes]
    out = np.zeros((len(preparation.cubes), size, size, size), np.float16)
    if not images:
        return out
    for (a, first), (b, second) in combinations(hashes, 2):
        if first == second:
            twice = "holds one image twice" if a == b else f"and {b} hold one image; is one of them misnamed"
            raise InputError(f"{a} {twice}? Remove it")
    corners = np.stack([bounds_mm(masks[m], grid) for m, (_, grid) in images.items()])
    _check_places({m: grid for m, (_, grid) in images.items()}, corners)
    low, high = corners[:, 0].min(0), corners[:, 1].max(0)
    side = size * preparation.spacing_mm or float((high - low).max())
    for row, (modality, channel) in enumerate(preparation.cubes):
        if modality not in images:
            continue
        array, grid, mask = images[modality][0][channel], images[modality][1], masks[modality]
        if mask.shape != array.shape:
            raise InputError(
                f"{files[modality]}: {array.shape} voxels, but {mask.shape} in its mask; run `dvc repro fusion_segment`"
            )
        darkest, brightest = np.percentile(array[mask], preparation.percentiles)
        if darkest == brightest:
            raise InputError(f"{files[modality]}: every voxel in its mask is {darkest:g}; remove it, or choose another segmenter")
        if preparation.skull_strip:
            array = np.where(mask, array, np.float32(darkest))
        cube = sample_cube(array, grid, (low + high) / 2, side, size, fill=float(darkest))
        out[row] = np.clip((cube - darkest) / (brightest - darkest), 0, MAX_INTENSITY)
    return out


def _check_places(grids: Mapping[str, Grid], corners: NDArray[np.float64]) -> None:
    """Raise InputError if an image has lost its affine, or if what two images show (`[M, 2, 3]`, lowest and highest corner in mm)
    is at different places."""
    modalities = list(grids)
    lost = [m for m in modalities if has_lost_its_place(grids[m].affine)]
    if lost and len(lost) < len(modalities):
        raise InputError(
            f"{lost[0]} has lost its place: its affine is the identity (but for signs), the others' are not; export it again"
        )
    sizes = (corners[:, 1] - corners[:, 0]).prod(1)
    for a, b in combinations(range(len(modalities)), 2):
        shared = np.clip(np.minimum(corners[a, 1], corners[b, 1]) - np.maximum(corners[a, 0], corners[b, 0]), 0, None).prod()
        if shared < MIN_OVERLAP * min(sizes[a], sizes[b]):
            apart = float(np.linalg.norm(corners[a].mean(0) - corners[b].mean(0)))
            raise InputError(
                f"{modalities[a]} and {modalities[b]} share {shared / min(sizes[a], sizes[b]):.0%} of what they show, and their "
                f"centres are {apart:.0f} mm apart; register them, or restore the affine that was lost"
            )
