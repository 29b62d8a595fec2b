"""Chest phantoms as CT scanners write them: DICOM series (one scan in four: NIfTI), labels.csv, and the drawn truth.

Each scan of a patient has its own findings, noise, field of view, spacing and patient position; the anatomy is the patient's
(phantom.py). labels.csv holds what a reader reports, truth.csv what was drawn.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from scipy import stats

from quintet.ct.phantom import FINDINGS, Patient, Space, simulate_scan
from quintet.files import atomic_folder
from quintet.imaging.volumes import Grid, write_nifti
from quintet.params.ct import CtSynthetic

SETS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
REPEATED_SHARE = 0.35  # of patients who have two or three scans
CHANGED_SHARE = 0.3  # of repeat scans whose findings are drawn anew
# Patient position -> signs of the file's columns and rows in DICOM's axes (x to the left, y to the back)
POSITIONS = {"HFS": (1, 1), "HFP": (-1, -1), "FFS": (-1, 1), "FFP": (1, -1)}


def cohort(
    scans: int, rng: np.random.Generator, *, prevalence: Mapping[str, float], association: float
) -> list[tuple[int, tuple[int, ...]]]:
    """(patient, findings) of each scan; every set of findings occurs in at least two patients.

    A finding is present where a normal variable, its liability, is high enough for its `prevalence`; `association` is the
    correlation of the liabilities of different findings.
    """
    thresholds = stats.norm.isf([prevalence[name] for name in FINDINGS])

    def draw() -> tuple[int, ...]:
        common, own = rng.normal(), rng.normal(size=len(FINDINGS))
        return tuple((association**0.5 * common + (1 - association) ** 0.5 * own > thresholds).astype(int).tolist())

    rows: list[tuple[int, tuple[int, ...]]] = []
    patient = 0
    while len(rows) < scans:
        first = SETS[patient % len(SETS)] if patient < 2 * len(SETS) else draw()
        more = int(rng.integers(1, 3)) if rng.random() < REPEATED_SHARE else 0
        for number in range(1 + more):
            changed = number > 0 and rng.random() < CHANGED_SHARE
            rows.append((patient, draw() if changed else first))
        patient += 1
    return rows[:scans]


def read_by_reader(
    truth: NDArray[np.int64], rng: np.random.Generator, *, sensitivity: float, specificity: float
) -> NDArray[np.int64]:
    """The findings `[N, F]` that a reader reports, from those that are present."""
    reported = rng.random(truth.shape) < np.where(truth > 0, sensitivity, 1 - specificity)
    return reported.astype(np.int64)


def synthesize(out: Path, params: CtSynthetic, *, workers: int) -> None:
    """Write `params.scans` scans, labels.csv and truth.csv to the folder `out`."""
    seed = params.seed
    prevalence = params.prevalence.model_dump()
    rows = cohort(params.scans, np.random.default_rng(seed), prevalence=prevalence, association=params.association)
    patients = {p: Patient.sample(np.random.default_rng([seed, 1, p])) for p, _ in rows}
    truth = np.array([findings for _, findings in rows])
    reported = read_by_reader(truth, np.random.default_rng([seed, 3]), **params.reader.model_dump())
    with atomic_folder(out) as folder:
        names = [f"study-{number:04d}" for number in range(len(rows))]
        Parallel(n_jobs=workers)(
            delayed(_write_scan)(folder, name, patients[p], findings, params.matrix, [seed, 2, number], number)
            for number, (name, (p, findings)) in enumerate(zip(names, rows, strict=True))
        )
        for file, findings in (("labels.csv", reported), ("truth.csv", truth)):
            table = pd.DataFrame(findings, columns=list(FINDINGS))
            table.insert(0, "study", names)
            table.insert(1, "patient", [f"patient-{p:03d}" for p, _ in rows])
            table.to_csv(folder / file, index=False)


def _write_scan(
    folder: Path, name: str, patient: Patient, findings: tuple[int, ...], matrix: int, seed: list[int], number: int
) -> None:
    rng = np.random.default_rng(seed)
    view_mm, thickness = float(rng.uniform(2.02, 2.3)) * patient.trunk[0], float(rng.choice([7.0, 8.0, 10.0]))
    pixel = view_mm / matrix
    slices = round(290 / thickness)
    space = Space(
        *(
            ((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32)
            for n, mm in ((slices, thickness), (matrix, pixel), (matrix, pixel))
        )
    )
    hu = simulate_scan(patient, findings, space, rng)
    if number % 4 == 3:
        write_nifti(folder / f"{name}.nii.gz", *_as_nifti(hu, (thickness, pixel, pixel), flipped=number % 8 == 3))
    else:
        position = list(POSITIONS)[int(rng.choice(len(POSITIONS), p=(0.7, 0.1, 0.1, 0.1)))]
        write_series(folder / name, hu, (thickness, pixel, pixel), position=position, rng=rng, identity=f"{seed}")


def _as_nifti(hu: NDArray[np.int16], spacing_mm: tuple[float, float, float], *, flipped: bool) -> tuple[NDArray[np.int16], Grid]:
    """`[X, Y, Z]` with its grid; `flipped`: stored from right to left and front to back."""
    array = hu.transpose(2, 1, 0)
    affine = np.diag([*spacing_mm[::-1], 1.0])
    affine[:3, 3] = -(np.array(array.shape) - 1) / 2 * spacing_mm[::-1]
    if flipped:
        array = array[::-1, ::-1]
        affine[:2, 3] *= -1
        affine[0, 0], affine[1, 1] = -affine[0, 0], -affine[1, 1]
    x, y, z = array.shape
    return np.ascontiguousarray(array), Grid((x, y, z), affine)


def write_series(
    folder: Path,
    hu: NDArray[np.int16],
    spacing_mm: tuple[float, float, float],
    *,
    position: str = "HFS",
    rng: np.random.Generator | None = None,
    identity: str = "",
) -> None:
    """Write `[Z, Y, X]` as one DICOM file per slice. With `rng`, file names are shuffled, instance numbers increase or decrease,
    and some series are implicit VR or unsigned."""
    folder.mkdir(parents=True)
    count, rows, columns = hu.shape
    right, back = POSITIONS[position]
    pixels = hu[:, ::-back, ::-right]  # DICOM's axes run to the left and to the back
    corner = (-right * (columns - 1) / 2 * spacing_mm[2], -back * (rows - 1) / 2 * spacing_mm[1])
    numbers, unsigned, implicit = np.arange(count), False, False
    if rng is not None:
        numbers, unsigned, implicit = rng.permutation(count), rng.random() < 0.5, rng.random() < 0.25
    downwards = rng is not None and rng.random() < 0.5
    series, frame, study = (generate_uid(entropy_srcs=[identity or str(folder), kind]) for kind in ("series", "frame", "study"))
    for k in range(count):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(k)])
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate, slice_.PatientSex = "Phantom^Chest", "phantom", "", "O"
        slice_.StudyDate = slice_.StudyTime = slice_.AccessionNumber = slice_.ReferringPhysicianName = slice_.StudyID = ""
        slice_.Modality, slice_.Manufacturer, slice_.ImageType = "CT", "Quintet phantom", ["DERIVED", "PRIMARY", "AXIAL"]
        slice_.SeriesNumber, slice_.AcquisitionNumber = 1, 1
        slice_.InstanceNumber = int(count - k if downwards else k + 1)
        slice_.PatientPosition, slice_.SliceThickness, slice_.KVP = position, f"{spacing_mm[0]:g}", "120"
        slice_.PixelSpacing = [f"{spacing_mm[1]:.6f}", f"{spacing_mm[2]:.6f}"]
        slice_.ImageOrientationPatient = [right, 0, 0, 0, back, 0]
        slice_.ImagePositionPatient = [f"{v:.5f}" for v in (*corner, (k - (count - 1) / 2) * spacing_mm[0])]
        slice_.PositionReferenceIndicator = ""
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.Rows, slice_.Columns = rows, columns
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelRepresentation = 0 if unsigned else 1
        slice_.RescaleIntercept, slice_.RescaleSlope, slice_.RescaleType = -1024 if unsigned else 0, 1, "HU"
        slice_.PixelData = (pixels[k] + (1024 if unsigned else 0)).astype("<u2" if unsigned else "<i2").tobytes()
        slice_.save_as(folder / f"image-{numbers[k]:03d}.dcm", enforce_file_format=True)
