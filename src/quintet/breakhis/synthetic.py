"""Breast-tissue phantoms in the BreaKHis tree: H&E-like fields of one biopsy at four magnifications.

The tissue is drawn in micrometres and seen through fields 1400 um (40X) to 140 um (400X) wide. A biopsy has four traits, and each
is a property of structures of one size, so that it shows where these structures are larger than a pixel and fields hold many of
them (benchmarks/breakhis_traits.py measures how well):

    lobules  (400 um)  glands lie in lobules, or scattered                              best at 40X
    glands   (100 um)  the share of glands that are solid instead of open               best at 40X
    stroma    (10 um)  fine or coarse fibre bundles                                     best at 200X
    nuclei     (8 um)  small and even, or large and uneven, with the same total area    best at 400X

How well the traits predict the class is set, not found. Given the class, the K traits are independent and normal with SD 1 and
mean -d/2 (benign) or d/2 (malignant), where d is `separation`. All that a picture can tell about the class are its traits: each
pattern of growth belongs to a benign and to a malignant type, and stain, density and light are independent of the class. So the
probability of malignant, for the share q of malignant patients, and the best possible balanced accuracy from k traits are

    P(malignant | traits) = logistic(log(q / (1 - q)) + d sum_i trait_i)          best balanced accuracy = Phi(d sqrt(k) / 2)

With d = 1.5 that is 0.77 from one trait, 0.86 from two, which is about what one magnification shows, and 0.93 from all four.

Stain (colours and strength) differs between patients far more than within one: a split by image would let a network recognise
patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.special import expit, logit

from quintet.breakhis.data.classes import MAGNIFICATIONS, TYPES, class_of
from quintet.files import atomic_folder

Floats = NDArray[np.float64]

FIELD_UM = 1400.0  # width at 40X; Spanhol et al. report 0.49 um per pixel at 40X before downsampling
ASPECT = 460 / 700
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])  # optical density (Ruifrok and Johnston 2001)
TRAITS = ("lobules", "glands", "stroma", "nuclei")
LOBULES_MM2, LOBULE_UM = 2.0, 90.0  # number, and SD of the glands' distance from the centre in x and y
FIBRE_UM = (1.0, 4.0)  # SD across a fibre bundle, from fine to coarse; they are twice as long
NUCLEUS_UM = (2.7, 5.4)  # mean radius of a gland's nuclei, from small to large
STROMAL_UM = 3.8
CENTRED_UM = 300.0  # fields narrower than this are centred on a gland, as a pathologist would
MAX_OUTLINE_UM = 4.0  # largest pixel at which nuclei are drawn as outlines; in larger pixels they are points
IMAGES = (2, 6)  # per magnification and patient, smallest and largest number
TYPE_CYCLE = (  # of patient 1, 2, ...
    "adenosis",
    "ductal_carcinoma",
    "fibroadenoma",
    "lobular_carcinoma",
    "mucinous_carcinoma",
    "tubular_adenoma",
    "ductal_carcinoma",
    "papillary_carcinoma",
    "phyllodes_tumor",
    "mucinous_carcinoma",
    "adenosis",
    "lobular_carcinoma",
    "papillary_carcinoma",
    "fibroadenoma",
    "ductal_carcinoma",
    "lobular_carcinoma",
    "tubular_adenoma",
    "mucinous_carcinoma",
    "phyllodes_tumor",
    "papillary_carcinoma",
)


@dataclass(frozen=True)
class Pattern:
    """A pattern of growth."""

    gland_um: float  # mean radius
    glands_mm2: float
    elongation: float  # length : width of a gland
    lumen: float  # radius of an open gland's lumen, share of the gland's radius
    stroma: float  # density of stromal nuclei, relative to the usual
    mucin: float  # share of the field that is mucin pools


PATTERNS = [  # a benign and a malignant type look alike
    (("adenosis", "lobular_carcinoma"), Pattern(45, 32, 1.2, 0.55, 1.0, 0.0)),
    (("fibroadenoma", "papillary_carcinoma"), Pattern(60, 18, 2.4, 0.45, 1.3, 0.0)),
    (("phyllodes_tumor", "mucinous_carcinoma"), Pattern(65, 15, 1.7, 0.50, 0.7, 0.15)),
    (("tubular_adenoma", "ductal_carcinoma"), Pattern(55, 25, 1.3, 0.55, 0.8, 0.0)),
]
PATTERN_OF = {name: pattern for names, pattern in PATTERNS for name in names}


@dataclass(frozen=True)
class Biopsy:
    pattern: Pattern
    traits: Mapping[str, float]  # of TRAITS
    density: Floats  # [2] of glands and of stromal nuclei, relative to the pattern's
    darkness: float  # of nuclei, 0 to 255
    stain: Floats  # [2, 3] optical densities of haematoxylin and eosin
    strength: Floats  # [2]
    contrast: float  # of the fibres
    light: Floats  # [3], the camera's white

    @staticmethod
    def sample(tumour_type: str, separation: float, rng: np.random.Generator) -> "Biopsy":
        """A random biopsy of a tumour type."""
        sign = 1.0 if class_of(tumour_type) == "malignant" else -1.0
        traits = rng.normal(sign * separation / 2, 1, len(TRAITS))
        stain = np.stack([HAEMATOXYLIN, EOSIN]) + rng.normal(0, 0.06, (2, 3))
        return Biopsy(
            PATTERN_OF[tumour_type],
            dict(zip(TRAITS, traits, strict=True)),
            rng.lognormal(0, [0.2, 0.35]),
            rng.uniform(150, 190),
            np.clip(stain, 0.02, None),
            rng.uniform(0.75, 1.35, 2),
            0.15 * rng.lognormal(0, 0.6),
            rng.uniform(0.85, 1.0, 3),
        )

    def degree(self, trait: str) -> float:
        """How far a trait is developed, from 0 (benign look) to 1."""
        return float(expit(self.traits[trait]))


def field(biopsy: Biopsy, magnification: str, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One picture `[height, width, 3]` of a random place in a biopsy."""
    height = round(width * ASPECT)
    um = FIELD_UM * 40 / int(magnification[:-1]) / width  # per pixel
    size_um = np.array([width, height]) * um
    centres, radius, angle = _glands(biopsy, size_um, rng)
    cells, lumens = _walls(biopsy, centres, radius, angle, rng)
    nuclei = np.concatenate([_stroma(biopsy, size_um, rng), cells])
    nuclei = nuclei[((nuclei[:, :2] > -12) & (nuclei[:, :2] < size_um + 12)).all(1)]
    if um > MAX_OUTLINE_UM:
        h = _paint_points(nuclei, (height, width), um)
    else:
        h = _paint_polygons(_ellipses(nuclei), nuclei[:, 5], (height, width), um)
    holes = _paint_polygons(lumens, [255.0] * len(lumens), (height, width), um)
    fibres = _fibres(biopsy, (height, width), um, rng)
    if biopsy.pattern.mucin:
        pools = gaussian_filter(rng.normal(size=(height, width)), 90 / um)
        holes = np.maximum(holes, 0.8 * (pools > np.quantile(pools, 1 - biopsy.pattern.mucin)))
    e = np.clip(0.45 + biopsy.contrast * fibres, 0.05, 1.2) * (1 - 0.92 * holes) * (1 - 0.5 * h)
    h = h * (1 + 0.15 * gaussian_filter(rng.normal(size=h.shape), 1)) + 0.06
    density = np.stack([h, e], -1) * biopsy.strength * rng.normal(1, 0.05, 2) @ biopsy.stain
    picture = biopsy.light * np.exp(-1.2 * density) + rng.normal(0, 0.008, (*density.shape[:2], 3))
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def _paint_polygons(
    outlines: Sequence[Floats] | Floats, values: Sequence[float] | Floats, shape: tuple[int, int], um: float
) -> Floats:
    """Polygons `[K, 2]` (um), each with a value of 0 to 255, as an image in [0, 1]; anti-aliased by drawing at twice the size."""
    height, width = shape
    canvas = Image.new("L", (2 * width, 2 * height), 0)
    pen = ImageDraw.Draw(canvas)
    for outline, value in zip(outlines, values, strict=True):
        pen.polygon((outline * (2 / um)).ravel().tolist(), fill=int(value))
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float64) / 255


def _paint_points(nuclei: Floats, shape: tuple[int, int], um: float) -> Floats:
    """Nuclei smaller than a pixel, as an image in [0, 1]: the sum of their areas times their darkness."""
    height, width = shape
    weight = np.pi * nuclei[:, 2] * nuclei[:, 3] / um**2 * nuclei[:, 5] / 255
    box = [[0, height * um], [0, width * um]]
    return np.minimum(gaussian_filter(np.histogram2d(nuclei[:, 1], nuclei[:, 0], shape, box, weights=weight)[0], 0.4), 1)


def _fibres(biopsy: Biopsy, shape: tuple[int, int], um: float, rng: np.random.Generator) -> Floats:
    """Fibre bundles as an image with SD 1, or less where they are thinner than a pixel, which averages over its width."""
    fine, coarse = FIBRE_UM
    across_um = fine * (coarse / fine) ** biopsy.degree("stroma")
    sigma = np.array([1.0, 2.0] if rng.uniform() < 0.5 else [2.0, 1.0]) * across_um / um  # pixels
    image = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap") * 2 * np.sqrt(np.pi * np.prod(sigma))
    return np.asarray(image / np.prod(1 + 1 / (12 * sigma**2)) ** 0.5)


def _glands(biopsy: Biopsy, size_um: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Centres `[K, 2]` (um), radii and angles `[K]` of the glands in the field and in a margin around it."""
    p, scattered = biopsy.pattern, biopsy.degree("lobules")
    margin = 3 * (p.gland_um + LOBULE_UM)
    area_mm2 = np.prod(size_um + 2 * margin) / 1e6
    glands_mm2 = p.glands_mm2 * biopsy.density[0]
    lobules = rng.uniform(-margin, size_um + margin, (rng.poisson(LOBULES_MM2 * area_mm2), 2))
    members = lobules.repeat(rng.poisson((1 - scattered) * glands_mm2 / LOBULES_MM2, len(lobules)), 0)
    others = rng.uniform(-margin, size_um + margin, (rng.poisson(scattered * glands_mm2 * area_mm2), 2))
    centres = np.concatenate([members + rng.normal(0, LOBULE_UM, members.shape), others])
    if size_um[0] < CENTRED_UM and len(centres):
        centres += size_um / 2 - centres[np.linalg.norm(centres - size_um / 2, axis=1).argmin()]
    radius = p.gland_um * rng.lognormal(0, 0.2, len(centres))
    reach = 2 * radius[:, None] * p.elongation**0.5
    near = ((centres > -reach) & (centres < size_um + reach)).all(1)
    return centres[near], radius[near], rng.uniform(0, np.pi, near.sum())


def _walls(biopsy: Biopsy, centres: Floats, radius: Floats, angle: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The nuclei `[N, 6]` of K glands, at the wall of an open one and all over a solid one, and the outlines `[L, 24, 2]` of the
    open glands' lumens."""
    p = biopsy.pattern
    is_open = rng.uniform(size=len(centres)) >= biopsy.degree("glands")
    small, large = NUCLEUS_UM
    nucleus_um = small * (large / small) ** biopsy.degree("nuclei")
    # the nuclei's total area is the same, so that their size shows only where single nuclei do
    count = np.maximum(6, (2 * np.pi * radius / 6.0 * small * large / nucleus_um**2).astype(int))
    gland = np.repeat(np.arange(len(centres)), count)
    direction = rng.uniform(0, 2 * np.pi, len(gland))
    wall, filled = rng.normal(0.9, 0.07, len(gland)), np.sqrt(rng.uniform(0, 1, len(gland)))
    depth = np.where(is_open[gland], wall, filled)
    cells = _ellipse_points(direction, depth * radius[gland], angle[gland], p.elongation) + centres[gland]
    edge = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    lumens = _ellipse_points(edge, p.lumen * radius[is_open, None], angle[is_open, None], p.elongation)
    spread = 0.1 + 0.2 * biopsy.degree("nuclei")
    size = nucleus_um * rng.lognormal(-(spread**2), spread, len(cells))  # mean area pi nucleus_um^2
    return _nuclei(cells, size, direction + angle[gland], biopsy.darkness, rng), lumens + centres[is_open, None]


def _ellipse_points(direction: Floats, radius: Floats, angle: Floats, elongation: float | Floats) -> Floats:
    """Points `[..., 2]` in the given directions on an ellipse with this mean radius, length : width, and rotation `angle`."""
    x, y = radius * np.cos(direction) * elongation**0.5, radius * np.sin(direction) / elongation**0.5
    return np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], -1)


def _stroma(biopsy: Biopsy, size_um: Floats, rng: np.random.Generator) -> Floats:
    """Thin nuclei `[N, 6]` between the glands."""
    count = rng.poisson(900 * biopsy.pattern.stroma * biopsy.density[1] * np.prod(size_um) / 1e6)
    centres, angle = rng.uniform(0, size_um, (count, 2)), rng.normal(0.3, 0.4, count)
    return _nuclei(centres, STROMAL_UM * rng.lognormal(0, 0.2, count), angle, biopsy.darkness, rng) * [1, 1, 1, 0.5, 1, 1]


def _nuclei(centres: Floats, radius: Floats, angle: Floats, darkness: float, rng: np.random.Generator) -> Floats:
    """Nuclei `[N, 6]`: x, y and half axes in um, angle, darkness (0 to 255)."""
    dark = np.clip(rng.normal(darkness, 22, len(centres)), 60, 255)
    return np.stack([*centres.T, radius * 1.25, radius / 1.25, angle, dark], 1)


def _ellipses(nuclei: Floats) -> Floats:
    """The outlines of nuclei `[N, 12, 2]`."""
    a, b, angle = nuclei.T[2:5, :, None]
    edge = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    return _ellipse_points(edge, (a * b) ** 0.5, angle, a / b) + nuclei[:, None, :2]


def synthesize(out: Path, *, patients: int, width: int, separation: float, seed: int, workers: int = -1) -> None:
    """Write `patients` patients to `out`, whole or not at all. A patient depends only on the separation, seed and its number.

    The last one, if malignant, has images of two types, as one patient of the public data has. truth.csv has the traits of each
    patient, and the probability of malignant that they allow.
    """
    with atomic_folder(out) as folder:
        biopsies = Parallel(n_jobs=workers)(
            delayed(_write_patient)(folder, n, n == patients, width, separation, seed) for n in range(1, patients + 1)
        )
        truth = pd.DataFrame([{"patient": _patient(n), **b.traits} for n, b in enumerate(biopsies, start=1)])
        malignant = np.mean([class_of(name) == "malignant" for name in TYPE_CYCLE])
        truth["probability"] = expit(logit(malignant) + separation * truth[list(TRAITS)].sum(axis=1))
        truth.round(6).to_csv(folder / "truth.csv", index=False)


def _patient(number: int) -> str:
    return f"14-{10000 + 37 * number}"


def _write_patient(folder: Path, number: int, two_types: bool, width: int, separation: float, seed: int) -> Biopsy:
    rng = np.random.default_rng([seed, number])
    tumour_type = TYPE_CYCLE[(number - 1) % len(TYPE_CYCLE)]
    biopsy = Biopsy.sample(tumour_type, separation, rng)
    patient = _patient(number)
    for magnification in MAGNIFICATIONS:
        for index in range(1, int(rng.integers(IMAGES[0], IMAGES[1] + 1)) + 1):
            second = two_types and index % 2 and class_of(tumour_type) == "malignant"
            image_type = "ductal_carcinoma" if second else tumour_type
            letter, code = class_of(image_type)[0].upper(), TYPES[image_type]
            target = folder / class_of(image_type) / "SOB" / image_type / f"SOB_{letter}_{code}_{patient}" / magnification
            target.mkdir(parents=True, exist_ok=True)
            picture = field(biopsy, magnification, width, rng)
            name = f"SOB_{letter}_{code}-{patient}-{magnification[:-1]}-{index:03d}.png"
            Image.fromarray(picture).save(target / name, compress_level=1)
    return biopsy
