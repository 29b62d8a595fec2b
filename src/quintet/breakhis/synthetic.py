"""Breast-tissue phantoms in the BreaKHis tree: H&E-like fields of one biopsy at four magnifications.

A tissue is drawn in micrometres and seen through fields of 1400 um (40X) to 140 um (400X): glands fit into the field at 40X and
100X, nuclei are more than specks at 200X and 400X. Two grades of a biopsy, of its glands and of its nuclei, each tell benign from
malignant with errors of their own, so that no single magnification knows all. Stain (colours and strength), which says nothing
about the class, differs between patients far more than within one: a split by images would let a network recognise patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from quintet.breakhis.tree import MAGNIFICATIONS, TYPES, class_of
from quintet.files import atomic_folder

Floats = NDArray[np.float64]

FIELD_UM = 1400.0  # width at 40X; Spanhol et al. give 0.49 um a pixel at 40X before their downsampling
ASPECT = 460 / 700
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])  # optical density (Ruifrok and Johnston 2001)
GRADE_SD = 0.3  # of a biopsy's grades, whose means are -1 (benign) and +1 (malignant)
SPECK_UM = 5.0  # where a pixel is larger, nuclei are specks
IMAGES = (4, 20)  # a magnification
CYCLE = (
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
    """What a tumour type looks like, before the grades change it."""

    gland_um: float  # mean radius
    glands_mm2: float
    stretch: float  # length : width of a gland
    lumen: float  # share of the radius that is empty
    stroma: float  # stromal nuclei, share of the usual
    mucin: float  # share of the field that is pale pools


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
    order: float  # of the glands: +1 round with open lumen, -1 solid and ragged
    atypia: float  # of the nuclei: +1 large, dark, uneven, crowded
    stain: Floats  # [2, 3] optical densities of haematoxylin and eosin
    strength: Floats  # [2]
    light: Floats  # [3], the white of the camera

    @staticmethod
    def draw(tumour_type: str, rng: np.random.Generator) -> "Biopsy":
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
    """One picture `[height, width, 3]` of a biopsy, somewhere in its tissue."""
    height = round(width * ASPECT)
    um = FIELD_UM * 40 / int(magnification[:-1]) / width  # a pixel
    size_um = np.array([width, height]) * um
    at, radius, angle = _glands(biopsy, size_um, rng)
    cells, lumens = _walls(biopsy, at, radius, angle, rng)
    nuclei = np.concatenate([_stroma(biopsy, size_um, rng), cells])
    nuclei = nuclei[((nuclei[:, :2] > -12) & (nuclei[:, :2] < size_um + 12)).all(1)]
    h = _specks(nuclei, (height, width), um) if um > SPECK_UM else _painted(_ellipses(nuclei), nuclei[:, 5], (height, width), um)
    holes = _painted(lumens, [255.0] * len(lumens), (height, width), um)
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


def _painted(outlines: Sequence[Floats] | Floats, values: Sequence[float] | Floats, shape: tuple[int, int], um: float) -> Floats:
    """Polygons `[K, 2]` in um, each with its value of 0 to 255, as an image in [0, 1]; drawn at twice the size."""
    height, width = shape
    canvas = Image.new("L", (2 * width, 2 * height), 0)
    pen = ImageDraw.Draw(canvas)
    for outline, value in zip(outlines, values, strict=True):
        pen.polygon((outline * (2 / um)).ravel().tolist(), fill=int(value))
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float64) / 255


def _specks(nuclei: Floats, shape: tuple[int, int], um: float) -> Floats:
    """Nuclei smaller than a pixel: their area and darkness, summed."""
    height, width = shape
    weight = np.pi * nuclei[:, 2] * nuclei[:, 3] / um**2 * nuclei[:, 5] / 255
    box = [[0, height * um], [0, width * um]]
    return np.minimum(gaussian_filter(np.histogram2d(nuclei[:, 1], nuclei[:, 0], shape, box, weights=weight)[0], 0.4), 1)


def _glands(biopsy: Biopsy, size_um: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Centres (a margin around the field included), radii, angles."""
    p = biopsy.pattern
    margin = 3 * p.gland_um
    area_mm2 = np.prod(size_um + 2 * margin) / 1e6
    count = rng.poisson(p.glands_mm2 * area_mm2)
    at = rng.uniform(-margin, size_um + margin, (count, 2))
    radius = p.gland_um * rng.lognormal(0, 0.25, count)
    reach = 2 * radius[:, None] * p.stretch**0.5
    near = ((at > -reach) & (at < size_um + reach)).all(1)
    return at[near], radius[near], rng.uniform(0, np.pi, near.sum())


def _walls(biopsy: Biopsy, at: Floats, radius: Floats, turn: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Nuclei `[N, 6]` of the walls of K glands, and the outlines `[L, 24, 2]` of the lumens of those that have not filled up."""
    p = biopsy.pattern
    order = 1 / (1 + np.exp(-2.0 * biopsy.order))  # 0 solid, 1 open
    step = 9.0 - 1.6 * np.clip(biopsy.atypia, -2, 2)  # um between nuclei
    count = np.maximum(6, (2 * np.pi * radius / step * (1 + 1.5 * (1 - order))).astype(int))
    gland = np.repeat(np.arange(len(at)), count)
    around = rng.uniform(0, 2 * np.pi, len(gland))
    # open glands have one row of nuclei at the wall, solid ones are filled
    wall, filled = rng.normal(0.95, 0.06, len(gland)), np.sqrt(rng.uniform(0, 1, len(gland)))
    depth = np.where(rng.uniform(size=len(gland)) < order, wall, filled)
    phases = rng.uniform(0, 2 * np.pi, (len(at), 3))[gland]
    ragged = 1 + (1 - order) * 0.3 * np.sin(around[:, None] * np.arange(2, 5) + phases).sum(1)
    cells = _oval(around, (depth * ragged * radius[gland]), turn[gland], p.stretch) + at[gland]
    size = p.lumen * radius * np.clip(order * 1.6 - 0.25, 0, 1.2)
    open_ = size >= 3
    edge = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    lumens = _oval(edge, size[open_, None], turn[open_, None], p.stretch) + at[open_, None]
    return _nuclei(biopsy, cells, around + turn[gland], rng), lumens


def _oval(around: Floats, radius: Floats, turn: Floats, stretch: float | Floats) -> Floats:
    """Points `[..., 2]` at angles `around` of an ellipse of this mean radius and length : width, turned."""
    x, y = radius * np.cos(around) * stretch**0.5, radius * np.sin(around) / stretch**0.5
    return np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], -1)


def _stroma(biopsy: Biopsy, size_um: Floats, rng: np.random.Generator) -> Floats:
    """Thin nuclei between the glands; more of them where the nuclei are crowded."""
    count = rng.poisson(900 * biopsy.pattern.stroma * (1 + 0.35 * np.clip(biopsy.atypia, -2, 2)) * np.prod(size_um) / 1e6)
    cells = _nuclei(biopsy, rng.uniform(0, size_um, (count, 2)), rng.normal(0.3, 0.4, count), rng)
    cells[:, 3] *= 0.5
    return cells


def _nuclei(biopsy: Biopsy, at: Floats, turn: Floats, rng: np.random.Generator) -> Floats:
    """x, y, half axes in um, angle, darkness (0 to 255)."""
    atypia = np.clip(biopsy.atypia, -2.5, 2.5)
    count = len(at)
    radius = (3.7 + 0.75 * atypia) * rng.lognormal(0, 0.14 + 0.05 * max(0.0, atypia + 1), count)
    dark = np.clip(rng.normal(165 + 20 * atypia, 22 + 6 * max(0.0, atypia), count), 60, 255)
    return np.stack([*at.T, radius * 1.25, radius / 1.25, turn, dark], 1)


EDGE = np.linspace(0, 2 * np.pi, 12, endpoint=False)


def _ellipses(nuclei: Floats) -> Floats:
    """Outlines `[N, 12, 2]`."""
    a, b, turn = nuclei.T[2:5, :, None]
    return _oval(EDGE, (a * b) ** 0.5, turn, a / b) + nuclei[:, None, :2]


def synthesize(out: Path, *, patients: int, width: int, seed: int, workers: int = -1) -> None:
    """Write `patients` people to `out`, whole or not at all. A person depends on seed and number alone. The last one stands under
    two malignant types, as one person of the public data does."""
    with atomic_folder(out) as folder:
        Parallel(n_jobs=workers)(delayed(_write_patient)(folder, n, n == patients, width, seed) for n in range(1, patients + 1))


def _write_patient(folder: Path, number: int, two_types: bool, width: int, seed: int) -> None:
    rng = np.random.default_rng([seed, number])
    tumour_type = CYCLE[(number - 1) % len(CYCLE)]
    biopsy = Biopsy.draw(tumour_type, rng)
    for magnification in MAGNIFICATIONS:
        for index in range(1, int(rng.integers(IMAGES[0], IMAGES[1] + 1)) + 1):
            shown = "ductal_carcinoma" if two_types and index % 2 and class_of(tumour_type) == "malignant" else tumour_type
            letter, code = class_of(shown)[0].upper(), TYPES[shown]
            patient = f"14-{10000 + 37 * number}"
            place = folder / class_of(shown) / "SOB" / shown / f"SOB_{letter}_{code}_{patient}" / magnification
            place.mkdir(parents=True, exist_ok=True)
            picture = field(biopsy, magnification, width, rng)
            Image.fromarray(picture).save(
                place / f"SOB_{letter}_{code}-{patient}-{magnification[:-1]}-{index:03d}.png", compress_level=1
            )
