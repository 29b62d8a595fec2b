"""Synthetic chest X-rays with 15 landmarks, in the file format of the real data. No part of them is taken from a real image.

`from quintet.landmarks.synthetic import synthesize; synthesize(Path("data/x"), images=957, size=299, seed=1, label_noise_px=1.5)`

Spreads match statistics (mean, SD, correlation) of the public COVID-19 Radiography landmark annotations, measured once on 813
images.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image

from quintet.files import atomic_folder
from quintet.landmarks.drawing import BASE_PX, LEVELS, Person, Points, expose

CATEGORIES = {"COVID": 306, "Normal": 468, "Viral Pneumonia": 183}  # image counts of the reference
TWIN_EVERY = 20  # every 20th image (5 %) is a second exposure of an earlier person
MIDLINE = (0, 8, 9, 10, 1)  # landmarks at LEVELS
SIDES = ((11, 2, 4, 6, 13), (12, 3, 5, 7, 14))  # image left, image right, at LEVELS
OFFSET_PX = np.array([46.0, 86.5, 99.0, 106.5, 112.5])  # mean distance from the axis at LEVELS
COMMON_SD_PX = np.array([5.5, 9.5, 10.0, 10.5, 11.0])  # of both sides together
SIDE_SD_PX = np.array([5.5, 4.5, 4.5, 4.5, 5.0])  # of each side on its own
LENGTH_PX = {"COVID": 194.0, "Normal": 192.0, "Viral Pneumonia": 222.0}  # mean axis length
INNER_PX = np.array([[25, 24, 23, 26, 31, 34, 30], [25, 31, 25, 31, 45, 60, 66]], dtype=float)  # vena cava, atrium; knob, heart


def draw_person(rng: Generator, category: str) -> Person:
    """Sample an anatomy; axis length, position and width are correlated as in the real labels."""
    child = category == "Viral Pneumonia"
    z = rng.standard_normal(5)
    top_y = np.clip(38 + 15 * z[0], 6, 90)
    length = np.clip(LENGTH_PX[category] - 0.8 * (top_y - 38) + (20 if child else 26) * z[1], 105, 286 - top_y)
    angle = np.clip(np.radians(3.8) * z[2], -0.2, 0.2)
    middle_x = 149.5 + 9.5 * z[3]
    common = 0.4 * (length - 198) / 33 + 0.9 * z[4]
    separate = 0.8 * rng.standard_normal((2, 1)) + 0.6 * rng.standard_normal((2, 5))
    offsets = OFFSET_PX + COMMON_SD_PX * common + SIDE_SD_PX * separate
    offsets = np.maximum.accumulate(np.maximum(offsets, [26, 54, 60, 64, 66]), axis=1)
    heart = rng.normal([[1.0], [1.12 if category == "COVID" else 1.0]], 0.17)
    turn = rng.normal(0, 4.5) * np.array([[-1.0], [1.0]])  # a rotated patient: the mediastinum shifts to one side
    inner = np.clip((INNER_PX * heart + turn) * offsets.mean() / 90, 12, 0.72 * offsets[:, 2:3])
    dome = np.clip(rng.normal([0.80, 0.85], 0.07), 0.62, 0.95)
    return Person(
        category=category,
        top_px=np.array([middle_x - np.sin(angle) * length / 2, top_y]),
        length_px=float(length),
        angle=float(angle),
        offsets_px=offsets,
        inner_px=inner,
        dome_t=dome,
        ribs=int(rng.integers(8, 11)),
        arms_up=bool(rng.random() < (0.7 if child else 0.1)),
        build=tuple(rng.random(12).tolist()),
        texture=int(rng.integers(2**31)),
    )


def moved(person: Person, shot: Generator) -> Person:
    """The same person, positioned for one exposure."""
    top = np.clip(person.top_px + shot.normal(0, 1.5, 2), [60, 4], [239, 94])
    return replace(person, top_px=top, angle=person.angle + shot.normal(0, np.radians(0.5)))


def template(top: Points, bottom: Points, offsets: Points) -> Points:
    """Landmarks [15, 2] from the axis ends, each [2], and offsets [2, 5]: midline on the axis, pairs on its perpendiculars."""
    along = bottom - top
    across = np.array([along[1], -along[0]]) / np.linalg.norm(along)  # towards the image's right
    axis = top + LEVELS[:, None] * along
    points = np.empty((15, 2))
    points[list(MIDLINE)] = axis
    for side, sign in enumerate((-1, 1)):
        points[list(SIDES[side])] = axis + sign * offsets[side][:, None] * across
    return points


def ends(person: Person) -> tuple[Points, Points]:
    """Landmarks 0 and 1, each [2], px at 299."""
    return person.top_px, person.top_px + person.length_px * np.array([np.sin(person.angle), np.cos(person.angle)])


def label(person: Person, shot: Generator, size: int, noise_px: float) -> NDArray[np.int64]:
    """What an annotator would write, int [15, 2]: axis ends and offsets with noise of `noise_px` each (SD, px at 299)."""
    (top, bottom), noise = ends(person), shot.normal(0, noise_px, 14)
    points = template(top + noise[:2], bottom + noise[2:4], person.offsets_px + noise[4:].reshape(2, 5)) * size / BASE_PX
    return np.clip(np.rint(points), 0, size - 1).astype(np.int64)


def truth(person: Person, size: int) -> Points:
    """The exact landmarks of an exposure, float [15, 2]."""
    return np.clip(template(*ends(person), person.offsets_px) * size / BASE_PX, 0, size - 1)


def plan(images: int) -> list[tuple[str, int]]:
    """Category and person of each image; neither changes when more images are requested."""
    frequencies = np.array(list(CATEGORIES.values())) / sum(CATEGORIES.values())
    counts, rows = np.zeros(len(frequencies)), list[tuple[str, int]]()
    latest = dict[str, int]()
    for i in range(images):
        index = int(np.argmax(frequencies * (i + 1) - counts))  # the category furthest behind its frequency
        counts[index] += 1
        name = list(CATEGORIES)[index]
        latest[name] = latest[name] if i % TWIN_EVERY == TWIN_EVERY - 1 and name in latest else i
        rows.append((name, latest[name]))
    return rows


def write_one(
    folder: Path, row: tuple[str, int, int, str], size: int, seed: int, label_noise_px: float
) -> tuple[list[int], list[float]]:
    """Draw and save the image of a row (category, person, image number, stem); returns 30 labelled and 30 true coordinates."""
    category, person_id, number, stem = row
    shot = default_rng([seed, number, 1])
    person = moved(draw_person(default_rng([seed, person_id, 0]), category), shot)
    points = label(person, shot, size, label_noise_px)
    Image.fromarray(expose(person, shot, size)).save(folder / f"{stem}.png")
    return points.ravel().tolist(), truth(person, size).ravel().round(3).tolist()


def synthesize(folder: Path, *, images: int, size: int, seed: int, label_noise_px: float, workers: int = 1) -> None:
    """Write `folder`/annotations.csv and `folder`/images/<category>/<stem>.png; image i depends on `seed` and i alone.

    `folder`/truth.csv, which a user's folder lacks, holds the landmarks without label noise in the format of annotations.csv.
    """
    numbers = dict.fromkeys(CATEGORIES, 0)
    rows = []
    for i, (category, person_id) in enumerate(plan(images)):
        numbers[category] += 1
        rows.append((category, person_id, i, f"{category}-{numbers[category]}"))
    with atomic_folder(Path(folder)) as temporary:
        folders = {category: temporary / "images" / category.replace(" ", "_") for category in CATEGORIES}
        for path in folders.values():
            path.mkdir(parents=True)
        drawn = Parallel(n_jobs=workers)(delayed(write_one)(folders[r[0]], r, size, seed, label_noise_px) for r in rows)
        order = default_rng([seed, images]).permutation(images)
        for name, points in zip(("annotations.csv", "truth.csv"), zip(*drawn, strict=True), strict=True):
            with (temporary / name).open("w", newline="") as file:
                csv.writer(file).writerows([line, *points[i], rows[i][3]] for line, i in enumerate(order))
