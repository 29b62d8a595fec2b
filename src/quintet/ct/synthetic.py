"""Chest phantoms as CT scanners write them: DICOM series (one scan in four: NIfTI) and labels.csv.

A patient is an anatomy (trunk, lungs, heart, spine, ribs, airways, vessels; mm, x to the right, y to the front, z up). Each scan
of a patient has its own findings, noise, field of view, spacing and patient position. Sizes and densities are drawn from the
usual ranges (nodules under 30 mm, air-filled cysts with thin walls, consolidation that hides vessels: Fleischner Society
glossary, Hansell et al. 2008, doi:10.1148/radiol.2462070712).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter

from quintet.files import atomic_folder
from quintet.imaging.volumes import Grid, write_nifti

Floats = NDArray[np.float32]  # [Z, Y, X] in HU or shares, indices increase towards Superior, Anterior and Right
FINDINGS = ("consolidation", "nodules", "cysts")
SETS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
SET_SHARES = (0.36, 0.14, 0.14, 0.14, 0.06, 0.06, 0.06, 0.04)
AIR, FAT, MUSCLE, BLOOD, BONE = -1000.0, -90.0, 50.0, 45.0, 320.0
REPEATED_SHARE = 0.35  # of patients who have two or three scans
CHANGED_SHARE = 0.3  # of repeat scans whose findings are drawn anew
# Patient position -> signs of the file's columns and rows in DICOM's axes (x to the left, y to the back)
POSITIONS = {"HFS": (1, 1), "HFP": (-1, -1), "FFS": (-1, 1), "FFP": (1, -1)}


@dataclass(frozen=True)
class Patient:
    """Lengths in mm."""

    trunk: tuple[float, float]  # half axes: width, depth
    fat: float
    lung: tuple[float, float, float]  # half axes
    heart: float
    diaphragm: float
    lung_hu: float
    vessels: int
    seed: int

    @staticmethod
    def sample(rng: np.random.Generator) -> "Patient":
        width = float(rng.uniform(150, 185))
        depth = width * float(rng.uniform(0.66, 0.78))
        lung = (0.36 * width * float(rng.uniform(0.93, 1.07)), 0.74 * depth, float(rng.uniform(115, 140)))
        return Patient(
            (width, depth),
            float(rng.uniform(8, 24)),
            lung,
            float(rng.uniform(44, 60)),
            float(rng.uniform(-105, -85)),
            float(rng.normal(-670, 15)),
            int(rng.integers(26, 42)),
            int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class Space:
    """Voxel centres of a scan, in mm from the middle of the chest."""

    z: Floats
    y: Floats
    x: Floats

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return float(self.z[1] - self.z[0]), float(self.y[1] - self.y[0]), float(self.x[1] - self.x[0])

    @property
    def grid(self) -> tuple[Floats, Floats, Floats]:
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]

    def ball(self, centre: Sequence[float], radius: float) -> tuple[tuple[slice, ...], Floats]:
        """The slices that contain a ball, and the fraction of each of their voxels that it fills (smoothed over a voxel)."""
        reach = radius + max(self.spacing_mm)
        where = tuple(
            slice(*np.searchsorted(axis, (c - reach, c + reach)))
            for axis, c in zip((self.z, self.y, self.x), centre, strict=True)
        )
        z, y, x = (axis[w] - c for axis, w, c in zip((self.z, self.y, self.x), where, centre, strict=True))
        distance = np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
        return where, np.clip(0.5 + (radius - distance) / np.mean(self.spacing_mm), 0, 1).astype(np.float32)


def simulate_scan(patient: Patient, findings: tuple[int, ...], space: Space, rng: np.random.Generator) -> NDArray[np.int16]:
    """Hounsfield units `[Z, Y, X]` of one scan; `findings`: 0 or 1 for each of FINDINGS."""
    hu, lungs = _anatomy(patient, space)
    own = np.random.default_rng(patient.seed)
    _vessels(hu, lungs, space, patient, own)
    consolidation, nodules, cysts = findings
    places = _places(lungs, space, rng)
    if cysts:
        for centre in places(int(rng.integers(20, 36))):
            radius = float(rng.uniform(14, 28))
            _paint(hu, lungs, space, centre, radius + 2, -550)
            _paint(hu, lungs, space, centre, radius, -990)
    if nodules:
        for centre in places(int(rng.integers(18, 35))):
            _paint(hu, lungs, space, centre, float(rng.uniform(9, 15)), float(rng.uniform(60, 200)))
    if consolidation:
        filled = np.zeros_like(hu)
        for centre in places(int(rng.integers(3, 6))):
            where, share = space.ball(centre, float(rng.uniform(30, 50)))
            filled[where] = np.maximum(filled[where], share)
        texture = gaussian_filter(rng.normal(size=hu.shape).astype(np.float32), 2.0)
        filled = lungs * np.clip(filled + 0.25 * texture / texture.std() * (filled > 0), 0, 1)
        hu += filled * np.maximum(float(rng.uniform(-80, 30)) - hu, 0)
    noise = rng.normal(0, float(rng.uniform(12, 30)), hu.shape)
    return np.clip(hu + noise, -1024, 3071).round().astype(np.int16)


def _anatomy(patient: Patient, space: Space) -> tuple[Floats, Floats]:
    """The chest without vessels, and the fraction of each voxel that is lung."""
    z, y, x = space.grid
    (width, depth), (lung_x, lung_y, lung_z) = patient.trunk, patient.lung
    trunk = np.sqrt((x / width) ** 2 + (y / depth) ** 2)
    muscle = np.sqrt((x / (width - patient.fat)) ** 2 + (y / (depth - patient.fat)) ** 2)
    hu = np.where(trunk < 1, np.where(muscle < 1, MUSCLE, FAT), AIR).astype(np.float32) + 0 * z
    cavity = np.sqrt((x / (0.84 * (width - patient.fat))) ** 2 + (y / (0.84 * (depth - patient.fat))) ** 2)
    ribs = (np.abs(cavity - 1.06) < 0.055) & (np.cos(2 * np.pi * (z + 0.45 * y) / 26) > 0.45) & (z > -150)
    hu[np.broadcast_to(ribs, hu.shape)] = BONE
    dome = patient.diaphragm + 32 * np.exp(-((np.abs(x) - 0.5 * width) ** 2 + y**2) / 55**2)
    side = ((np.abs(x) - 0.47 * width) / lung_x) ** 2 + ((y - 4) / lung_y) ** 2 + ((z - 8) / lung_z) ** 2
    softness = 2 / float(np.mean(space.spacing_mm)) * min(patient.lung)
    lungs = np.clip(0.5 + (1 - np.sqrt(side)) * softness / 2, 0, 1) * np.clip(0.5 + (z - dome) / 6, 0, 1) * (cavity < 1)
    heart = ((x + 22) / (1.15 * patient.heart)) ** 2 + ((y - 22) / patient.heart) ** 2 + ((z + 45) / (1.2 * patient.heart)) ** 2
    lungs *= np.clip(0.5 + (np.sqrt(heart) - 1) * 8, 0, 1) * (np.abs(x) > 14)
    gravity = 35 * (-y / depth)  # denser at the back, where blood collects
    hu = hu * (1 - lungs) + lungs * (patient.lung_hu + gravity)
    spine, aorta, trachea = (0.0, -0.62 * depth), (-14.0, -0.38 * depth), (0.0, -0.12 * depth)
    tubes = ((spine, 17.0, 0.8 * BONE, -np.inf), (aorta, 12.0, BLOOD, -np.inf), (trachea, 8.5, AIR, 15.0))
    for centre, radius, value, above in tubes:
        tube = np.sqrt((y - centre[1]) ** 2 + (x - centre[0]) ** 2)
        share = np.clip(0.5 + (radius - tube) / space.spacing_mm[2], 0, 1) * (z > above)
        hu, lungs = hu * (1 - share) + share * value, lungs * (1 - share)
    return hu.astype(np.float32), lungs.astype(np.float32)


def _paint(hu: Floats, lungs: Floats, space: Space, centre: Sequence[float], radius: float, value: float) -> None:
    """Add a ball of one density, within the lungs only."""
    where, share = space.ball(centre, radius)
    share = share * lungs[where]
    hu[where] += share * (value - hu[where])


def _vessels(hu: Floats, lungs: Floats, space: Space, patient: Patient, rng: np.random.Generator) -> None:
    """Add branches that start at the roots of the lungs and taper."""
    for number in range(patient.vessels):
        end = np.array([5.0, -5.0, (1 if number % 2 else -1) * 28.0])
        direction = rng.normal(size=3) * (1, 0.7, 0.5) + (0, 0, np.sign(end[2]) * 0.9)
        for step in range(9):
            direction = direction / np.linalg.norm(direction) + rng.normal(0, 0.22, 3)
            end = end + 11 * direction / np.linalg.norm(direction)
            for back in (0.0, 0.5):
                _paint(hu, lungs, space, tuple(end - back * 11 * direction), 3.8 - 0.3 * step, BLOOD)


def _places(lungs: Floats, space: Space, rng: np.random.Generator) -> Callable[[int], list[tuple[float, float, float]]]:
    """A function that draws centres inside the lungs."""
    inside = np.argwhere(lungs > 0.9)

    def draw(count: int) -> list[tuple[float, float, float]]:
        rows = inside[rng.integers(len(inside), size=count)]
        return [(float(space.z[k]), float(space.y[j]), float(space.x[i])) for k, j, i in rows]

    return draw


def cohort(scans: int, rng: np.random.Generator) -> list[tuple[int, tuple[int, ...]]]:
    """(patient, findings) of each scan; every set of findings occurs in at least two patients."""
    rows: list[tuple[int, tuple[int, ...]]] = []
    patient = 0
    while len(rows) < scans:
        first = SETS[patient % len(SETS)] if patient < 2 * len(SETS) else SETS[rng.choice(len(SETS), p=SET_SHARES)]
        more = int(rng.integers(1, 3)) if rng.random() < REPEATED_SHARE else 0
        for number in range(1 + more):
            changed = number > 0 and rng.random() < CHANGED_SHARE
            rows.append((patient, SETS[rng.choice(len(SETS), p=SET_SHARES)] if changed else first))
        patient += 1
    return rows[:scans]


def synthesize(out: Path, *, scans: int, matrix: int, seed: int, workers: int) -> None:
    """Write `scans` scans and labels.csv to the folder `out`."""
    rng = np.random.default_rng(seed)
    rows = cohort(scans, rng)
    patients = {p: Patient.sample(np.random.default_rng([seed, 1, p])) for p, _ in rows}
    with atomic_folder(out) as folder:
        names = [f"study-{number:04d}" for number in range(len(rows))]
        Parallel(n_jobs=workers)(
            delayed(_write_scan)(folder, name, patients[p], findings, matrix, [seed, 2, number], number)
            for number, (name, (p, findings)) in enumerate(zip(names, rows, strict=True))
        )
        table = pd.DataFrame([findings for _, findings in rows], columns=list(FINDINGS))
        table.insert(0, "study", names)
        table.insert(1, "patient", [f"patient-{p:03d}" for p, _ in rows])
        table.to_csv(folder / "labels.csv", index=False)


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
