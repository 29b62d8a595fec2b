"""One CT series in a folder of DICOM files: slices ordered by geometry, pixels read one slice at a time.

Only the tags of TAGS are ever read, and none of them is about a person.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from quintet.errors import InputError
from quintet.imaging.volumes import SPACING_MM, Grid

TAGS = (
    "Modality",
    "ImageType",
    "SeriesInstanceUID",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
)
NUMBERS = {name: Tag(name) for name in TAGS}
REQUIRED = tuple(tag for tag in TAGS if tag not in ("ImageType", "NumberOfFrames", "SamplesPerPixel", "BitsStored"))
# Of all slices alike; rescale tags may differ from slice to slice.
SAME = ("Rows", "Columns", "BitsAllocated", "PixelRepresentation", "PixelSpacing", "ImageOrientationPatient")
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
FEWEST = 3  # slices
UNEVEN = 0.02  # of the slice distance: by so much distances may differ
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Slice:
    path: Path
    tags: dict[str, Any]  # of TAGS
    position_mm: NDArray[np.float64]
    offset: int | None  # of the pixels in the file; None: compressed or big-endian, pydicom decodes
    stored: int  # bytes of pixels, as the file says
    syntax: str


@dataclass(frozen=True)
class Series:
    """`grid` has the file's axes: columns (x), rows (y) and slices (z), in the order of `slices`."""

    slices: list[Slice]
    grid: Grid

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.grid.shape

    def plane(self, k: int) -> tuple[NDArray[Any], float, float]:
        """Slice k as stored, `[rows, columns]`, and slope and intercept that turn it into Hounsfield units."""
        one = self.slices[k]
        stored = _decoded(one) if one.offset is None else _raw(one)
        return stored, float(one.tags["RescaleSlope"]), float(one.tags["RescaleIntercept"])


def dicom_files(folder: Path) -> list[Path]:
    """Every file that may belong to a series (no index of a disc, nothing hidden), sorted."""
    return sorted(
        p for p in Path(folder).rglob("*") if p.is_file() and not p.name.startswith(".") and p.name.upper() != "DICOMDIR"
    )


def read_series(folder: Path) -> Series:
    """Read the headers of the one CT series in `folder`. Raises InputError, naming the file, where there is none, more than one,
    something else than CT slices, or slices that do not lie at equal distances."""
    files = dicom_files(folder)
    if not files:
        raise InputError(f"{folder}: no file in it; expected the slices of a CT series")
    slices = [_header(path) for path in files]
    _refuse_mixed(folder, slices)
    first = slices[0].tags
    along_row, along_column = np.array(first["ImageOrientationPatient"], float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    if abs(np.linalg.norm(normal) - 1) > 1e-2 or abs(along_row @ along_column) > 1e-2:
        raise InputError(f"{slices[0].path}: ImageOrientationPatient holds no two directions; export the series again")
    slices.sort(key=lambda one: float(one.position_mm @ normal))
    step = _step(folder, slices, normal)
    row_mm, column_mm = (float(v) for v in first["PixelSpacing"])  # between rows, between columns
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along_row * column_mm, along_column * row_mm, step
    affine[:3, 3] = slices[0].position_mm
    affine[:3] = LPS_TO_RAS @ affine[:3]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not SPACING_MM[0] <= lengths.min() <= lengths.max() <= SPACING_MM[1]:
        shown = " x ".join(f"{v:.4g}" for v in lengths)
        raise InputError(f"{folder}: voxels of {shown} mm are not plausible; correct PixelSpacing or ImagePositionPatient")
    return Series(slices, Grid((int(first["Columns"]), int(first["Rows"]), len(slices)), affine))


def _header(path: Path) -> Slice:
    """Tags and the pixels' place of one file."""
    with path.open("rb") as file:
        try:
            found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS))
            syntax = found.file_meta.TransferSyntaxUID
            tags = {name: _value(found.get_item(tag)) for name, tag in NUMBERS.items()}
        except InvalidDicomError:
            raise InputError(f"{path}: no DICOM file; remove what does not belong to the series") from None
        except Exception as error:  # a damaged header shows as many exceptions
            raise InputError(f"{path}: its header cannot be read ({error}); export the series again") from None
        offset, stored = _pixels_at(file, explicit=syntax == ExplicitVRLittleEndian) if syntax in UNCOMPRESSED else (None, 0)
    _refuse_other(path, tags)
    try:
        numbers = np.array(
            [
                *tags["ImagePositionPatient"],
                *tags["ImageOrientationPatient"],
                *tags["PixelSpacing"],
                tags["RescaleSlope"],
                tags["RescaleIntercept"],
            ],
            float,
        )
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if len(numbers) != 13 or not np.isfinite(numbers).all():
        raise InputError(f"{path}: a position, orientation, spacing or rescale tag is no number; export the series again")
    if numbers[9:11].min() <= 0:
        raise InputError(f"{path}: PixelSpacing {numbers[9]:g} x {numbers[10]:g} mm, expected above 0; export the series again")
    if numbers[11] == 0:
        raise InputError(f"{path}: RescaleSlope is 0, so that every voxel would be the same; export the series again")
    if offset is not None and (there := path.stat().st_size - offset) < (needed := _bytes(tags)):
        raise InputError(f"{path}: truncated, {there} of {needed} bytes of pixels; copy it again")
    return Slice(path, tags, numbers[:3], offset, stored, syntax.name)


def _value(element: DataElement | RawDataElement | None) -> Any:
    if isinstance(element, RawDataElement):
        return _converted(element._replace(value_tell=0))  # where in the file it stands is no part of it
    return None if element is None else element.value


@lru_cache(maxsize=1024)
def _converted(element: RawDataElement) -> Any:
    """Most tags are the same bytes in all slices of a series; converting them anew takes half of the time of reading headers."""
    return convert_raw_data_element(element).value


def _refuse_other(path: Path, tags: dict[str, Any]) -> None:
    """Raise if this is no single CT slice with all that gives its values a place and a meaning."""
    if tags["Modality"] != "CT":
        raise InputError(f"{path}: modality {tags['Modality'] or 'unknown'}, expected CT; remove it")
    if "LOCALIZER" in [str(value).upper() for value in tags["ImageType"] or []]:
        raise InputError(f"{path}: a localiser (scout) image, no slice; remove it")
    if int(tags["NumberOfFrames"] or 1) > 1:
        raise InputError(f"{path}: a multi-frame file; export single-frame CT images, or NIfTI")
    if missing := [tag for tag in REQUIRED if tags[tag] is None or str(tags[tag]) == ""]:
        hint = "; without it values are no Hounsfield units" if any("Rescale" in tag for tag in missing) else ""
        raise InputError(f"{path}: {', '.join(missing)} missing{hint}; export the series again with all tags")
    if int(tags["SamplesPerPixel"] or 1) != 1 or int(tags["BitsAllocated"]) not in (8, 16, 32):
        raise InputError(f"{path}: a picture with colours or unusual bits, no CT slice; remove it")


def _pixels_at(file: Any, *, explicit: bool) -> tuple[int, int]:
    """Where the pixels start (behind the element's tag, representation and length), and that length."""
    start = file.tell()
    head = file.read(12)
    if head[:4] != b"\xe0\x7f\x10\x00":
        raise InputError(f"{file.name}: no pixels in it; remove it, or copy it again if it was cut off")
    behind = 12 if explicit else 8
    return int(start) + behind, int.from_bytes(head[behind - 4 : behind], "little")


def _bytes(tags: dict[str, Any]) -> int:
    return int(tags["Rows"]) * int(tags["Columns"]) * int(tags["BitsAllocated"]) // 8


def _raw(one: Slice) -> NDArray[Any]:
    rows, columns = int(one.tags["Rows"]), int(one.tags["Columns"])
    kind = np.dtype(f"<{'i' if one.tags['PixelRepresentation'] else 'u'}{int(one.tags['BitsAllocated']) // 8}")
    return np.fromfile(one.path, kind, rows * columns, offset=one.offset or 0).reshape(rows, columns)


def _decoded(one: Slice) -> NDArray[Any]:
    try:
        return np.asarray(pydicom.dcmread(one.path).pixel_array)
    except Exception as error:  # each decoder has its own
        raise InputError(
            f"{one.path}: {one.syntax} pixels cannot be decoded, a decoder is missing or the file damaged "
            f"({str(error).splitlines()[0]}); convert the series to uncompressed DICOM"
        ) from None


def _refuse_mixed(folder: Path, slices: list[Slice]) -> None:
    series: dict[str, list[Path]] = {}
    for one in slices:
        series.setdefault(str(one.tags["SeriesInstanceUID"]), []).append(one.path)
    if len(series) > 1:
        examples = ", ".join(f"{len(paths)} file(s) like {paths[0].name}" for paths in series.values())
        raise InputError(f"{folder}: {len(series)} series in one folder ({examples}); give each a folder of its own")
    if len(slices) < FEWEST:
        raise InputError(f"{folder}: {len(slices)} slice(s), at least {FEWEST} make a volume; copy all of them")
    for tag in SAME:
        values = [_rounded(one.tags[tag]) for one in slices]
        usual = Counter(values).most_common(1)[0][0]
        if odd := [one.path for one, value in zip(slices, values, strict=True) if value != usual]:
            raise InputError(
                f"{odd[0]}: {tag} differs from that of the other slices ({len(odd)} of {len(slices)} do); "
                "separate what was acquired separately"
            )

    for one in slices:
        if one.offset is not None and one.stored > (needed := _bytes(one.tags)) + 1:  # one byte pads to an even number
            raise InputError(
                f"{one.path}: {one.stored} bytes of pixels, rows, columns and bits say {needed}; export the series again"
            )


def _rounded(value: Any) -> tuple[float, ...]:
    return tuple(round(float(v), 3) for v in np.atleast_1d(np.asarray(value, float)))


def _step(folder: Path, slices: list[Slice], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector from slice to slice (not along the normal where the gantry was tilted), mm."""
    at = np.array([one.position_mm for one in slices])
    apart = np.diff(at @ normal)
    usual = float(np.median(apart))
    for i, gap in enumerate(apart):
        pair = f"{slices[i].path.name} and {slices[i + 1].path.name}"
        if gap < 1e-3:
            raise InputError(f"{folder}: {pair} lie at the same place; delete one of the duplicated slices")
        if gap > 1.5 * usual:
            raise InputError(
                f"{folder}: {round(gap / usual) - 1} slice(s) missing between {pair} ({gap:.4g} mm apart, "
                f"the others {usual:.4g}); copy the series again"
            )
        if abs(gap - usual) > UNEVEN * usual:
            raise InputError(
                f"{folder}: {pair} are {gap:.4g} mm apart, the others {usual:.4g}; resample the series, or "
                "separate what was acquired separately"
            )
    step: NDArray[np.float64] = (at[-1] - at[0]) / (len(slices) - 1)
    if np.abs(at - (at[0] + np.arange(len(at))[:, None] * step)).max() > 0.1 * usual + 0.05:
        raise InputError(f"{folder}: its slices are shifted against each other; export the series again")
    return step
