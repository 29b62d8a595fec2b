"""Resample a CT scan, slice by slice, to an isotropic uint8 cube along the patient's axes, within a window of Hounsfield units.

The cube is centred on the scan, and its side is the scan's longest edge or a given length. Outside the scan it is 0, the lower
end of the window. If several voxels of the scan fit in one voxel of the cube, blocks of whole voxels are averaged first, which
reduces noise and avoids aliasing; then values are interpolated linearly.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.imaging.boxes import sample_cube
from quintet.imaging.volumes import Grid

Cube = NDArray[np.uint8]  # [Z, Y, X], indices increase towards Superior, Anterior and Right
Floats = NDArray[np.float32]
StoredPlane = tuple[NDArray[Any], float, float]  # values [rows, columns], slope, intercept
AIR_HU, MAX_HU = -200.0, 20_000.0  # a scan of the chest has values below the one and none above the other
AIR_BOX_MM = 150.0  # a box in a chest that is at least as large contains air
MAX_OFFSET = 0.5  # voxels of the cube; scans whose corners are rotated by less than this are treated as axis-aligned


class Scan(Protocol):
    """A CT scan that is read slice by slice; `grid.shape` is (columns, rows, slices)."""

    @property
    def grid(self) -> Grid: ...

    def plane(self, k: int) -> StoredPlane:
        """Slice k as stored, `[rows, columns]`, with the slope and intercept that convert it to Hounsfield units."""


@dataclass(frozen=True)
class Volume:
    """A scan in memory, `[X, Y, Z]` in Hounsfield units."""

    array: Floats
    grid: Grid

    def plane(self, k: int) -> StoredPlane:
        return self.array[:, :, k].T, 1.0, 0.0


@dataclass(frozen=True)
class Axis:
    """Linear interpolation along one axis, after averaging blocks of `block` voxels: for each index of the cube that lies in the
    scan (`inside`), the two neighbouring blocks `low` and `high`, and the weight of `high`."""

    block: int
    inside: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: Floats

    @staticmethod
    def create(count: int, spacing_mm: float, size: int, target_mm: float) -> "Axis":
        block = min(count, max(1, int(target_mm / spacing_mm + 1e-6)))
        blocks = count // block
        # scan and cube share their centre; positions are in units of blocks, with the centre of the first block at 0
        centre = (count / 2 - block / 2) / block
        position = centre + (np.arange(size) - (size - 1) / 2) * target_mm / (spacing_mm * block)
        inside = np.flatnonzero((position > -0.5 - 1e-6) & (position < centre * 2 + 0.5 + 1e-6))
        position = np.clip(position[inside], 0, blocks - 1)
        low = np.minimum(position.astype(np.int64), max(blocks - 2, 0))
        return Axis(block, inside, low, np.minimum(low + 1, blocks - 1), (position - low).astype(np.float32))

    def flipped(self, size: int) -> "Axis":
        """The same interpolation for a cube whose index runs in the opposite direction."""
        return Axis(self.block, size - 1 - self.inside, self.low, self.high, self.weight)


def to_cube(scan: Scan, size: int, window_hu: tuple[float, float], *, box_mm: float = 0, threads: int = 1) -> Cube:
    """Resample a scan to `[size, size, size]`, with `window_hu` scaled to 0 ... 255. `box_mm`: the cube's side; 0: the scan's
    longest edge.

    Memory: the cube and a few slices per thread; the whole scan if it is oblique or sheared. Raises InputError if the scan has
    fewer than 2 voxels along an axis, lies between two voxels of the cube, is constant, or has values that are not finite or no
    Hounsfield units.
    """
    grid = scan.grid
    if min(grid.shape) < 2:
        raise InputError(f"a scan of {' x '.join(map(str, grid.shape))} voxels is not a volume")
    spacing_mm = np.linalg.norm(grid.affine[:3, :3], axis=0)  # along the file's axes
    target_mm = (box_mm or float((spacing_mm * grid.shape).max())) / size
    aligned = np.zeros((3, 3))
    aligned[grid.orientation[:, 0].astype(int), range(3)] = grid.orientation[:, 1]
    offset_mm = np.abs((grid.affine[:3, :3] - aligned * spacing_mm) @ (np.array(grid.shape) / 2)).max()
    cube = np.zeros((size, size, size), np.uint8)
    if offset_mm > MAX_OFFSET * target_mm:
        lowest, highest = _fill_oblique(scan, cube, target_mm, window_hu)
    else:
        lowest, highest = _fill_aligned(scan, cube, target_mm, window_hu, threads)
    if lowest > highest:  # nothing was read
        raise InputError(
            f"the scan, {' x '.join(f'{v:.3g}' for v in spacing_mm * grid.shape)} mm, fits between two voxels of the cube, which "
            f"are {target_mm:.3g} mm apart; choose a smaller box (ct.data.box_mm) or more voxels (ct.data.size)"
        )
    if lowest == highest:
        raise InputError(f"every voxel is {lowest:g} HU; a constant volume has no content")
    surely_air = size * target_mm >= min(AIR_BOX_MM, float((spacing_mm * grid.shape).max()))
    if (surely_air and lowest > AIR_HU) or highest > MAX_HU:
        raise InputError(f"values from {lowest:g} to {highest:g} are no Hounsfield units (air has -1000, water 0); convert them")
    if cube.min() == cube.max():
        raise InputError(f"every voxel is outside the window of {window_hu[0]:g} to {window_hu[1]:g} HU; choose another window")
    return cube


def _finite_range(values: Floats) -> tuple[float, float]:
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite(lowest + highest):
        raise InputError("voxels are NaN or infinite; repair the file")
    return lowest, highest


def apply_window(values: Floats, window_hu: tuple[float, float]) -> Cube:
    """Clip Hounsfield units to the window and scale it to 0 ... 255, rounded."""
    low, high = window_hu
    scaled = (values - np.float32(low)) * np.float32(255 / (high - low))
    return (np.clip(scaled, 0, 255) + np.float32(0.5)).astype(np.uint8)


def _fill_aligned(scan: Scan, cube: Cube, target_mm: float, window_hu: tuple[float, float], threads: int) -> tuple[float, float]:
    """Fill the cube from an axis-aligned scan: average and interpolate within slices, then between the two slices around each
    plane of the cube. Returns the range of HU."""
    grid, size = scan.grid, cube.shape[0]
    spacing_mm = np.linalg.norm(grid.affine[:3, :3], axis=0)
    axes = [Axis.create(grid.shape[a], float(spacing_mm[a]), size, target_mm) for a in range(3)]
    x, y, z = [axis.flipped(size) if grid.orientation[a, 1] < 0 else axis for a, axis in enumerate(axes)]
    # the cube with its axes in the file's order (slices, rows, columns); canonical axis 0 is x, the last axis of the cube
    view = cube.transpose([2 - int(grid.orientation[a, 0]) for a in (2, 1, 0)])
    rows, columns = np.ix_(y.inside, x.inside)

    def fill(indices: NDArray[np.int64]) -> tuple[float, float]:
        planes: dict[int, Floats] = {}  # the last two
        ranges = [(np.inf, -np.inf)]
        for i in indices:
            low, high, weight = int(z.low[i]), int(z.high[i]), z.weight[i]
            for block in (low, high):
                if block not in planes:
                    planes = {k: v for k, v in planes.items() if k >= low}
                    planes[block] = _mean_plane(scan.plane, block, z.block, y, x)
                    ranges.append(_finite_range(planes[block]))
            plane = planes[low] if weight == 0 else _interpolate(planes[low], planes[high], weight)
            view[z.inside[i], rows, columns] = apply_window(plane, window_hu)
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    with ThreadPoolExecutor(threads) as pool:  # NumPy releases the GIL
        lows, highs = zip(*pool.map(fill, np.array_split(np.arange(len(z.inside)), threads)), strict=True)
    return min(lows), max(highs)


def _mean_plane(plane: Callable[[int], StoredPlane], block: int, count: int, y: Axis, x: Axis) -> Floats:
    """The mean of the `count` slices of a block, in Hounsfield units, resampled to the rows and columns of the cube."""
    total = _resample_plane(plane(block * count), y, x)
    for k in range(1, count):
        total += _resample_plane(plane(block * count + k), y, x)
    return total / np.float32(count) if count > 1 else total


def _resample_plane(stored: StoredPlane, y: Axis, x: Axis) -> Floats:
    plane, slope, intercept = stored
    if y.block > 1 or x.block > 1:
        rows, columns = plane.shape[0] // y.block, plane.shape[1] // x.block
        plane = plane[: rows * y.block, : columns * x.block].reshape(rows, y.block, columns * x.block)
        plane = plane.sum(1, dtype=np.float32).reshape(rows, columns, x.block).sum(2) / np.float32(y.block * x.block)
    along_y = _interpolate(plane.take(y.low, 0).astype(np.float32), plane.take(y.high, 0), y.weight[:, None])
    values = _interpolate(along_y.take(x.low, 1), along_y.take(x.high, 1), x.weight)
    values *= np.float32(slope)  # after interpolation, when there are fewer values; both operations are linear
    values += np.float32(intercept)
    return values


def _interpolate(low: Floats, high: NDArray[Any], weight: Floats | np.float32) -> Floats:
    """low + weight * (high - low), in one temporary array."""
    result = high - low
    result *= weight
    result += low
    return result


def _fill_oblique(scan: Scan, cube: Cube, target_mm: float, window_hu: tuple[float, float]) -> tuple[float, float]:
    """Fill the cube from a scan with any affine: the whole scan in memory, interpolated in 3D. Returns the range of HU."""
    grid, size = scan.grid, cube.shape[0]
    volume = np.empty(grid.shape[::-1], np.float32)  # [slices, rows, columns]
    for k in range(len(volume)):
        stored, slope, intercept = scan.plane(k)
        volume[k] = stored * np.float32(slope) + np.float32(intercept)
    centre_mm = nib.affines.apply_affine(grid.affine, (np.array(grid.shape) - 1) / 2)
    values = sample_cube(volume.T, grid, centre_mm, size * target_mm, size, fill=window_hu[0])
    hu_range = _finite_range(volume)
    cube[:] = apply_window(values, window_hu)
    return hu_range
