"""Raw folder -> arrays -> batches: nnU-Net v2's 2D preprocessing, and folds by subject.

Prepared: images.npy `[N, C, H, W]` float32 (z-scores; N slices of all cases, each centred in the largest one's frame, 0 outside),
masks.npy `[N, 2, H, W]` uint8, truth.npy (labels on the files' own grids, flat; bit 1 left, bit 2 right), cases.csv (one row a
case), geometry.json, dataset.json, splits_final.json.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from quintet import splits
from quintet.arrays import new_array
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_folder, refuse_overlap, write_json
from quintet.imaging.volumes import Grid, read_spacing
from quintet.params import Perfusion
from quintet.perfusion.geometry import Geometry, plan_geometry
from quintet.perfusion.nnunet import SIDES, Case, Dataset, read_case, read_dataset

Fold = dict[str, list[str]]  # "train", "val" -> sorted case names


@dataclass(frozen=True)
class Prepared:
    images: NDArray[np.float32]  # [N, C, H, W]
    masks: NDArray[np.uint8]  # [N, 2, H, W]
    truth: NDArray[np.uint8]  # flat
    cases: pd.DataFrame  # case, subject, first (slice), slices, truth_at, volumes in ml
    geometry: list[Geometry]
    folds: list[Fold]
    channels: list[str]
    spacing_mm: tuple[float, float, float]  # slices, rows, columns

    def part(self, fold: int, part: str) -> list[int]:
        """Row numbers of `cases`."""
        names = set(self.folds[fold][part])
        return [i for i, name in enumerate(self.cases["case"]) if name in names]

    def slices(self, case: int) -> slice:
        first, count = self.cases.loc[case, ["first", "slices"]]
        return slice(int(first), int(first) + int(count))

    def sizes(self) -> NDArray[np.int64]:
        """Rows and columns that a slice really has, `[N, 2]`."""
        own = np.array([g.size for g in self.geometry])
        return np.repeat(own, self.cases["slices"], axis=0)

    def true(self, case: int) -> NDArray[np.bool_]:
        """The label on the file's own grid, `[2, X, Y, Z]`."""
        shape = self.geometry[case].grid.shape
        at = int(self.cases.loc[case, "truth_at"])
        bits = self.truth[at : at + int(np.prod(shape))].reshape(shape)
        return np.stack([bits & 1, bits & 2]).astype(bool)


def normalise(images: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """z-scores over the non-zero voxels, per channel (0 stays 0 outside), and where these are: canonical `[C, Z, Y, X]`,
    `[Z, Y, X]`.

    Non-zero: in any channel, holes filled.
    """
    canonical = np.stack([grid.to_canonical(channel) for channel in images])
    inside = binary_fill_holes((canonical != 0).any(0))
    chosen = canonical[:, inside]
    mean, sd = chosen.mean(1, dtype=np.float64), chosen.std(1, dtype=np.float64)
    scores = np.where(inside, (canonical - mean[:, None, None, None]) / sd[:, None, None, None], 0)
    return scores.astype(np.float32), inside


def resample(images: NDArray[np.float32], grid: Grid, spacing_mm: tuple[float, float]) -> tuple[NDArray[np.float32], Geometry]:
    """A case as the networks see it, `[slices, C, rows, columns]`, and the way back."""
    scores, inside = normalise(images, grid)
    geometry = plan_geometry(grid, inside, spacing_mm)
    box = tuple(slice(*edge) for edge in geometry.box)
    return np.stack([geometry.resample_image(channel[box]) for channel in scores], axis=1), geometry


def centred(frames: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The middle `[..., rows, columns]` of frames `[..., H, W]`, a view: where a case smaller than the largest one lies."""
    top, left = ((full - own) // 2 for full, own in zip(frames.shape[-2:], size, strict=True))
    return frames[..., top : top + size[0], left : left + size[1]]


def check(raw: Path, params: Perfusion) -> list[str]:
    """Every problem of a raw folder, voxels and folds included."""
    dataset, problems = read_dataset(raw, params.subject_pattern)
    if dataset is None:
        return problems
    for case in dataset.cases:
        try:
            read_case(case, dataset)
        except InputError as error:
            problems.append(str(error))
    try:
        make_folds(raw, dataset.cases, params)
    except InputProblemsError as error:
        problems += error.problems
    except InputError as error:
        problems.append(str(error))
    return problems


def make_folds(raw: Path, cases: list[Case], params: Perfusion) -> list[Fold]:
    """Folds by subject; a splits_final.json (in the raw folder, or the file that params name) wins after the leak check."""
    path = Path(raw) / "splits_final.json" if params.split == "auto" else Path(params.split)
    if params.split != "auto" and not path.is_file():
        raise InputError(f"perfusion.split: {path}: no such file; auto makes folds by subject")
    if path.is_file():
        return _read_folds(path, cases, params.folds)
    subjects = [case.subject for case in cases]
    parts = splits.grouped_folds(subjects, params.folds, seed=params.split_seed)
    names = np.array([case.name for case in cases])
    return [{"train": sorted(names[parts != k].tolist()), "val": sorted(names[parts == k].tolist())} for k in range(params.folds)]


def _read_folds(path: Path, cases: list[Case], count: int) -> list[Fold]:
    try:
        folds = [
            {part: sorted(fold[part]) for part in ("train", "val")} for fold in json.loads(path.read_text(encoding="utf-8-sig"))
        ]
        if not folds or not all(isinstance(name, str) for fold in folds for names in fold.values() for name in names):
            raise ValueError("names must be text, and there must be a fold")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: expected a list of {{"train": [...], "val": [...]}} ({error!r})') from None
    if len(folds) != count:
        raise InputError(f"{path} has {len(folds)} folds, perfusion.folds is {count}; set it to {len(folds)}")
    subject = {case.name: case.subject for case in cases}
    problems = []
    for number, fold in enumerate(folds):
        unknown = sorted(set(fold["train"] + fold["val"]) - set(subject))
        problems += [f"fold {number}: {name} is no case of this data set" for name in unknown]
        problems += [f"fold {number}: {part} is empty" for part in ("train", "val") if not fold[part]]
        problems += [f"fold {number}: {n} stands twice in {p}" for p in fold for n, k in Counter(fold[p]).items() if k > 1]
        shared = {subject.get(n, n) for n in fold["train"]} & {subject.get(n, n) for n in fold["val"]}
        for name in sorted(shared):
            both = [f"{n} ({part})" for part in ("train", "val") for n in fold[part] if subject.get(n, n) == name]
            problems.append(
                f"fold {number}: subject {name} stands on both sides: {', '.join(both)}; keep a person's visits together"
            )
    held_out = Counter(name for fold in folds for name in fold["val"])
    problems += [f"{name} is held out in {k} folds; it would count {k} times" for name, k in held_out.items() if k > 1]
    if problems:
        raise InputProblemsError(str(path), problems)
    return folds


def prepare(raw: Path, out: Path, params: Perfusion) -> Prepared:
    """Write the prepared data set to `out`, whole or not at all. All problems of the raw folder are listed at once."""
    refuse_overlap(raw, out)
    dataset, problems = read_dataset(raw, params.subject_pattern)
    if dataset is None:
        raise InputProblemsError(str(raw), problems)
    with atomic_folder(out) as folder:
        table, ways, spacing_mm = _resample_cases(dataset, problems, folder)
        if problems:
            raise InputProblemsError(str(raw), problems)
        folds = make_folds(raw, dataset.cases, params)
        _join_cases(folder, table, ways, len(dataset.channels), params.patch)
        table.to_csv(folder / "cases.csv", index=False)
        described = {"channels": dataset.channels, "spacing_mm": spacing_mm}
        geometry = {name: way.as_json() for name, way in zip(table["case"], ways, strict=True)}
        for name, values in (("dataset", described), ("geometry", geometry), ("splits_final", folds)):
            write_json(folder / f"{name}.json", values)
    return load(out)


def _resample_cases(dataset: Dataset, problems: list[str], folder: Path) -> tuple[pd.DataFrame, list[Geometry], list[float]]:
    """Each case to folder/NUMBER.npz, one in memory at a time. Returns what becomes cases.csv, the ways back and the median
    spacing; problems of a case join the others."""
    spacings = []
    for case in dataset.cases:
        with suppress(InputError):  # read_case says it
            spacings.append(read_spacing(case.images[0]))
    spacing = [float(mm) for mm in np.median(spacings or [(1, 1, 1)], axis=0)]
    rows, ways = [], list[Geometry]()
    first = truth_at = 0
    for case in dataset.cases:
        try:
            own, grid, label = read_case(case, dataset)
        except InputError as error:
            problems.append(str(error))
        if problems:
            continue  # the others are read for their problems alone
        images, way = resample(own, grid, (spacing[1], spacing[2]))
        masks = np.stack([way.resample_mask(way.crop(side)) for side in label], axis=1).astype(np.uint8)
        truth = (label[0] + 2 * label[1]).astype(np.uint8).ravel()
        np.savez(folder / f"{len(ways)}.npz", images=images, masks=masks, truth=truth)
        voxel_ml = float(np.prod(grid.spacing_mm)) / 1000
        volume = {f"{side}_ml": float(label[i].sum()) * voxel_ml for i, side in enumerate(SIDES)}
        place = {"first": first, "slices": len(images), "truth_at": truth_at}
        rows.append({"case": case.name, "subject": case.subject} | place | volume)
        ways.append(way)
        first, truth_at = first + len(images), truth_at + len(truth)
    return pd.DataFrame(rows), ways, spacing


def _join_cases(folder: Path, table: pd.DataFrame, ways: list[Geometry], channels: int, patch: Sequence[int]) -> None:
    """The cases' files -> images.npy, masks.npy and truth.npy, as the largest frame is known now."""
    largest = np.max([*(way.size for way in ways), patch], axis=0)
    height, width = (int(edge + edge % 2) for edge in largest)  # even, as the patch: whole-pixel offsets
    slices, voxels = int(table["slices"].sum()), sum(int(np.prod(way.grid.shape)) for way in ways)
    images = new_array(folder / "images.npy", np.float32, (slices, channels, height, width))
    masks = new_array(folder / "masks.npy", np.uint8, (slices, len(SIDES), height, width))
    truth = new_array(folder / "truth.npy", np.uint8, (voxels,))
    for number, (row, way) in enumerate(zip(table.itertuples(), ways, strict=True)):
        path = folder / f"{number}.npz"
        with np.load(path) as case:
            own = slice(row.first, row.first + row.slices)
            centred(images[own], way.size)[:] = case["images"]
            centred(masks[own], way.size)[:] = case["masks"]
            truth[row.truth_at : row.truth_at + len(case["truth"])] = case["truth"]
        path.unlink()
    for array in (images, masks, truth):
        array.flush()


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote; images, masks and labels stay on disk (memory-mapped) until they are taken."""
    folder = Path(folder)
    if not (folder / "cases.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro perfusion_prepare`")
    described, ways, folds = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("dataset", "geometry", "splits_final")
    )
    # "c" and not "r": torch wants arrays that can be written; what is written stays in memory
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("images", "masks", "truth")]
    cases = pd.read_csv(folder / "cases.csv", dtype={"case": str, "subject": str}, keep_default_na=False)
    geometry = [Geometry.from_json(ways[name]) for name in cases["case"]]
    slices_mm, rows_mm, columns_mm = described["spacing_mm"]
    images, masks, truth = arrays
    return Prepared(images, masks, truth, cases, geometry, folds, described["channels"], (slices_mm, rows_mm, columns_mm))
