"""Volumes: NIfTI files in and out, and the way from a file's own axes to canonical ones and back.

A file's array is `[X, Y, Z]` along its own axes; canonical is `[Z, Y, X]` with indices growing towards Superior, Anterior
and Right (RAS+), whatever the file's orientation or handedness.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from quintet.errors import InputError

NIFTI = (".nii", ".nii.gz")
SAME_MM = 1e-2  # grids whose corners differ by less are the same
SPACING_MM = (0.1, 50.0)  # anything else is another unit


@dataclass(frozen=True)
class Grid:
    """Where a file's voxels lie: its shape `[X, Y, Z]` and the affine from indices to RAS+ mm."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def orientation(self) -> NDArray[np.float64]:
        return nib.orientations.io_orientation(self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the canonical axes (z, y, x); the length of the affine's columns, so that a sheared grid keeps its voxel sizes."""
        own = np.linalg.norm(self.affine[:3, :3], axis=0)
        x, y, z = own[np.argsort(self.orientation[:, 0])]
        return float(z), float(y), float(x)

    def same_as(self, other: "Grid") -> bool:
        corners = np.stack(np.meshgrid(*([0, n - 1] for n in self.shape)), -1).reshape(-1, 3)
        apart = corners @ (self.affine - other.affine)[:3, :3].T + (self.affine - other.affine)[:3, 3]
        return self.shape == other.shape and bool(np.abs(apart).max() < SAME_MM)

    def to_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """`[X, Y, Z, ...]` along the file's axes -> canonical `[Z, Y, X, ...]`."""
        return np.swapaxes(nib.orientations.apply_orientation(array, self.orientation), 0, 2)

    def from_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """Canonical `[Z, Y, X, ...]` -> `[X, Y, Z, ...]` along the file's axes."""
        ras = np.array([[0, 1], [1, 1], [2, 1]])
        back = nib.orientations.ornt_transform(ras, self.orientation)
        return nib.orientations.apply_orientation(np.swapaxes(array, 0, 2), back)


def read_nifti(path: Path) -> tuple[NDArray[np.float32], Grid]:
    """Read a 3D `[X, Y, Z]` or 4D `[X, Y, Z, K]` NIfTI file. Raises InputError, naming the file, where it is missing, corrupt,
    truncated, not 3D, or has no usable affine or voxels that are not finite."""
    image, array = _open(path, lambda image: np.asarray(image.dataobj, dtype=np.float32))
    while array.ndim > 3 and 1 in array.shape[3:]:
        array = array.squeeze(3 + array.shape[3:].index(1))
    if array.ndim not in (3, 4) or min(array.shape) < 1:
        raise InputError(f"{path}: expected a volume of 3 axes, got shape {array.shape}; stack the slices into one file")
    affine = _affine(path, image)
    if bad := int((~np.isfinite(array)).sum()):
        raise InputError(f"{path}: {bad} voxel(s) are NaN or infinite; set them to 0 (outside the brain) or repair the file")
    x, y, z = array.shape[:3]
    return array, Grid((x, y, z), affine)


def read_spacing(path: Path) -> tuple[float, float, float]:
    """`Grid.spacing_mm` from the header alone. Raises InputError as `read_nifti` does."""
    image, shape = _open(path, lambda image: image.shape)
    return Grid(shape[:3], _affine(path, image)).spacing_mm


def _open(path: Path, what: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A NIfTI image, and what of it is wanted."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        image = nib.load(path)
        return image, what(image)
    except Exception as error:  # a damaged file shows as many exceptions: EOFError, OSError, zlib.error, ImageFileError
        raise InputError(f"{path}: cannot be read, the file is corrupt or truncated ({error}); copy it again") from None


def _affine(path: Path, image: Any) -> NDArray[np.float64]:
    """Index to RAS+ mm; refused where left and right could be meant otherwise."""
    affine = np.asarray(image.affine, dtype=np.float64)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (steps == 0).any() or abs(np.linalg.det(affine[:3, :3] / steps)) < 1e-3:
        raise InputError(f"{path}: its affine is singular or not finite, so its voxels have no place; set sform or qform")
    if not SPACING_MM[0] <= steps.min() <= steps.max() <= SPACING_MM[1]:
        shown = " x ".join(f"{step:.4g}" for step in steps)
        raise InputError(f"{path}: voxels of {shown} mm are not plausible; is its affine in another unit? Write it in mm")
    if isinstance(image, nib.Nifti1Image):
        qform, sform = image.get_qform(coded=True)[0], image.get_sform(coded=True)[0]
        if qform is None and sform is None:
            raise InputError(f"{path}: neither sform nor qform is set, so left and right cannot be told; set one")
        if qform is not None and sform is not None and nib.aff2axcodes(qform) != nib.aff2axcodes(sform):
            axes = " and ".join("".join(nib.aff2axcodes(a)) for a in (sform, qform))
            raise InputError(
                f"{path}: sform and qform disagree about the axes ({axes}); programs will exchange sides; repair one"
            )
    return affine


def write_nifti(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write `[X, Y, Z]` or `[X, Y, Z, K]` along the grid's own axes; mm units. (Into a folder that is written whole.)"""
    image = nib.Nifti1Image(array, None)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)  # drops shears, which a qform cannot hold; readers prefer the sform
    nib.save(image, path)
