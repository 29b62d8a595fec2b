"""Synthetic patients: head phantoms with a lesion, in three file naming schemes, and a clinical table with missing values.

A patient has four traits that decide the outcome together. Each modality shows one of them: the enhancing rim (MRI t1ce), the
oedema (FLAIR), the uptake (PET), and a clinical score (age, performance, a marker). The traits are correlated, so that one
modality carries a little information about the others, and every image shows where the lesion is. Survival is exponential
with a hazard that grows with the same score (Bender et al. 2005, doi:10.1002/sim.2059), censored by an end of follow-up.

Modalities are missing completely at random, and depending on the clinical features: patients with failing kidneys get no contrast
agent, and PET is rarer in old patients.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from quintet.files import atomic_folder
from quintet.imaging.volumes import Grid, write_nifti

Floats = NDArray[np.float32]
CORRELATION = 0.15  # of the traits
EFFECT = 2.0  # of each trait on the log odds of the outcome
SPACING_MM = {
    "mri_t1ce": (4.0, 5.0),
    "mri_flair": (4.5, 6.0),
    "pet": (5.5, 7.0),
}  # range in the slice plane; between slices up to 1.4 times as large
# File names without .nii.gz: the generic layout, BraTS 2021 onwards, BraTS until 2020
LAYOUTS = (
    {"mri_t1ce": "mri_t1ce", "mri_flair": "mri_flair", "pet": "pet"},
    {"mri_t1ce": "{}-t1c", "mri_flair": "{}-t2f", "pet": "{}-pet"},
    {"mri_t1ce": "{}_t1ce", "mri_flair": "{}_flair", "pet": "{}_pet"},
)
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "SRA")
MARKERS = ("methylated", "unmethylated", "unclear")
CENSORED_DAYS = 1500.0
HALF_LIFE_DAYS = 420.0


@dataclass(frozen=True)
class Patient:
    name: str
    rim: float
    oedema: float
    uptake: float
    head_mm: NDArray[np.float64]  # half axes
    centre_mm: NDArray[np.float64]  # of the lesion

    @property
    def radius_mm(self) -> float:
        return 17 + 2.5 * self.oedema * 0.3


def synthesize(out: Path, *, patients: int, seed: int, workers: int) -> None:
    """Write one folder per patient and clinical_data.csv to `out`, whole or not at all."""
    rng = np.random.default_rng(seed)
    table, available = _clinical(patients, rng)
    with atomic_folder(out) as folder:
        Parallel(n_jobs=workers)(
            delayed(_write_patient)(folder, _make_patient(row, np.random.default_rng([seed, i])), images, i, seed)
            for i, (row, images) in enumerate(zip(table.to_dict("records"), available, strict=True))
        )
        table.drop(columns=["rim", "oedema", "uptake"]).to_csv(folder / "clinical_data.csv", index=False)


def _clinical(count: int, rng: np.random.Generator) -> tuple[pd.DataFrame, list[dict[str, bool]]]:
    """The table with missing values (and the traits that images show), and which images each patient has."""
    common = rng.normal(size=(count, 1))
    rim, oedema, uptake, clinical = (np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * rng.normal(size=(count, 4))).T
    score = rim + oedema + uptake + clinical
    outcome = rng.random(count) < 1 / (1 + np.exp(-EFFECT * score))
    died = rng.exponential(HALF_LIFE_DAYS / np.log(2) * np.exp(-0.55 * score))
    left = np.minimum(rng.uniform(200, 2 * CENSORED_DAYS, count), CENSORED_DAYS)
    age = np.clip(58 + 9 * clinical + rng.normal(0, 4, count), 18, 95)
    performance = np.clip(np.round((85 - 9 * clinical + rng.normal(0, 6, count)) / 10) * 10, 30, 100)
    marker = np.where(rng.random(count) < 0.1, 2, (clinical + rng.normal(0, 0.8, count) > 0).astype(int))
    kidneys = np.clip(88 - 0.6 * (age - 40) + rng.normal(0, 16, count), 15, 140)
    names = [f"patient_{i:03d}" if i % 3 == 0 else f"BraTS-{i:04d}" if i % 3 == 1 else f"Brats20_{i:03d}" for i in range(count)]
    table = pd.DataFrame(
        {
            "patient": names,
            "age": age.round(1),
            "performance": performance,
            "marker": np.array(MARKERS)[marker],
            "sex": np.where(rng.random(count) < 0.5, "f", "m"),
            "kidney_function": kidneys.round(),
            "outcome": np.where(outcome, "progression", "stable"),
            "survival_days": np.minimum(died, left).round().clip(1),
            "event": (died <= left).astype(int),
            "rim": rim,
            "oedema": oedema,
            "uptake": uptake,
        }
    )
    # no contrast agent for failing kidneys, PET rarer in old patients; the rest at random
    missing = {
        "mri_t1ce": rng.random(count) < np.where(kidneys < 60, 0.6, 0.05),
        "mri_flair": rng.random(count) < 0.08,
        "pet": rng.random(count) < np.where(age > 66, 0.4, 0.1),
    }
    without_images = np.all(list(missing.values()), 0)
    missing["mri_flair"] &= ~without_images
    features = ["age", "performance", "marker", "sex", "kidney_function"]
    for column in features:
        table.loc[rng.random(count) < 0.06, column] = np.nan
    table.loc[rng.random(count) < 0.06, features] = np.nan
    return table, [{name: not bool(flags[i]) for name, flags in missing.items()} for i in range(count)]


def _make_patient(row: dict[str, float], rng: np.random.Generator) -> Patient:
    head = np.array([68.0, 84.0, 70.0]) * rng.uniform(0.94, 1.06, 3)
    direction = rng.normal(size=3)
    return Patient(
        str(row["patient"]),
        row["rim"],
        row["oedema"],
        row["uptake"],
        head,
        head * 0.42 * direction / np.linalg.norm(direction) * rng.uniform(0.5, 1),
    )


def _write_patient(folder: Path, patient: Patient, images: dict[str, bool], number: int, seed: int) -> None:
    (folder / patient.name).mkdir()
    names = LAYOUTS[number % len(LAYOUTS)]
    for k, (modality, pattern) in enumerate(names.items()):
        if images[modality]:
            rng = np.random.default_rng([seed, number, k])
            array, grid = draw_image(patient, modality, rng)
            write_nifti(folder / patient.name / f"{pattern.format(patient.name)}.nii.gz", array, grid)


def draw_image(patient: Patient, modality: str, rng: np.random.Generator) -> tuple[NDArray[np.int16], Grid]:
    """One image `[X, Y, Z]` with its own spacing, orientation, field of view, noise and shading."""
    plane = float(rng.uniform(*SPACING_MM[modality]))
    spacing = np.array([plane, plane, plane * rng.uniform(1, 1.4)])
    shape = np.ceil(2 * (patient.head_mm + rng.uniform(8, 16, 3)) / spacing).astype(int)
    first = -(shape - 1) / 2 * spacing + rng.uniform(-3, 3, 3)
    x, y, z = np.meshgrid(*(first[a] + spacing[a] * np.arange(shape[a]) for a in range(3)), indexing="ij", sparse=True)
    a, b, c = patient.head_mm
    head = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    lesion = np.sqrt(sum((axis - centre) ** 2 for axis, centre in zip((x, y, z), patient.centre_mm, strict=True)))
    brain, skull = _inside(0.88 - head, 0.04), _inside(1 - head, 0.03) * _inside(head - 0.92, 0.03)
    image = {"mri_t1ce": _t1ce, "mri_flair": _flair, "pet": _pet}[modality](patient, brain, skull, lesion)
    image = gaussian_filter(image, 0.5)
    shading = 1 + 0.12 * (rng.normal() * x / a + rng.normal() * y / b + rng.normal() * z / c)
    image = image * shading * rng.uniform(300, 900) / 100 + rng.normal(0, 16, image.shape)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = first
    orientation = nib.orientations.axcodes2ornt(ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))])
    turned = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)
    array = nib.orientations.apply_orientation(np.clip(image, 0, 32000).round().astype(np.int16), turned)
    nx, ny, nz = array.shape
    return np.ascontiguousarray(array), Grid((nx, ny, nz), affine @ nib.orientations.inv_ornt_aff(turned, image.shape))


def _inside(depth: Floats, softness: float) -> Floats:
    return np.asarray(1 / (1 + np.exp(np.clip(-depth / softness, -30, 30))), np.float32)


def _t1ce(patient: Patient, brain: Floats, skull: Floats, lesion: Floats) -> Floats:
    """A ring whose brightness and thickness show the trait `rim`."""
    radius = patient.radius_mm * 0.75
    ring = np.exp(-(((lesion - radius) / (4.5 + 0.8 * patient.rim)) ** 2))
    return np.asarray(
        60 * brain + 45 * skull + brain * ring * np.clip(38 + 20 * patient.rim, 0, None) - 18 * brain * (lesion < radius)
    )


def _flair(patient: Patient, brain: Floats, skull: Floats, lesion: Floats) -> Floats:
    """A bright region whose extent shows the trait `oedema`."""
    extent = np.clip(23 + 6.5 * patient.oedema, 7, None)
    return np.asarray(55 * brain + 25 * skull + 55 * brain * _inside(extent - lesion, 2.5))


def _pet(patient: Patient, brain: Floats, skull: Floats, lesion: Floats) -> Floats:
    """A hot spot whose height shows the trait `uptake`."""
    spot = np.exp(-((lesion / 15) ** 2))
    return np.asarray(35 * brain + 6 * skull + brain * spot * np.clip(42 + 24 * patient.uptake, 0, None))
