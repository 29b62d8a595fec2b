"""Turn a raw folder into the prepared data set.

Raw: `annotations.csv` (no header: row, x1, y1, ..., x15, y15, stem; pixels of the original image) and
`<stem>.png|jpg|jpeg` anywhere below images/. Phantoms also have `truth.csv`, their landmarks without label noise.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import normalize

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from skimage.exposure import equalize_adapthist

from quintet import splits
from quintet.errors import InputError, InputProblemsError, sentences
from quintet.files import atomic_folder, reject_overlap
from quintet.imaging.duplicates import near_groups, perceptual_hash
from quintet.imaging.folders import files_below, print_passed_over, with_suffix
from quintet.imaging.pictures import PICTURES, read_grey, resize
from quintet.landmarks.data.anatomy import CATEGORIES, LANDMARKS, to_fractions
from quintet.landmarks.data.plausibility import inverted, problem, problem_of_all
from quintet.landmarks.data.prepared import POINT_COLUMNS, TRUTH, Prepared, load
from quintet.params import Landmarks
from quintet.params.landmarks import LandmarksData
from quintet.tables import DECIMAL_COMMA, read_cells

COLUMN_COUNT = 2 * LANDMARKS + 2
MAX_EQUAL = 5  # of rows with the landmarks of another row that are listed
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    number: int  # 1-based line of annotations.csv
    stem: str
    points_px: NDArray[np.float64]  # [15, 2], pixels of the original
    file: Path

    @property
    def category(self) -> str:
        return next(category for category in CATEGORIES if self.stem.startswith(f"{category}-"))


def read_annotations(raw: Path) -> tuple[list[Row], list[str]]:
    """All usable rows, and one sentence per problem, which names row and file. Does not read pixels."""
    raw = Path(raw)
    table = raw / "annotations.csv"
    if not raw.is_dir():
        return [], [f"{raw}: no such folder; landmarks.raw must contain annotations.csv and images/"]
    if not table.is_file():
        return [], [f"{table}: missing; expected lines of row,x1,y1,...,x{LANDMARKS},y{LANDMARKS},stem without a header"]
    files = _image_files(raw)
    rows: list[Row] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    try:
        lines = read_cells(table)
    except InputError as error:
        return [], [str(error)]
    if lines and any(DECIMAL_COMMA.fullmatch(cell) for cell in lines[0][1:-1]):
        return [], [f"{table}: decimal commas; write points, or separate the columns with semicolons"]
    if lines and len(lines[0]) == COLUMN_COUNT and not any(map(_is_number, lines[0][1:-1])):
        return [], [f"{table}: its first row is a header ({', '.join(lines[0][:3])}, ...), expected none; delete it"]
    widths = {len(cells) for cells in lines if cells}
    if len(lines) > 1 and len(widths) == 1 and (width := widths.pop()) != COLUMN_COUNT:
        hint = "; is the first one, the row number, missing?" if width == COLUMN_COUNT - 1 else ""
        return [], [f"{table}: {width} columns, expected {COLUMN_COUNT} (row, {LANDMARKS} x and y, stem){hint}"]
    for number, cells in enumerate(lines, start=1):
        if not cells:
            continue
        try:
            row = _parse(number, cells, files)
        except InputError as error:
            problems.append(f"{table.name} row {number}: {error}")
            continue
        if row.stem in seen:
            problems.append(f"{table.name} row {number}: {row.stem} is also in row {seen[row.stem]}; delete one")
            continue
        seen[row.stem] = number
        rows.append(row)
    if not rows and not problems:
        problems.append(f"{table}: no rows")
    if rows and (without := sorted(set(files) - set(seen))):
        print(f"note: {len(without)} pictures below {raw / 'images'} have no row in {table.name}, such as {without[0]}")
    for (one, other), _ in zip(_equal_points(rows), range(MAX_EQUAL), strict=False):
        problems.append(f"{table.name} row {other.number}: {other.stem} has the landmarks of row {one.number}; annotate it again")
    return rows, problems


def _equal_points(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """Rows with the same 30 coordinates, as a spreadsheet's fill-down makes them."""
    first: dict[bytes, Row] = {}
    for row in rows:
        other = first.setdefault(row.points_px.tobytes(), row)
        if other is not row:
            yield other, row


def _image_files(raw: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = defaultdict(list)
    pictures, others = with_suffix(files_below(raw / "images"), PICTURES)
    print_passed_over(others, raw / "images", ", ".join(PICTURES))
    for path in pictures:
        files[normalize("NFC", path.stem)].append(path)
    return files


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parse(number: int, cells: list[str], files: dict[str, list[Path]]) -> Row:
    if len(cells) != COLUMN_COUNT:
        raise InputError(f"expected {COLUMN_COUNT} columns (row, {LANDMARKS} x and y, stem), got {len(cells)}")
    stem = cells[-1]
    if stem.lower().endswith(PICTURES):
        stem = stem[: stem.rindex(".")]
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
    if not stem.startswith(tuple(f"{category}-" for category in CATEGORIES)):
        raise InputError(f"{stem}: its category (the stem's prefix) is not one of {', '.join(f'{c}-' for c in CATEGORIES)}")
    found = files.get(stem, [])
    if not found:
        raise InputError(f"{stem}: no image {stem}.png, .jpg or .jpeg below images/")
    if len(found) > 1:
        raise InputError(f"{stem}: {len(found)} images of that name ({', '.join(map(str, found))}); keep one")
    return Row(number, stem, points, found[0])


def read_images(rows: list[Row], use: Callable[[Row, NDArray[np.float32]], T]) -> tuple[list[T], list[str], list[str]]:
    """What `use` makes of each row and its image `[H, W]`; one sentence for each row whose image cannot be read or does not fit
    its landmarks; and one, if any, for the rest as a whole that is not plausible, which leaving out rows would not mend."""
    found, fractions, sizes, problems = [], [], list[tuple[int, int]](), []
    for row in rows:
        try:
            grey = read_grey(row.file)
        except InputError as error:
            problems.append(f"annotations.csv row {row.number}: {error}")
            continue
        height, width = grey.shape
        if wrong := problem(row.points_px, width, height):
            problems.append(f"annotations.csv row {row.number}: {row.stem}: {wrong}")
            continue
        fractions.append(to_fractions(row.points_px, np.array([width, height])))
        sizes.append((width, height))
        if wrong := inverted(row.points_px, grey):
            problems.append(f"annotations.csv row {row.number}: {row.stem}: {wrong}")
            continue
        found.append(use(row, grey))
    wrong = problem_of_all(np.stack(fractions), sizes) if fractions else ""
    return found, problems, [wrong] if wrong else []


def _read(row: Row, grey: NDArray[np.float32], size: int, clahe: float) -> tuple[Row, Any, Any, tuple[int, int]]:
    """The row with its prepared image, 64-bit perceptual hash, (width, height)."""
    height, width = grey.shape
    picture = Image.fromarray((grey * 255).round().astype(np.uint8))
    return row, preprocess(grey, size=size, clahe=clahe), perceptual_hash(picture), (width, height)


def preprocess(grey: NDArray[np.float32], *, size: int, clahe: float) -> NDArray[np.uint8]:
    """Preprocess for training and prediction: resize, then equalise the contrast (CLAHE)."""
    resized = resize(grey, size)
    if clahe > 0 and resized.max() > resized.min():
        resized = equalize_adapthist(resized, clip_limit=clahe)
    return (resized * 255).round().astype(np.uint8)


def check(raw: Path, params: Landmarks) -> list[str]:
    """Every problem of a raw folder, including its images and the split."""
    read, problems, implausible = _read_rows(raw, params.data)
    problems += implausible
    try:
        if read:
            _table(read, params.data)
    except InputError as error:
        problems += sentences(error)
    return problems


def make_split(kind: str, cases: pd.DataFrame, *, seed: int) -> list[str]:
    """The part (train, valid or test) of each row of `cases`, whose rows are in annotation order."""
    if kind == "reference":
        return splits.random_split(len(cases), seed=seed)
    if kind == "stratified":
        return splits.random_split(len(cases), seed=seed, strata=list(cases["category"]))
    if kind == "grouped":
        return splits.grouped_split(list(cases["group"]), list(cases["category"]), seed=seed)
    parts = splits.read_split(Path(kind), list(cases["stem"]))
    remedy = "move its images to one part, or lower landmarks.data.near_duplicate_distance"
    splits.reject_leaks(parts, list(cases["group"]), list(cases["stem"]), remedy=remedy)
    return parts


def _read_rows(raw: Path, params: LandmarksData) -> tuple[list[Any], list[str], list[str]]:
    """Each row with the results of `_read`, and the problems of `read_annotations` and `read_images`."""
    rows, problems = read_annotations(raw)
    read, further, implausible = read_images(rows, lambda row, grey: _read(row, grey, params.size, params.clahe))
    return read, problems + further, implausible


def _table(read: list[Any], params: LandmarksData) -> pd.DataFrame:
    """The table of cases, with the split."""
    # images with nearly equal hashes count as one person
    groups = near_groups(np.stack([r[2] for r in read]), params.near_duplicate_distance)
    cases = pd.DataFrame({"stem": [r[0].stem for r in read], "category": [r[0].category for r in read]})
    cases["group"] = [f"group-{g:04d}" for g in groups]
    cases[["width", "height"]] = [r[3] for r in read]
    cases[POINT_COLUMNS] = np.stack([r[0].points_px for r in read]).reshape(-1, 2 * LANDMARKS)
    cases["split"] = make_split(params.split, cases, seed=params.split_seed)
    return cases


def _read_truth(path: Path, stems: pd.Series) -> pd.DataFrame:
    """The landmarks without label noise, which only drawn data have: one row per stem, original pixels."""
    table = pd.read_csv(path, header=None, names=["row", *POINT_COLUMNS, "stem"]).set_index("stem")
    if missing := sorted(set(stems) - set(table.index)):
        raise InputError(f"{path}: no row for {', '.join(missing[:3])}; real data have no such file, so delete it")
    return table.loc[stems, POINT_COLUMNS].reset_index()


def prepare(raw: Path, out: Path, params: Landmarks) -> tuple[Prepared, list[str]]:
    """Write the prepared data set to `out` atomically; returns it and one sentence per skipped row."""
    reject_overlap(raw, out)
    data = params.data
    read, problems, implausible = _read_rows(raw, data)
    if implausible:
        raise InputProblemsError(str(raw), problems + implausible)
    if problems and (data.on_error == "raise" or not read):
        hint = " (landmarks.data.on_error=skip would leave these rows out)" if data.on_error == "raise" else ""
        raise InputProblemsError(f"{raw}{hint}", problems)
    cases = _table(read, data)
    with atomic_folder(out) as folder:
        np.save(folder / "images.npy", np.stack([r[1] for r in read]))
        cases.drop(columns="split").to_csv(folder / "cases.csv", index=False)
        cases[["stem", "split"]].sort_values("stem").to_csv(folder / "split.csv", index=False)
        if (Path(raw) / TRUTH).is_file():
            _read_truth(Path(raw) / TRUTH, cases["stem"]).to_csv(folder / TRUTH, index=False)
    return load(out), problems
