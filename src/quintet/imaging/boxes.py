"""A volume to a cube of a given place and size: patient axes, linear between voxels, averaged where voxels are finer."""

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from quintet.imaging.volumes import Grid

Floats = NDArray[np.float32]


def bounds_mm(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """Lowest and highest corner (RAS mm, `[2, 3]`) of what a mask `[X, Y, Z]` along the file's axes covers, voxel edges
    included."""
    where = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    ends = [(own[0] - 0.5, own[-1] + 0.5) for own in where]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
    at = nib.affines.apply_affine(grid.affine, corners)
    return np.stack([at.min(0), at.max(0)])


def sample_cube(array: Floats, grid: Grid, centre_mm: NDArray[np.float64], side_mm: float, size: int, *, fill: float) -> Floats:
    """`[X, Y, Z]` along the file's axes -> `[size, size, size]` (z, y, x growing towards Superior, Anterior, Right) around
    `centre_mm` (RAS), `fill` where the file has nothing."""
    target_mm = side_mm / size
    steps = np.linalg.norm(grid.affine[:3, :3], axis=0)
    blocks = np.clip((target_mm / steps + 1e-6).astype(int), 1, np.array(array.shape))
    whole = np.array(array.shape) // blocks
    x, y, z = (blocks * whole).tolist()
    (bx, by, bz), (nx, ny, nz) = blocks.tolist(), whole.tolist()
    coarse = array[:x, :y, :z].reshape(nx, bx, ny, by, nz, bz).mean((1, 3, 5), dtype=np.float32)
    # cube index (z, y, x) -> RAS mm -> index of the file -> index of its blocks
    to_file = np.linalg.inv(grid.affine)
    matrix = (to_file[:3, :3] * target_mm)[:, ::-1] / blocks[:, None]
    corner_mm = centre_mm - (size - 1) / 2 * target_mm
    start = (nib.affines.apply_affine(to_file, corner_mm) - (blocks - 1) / 2) / blocks
    return np.asarray(affine_transform(coarse, matrix, start, (size,) * 3, order=1, mode="constant", cval=fill), np.float32)
