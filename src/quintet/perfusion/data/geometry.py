"""Mapping between a case's own grid and the prepared one: canonical axes, crop to the non-zero box, in-plane resampling."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize

from quintet.imaging.volumes import Grid

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """The file's grid, the cropped box on canonical axes, and the in-plane size after resampling."""

    grid: Grid
    box: tuple[tuple[int, int], ...]  # (start, stop) along canonical z, y, x
    size: tuple[int, int]  # rows, columns after resampling

    def crop(self, array: NDArray[Any]) -> NDArray[Any]:
        """`[X, Y, Z]` along the file's axes -> the box `[z, y, x]`."""
        return self.grid.to_canonical(array)[tuple(slice(*edge) for edge in self.box)]

    def resample_image(self, box: Floats) -> Floats:
        """`[z, y, x]` -> `[z, rows, columns]`, cubic spline in-plane; slices stay as they are."""
        return _resize(box, self.size, order=3)

    def resample_mask(self, box: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return _resize(box.astype(np.float32), self.size, order=1) >= 0.5

    def to_file(self, probability: Floats) -> Floats:
        """A probability map on the prepared grid `[z, rows, columns]` -> the file's grid `[X, Y, Z]`; 0 outside the box."""
        canonical = np.zeros(self.grid.to_canonical(np.empty(self.grid.shape, np.bool_)).shape, np.float32)
        (_, _), (y0, y1), (x0, x1) = self.box
        canonical[tuple(slice(*edge) for edge in self.box)] = _resize(probability, (y1 - y0, x1 - x0), order=1)
        return self.grid.from_canonical(canonical)

    def as_json(self) -> dict[str, Any]:
        return {"shape": self.grid.shape, "affine": self.grid.affine.tolist(), "box": self.box, "size": self.size}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Geometry":
        grid = Grid(tuple(values["shape"]), np.array(values["affine"], np.float64))
        return Geometry(grid, tuple((a, b) for a, b in values["box"]), tuple(values["size"]))


def on_file_grid(slices: Floats, geometry: Geometry) -> Floats:
    """`[slices, K, rows, columns]` -> `[K, X, Y, Z]` on the file's own grid."""
    return np.stack([geometry.to_file(channel) for channel in np.moveaxis(slices, 1, 0)])


def plan_geometry(grid: Grid, inside: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> Geometry:
    """The box around `inside` (canonical `[Z, Y, X]`, not empty) and its size at `spacing_mm` (rows, columns)."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append((int(hit[0]), int(hit[-1]) + 1))
    size = [
        max(1, round((stop - start) * old / new))
        for (start, stop), old, new in zip(box[1:], grid.spacing_mm[1:], spacing_mm, strict=True)
    ]
    return Geometry(grid, tuple(box), (size[0], size[1]))


def _resize(array: Floats, size: tuple[int, int], *, order: int) -> Floats:
    """Resize in-plane, slice by slice, with aligned edges of the field of view (half-pixel centres), as nnU-Net does."""
    if array.shape[1:] == size:
        return array.astype(np.float32)
    options = {"order": order, "mode": "edge", "clip": False, "anti_aliasing": False, "preserve_range": True}
    return np.stack([resize(plane.astype(np.float32), size, **options) for plane in array])
