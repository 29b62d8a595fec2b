"""Read and write NIfTI volumes, and convert between a file's own axes and canonical axes.

A file's array is `[X, Y, Z]` along its own axes. A canonical array is `[Z, Y, X]` with indices that increase towards Superior,
Anterior and Right (RAS+), whatever the orientation or handedness of the file.
"""

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from quintet.errors import InputError

NIFTI = (".nii", ".nii.gz")  # file name suffixes
HEADER_STARTS = {struct.pack(order, size) for order in ("<i", ">i") for size in (348, 540)}  # a NIfTI file's first four bytes
GRID_TOLERANCE_MM = 1e-2  # grids whose corners differ by less are the same
SIZE_TOLERANCE = 0.01  # relative difference of a voxel's edge between sform and qform
SPACING_RANGE_MM = (0.1, 50.0)  # values outside this range are probably in another unit


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a file: its shape `[X, Y, Z]` and the affine `[4, 4]` from indices to RAS+ mm."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def orientation(self) -> NDArray[np.float64]:
        """NiBabel's orientation array `[3, 2]`: for each of the file's axes, the canonical axis and its direction."""
        return nib.orientations.io_orientation(self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the canonical axes (z, y, x): the lengths of the affine's columns, for sheared grids too."""
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        x, y, z = spacing[np.argsort(self.orientation[:, 0])]
        return float(z), float(y), float(x)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, of sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def same_as(self, other: "Grid") -> bool:
        """Whether shapes are equal and all corners are within GRID_TOLERANCE_MM."""
        corners = np.stack(np.meshgrid(*([0, n - 1] for n in self.shape)), -1).reshape(-1, 3)
        difference_mm = corners @ (self.affine - other.affine)[:3, :3].T + (self.affine - other.affine)[:3, 3]
        return self.shape == other.shape and bool(np.abs(difference_mm).max() < GRID_TOLERANCE_MM)

    def to_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """`[X, Y, Z, ...]` along the file's axes -> canonical `[Z, Y, X, ...]`."""
        return np.swapaxes(nib.orientations.apply_orientation(array, self.orientation), 0, 2)

    def from_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """Canonical `[Z, Y, X, ...]` -> `[X, Y, Z, ...]` along the file's axes."""
        ras = np.array([[0, 1], [1, 1], [2, 1]])
        to_file = nib.orientations.ornt_transform(ras, self.orientation)
        return nib.orientations.apply_orientation(np.swapaxes(array, 0, 2), to_file)


def read_nifti(path: Path) -> tuple[NDArray[np.float32], Grid]:
    """Read a 3D `[X, Y, Z]` or 4D `[X, Y, Z, K]` NIfTI file; returns its voxels along its own axes, and their grid.

    Raises InputError, naming the file, if it is missing, corrupt or truncated, has another number of axes, an unusable affine, or
    voxels that are not finite.
    """
    image, array = _load(path, lambda image: np.asarray(image.dataobj, dtype=np.float32))
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
    """Read `Grid.spacing_mm` from the header alone. Raises InputError like `read_nifti`."""
    image, shape = _load(path, lambda image: image.shape, whole=False)
    return Grid(shape[:3], _affine(path, image)).spacing_mm


def _load(path: Path, extract: Callable[[Any], Any], *, whole: bool = True) -> tuple[Any, Any]:
    """A NIfTI image, and what `extract` returns for it. Raises InputError that names what is wrong with the file; of a compressed
    one only if it is read as a `whole`."""
    if cause := _unreadable(Path(path)):
        raise InputError(f"{path}: {cause}")
    try:
        image: Any = nib.load(path)
        if whole and Path(path).suffix.lower() == ".gz":  # nibabel stops before the checksum, so a flipped bit would pass
            image = type(image).from_bytes(gzip.decompress(Path(path).read_bytes()))
        kind = image.get_data_dtype()
        if kind.fields or kind.kind == "c":
            colour = "colours (RGB)" if kind.fields else "complex numbers"
            raise InputError(f"{path}: its voxels are {colour}, expected one real number each; convert it")
        return image, extract(image)
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: too large for the memory of this machine; crop or resample it") from None
    except Exception as error:  # damaged files raise EOFError, OSError without a number, zlib.error, ImageFileError and more
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"{path} cannot be read: {error.strerror}; check the disk, the share and its permissions") from None
        cause = "or no NIfTI file" if "Cannot work out file type" in str(error) else f"({error})"
        raise InputError(f"{path} cannot be read: the file is corrupt or truncated {cause}; copy it again") from None


def _unreadable(path: Path) -> str:
    """Why a path is no file that can be opened, and the remedy; empty if it is one."""
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which does not exist; fetch its content (`git annex get`, `dvc pull`), or remove it"
    if path.is_dir():
        return "a folder, expected a NIfTI file; rename it"
    if not path.exists():
        return "no such file"
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"it cannot be opened ({error.strerror}); change its permissions, or copy it again"
    if not start:
        return "the file is empty (0 bytes); copy it again"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the image; run `git lfs pull`"
    compressed = path.name.lower().endswith(".gz")
    if compressed and start[:4] in HEADER_STARTS:
        return "it is not compressed, which its name denies; rename it to .nii"
    if not compressed and start.startswith(b"\x1f\x8b"):
        return "it is compressed, which its name denies; rename it to .nii.gz"
    return ""


def _affine(path: Path, image: Any) -> NDArray[np.float64]:
    """The affine from indices to RAS+ mm. Raises InputError if it is unusable, or left and right are ambiguous."""
    affine = np.asarray(image.affine, dtype=np.float64)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (spacing_mm == 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < 1e-3:
        raise InputError(f"{path}: its affine is singular or not finite, so voxels have no position; set sform or qform")
    if not SPACING_RANGE_MM[0] <= spacing_mm.min() <= spacing_mm.max() <= SPACING_RANGE_MM[1]:
        shown = " x ".join(f"{size:.4g}" for size in spacing_mm)
        raise InputError(f"{path}: a voxel size of {shown} mm is not plausible; is its affine in another unit? Write it in mm")
    if isinstance(image, nib.Nifti1Image):
        qform, sform = image.get_qform(coded=True)[0], image.get_sform(coded=True)[0]
        if qform is None and sform is None:
            raise InputError(f"{path}: neither sform nor qform is set, so left and right cannot be distinguished; set one")
        if qform is not None and sform is not None and nib.aff2axcodes(qform) != nib.aff2axcodes(sform):
            axes = " and ".join("".join(nib.aff2axcodes(a)) for a in (sform, qform))
            raise InputError(
                f"{path}: sform and qform disagree about the axes ({axes}), so some programs will swap sides; correct one"
            )
        if qform is not None and sform is not None:
            sizes = [np.linalg.norm(a[:3, :3], axis=0) for a in (sform, qform)]
            if np.abs(sizes[0] / sizes[1] - 1).max() > SIZE_TOLERANCE:
                shown = " and ".join(" x ".join(f"{mm:.4g}" for mm in size) for size in sizes)
                raise InputError(f"{path}: sform and qform disagree about the voxel size ({shown} mm); correct one")
    return affine


def write_nifti(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write `[X, Y, Z]` or `[X, Y, Z, K]` along the grid's own axes, in mm. Not atomic: write into an `atomic_folder`."""
    image = nib.Nifti1Image(array, None)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)  # drops shears, which a qform cannot represent; readers prefer the sform
    nib.save(image, path)
