"""Resample a volume to a cube of given centre and size along the patient's axes, with linear interpolation and averaging."""

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from quintet.imaging.volumes import Grid

Floats = NDArray[np.float32]


def bounds_mm(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """The bounding box of a mask `[X, Y, Z]` (the file's axes) with voxel edges: lowest and highest corner, `[2, 3]` RAS mm."""
    indices = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    edges = [(along[0] - 0.5, along[-1] + 0.5) for along in indices]
    corners = np.stack(np.meshgrid(*edges, indexing="ij"), -1).reshape(-1, 3)
    corners_mm = nib.affines.apply_affine(grid.affine, corners)
    return np.stack([corners_mm.min(0), corners_mm.max(0)])


def sample_cube(array: Floats, grid: Grid, centre_mm: NDArray[np.float64], side_mm: float, size: int, *, fill: float) -> Floats:
    """Resample `[X, Y, Z]` (the file's axes) to a cube `[Z, Y, X]` of `side_mm` and `size` voxels per side around `centre_mm`.

    `centre_mm` is in RAS. Indices of the cube increase towards Superior, Anterior and Right. Blocks of voxels that fit in one
    voxel of the cube are averaged first. Outside the file the cube is `fill`.
    """
    target_mm = side_mm / size
    spacing_mm = np.linalg.norm(grid.affine[:3, :3], axis=0)
    blocks = np.clip((target_mm / spacing_mm + 1e-6).astype(int), 1, np.array(array.shape))  # voxels per block
    counts = np.array(array.shape) // blocks
    x, y, z = (blocks * counts).tolist()
    (bx, by, bz), (nx, ny, nz) = blocks.tolist(), counts.tolist()
    coarse = array[:x, :y, :z].reshape(nx, bx, ny, by, nz, bz).mean((1, 3, 5), dtype=np.float32)
    # cube index (z, y, x) -> RAS mm -> file index (x, y, z) -> block index
    to_file = np.linalg.inv(grid.affine)
    matrix = (to_file[:3, :3] * target_mm)[:, ::-1] / blocks[:, None]
    corner_mm = centre_mm - (size - 1) / 2 * target_mm
    offset = (nib.affines.apply_affine(to_file, corner_mm) - (blocks - 1) / 2) / blocks
    # two calls: one that fills would fade the outer half of the outermost voxels into the fill
    cube = affine_transform(coarse, matrix, offset, (size,) * 3, order=1, mode="nearest")
    inside = np.ones((size,) * 3, bool)
    steps = np.arange(size)
    for row, start, blocks_along in zip(matrix, offset, np.array(array.shape) / blocks, strict=True):
        at = start + row[0] * steps[:, None, None] + row[1] * steps[:, None] + row[2] * steps
        inside &= (at >= -0.5) & (at <= blocks_along - 0.5)
    return np.where(inside, cube, fill).astype(np.float32)
