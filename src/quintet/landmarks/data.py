"""Raw folder -> one uint8 array and one table -> batches.

Raw: `annotations.csv` (no header: row, x1, y1, ..., x15, y15, stem; pixels of the original image) and
`images/<any folder>/<stem>.png|jpg|jpeg`. Prepared: images.npy `[N, size, size]` uint8, cases.csv, split.csv.
"""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from skimage.exposure import equalize_adapthist

from quintet import splits
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_folder, refuse_overlap
from quintet.imaging.duplicates import near_groups, perceptual_hash
from quintet.imaging.pictures import PICTURES, read_grey, resize
from quintet.landmarks.anatomy import CATEGORIES, LANDMARKS, Points
from quintet.params import Landmarks

COLUMNS = 2 * LANDMARKS + 2
POINT_COLUMNS = [f"{axis}{k}" for k in range(LANDMARKS) for axis in "xy"]


@dataclass(frozen=True)
class Row:
    number: int  # 1-based line of annotations.csv
    stem: str
    points_px: NDArray[np.float64]  # [15, 2], pixels of the original
    file: Path

    @property
    def category(self) -> str:
        return self.stem.rsplit("-", 1)[0]


@dataclass(frozen=True)
class Prepared:
    images: NDArray[np.uint8]  # [N, size, size]
    points: Points  # [N, 15, 2], fractions
    cases: pd.DataFrame  # stem, category, group, width, height, x0, y0, ... (original pixels), split

    def rows(self, part: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.cases["split"] == part)


def read_annotations(raw: Path) -> tuple[list[Row], list[str]]:
    """All usable rows, and one sentence per problem naming row and file. Pixels are not read here."""
    raw = Path(raw)
    table = raw / "annotations.csv"
    if not raw.is_dir():
        return [], [f"{raw}: no such folder; landmarks.raw must hold annotations.csv and images/"]
    if not table.is_file():
        return [], [f"{table}: missing; expected lines of row,x1,y1,...,x{LANDMARKS},y{LANDMARKS},stem without a header"]
    files = _image_files(raw)
    rows: list[Row] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        for number, cells in enumerate(csv.reader(file), start=1):
            if not cells:
                continue
            try:
                row = _parse(number, cells, files)
            except InputError as error:
                problems.append(f"{table.name} row {number}: {error}")
                continue
            if row.stem in seen:
                problems.append(f"{table.name} row {number}: {row.stem} stands in row {seen[row.stem]} already; delete one")
                continue
            seen[row.stem] = number
            rows.append(row)
    if not rows and not problems:
        problems.append(f"{table}: no rows")
    return rows, problems


def _image_files(raw: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((raw / "images").glob("*/*")):
        if path.suffix.lower() in PICTURES:
            files[path.stem].append(path)
    return files


def _parse(number: int, cells: list[str], files: dict[str, list[Path]]) -> Row:
    if len(cells) != COLUMNS:
        raise InputError(f"expected {COLUMNS} columns (row, {LANDMARKS} x and y, stem), got {len(cells)}")
    stem = cells[-1].strip()
    values = []
    for column, cell in enumerate(cells[1:-1]):
        try:
            values.append(float(cell))
        except ValueError:
            raise InputError(f"{stem}: {POINT_COLUMNS[column]} is {cell!r}, not a number") from None
    points = np.array(values).reshape(LANDMARKS, 2)
    if not np.isfinite(points).all():
        raise InputError(f"{stem}: a coordinate is not finite")
    if (points < 0).any():
        landmark = int(np.argwhere(points < 0)[0][0])
        raise InputError(f"{stem}: landmark {landmark} has a negative coordinate {points[landmark].tolist()}")
    if stem.rsplit("-", 1)[0] not in CATEGORIES:
        raise InputError(f"{stem}: its category is none of {', '.join(f'{c}-' for c in CATEGORIES)} (the stem's prefix)")
    found = files.get(stem, [])
    if not found:
        raise InputError(f"{stem}: no image images/*/{stem}.png, .jpg or .jpeg")
    if len(found) > 1:
        raise InputError(f"{stem}: {len(found)} images of that name ({', '.join(map(str, found))}); keep one")
    return Row(number, stem, points, found[0])


def _read(row: Row, size: int, clahe: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[int, int]]:
    """Prepared image, 64-bit perceptual hash, (width, height); raises where the points lie outside the image."""
    grey = read_grey(row.file)
    height, width = grey.shape
    outside = (row.points_px > [width, height]).any(axis=1)
    if outside.any():
        landmark = int(np.flatnonzero(outside)[0])
        where = row.points_px[landmark].tolist()
        raise InputError(f"{row.stem}: landmark {landmark} at {where} lies outside the image of {width} x {height} pixels")
    picture = Image.fromarray((grey * 255).round().astype(np.uint8))
    return preprocess(grey, size=size, clahe=clahe), perceptual_hash(picture), (width, height)


def preprocess(grey: NDArray[np.float32], *, size: int, clahe: float) -> NDArray[np.uint8]:
    """What every image goes through, in training and prediction alike: resize, then contrast equalisation (CLAHE)."""
    small = resize(grey, size)
    if clahe > 0 and small.max() > small.min():
        small = equalize_adapthist(small, clip_limit=clahe)
    return (small * 255).round().astype(np.uint8)


def check(raw: Path, params: Landmarks) -> list[str]:
    """Every problem of a raw folder, images and split included."""
    read, problems = _read_rows(raw, params)
    try:
        if read:
            _table(read, params)
    except InputProblemsError as error:
        problems += error.problems
    except InputError as error:
        problems.append(str(error))
    return problems


def make_split(kind: str, cases: pd.DataFrame, *, seed: int) -> list[str]:
    """One of train, valid, test per row of `cases` (in annotation order)."""
    if kind == "reference":
        return splits.random_split(len(cases), seed=seed)
    if kind == "stratified":
        return splits.random_split(len(cases), seed=seed, strata=list(cases["category"]))
    if kind == "grouped":
        return splits.grouped_split(list(cases["group"]), list(cases["category"]), seed=seed)
    parts = splits.read_split(Path(kind), list(cases["stem"]))
    remedy = "move its images to one part, or lower landmarks.near_duplicate_distance"
    splits.refuse_leaks(parts, list(cases["group"]), list(cases["stem"]), remedy=remedy)
    return parts


def _read_rows(raw: Path, params: Landmarks) -> tuple[list[Any], list[str]]:
    """What `_read` says of each row, after the row itself, and a sentence for each that cannot be read."""
    rows, problems = read_annotations(raw)
    read = []
    for row in rows:
        try:
            read.append((row, *_read(row, params.size, params.clahe)))
        except InputError as error:
            problems.append(f"annotations.csv row {row.number}: {error}")
    return read, problems


def _table(read: list[Any], params: Landmarks) -> pd.DataFrame:
    """What becomes cases.csv."""
    # images whose hashes nearly agree are taken for one person
    groups = near_groups(np.stack([r[2] for r in read]), params.near_duplicate_distance)
    cases = pd.DataFrame({"stem": [r[0].stem for r in read], "category": [r[0].category for r in read]})
    cases["group"] = [f"group-{g:04d}" for g in groups]
    cases[["width", "height"]] = [r[3] for r in read]
    cases[POINT_COLUMNS] = np.stack([r[0].points_px for r in read]).reshape(-1, 2 * LANDMARKS)
    cases["split"] = make_split(params.split, cases, seed=params.split_seed)
    return cases


def prepare(raw: Path, out: Path, params: Landmarks) -> tuple[Prepared, list[str]]:
    """Write images.npy, cases.csv and split.csv to `out`, whole or not at all; returns them and the skipped rows."""
    refuse_overlap(raw, out)
    read, problems = _read_rows(raw, params)
    if problems and (params.on_error == "raise" or not read):
        hint = " (landmarks.on_error=skip would leave these rows out)" if params.on_error == "raise" else ""
        raise InputProblemsError(f"{raw}{hint}", problems)
    cases = _table(read, params)
    with atomic_folder(out) as folder:
        np.save(folder / "images.npy", np.stack([r[1] for r in read]))
        cases.drop(columns="split").to_csv(folder / "cases.csv", index=False)
        cases[["stem", "split"]].sort_values("stem").to_csv(folder / "split.csv", index=False)
    return load(out), problems


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. The images stay on disk (memory-mapped) until rows are taken."""
    folder = Path(folder)
    if not (folder / "cases.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro landmarks_prepare`")
    cases = pd.read_csv(folder / "cases.csv", dtype={"stem": str, "group": str})
    cases = cases.merge(pd.read_csv(folder / "split.csv", dtype=str), on="stem", how="left", validate="one_to_one")
    size = cases[["width", "height"]].to_numpy(float)[:, None, :]
    points = cases[POINT_COLUMNS].to_numpy(float).reshape(-1, LANDMARKS, 2) / size
    return Prepared(np.load(folder / "images.npy", mmap_mode="r"), points, cases)
