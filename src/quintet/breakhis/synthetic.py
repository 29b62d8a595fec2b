"""Breast-tissue phantoms in the BreaKHis tree: H&E-like fields of one biopsy at four magnifications.

The tissue is drawn in micrometres and seen through fields 1400 um (40X) to 140 um (400X) wide: glands fit into the field at
40X and 100X, nuclei are larger than a pixel at 200X and 400X. A biopsy has two grades, of its glands and of its nuclei. Both
depend on the class, each with its own random error, so that no single magnification shows everything. Stain (colours and
strength) is independent of the class and differs between patients far more than within one: a split by image would let a
network recognise patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from quintet.breakhis.data.tree import MAGNIFICATIONS, TYPES, class_of
from quintet.files import atomic_folder

Floats = NDArray[np.float64]

FIELD_UM = 1400.0  # width at 40X; Spanhol et al. report 0.49 um per pixel at 40X before downsampling
ASPECT = 460 / 700
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])  # optical density (Ruifrok and Johnston 2001)
GRADE_SD = 0.3  # of a biopsy's grades, whose means are -1 (benign) and +1 (malignant)
MAX_OUTLINE_UM = 5.0  # largest pixel at which nuclei are drawn as outlines; in larger pixels they are points
MIN_LUMEN_UM = 3.0  # glands with a smaller lumen are solid
IMAGES = (4, 20)  # per magnification and patient, smallest and largest number
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
    """The appearance of a tumour type, before the grades change it."""

    gland_um: float  # mean radius
    glands_mm2: float
    elongation: float  # length : width of a gland
    lumen: float  # radius of the lumen, share of the gland's radius
    stroma: float  # density of stromal nuclei, relative to the usual
    mucin: float  # share of the field that is mucin pools


PATTERNS = {
    "adenosis": Pattern(45, 70, 1.2, 0.45, 1.0, 0.0),
    "fibroadenoma": Pattern(70, 22, 3.5, 0.25, 1.3, 0.0),
    "phyllodes_tumor": Pattern(120, 10, 3.0, 0.35, 1.8, 0.0),
    "tubular_adenoma": Pattern(38, 130, 1.1, 0.40, 0.6, 0.0),
    "ductal_carcinoma": Pattern(75, 28, 1.6, 0.35, 0.9, 0.0),
    "lobular_carcinoma": Pattern(35, 60, 2.5, 0.30, 1.2, 0.0),
    "mucinous_carcinoma": Pattern(60, 25, 1.4, 0.35, 0.5, 0.20),
    "papillary_carcinoma": Pattern(90, 20, 2.6, 0.40, 0.8, 0.0),
}


@dataclass(frozen=True)
class Biopsy:
    pattern: Pattern
    order: float  # grade of the glands: +1 round with an open lumen, -1 solid and ragged
    atypia: float  # grade of the nuclei: +1 large, dark, uneven, crowded
    stain: Floats  # [2, 3] optical densities of haematoxylin and eosin
    strength: Floats  # [2]
    light: Floats  # [3], the camera's white

    @staticmethod
    def sample(tumour_type: str, rng: np.random.Generator) -> "Biopsy":
        """A random biopsy of a tumour type."""
        sign = 1.0 if class_of(tumour_type) == "malignant" else -1.0
        glands, nuclei = sign + rng.normal(0, GRADE_SD, 2)
        stain = np.stack([HAEMATOXYLIN, EOSIN]) + rng.normal(0, 0.06, (2, 3))
        return Biopsy(
            PATTERNS[tumour_type],
            -glands,
            nuclei,
            np.clip(stain, 0.02, None),
            rng.uniform(0.75, 1.35, 2),
            rng.uniform(0.85, 1.0, 3),
        )


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
    fibres = gaussian_filter(rng.normal(size=(height, width)), (6 / um**0.5, 1.5 / um**0.5))
    fibres /= fibres.std() + 1e-9
    if biopsy.pattern.mucin:
        pools = gaussian_filter(rng.normal(size=(height, width)), 90 / um)
        holes = np.maximum(holes, 0.8 * (pools > np.quantile(pools, 1 - biopsy.pattern.mucin)))
    e = np.clip(0.45 + 0.10 * fibres, 0.05, 1.2) * (1 - 0.92 * holes) * (1 - 0.5 * h)
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


def _glands(biopsy: Biopsy, size_um: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Centres `[K, 2]` (um), radii and angles `[K]` of the glands in the field and in a margin around it."""
    p = biopsy.pattern
    margin = 3 * p.gland_um
    area_mm2 = np.prod(size_um + 2 * margin) / 1e6
    count = rng.poisson(p.glands_mm2 * area_mm2)
    centres = rng.uniform(-margin, size_um + margin, (count, 2))
    radius = p.gland_um * rng.lognormal(0, 0.25, count)
    reach = 2 * radius[:, None] * p.elongation**0.5
    near = ((centres > -reach) & (centres < size_um + reach)).all(1)
    return centres[near], radius[near], rng.uniform(0, np.pi, near.sum())


def _walls(biopsy: Biopsy, centres: Floats, radius: Floats, angle: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The nuclei `[N, 6]` of K glands, and the outlines `[L, 24, 2]` of the lumens of those that are not solid."""
    p = biopsy.pattern
    order = 1 / (1 + np.exp(-2.0 * biopsy.order))  # 0 solid, 1 open
    step_um = 9.0 - 1.6 * np.clip(biopsy.atypia, -2, 2)  # between nuclei
    count = np.maximum(6, (2 * np.pi * radius / step_um * (1 + 1.5 * (1 - order))).astype(int))
    gland = np.repeat(np.arange(len(centres)), count)
    direction = rng.uniform(0, 2 * np.pi, len(gland))
    # open glands have one row of nuclei at the wall, solid ones are filled
    wall, filled = rng.normal(0.95, 0.06, len(gland)), np.sqrt(rng.uniform(0, 1, len(gland)))
    depth = np.where(rng.uniform(size=len(gland)) < order, wall, filled)
    phases = rng.uniform(0, 2 * np.pi, (len(centres), 3))[gland]
    ragged = 1 + (1 - order) * 0.3 * np.sin(direction[:, None] * np.arange(2, 5) + phases).sum(1)
    cells = _ellipse_points(direction, (depth * ragged * radius[gland]), angle[gland], p.elongation) + centres[gland]
    lumen_um = p.lumen * radius * np.clip(order * 1.6 - 0.25, 0, 1.2)
    has_lumen = lumen_um >= MIN_LUMEN_UM
    edge = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    lumens = _ellipse_points(edge, lumen_um[has_lumen, None], angle[has_lumen, None], p.elongation) + centres[has_lumen, None]
    return _nuclei(biopsy, cells, direction + angle[gland], rng), lumens


def _ellipse_points(direction: Floats, radius: Floats, angle: Floats, elongation: float | Floats) -> Floats:
    """Points `[..., 2]` in the given directions on an ellipse with this mean radius, length : width, and rotation `angle`."""
    x, y = radius * np.cos(direction) * elongation**0.5, radius * np.sin(direction) / elongation**0.5
    return np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], -1)


def _stroma(biopsy: Biopsy, size_um: Floats, rng: np.random.Generator) -> Floats:
    """Thin nuclei `[N, 6]` between the glands; there are more of them if the nuclei are crowded."""
    count = rng.poisson(900 * biopsy.pattern.stroma * (1 + 0.35 * np.clip(biopsy.atypia, -2, 2)) * np.prod(size_um) / 1e6)
    cells = _nuclei(biopsy, rng.uniform(0, size_um, (count, 2)), rng.normal(0.3, 0.4, count), rng)
    cells[:, 3] *= 0.5
    return cells


def _nuclei(biopsy: Biopsy, centres: Floats, angle: Floats, rng: np.random.Generator) -> Floats:
    """Nuclei `[N, 6]`: x, y and half axes in um, angle, darkness (0 to 255)."""
    atypia = np.clip(biopsy.atypia, -2.5, 2.5)
    count = len(centres)
    radius = (3.7 + 0.75 * atypia) * rng.lognormal(0, 0.14 + 0.05 * max(0.0, atypia + 1), count)
    darkness = np.clip(rng.normal(165 + 20 * atypia, 22 + 6 * max(0.0, atypia), count), 60, 255)
    return np.stack([*centres.T, radius * 1.25, radius / 1.25, angle, darkness], 1)


def _ellipses(nuclei: Floats) -> Floats:
    """The outlines of nuclei `[N, 12, 2]`."""
    a, b, angle = nuclei.T[2:5, :, None]
    edge = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    return _ellipse_points(edge, (a * b) ** 0.5, angle, a / b) + nuclei[:, None, :2]


def synthesize(out: Path, *, patients: int, width: int, seed: int, workers: int = -1) -> None:
    """Write `patients` patients to `out`, whole or not at all. A patient depends only on the seed and its number.

    The last one, if malignant, has images of two types, as one patient of the public data has.
    """
    with atomic_folder(out) as folder:
        Parallel(n_jobs=workers)(delayed(_write_patient)(folder, n, n == patients, width, seed) for n in range(1, patients + 1))


def _write_patient(folder: Path, number: int, two_types: bool, width: int, seed: int) -> None:
    rng = np.random.default_rng([seed, number])
    tumour_type = TYPE_CYCLE[(number - 1) % len(TYPE_CYCLE)]
    biopsy = Biopsy.sample(tumour_type, rng)
    patient = f"14-{10000 + 37 * number}"
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
