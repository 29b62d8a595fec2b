"""Read one CT series from a folder of DICOM files: slices are ordered by geometry, and pixels are read one slice at a time.

Only the tags in TAGS are read; none of them describes a person.
"""

import warnings
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
from quintet.imaging.dicom_pixels import bits_of, stored_type, used_bits, without_padding
from quintet.imaging.folders import files_below
from quintet.imaging.volumes import SPACING_RANGE_MM, Grid

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
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
)
TAG_NUMBERS = {name: Tag(name) for name in TAGS}
OPTIONAL = (
    "ImageType",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsStored",
    "HighBit",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
)
REQUIRED = tuple(tag for tag in TAGS if tag not in OPTIONAL)
# The same in all slices; rescale tags may differ between slices.
CONSTANT_TAGS = ("Rows", "Columns", "BitsAllocated", "PixelRepresentation", "PixelSpacing", "ImageOrientationPatient")
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
MIN_SLICES = 3
MAX_GAP_DEVIATION = 0.02  # as a fraction of the median distance between slices
SAME_PLACE_MM = 1e-3
ROUNDING_MM = 0.11  # positions may be rounded to 0.1 mm
TAG_TOLERANCE = 1e-3  # of numbers that must be the same in all slices
warnings.filterwarnings("ignore", message="Expected .* VR, but found", module="pydicom")  # once per file, and read rightly
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Slice:
    path: Path
    tags: dict[str, Any]  # name in TAGS -> value
    position_mm: NDArray[np.float64]
    offset: int | None  # of the pixel data in the file; None if compressed or big-endian, which pydicom decodes
    stored_bytes: int  # length of the pixel data according to the file
    syntax: str


@dataclass(frozen=True)
class Series:
    """A CT series. The axes of `grid` are the file's columns (x), rows (y) and slices (z), in the order of `slices`."""

    slices: list[Slice]
    grid: Grid

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.grid.shape

    def plane(self, k: int) -> tuple[NDArray[Any], float, float]:
        """Slice k as stored, `[rows, columns]`, with the slope and intercept that convert it to Hounsfield units. Padding is
        air."""
        ct_slice = self.slices[k]
        stored = _decode(ct_slice) if ct_slice.offset is None else _read_uncompressed(ct_slice)
        slope, intercept = float(ct_slice.tags["RescaleSlope"]), float(ct_slice.tags["RescaleIntercept"])
        return without_padding(stored, ct_slice.tags, slope, intercept), slope, intercept


def dicom_files(folder: Path) -> list[Path]:
    """Every file that may belong to a series, sorted."""
    return files_below(folder)


def read_series(folder: Path) -> Series:
    """Read the headers of the CT series in `folder`.

    Raises InputError, naming the file, if there is no series or more than one, if a file is not a complete CT slice, or if slices
    are not evenly spaced.
    """
    files = dicom_files(folder)
    if not files:
        raise InputError(f"{folder} has no files; expected the slices of a CT series")
    slices = [_read_header(path) for path in files]
    _check_one_series(folder, slices)
    first = slices[0].tags
    along_row, along_column = np.array(first["ImageOrientationPatient"], float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    if abs(np.linalg.norm(normal) - 1) > 1e-2 or abs(along_row @ along_column) > 1e-2:
        raise InputError(
            f"{slices[0].path}: ImageOrientationPatient must be two perpendicular unit vectors; export the series again"
        )
    slices.sort(key=lambda s: float(s.position_mm @ normal))
    step_mm = _slice_step(folder, slices, normal)
    row_mm, column_mm = (float(v) for v in first["PixelSpacing"])  # between rows, between columns
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along_row * column_mm, along_column * row_mm, step_mm
    affine[:3, 3] = slices[0].position_mm
    affine[:3] = LPS_TO_RAS @ affine[:3]
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not SPACING_RANGE_MM[0] <= spacing_mm.min() <= spacing_mm.max() <= SPACING_RANGE_MM[1]:
        shown = " x ".join(f"{v:.4g}" for v in spacing_mm)
        raise InputError(f"{folder}: a voxel size of {shown} mm is not plausible; correct PixelSpacing or ImagePositionPatient")
    return Series(slices, Grid((int(first["Columns"]), int(first["Rows"]), len(slices)), affine))


def _read_header(path: Path) -> Slice:
    """Read the tags and the offset of the pixel data of one file."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: it cannot be opened ({error.strerror}); copy it again, or remove it") from None
    with file:
        try:
            dataset = _read_dataset(file)
            syntax = dataset.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
            first = dataset.get_item(TAG_NUMBERS["Modality"])
            if syntax in UNCOMPRESSED and isinstance(first, RawDataElement):  # as found: some files declare the other syntax
                syntax = ImplicitVRLittleEndian if first.is_implicit_VR else ExplicitVRLittleEndian
            tags = {name: _value(dataset.get_item(tag)) for name, tag in TAG_NUMBERS.items()}
        except InvalidDicomError:
            raise InputError(f"{path} is not a DICOM file; remove files that do not belong to the series") from None
        except Exception as error:  # damaged headers raise many kinds of exceptions
            raise InputError(f"{path}: its header cannot be read ({error}); export the series again") from None
        offset, length = _pixel_location(file, explicit=syntax == ExplicitVRLittleEndian) if syntax in UNCOMPRESSED else (None, 0)
    try:
        _check_ct_slice(path, tags)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a tag that must be one whole number is not ({error}); export the series again") from None
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
        raise InputError(f"{path}: a position, orientation, spacing or rescale tag is not a number; export the series again")
    if numbers[9:11].min() <= 0:
        raise InputError(f"{path}: PixelSpacing {numbers[9]:g} x {numbers[10]:g} mm must be positive; export the series again")
    if numbers[11] == 0:
        raise InputError(f"{path}: RescaleSlope is 0, so every voxel would have the same value; export the series again")
    if offset is not None and (available := path.stat().st_size - offset) < (expected := _pixel_bytes(tags)):
        raise InputError(f"{path}: truncated, {available} of {expected} bytes of pixels; copy it again")
    return Slice(path, tags, numbers[:3], offset, length, syntax.name)


def _read_dataset(file: Any) -> pydicom.FileDataset:
    """The tags of a file, also of one without preamble and meta header, up to its pixels."""
    try:
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS))
    except InvalidDicomError:
        file.seek(0)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS), force=True)
        if dataset.get_item(TAG_NUMBERS["Modality"]) is None or dataset.get_item(TAG_NUMBERS["Rows"]) is None:
            raise
        return dataset


def _value(element: DataElement | RawDataElement | None) -> Any:
    if isinstance(element, RawDataElement):
        return _convert(element._replace(value_tell=0))  # without its file position, so that equal values share a cache entry
    return None if element is None else element.value


@lru_cache(maxsize=1024)
def _convert(element: RawDataElement) -> Any:
    """Cached, because most tags are equal in all slices, and converting them takes half the time of reading headers."""
    return convert_raw_data_element(element).value


def _check_ct_slice(path: Path, tags: dict[str, Any]) -> None:
    """Raise InputError if the file is not a single CT slice with all required tags."""
    if tags["Modality"] != "CT":
        raise InputError(f"{path}: modality {tags['Modality'] or 'unknown'}, expected CT; remove it")
    if "LOCALIZER" in [str(value).upper() for value in tags["ImageType"] or []]:
        raise InputError(f"{path}: a localiser (scout) image, not a slice; remove it")
    if int(tags["NumberOfFrames"] or 1) > 1:
        raise InputError(f"{path}: a multi-frame file; export single-frame CT images, or NIfTI")
    if missing := [tag for tag in REQUIRED if tags[tag] is None or str(tags[tag]) == ""]:
        hint = "; without it values are not in Hounsfield units" if any("Rescale" in tag for tag in missing) else ""
        raise InputError(f"{path}: missing {', '.join(missing)}{hint}; export the series again with all tags")
    if int(tags["SamplesPerPixel"] or 1) != 1 or int(tags["BitsAllocated"]) not in (8, 16, 32):
        raise InputError(f"{path}: a colour image or an unusual bit depth, not a CT slice; remove it")
    allocated, stored, high = bits_of(tags)
    if not 0 < stored <= high + 1 <= allocated:
        raise InputError(
            f"{path}: BitsStored {stored} and HighBit {high} do not fit into BitsAllocated {allocated}; export the series again"
        )


def _pixel_location(file: Any, *, explicit: bool) -> tuple[int, int]:
    """Offset and length of the pixel data, which follow the element's tag, value representation and length."""
    start = file.tell()
    header = file.read(12)
    if header[:4] != b"\xe0\x7f\x10\x00":
        raise InputError(f"{file.name}: it has no pixels; remove it, or copy it again if it was cut off")
    size = 12 if explicit else 8  # of the element's header
    return int(start) + size, int.from_bytes(header[size - 4 : size], "little")


def _pixel_bytes(tags: dict[str, Any]) -> int:
    return int(tags["Rows"]) * int(tags["Columns"]) * int(tags["BitsAllocated"]) // 8


def _read_uncompressed(ct_slice: Slice) -> NDArray[Any]:
    tags = ct_slice.tags
    rows, columns = int(tags["Rows"]), int(tags["Columns"])
    pixels = np.fromfile(ct_slice.path, stored_type(tags), rows * columns, offset=ct_slice.offset or 0).reshape(rows, columns)
    return used_bits(pixels, tags)


def _decode(ct_slice: Slice) -> NDArray[Any]:
    try:
        return np.asarray(pydicom.dcmread(ct_slice.path, force=True).pixel_array)
    except Exception as error:  # every decoder raises exceptions of its own
        raise InputError(
            f"{ct_slice.path}: {ct_slice.syntax} pixels cannot be decoded: a decoder is missing or the file is damaged "
            f"({str(error).splitlines()[0]}); convert the series to uncompressed DICOM"
        ) from None


def _check_one_series(folder: Path, slices: list[Slice]) -> None:
    """Raise InputError if there are several series or too few slices, or slices differ in CONSTANT_TAGS or in size."""
    series: dict[str, list[Path]] = {}
    for s in slices:
        series.setdefault(str(s.tags["SeriesInstanceUID"]), []).append(s.path)
    if len(series) > 1:
        examples = ", ".join(f"{len(paths)} file(s) like {paths[0].name}" for paths in series.values())
        raise InputError(f"{folder}: {len(series)} series in one folder ({examples}); put each in its own folder")
    if len(slices) < MIN_SLICES:
        raise InputError(f"{folder}: {len(slices)} slice(s), at least {MIN_SLICES} make a volume; copy all of them")
    for tag in CONSTANT_TAGS:
        values = np.array([np.atleast_1d(np.asarray(s.tags[tag], float)) for s in slices])
        different = np.flatnonzero(np.abs(values - np.median(values, axis=0)).max(1) > TAG_TOLERANCE)
        if len(different):
            raise InputError(
                f"{slices[different[0]].path}: {tag} differs from that of the other slices "
                f"({len(different)} of {len(slices)} differ); put separate acquisitions in separate folders"
            )
    for s in slices:
        if s.offset is not None and s.stored_bytes > (expected := _pixel_bytes(s.tags)) and _has_more(s, expected):
            raise InputError(
                f"{s.path}: {s.stored_bytes} bytes of pixels, expected {expected} from rows, columns and bits; "
                "export the series again"
            )


def _has_more(ct_slice: Slice, expected: int) -> bool:
    """Whether anything but zeros, which pad a file, follows the expected bytes of pixels."""
    extra = np.fromfile(ct_slice.path, np.uint8, ct_slice.stored_bytes - expected, offset=(ct_slice.offset or 0) + expected)
    return bool(extra.any())


def _slice_step(folder: Path, slices: list[Slice], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector from slice to slice in mm, which is not along the normal if the gantry was tilted.

    Raises InputError if slices are missing, duplicated, unevenly spaced or shifted.
    """
    positions = np.array([s.position_mm for s in slices])
    places = positions @ normal
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    groups = np.split(np.arange(len(places)), np.flatnonzero(gaps >= SAME_PLACE_MM) + 1)
    sizes = [len(group) for group in groups]
    if (held := round(np.median(sizes))) > 1:
        places_that = "every place holds" if min(sizes) == max(sizes) else "most places hold"
        raise InputError(f"{folder}: {places_that} {held} slices: {held} acquisitions (phases); put each in its own folder")
    for i, gap in enumerate(gaps):
        pair = f"{slices[i].path.name} and {slices[i + 1].path.name}"
        if gap < SAME_PLACE_MM:
            raise InputError(f"{folder}: {pair} have the same position; delete one of the duplicated slices")
        if gap > 1.5 * usual:
            raise InputError(
                f"{folder}: {round(gap / usual) - 1} slice(s) missing between {pair} ({gap:.4g} mm apart, "
                f"the others {usual:.4g}); copy the series again"
            )
        if abs(gap - usual) > max(MAX_GAP_DEVIATION * usual, min(ROUNDING_MM, 0.4 * usual)):
            raise InputError(
                f"{folder}: {pair} are {gap:.4g} mm apart, the others {usual:.4g}; resample the series, or "
                "put separate acquisitions in separate folders"
            )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(slices) - 1)
    if np.abs(positions - (positions[0] + np.arange(len(positions))[:, None] * step)).max() > 0.1 * usual + ROUNDING_MM:
        raise InputError(f"{folder}: its slices are shifted relative to each other; export the series again")
    return step
