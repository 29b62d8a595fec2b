"""A scan, slice by slice, to a cube of uint8: patient axes, one voxel size for all three, a window of Hounsfield units.

The cube is centred on the scan, its side the scan's longest edge, and holds 0 (the window's lower end) where the scan has
nothing. Where several of the scan's voxels fall on one of the cube's, blocks of whole voxels are averaged first, so that noise
shrinks instead of being picked up; between voxels values are linear.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from quintet.errors import InputError
from quintet.imaging.volumes import Grid

Cube = NDArray[np.uint8]  # [Z, Y, X], indices growing towards Superior, Anterior and Right
Floats = NDArray[np.float32]
Stored = tuple[NDArray[Any], float, float]
NEAR = 0.5  # of the cube's voxels: scans turned by less than this at their corners are taken for straight


class Scan(Protocol):
    """`grid.shape` is (columns, rows, slices)."""

    @property
    def grid(self) -> Grid: ...

    def plane(self, k: int) -> Stored:
        """Slice k, `[rows, columns]`, with slope and intercept that turn it into Hounsfield units."""


@dataclass(frozen=True)
class Volume:
    """A scan that is in memory already, `[X, Y, Z]`."""

    array: Floats
    grid: Grid

    def plane(self, k: int) -> Stored:
        return self.array[:, :, k].T, 1.0, 0.0


@dataclass(frozen=True)
class Axis:
    """Linear interpolation along one axis, after averaging blocks of `block` voxels: for each of the cube's indices that lies
    in the scan (`inside`), the two blocks `low`, `high` and the share of `high`."""

    block: int
    inside: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    share: Floats

    @staticmethod
    def make(count: int, spacing_mm: float, size: int, target_mm: float) -> "Axis":
        block = max(1, int(target_mm / spacing_mm + 1e-6))
        blocks = count // block
        # the scan's middle is the cube's middle; in units of blocks, the first one's centre at 0
        middle = (count / 2 - block / 2) / block
        at = middle + (np.arange(size) - (size - 1) / 2) * target_mm / (spacing_mm * block)
        inside = np.flatnonzero((at > -0.5 - 1e-6) & (at < middle * 2 + 0.5 + 1e-6))
        at = np.clip(at[inside], 0, blocks - 1)
        low = np.minimum(at.astype(np.int64), max(blocks - 2, 0))
        return Axis(block, inside, low, np.minimum(low + 1, blocks - 1), (at - low).astype(np.float32))

    def flipped(self, size: int) -> "Axis":
        """The same for a cube whose index runs the other way."""
        return Axis(self.block, size - 1 - self.inside, self.low, self.high, self.share)


def to_cube(scan: Scan, size: int, window_hu: tuple[float, float], *, threads: int = 1) -> Cube:
    """Resample to `[size, size, size]`; window_hu becomes 0 to 255. Memory: a few slices a thread and the cube; for scans that
    are turned or sheared against the patient's axes the whole scan."""
    grid = scan.grid
    if min(grid.shape) < 2:
        raise InputError(f"a scan of {' x '.join(map(str, grid.shape))} voxels is no volume")
    lengths = np.linalg.norm(grid.affine[:3, :3], axis=0)  # of the file's axes
    target_mm = float((lengths * grid.shape).max()) / size
    straight = np.zeros((3, 3))
    straight[grid.orientation[:, 0].astype(int), range(3)] = grid.orientation[:, 1]
    off_mm = np.abs((grid.affine[:3, :3] - straight * lengths) @ (np.array(grid.shape) / 2)).max()
    cube = np.zeros((size, size, size), np.uint8)
    if off_mm > NEAR * target_mm:
        lowest, highest = _turned(scan, cube, target_mm, window_hu)
    else:
        lowest, highest = _straight(scan, cube, target_mm, window_hu, threads)
    if lowest == highest:
        raise InputError(f"every voxel is {lowest:g} HU; a constant volume shows nothing")
    return cube


def _range(values: Floats) -> tuple[float, float]:
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite(lowest + highest):
        raise InputError("voxels are NaN or infinite; repair the file")
    return lowest, highest


def windowed(values: Floats, window_hu: tuple[float, float]) -> Cube:
    """Hounsfield units to 0 ... 255, rounded."""
    low, high = window_hu
    scaled = (values - np.float32(low)) * np.float32(255 / (high - low))
    return (np.clip(scaled, 0, 255) + np.float32(0.5)).astype(np.uint8)


def _straight(scan: Scan, cube: Cube, target_mm: float, window_hu: tuple[float, float], threads: int) -> tuple[float, float]:
    """Averaged and interpolated in the plane, then between the two planes around each of the cube's; returns the range of HU."""
    grid, size = scan.grid, cube.shape[0]
    lengths = np.linalg.norm(grid.affine[:3, :3], axis=0)
    axes = [Axis.make(grid.shape[a], float(lengths[a]), size, target_mm) for a in range(3)]
    x, y, z = [axis.flipped(size) if grid.orientation[a, 1] < 0 else axis for a, axis in enumerate(axes)]
    # the cube with its axes in the order (slices, rows, columns) of the file; canonical axis 0 is x, the cube's last
    view = cube.transpose([2 - int(grid.orientation[a, 0]) for a in (2, 1, 0)])
    rows, columns = np.ix_(y.inside, x.inside)

    def fill(part: NDArray[np.int64]) -> tuple[float, float]:
        planes: dict[int, Floats] = {}  # the last two
        ranges = [(np.inf, -np.inf)]
        for i in part:
            low, high, share = int(z.low[i]), int(z.high[i]), z.share[i]
            for block in (low, high):
                if block not in planes:
                    planes = {k: v for k, v in planes.items() if k >= low}
                    planes[block] = _averaged(scan.plane, block, z.block, y, x)
                    ranges.append(_range(planes[block]))
            plane = planes[low] if share == 0 else _between(planes[low], planes[high], share)
            view[z.inside[i], rows, columns] = windowed(plane, window_hu)
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    with ThreadPoolExecutor(threads) as pool:  # NumPy computes outside the interpreter's lock
        lows, highs = zip(*pool.map(fill, np.array_split(np.arange(len(z.inside)), threads)), strict=True)
    return min(lows), max(highs)


def _averaged(plane: Callable[[int], Stored], block: int, count: int, y: Axis, x: Axis) -> Floats:
    """The mean of `count` slices in Hounsfield units, in the cube's plane."""
    total = _in_plane(plane(block * count), y, x)
    for k in range(1, count):
        total += _in_plane(plane(block * count + k), y, x)
    return total / np.float32(count) if count > 1 else total


def _in_plane(stored: Stored, y: Axis, x: Axis) -> Floats:
    plane, slope, intercept = stored
    if y.block > 1 or x.block > 1:
        rows, columns = plane.shape[0] // y.block, plane.shape[1] // x.block
        plane = plane[: rows * y.block, : columns * x.block].reshape(rows, y.block, columns * x.block)
        plane = plane.sum(1, dtype=np.float32).reshape(rows, columns, x.block).sum(2) / np.float32(y.block * x.block)
    along_y = _between(plane.take(y.low, 0).astype(np.float32), plane.take(y.high, 0), y.share[:, None])
    values = _between(along_y.take(x.low, 1), along_y.take(x.high, 1), x.share)
    values *= np.float32(slope)  # after the interpolation: both are linear, and there are fewer values left
    values += np.float32(intercept)
    return values


def _between(low: Floats, high: NDArray[Any], share: Floats | np.float32) -> Floats:
    """low + share (high - low)."""
    apart = high - low
    apart *= share
    apart += low
    return apart


def _turned(scan: Scan, cube: Cube, target_mm: float, window_hu: tuple[float, float]) -> tuple[float, float]:
    """Any affine: the whole scan in memory, one interpolation in three dimensions; returns the range of HU."""
    grid, size = scan.grid, cube.shape[0]
    volume = np.empty(grid.shape[::-1], np.float32)  # [slices, rows, columns]
    for k in range(len(volume)):
        stored, slope, intercept = scan.plane(k)
        volume[k] = stored * np.float32(slope) + np.float32(intercept)
    to_file = np.linalg.inv(grid.affine)
    middle_mm = nib.affines.apply_affine(grid.affine, (np.array(grid.shape) - 1) / 2)
    # cube index (z, y, x) -> RAS mm -> file index (x, y, z) -> (z, y, x)
    matrix = (to_file[:3, :3] * target_mm)[::-1, ::-1]
    start = nib.affines.apply_affine(to_file, middle_mm - (size - 1) / 2 * target_mm)[::-1]
    values = affine_transform(volume, matrix, start, (size,) * 3, order=1, mode="constant", cval=window_hu[0])
    seen = _range(volume)
    cube[:] = windowed(values, window_hu)
    return seen
