"""Synthetic patients: head phantoms with a lesion, in three file naming schemes, and a clinical table with missing values.

A patient has four traits that decide the outcome together. Each modality shows one of them: the enhancing rim (MRI t1ce), the
oedema (FLAIR), the uptake (PET), and a clinical score (age, performance, a marker). Every image shows where the lesion is.

There are three phenotypes, between which a share `phenotypes` of each trait's variance lies; within one, traits are independent.
At 0.78, one trait explains on average 40 % of another's variance (a straight line 24 %), and given one trait, another has several
bumps. The log odds of the outcome are EFFECT times the sum of the traits, plus `interaction` times (rim x uptake - oedema x
clinical). Survival is exponential with a hazard that grows with the same score (Bender et al. 2005, doi:10.1002/sim.2059),
censored by an end of follow-up. A share `unlabelled` of the patients has no outcome yet.

Modalities are missing completely at random, and depending on the clinical features: patients with failing kidneys get no contrast
agent, and PET is rarer in old patients.

A second hospital, whose patients are only tested, has other scanners: intensities to a power, more shading, larger voxels, more
noise. Its patients are of the same kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit, softmax

from quintet.files import atomic_folder
from quintet.imaging.volumes import Grid, write_nifti
from quintet.params.fusion import FusionScanner, FusionSynthetic

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
MODALITIES = ("mri_t1ce", "mri_flair", "pet", "clinical")
TRAITS = ("rim", "oedema", "uptake", "clinical")  # behind each of them
# means of the traits in each phenotype, standardised below
CENTRES = np.array([[-1.0, -1.0, -1.0, -1.0], [1.2, -0.4, 1.2, 0.2], [-0.2, 1.4, -0.2, 0.8]])
CENTRES = (CENTRES - CENTRES.mean(0)) / CENTRES.std(0)
RING_MM = 12.75  # radius of the enhancing ring, the same in all patients
EFFECT = 0.5  # of each trait on the log odds of the outcome
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
HOSPITALS = ("A", "B")
SCANNER = FusionScanner(gamma=1, shading=1, voxels=1, noise=1)  # of the first hospital
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


def synthesize(out: Path, params: FusionSynthetic, *, workers: int) -> None:
    """Write one folder per patient, clinical_data.csv and truth.csv to `out`, whole or not at all.

    truth.csv has the probability of progression given the traits behind each set of modalities (one column per set)."""
    second = params.second_hospital
    drawn = [_draw_hospital(params, params.patients, params.unlabelled, first=0, stream=0)]
    if second.patients:
        drawn.append(_draw_hospital(params, second.patients, 0.0, first=params.patients, stream=4))
    table = pd.concat([one[0].assign(hospital=name) for name, one in zip(HOSPITALS, drawn, strict=False)], ignore_index=True)
    traits = np.concatenate([one[1] for one in drawn]).tolist()
    available = [flags for one in drawn for flags in one[2]]
    truth = pd.concat([one[3] for one in drawn], ignore_index=True)
    scanners = [SCANNER if hospital == HOSPITALS[0] else second.scanner for hospital in table["hospital"]]
    with atomic_folder(out) as folder:
        Parallel(n_jobs=workers)(
            delayed(_write_patient)(folder, name, dict(zip(TRAITS, row, strict=True)), flags, scanner, i, params.seed)
            for i, (name, row, flags, scanner) in enumerate(zip(table["patient"], traits, available, scanners, strict=True))
        )
        table.to_csv(folder / "clinical_data.csv", index=False)
        truth.set_index(table["patient"]).round(5).to_csv(folder / "truth.csv")


def _draw_hospital(
    params: FusionSynthetic, count: int, unlabelled: float, *, first: int, stream: int
) -> tuple[pd.DataFrame, Doubles, list[dict[str, bool]], pd.DataFrame]:
    """The patients of a hospital, numbered from `first`: clinical table, traits `[count, 4]`, which images each has, truth."""
    rngs = [np.random.default_rng([params.seed, stream + k]) for k in (0, 1, 3)]
    traits = draw_traits(count, params.phenotypes, rngs[0])
    table, available = _clinical(traits, params.interaction, unlabelled, first, rngs[1])
    return table, traits, available, _truth(traits, params, rngs[2])


def draw_traits(count: int, phenotypes: float, rng: np.random.Generator) -> Doubles:
    """Traits `[count, 4]`, each with mean 0 and variance 1, of which a share `phenotypes` lies between phenotypes."""
    centres = CENTRES[rng.integers(len(CENTRES), size=count)]
    return np.asarray(np.sqrt(phenotypes) * centres + np.sqrt(1 - phenotypes) * rng.normal(size=centres.shape))


def outcome_logit(traits: Doubles, interaction: float) -> Doubles:
    """`[..., 4]` -> the log odds of progression `[...]`."""
    rim, oedema, uptake, clinical = np.moveaxis(traits, -1, 0)
    return np.asarray(EFFECT * traits.sum(-1) + interaction * (rim * uptake - oedema * clinical))


def outcome_probability(
    traits: Doubles, known: Sequence[int], params: FusionSynthetic, rng: np.random.Generator, *, draws: int = 400
) -> Doubles:
    """The probability of progression `[P]` given the `known` columns of `traits` `[P, 4]`: the mean over draws of the others (the
    ceiling of every method that sees these modalities alone)."""
    known, between, within = list(known), np.sqrt(params.phenotypes), 1 - params.phenotypes
    distance = np.square(traits[:, None, known] - between * CENTRES[None][:, :, known]).sum(-1)
    posterior = softmax(-distance / (2 * within), axis=1)
    total = np.zeros(len(traits))
    for _ in range(draws):
        phenotype = (posterior.cumsum(1) < rng.random((len(traits), 1))).sum(1).clip(max=len(CENTRES) - 1)
        filled = between * CENTRES[phenotype] + np.sqrt(within) * rng.normal(size=traits.shape)
        filled[:, known] = traits[:, known]
        total += expit(outcome_logit(filled, params.interaction))
    return total / draws


def _truth(traits: Doubles, params: FusionSynthetic, rng: np.random.Generator) -> pd.DataFrame:
    subsets = [known for size in range(1, 5) for known in combinations(range(4), size)]
    names = ["+".join(MODALITIES[k] for k in known) for known in subsets]
    return pd.DataFrame({name: outcome_probability(traits, k, params, rng) for name, k in zip(names, subsets, strict=True)})


def _clinical(
    traits: Doubles, interaction: float, unlabelled: float, first: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, list[dict[str, bool]]]:
    """The table with missing values, and which images each patient has."""
    count, clinical = len(traits), traits[:, TRAITS.index("clinical")]
    score = outcome_logit(traits, interaction)
    outcome = rng.random(count) < expit(score)
    died = rng.exponential(HALF_LIFE_DAYS / np.log(2) * np.exp(-0.55 * score))
    left = np.minimum(rng.uniform(200, 2 * CENSORED_DAYS, count), CENSORED_DAYS)
    age = np.clip(58 + 9 * clinical + rng.normal(0, 4, count), 18, 95)
    performance = np.clip(np.round((85 - 9 * clinical + rng.normal(0, 6, count)) / 10) * 10, 30, 100)
    marker = np.where(rng.random(count) < 0.1, 2, (clinical + rng.normal(0, 0.8, count) > 0).astype(int))
    kidneys = np.clip(88 - 0.6 * (age - 40) + rng.normal(0, 16, count), 15, 140)
    numbers = range(first, first + count)
    names = [f"patient_{i:03d}" if i % 3 == 0 else f"BraTS-{i:04d}" if i % 3 == 1 else f"Brats20_{i:03d}" for i in numbers]
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
        }
    )
    table.loc[rng.random(count) < unlabelled, ["outcome", "survival_days", "event"]] = np.nan
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


def _make_patient(name: str, traits: dict[str, float], rng: np.random.Generator) -> Patient:
    head = np.array([68.0, 84.0, 70.0]) * rng.uniform(0.94, 1.06, 3)
    direction = rng.normal(size=3)
    return Patient(
        name,
        traits["rim"],
        traits["oedema"],
        traits["uptake"],
        head,
        head * 0.42 * direction / np.linalg.norm(direction) * rng.uniform(0.5, 1),
    )


def _write_patient(
    folder: Path,
    name: str,
    traits: dict[str, float],
    images: dict[str, bool],
    scanner: FusionScanner,
    number: int,
    seed: int,
) -> None:
    patient = _make_patient(name, traits, np.random.default_rng([seed, 2, number]))
    (folder / patient.name).mkdir()
    names = LAYOUTS[number % len(LAYOUTS)]
    for k, (modality, pattern) in enumerate(names.items()):
        if images[modality]:
            rng = np.random.default_rng([seed, number, k])
            array, grid = draw_image(patient, modality, rng, scanner)
            write_nifti(folder / patient.name / f"{pattern.format(patient.name)}.nii.gz", array, grid)


def draw_image(
    patient: Patient, modality: str, rng: np.random.Generator, scanner: FusionScanner = SCANNER
) -> tuple[NDArray[np.int16], Grid]:
    """One image `[X, Y, Z]` with its own spacing, orientation, field of view, noise and shading."""
    plane = scanner.voxels * float(rng.uniform(*SPACING_MM[modality]))
    spacing = np.array([plane, plane, plane * rng.uniform(1, 1.4)])
    shape = np.ceil(2 * (patient.head_mm + rng.uniform(8, 16, 3)) / spacing).astype(int)
    first = -(shape - 1) / 2 * spacing + rng.uniform(-3, 3, 3)
    x, y, z = np.meshgrid(*(first[a] + spacing[a] * np.arange(shape[a]) for a in range(3)), indexing="ij", sparse=True)
    a, b, c = patient.head_mm
    head = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    lesion = np.sqrt(sum((axis - centre) ** 2 for axis, centre in zip((x, y, z), patient.centre_mm, strict=True)))
    brain, skull = _inside(0.88 - head, 0.04), _inside(1 - head, 0.03) * _inside(head - 0.92, 0.03)
    image = {"mri_t1ce": _t1ce, "mri_flair": _flair, "pet": _pet}[modality](patient, brain, skull, lesion)
    image = gaussian_filter(np.asarray(image, float), 0.5)  # in float32, powers differ between processors
    image = 100 * np.clip(image / 100, 0, None) ** scanner.gamma
    shading = 1 + 0.12 * scanner.shading * (rng.normal() * x / a + rng.normal() * y / b + rng.normal() * z / c)
    image = image * shading * rng.uniform(300, 900) / 100 + rng.normal(0, 16 * scanner.noise, image.shape)
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
    ring = np.exp(-(((lesion - RING_MM) / (4.5 + 0.8 * patient.rim)) ** 2))
    return np.asarray(
        60 * brain + 45 * skull + brain * ring * np.clip(38 + 20 * patient.rim, 0, None) - 18 * brain * (lesion < RING_MM)
    )


def _flair(patient: Patient, brain: Floats, skull: Floats, lesion: Floats) -> Floats:
    """A bright region whose extent shows the trait `oedema`."""
    extent = np.clip(23 + 6.5 * patient.oedema, 7, None)
    return np.asarray(55 * brain + 25 * skull + 55 * brain * _inside(extent - lesion, 2.5))


def _pet(patient: Patient, brain: Floats, skull: Floats, lesion: Floats) -> Floats:
    """A hot spot whose height shows the trait `uptake`."""
    spot = np.exp(-((lesion / 15) ** 2))
    return np.asarray(35 * brain + 6 * skull + brain * spot * np.clip(42 + 24 * patient.uptake, 0, None))
