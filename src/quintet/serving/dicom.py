"""`quintet dicom`: results of `quintet predict` as DICOM objects that refer to the images they are of (highdicom).

Landmarks become a structured report (TID 1500) with a point per landmark; territories a segmentation with a segment per side.
Person tags are left empty unless they are asked for; then they are copied from the images into these files and nowhere else.
"""

from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_folder
from quintet.imaging.folders import files_below
from quintet.tables import read_cells, read_text_table

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
PERSON_GROUP = 0x0010  # the tags (0010,xxxx) describe the patient; names (PN) elsewhere are of physicians and operators
IDENTIFIERS = ("AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress")
# an object has these tags, empty or not
NEEDED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
MAX_MISSING = 0.01  # share of the labelled voxels that no pixel of the series shows
MAX_OUTSIDE = 0.5  # voxels: how far a slice may lie from the nearest one of the result
SIDES = ("left", "right")
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID")  # what a slice must have


def write_reports(points: Path, source: Path, out: Path, *, person: bool) -> int:
    """One structured report per row of the CSV that `quintet predict landmarks` wrote, for the DICOM images below `source`;
    returns their number. Raises InputProblemsError if a row has no DICOM image of that name, or several."""
    found, images = _read_points(points), dict[str, list[Path]]()
    for path in files_below(source):
        if path.suffix.lower() in (".dcm", ".dicom"):  # a row has the stem or, where stems repeat, the path below the folder
            for name in (path.stem, path.relative_to(source).as_posix()):
                images.setdefault(name, []).append(path)
    missing = [f"{name}: no DICOM image {name}.dcm below {source}" for name in found if name not in images]
    several = {name: len(images[name]) for name in found if len(images.get(name, [])) > 1}
    missing += [f"{name}: {n} DICOM images below {source} are called so; predict them again" for name, n in several.items()]
    if missing:
        raise InputProblemsError(str(points), missing)
    uncertainty = Path(f"{points}.uncertainty.csv")
    expected = read_text_table(uncertainty).set_index("stem") if uncertainty.is_file() else None
    if expected is not None and set(expected.index) != set(found):
        raise InputError(f"{uncertainty}: its rows are not those of {points}; predict again, or remove it")
    with _folder(out) as folder:
        for name, own in found.items():
            image = _read(images[name], person=person)[0]
            if (own < -0.5).any() or (own > [image.Columns - 0.5, image.Rows - 0.5]).any():
                raise InputError(f"{points}: a point of {name} is outside its image of {image.Columns} x {image.Rows} pixels")
            report = _report(image, own, None if expected is None else expected.loc[name].to_numpy(float))
            target = folder / f"{name.removesuffix('.dcm')}.dcm"
            target.parent.mkdir(parents=True, exist_ok=True)
            report.save_as(target)
    return len(found)


def _read_points(path: Path) -> dict[str, NDArray[np.float64]]:
    """Name -> points `[K, 2]` of the table that `quintet predict landmarks` wrote. Raises InputProblemsError that names the rows
    that are no such points or are there twice."""
    found: dict[str, NDArray[np.float64]] = {}
    problems = []
    for number, (*cells, name) in enumerate((row for row in read_cells(path) if any(row)), 1):
        try:
            points = np.array(cells[1:], float).reshape(-1, 2)
            np.stack([points, *list(found.values())[:1]])  # as many as in the first row
        except ValueError:
            problems.append(f"row {number}: {name}: expected a number, the same points as in the other rows (x, y), and a name")
            continue
        if name in found:
            problems.append(f"row {number}: {name} is there twice; delete one")
        found[name] = points
    if problems or not found:
        raise InputProblemsError(str(path), problems or ["no rows"])
    return found


def write_segmentations(results: Path, source: Path, out: Path, *, person: bool) -> int:
    """One segmentation per case that `quintet predict perfusion` wrote, for the series in `source`/CASE; returns their number.
    Raises InputProblemsError if a case has no series, or lies elsewhere than its series."""
    masks = [p for p in sorted(results.glob("*.nii.gz")) if not p.name.endswith("_probabilities.nii.gz")]
    if not masks:
        raise InputError(f"{results}: no CASE.nii.gz there; give a folder that `quintet predict perfusion` wrote")
    problems = []
    with _folder(out) as folder:
        for path in masks:
            case = path.name.removesuffix(".nii.gz")
            if not (source / case).is_dir():
                problems.append(f"{case}: no folder {source / case} with the DICOM series that it was made from")
                continue
            try:
                series = _series(source / case, person=person)
                _segmentation(series, _on_slices(path, series)).save_as(folder / f"{case}.dcm")
            except InputError as error:
                problems.append(f"{case}: {error}")
            except (ValueError, TypeError, AttributeError) as error:  # highdicom's, about a tag of the images
                problems.append(f"{case}: no segmentation can refer to the series in {source / case}: {error}")
        if problems:
            raise InputProblemsError(str(results), problems)
    return len(masks)


def _folder(out: Path) -> Any:
    if find_spec("highdicom") is None:
        raise InputError("highdicom is not installed; pip install -c constraints.txt 'quintet[dicom]'")
    return atomic_folder(out)


def _series(folder: Path, *, person: bool) -> list[pydicom.Dataset]:
    """The slices of the only series in a folder, in the order of their positions."""
    series = _read(files_below(folder), person=person)
    if not series:
        raise InputError(f"no file in {folder}; it must hold the DICOM series that the case was made from")
    if loose := [i for i in series if any(tag not in i for tag in PLACE)]:
        wanting = next(tag for tag in PLACE if tag not in loose[0])
        raise InputError(f"{loose[0].filename}: no {wanting}; it is no slice of a series")
    if (count := len({i.SeriesInstanceUID for i in series})) > 1:
        raise InputError(f"{count} series in {folder}; leave the one that the case was made from")
    normal = np.cross(*np.array(series[0].ImageOrientationPatient, float).reshape(2, 3))
    return sorted(series, key=lambda image: float(np.array(image.ImagePositionPatient, float) @ normal))


def _read(paths: Sequence[Path], *, person: bool) -> list[pydicom.Dataset]:
    """The images, with empty person tags unless they are asked for."""
    found: list[pydicom.Dataset] = []
    for path in paths:
        try:
            found.append(pydicom.dcmread(path))
        except Exception as error:  # damaged files raise many kinds of exceptions
            raise InputError(f"{path}: not a readable DICOM file ({error}); remove it, or copy it again") from None
    for image in found:
        if wanting := [name for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if name not in image]:
            raise InputError(f"{image.filename}: no {wanting[0]}, so that nothing can refer to it; export it again")
        if not person:
            _remove_person(image)
        for name in NEEDED:
            if name not in image:
                setattr(image, name, "")
    return found


def _remove_person(image: pydicom.Dataset) -> None:
    for element in list(image):
        if element.tag.group == PERSON_GROUP or element.VR == "PN" or element.keyword in IDENTIFIERS:
            del image[element.tag]


def _on_slices(path: Path, series: Sequence[pydicom.Dataset]) -> NDArray[np.uint8]:
    """The label map of a NIfTI file at the pixels of a series, `[slices, rows, columns]`. Raises InputError if the series is not
    where the file is, or lacks a part of its territories."""
    image: Any = nib.load(path)
    labels = np.asarray(image.dataobj)
    to_index = np.linalg.inv(image.affine) @ LPS_TO_RAS
    planes, shown = [], np.zeros(labels.shape, bool)
    for one in series:
        along_row, along_column = np.array(one.ImageOrientationPatient, float).reshape(2, 3)
        down_mm, right_mm = (float(v) for v in one.PixelSpacing)  # between rows, between columns
        rows, columns = np.meshgrid(np.arange(one.Rows), np.arange(one.Columns), indexing="ij")
        mm = np.array(one.ImagePositionPatient, float) + columns[..., None] * right_mm * along_row
        mm = mm + rows[..., None] * down_mm * along_column
        index = mm @ to_index[:3, :3].T + to_index[:3, 3]
        nearest = np.rint(index).astype(int)
        if np.abs(index - np.clip(index, 0, np.array(labels.shape) - 1)).max() > MAX_OUTSIDE:
            raise InputError(f"{one.filename}: it lies outside {path.name}; is this the series that the case was made from?")
        at = tuple(np.clip(nearest, 0, np.array(labels.shape) - 1).transpose(2, 0, 1))
        planes.append(labels[at])
        shown[at] = True
    if (missing := float((labels[~shown] > 0).sum() / max(1, (labels > 0).sum()))) > MAX_MISSING:
        raise InputError(f"the series does not contain {missing:.0%} of the territories of {path.name}; is it complete?")
    return np.stack(planes).astype(np.uint8)


def _identity() -> dict[str, Any]:
    """Who made an object, and new identifiers."""
    return {
        "series_instance_uid": generate_uid(),
        "series_number": 900,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "Quintet developers",
    }


def _segmentation(series: Sequence[pydicom.Dataset], labels: NDArray[np.uint8]) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    version = metadata.version("quintet")
    algorithm = hd.AlgorithmIdentificationSequence("Quintet perfusion", codes.DCM.ArtificialIntelligence, version)
    described = [
        hd.seg.SegmentDescription(
            number,
            f"perfusion territory of the {side} internal carotid artery",
            codes.SCT.AnatomicalStructure,
            codes.SCT.Brain,
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm,
        )
        for number, side in enumerate(SIDES, start=1)
    ]
    sides = np.stack([(labels >> bit) & 1 for bit in range(2)], axis=-1)  # 1 left, 2 right, 3 both
    return hd.seg.Segmentation(
        list(series),
        sides,
        hd.seg.SegmentationTypeValues.BINARY,
        described,
        manufacturer_model_name="Quintet",
        software_versions=version,
        device_serial_number="0",
        **_identity(),
    )


def _report(image: pydicom.Dataset, points: NDArray[np.float64], expected_px: NDArray[np.float64] | None) -> Any:
    """`points` `[K, 2]`: x and y in pixels, (0, 0) in the middle of the upper left one; `expected_px` `[K]`: expected errors (at
    224)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    observer = hd.sr.ObserverContext(
        codes.DCM.Device, hd.sr.DeviceObserverIdentifyingAttributes(generate_uid(), manufacturer_name="Quintet developers")
    )
    where = hd.sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID)
    name = hd.sr.CodedConcept("expected-error", "99QUINTET", "Expected error of the landmark, of an image of 224 x 224 pixels")
    pixels, found = hd.sr.CodedConcept("{pixels}", "UCUM", "pixels"), []
    for number, point in enumerate(points):
        error = [] if expected_px is None else [hd.sr.Measurement(name, float(expected_px[number]), pixels)]
        found.append(
            hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                hd.sr.TrackingIdentifier(generate_uid(), f"landmark {number}"),
                referenced_region=hd.sr.ImageRegion(hd.sr.GraphicTypeValues.POINT, point[None] + 0.5, where),
                finding_type=hd.sr.CodedConcept(f"landmark-{number}", "99QUINTET", f"Landmark {number} of the chest X-ray"),
                measurements=error,
            )
        )
    content = hd.sr.MeasurementReport(
        hd.sr.ObservationContext(observer_device_context=observer),
        hd.sr.CodedConcept("399208008", "SCT", "Plain X-ray of chest"),
        found,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.ComprehensiveSR([image], content[0], **_identity())
