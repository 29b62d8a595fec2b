"""From a raw folder to the prepared data set: nnU-Net v2's 2D preprocessing, and folds by person."""

import json
from collections import Counter
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from quintet import splits
from quintet.arrays import new_array
from quintet.errors import InputError, InputProblemsError, sentences
from quintet.files import atomic_folder, reject_overlap, write_json
from quintet.imaging.places import has_lost_its_place
from quintet.imaging.volumes import Grid, read_spacing
from quintet.params import Perfusion
from quintet.params.perfusion import Normalisation, PerfusionData
from quintet.perfusion.data.geometry import Geometry, plan_geometry
from quintet.perfusion.data.nnunet import Case, Dataset, case_names, find_labels, read_case, read_dataset, read_label
from quintet.perfusion.data.plausibility import image_doubts, label_doubts, side_doubts, size_doubts
from quintet.perfusion.data.prepared import SCALING, SIDES, Fold, Prepared, centred, load
from quintet.subjects import describe, digest_of, same_contents

COLUMNS = ["case", "subject", "first", "slices", "truth_at", *(f"{side}_ml" for side in SIDES), *SCALING]


def scaling(values: NDArray[np.float32], normalisation: Normalisation) -> NDArray[np.float64]:
    """What each channel is shifted by and then divided by, `[C, 2]`, from its voxels `[C, K]`.

    channel: nnU-Net's z-scores. joint: the two flow maps are divided by one number, their root mean square, so that their ratio
    remains and 0 is no flow; further channels, such as T1w, become z-scores.
    """
    shifts, scales = values.mean(1, dtype=np.float64), values.std(1, dtype=np.float64)
    if normalisation == "joint":
        shifts[:2], scales[:2] = 0, np.sqrt(np.square(values[:2], dtype=np.float64).mean())
    return np.stack([shifts, scales], 1)


@dataclass(frozen=True)
class Resampled:
    """A case as the networks see it."""

    images: NDArray[np.float32]  # [slices, C, rows, columns], 0 where every channel is 0
    brain: NDArray[np.bool_]  # [slices, rows, columns], where a flow map is not 0: another channel may show the whole head
    scaling: NDArray[np.float64]  # [C, 2]
    geometry: Geometry  # maps predictions back


def resample(images: NDArray[np.float32], grid: Grid, spacing_mm: tuple[float, float], normalisation: Normalisation) -> Resampled:
    """Normalise raw channels `[C, X, Y, Z]` over the voxels where any of them is not 0 (with holes filled), crop and resample."""
    canonical = np.stack([grid.to_canonical(channel) for channel in images])
    inside = binary_fill_holes((canonical != 0).any(0))
    constants = scaling(canonical[:, inside], normalisation)
    shift, scale = constants.T[..., None, None, None]
    normalised = np.where(inside, (canonical - shift) / scale, 0).astype(np.float32)
    geometry = plan_geometry(grid, inside, spacing_mm)
    box = tuple(slice(*edge) for edge in geometry.box)
    resampled = np.stack([geometry.resample_image(channel[box]) for channel in normalised], axis=1)
    brain = binary_fill_holes((canonical[:2] != 0).any(0))
    return Resampled(resampled, geometry.resample_mask(brain[box]), constants, geometry)


def check(raw: Path, params: Perfusion) -> list[str]:
    """List every problem of a raw folder, including its voxels and folds."""
    dataset, problems = read_dataset(raw, params.data.subject_pattern)
    if dataset is None:
        return problems
    _print_people(dataset.cases)
    digests = {}
    for case in dataset.cases:
        try:
            found = read_case(case, dataset)
            digests[case.name] = [digest_of(channel) for channel in found[0]]
            print_doubts(case.name, *found)
        except InputError as error:
            problems += sentences(error)
    problems += same_contents(digests, {case.name: case.subject for case in dataset.cases})
    try:
        make_folds(raw, dataset.cases, params.data, kept={case.name for case in dataset.cases} if problems else None)
    except InputError as error:
        problems += sentences(error)
    return problems


def _print_people(cases: list[Case]) -> None:
    print(describe([case.name for case in cases], [case.subject for case in cases], "perfusion.data.subject_pattern"))


def print_doubts(
    case: str, images: NDArray[np.float32], grid: Grid, label: NDArray[np.bool_] | None = None, *, found: list[str] | None = None
) -> None:
    """Print what is doubtful about a case, and add it to `found`."""
    doubts = image_doubts(images) + (side_doubts(images, grid) if label is None else label_doubts(images, grid, label))
    if not has_lost_its_place(grid.affine):
        doubts += size_doubts(images, grid)
    else:
        doubts.append("its affine is the identity (but for signs), so that sizes and sides are unknown; export it again")
    for doubt in doubts:
        print(f"warning: {case}: {doubt}")
        if found is not None:
            found.append(f"{case}: {doubt}")


def make_folds(raw: Path, cases: list[Case], params: PerfusionData, *, kept: Container[str] | None = None) -> list[Fold]:
    """Folds by person of the cases that are `kept` (None: all). A splits_final.json (in the raw folder, or the file that params
    name) takes precedence; it is refused if a person is in both train and val of a fold."""
    path = Path(raw) / "splits_final.json" if params.split == "auto" else Path(params.split)
    if params.split != "auto" and not path.is_file():
        raise InputError(f"perfusion.data.split: {path}: no such file; auto makes folds by person{splits.unknown_to_git()}")
    if path.is_file():
        incomplete = {name for folder in ("imagesTr", "labelsTr") for name in case_names(Path(raw) / folder)}
        return _read_folds(path, cases, params.folds, kept, incomplete)
    cases = [case for case in cases if kept is None or case.name in kept]
    subjects = [case.subject for case in cases]
    held_out = splits.grouped_folds(subjects, params.folds, seed=params.split_seed)
    names = np.array([case.name for case in cases])
    return [
        {"train": sorted(names[held_out != fold].tolist()), "val": sorted(names[held_out == fold].tolist())}
        for fold in range(params.folds)
    ]


def _read_folds(path: Path, cases: list[Case], count: int, kept: Container[str] | None, incomplete: set[str]) -> list[Fold]:
    try:
        folds = [
            {part: sorted(fold[part]) for part in ("train", "val")} for fold in json.loads(path.read_text(encoding="utf-8-sig"))
        ]
        if not folds or not all(isinstance(name, str) for fold in folds for names in fold.values() for name in names):
            raise ValueError("case names must be strings, and there must be at least one fold")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: expected a list of {{"train": [...], "val": [...]}} ({error!r})') from None
    if len(folds) != count:
        raise InputError(f"{path} has {len(folds)} folds, perfusion.data.folds is {count}; set it to {len(folds)}")
    subject = {case.name: case.subject for case in cases}
    problems = []
    for number, fold in enumerate(folds):
        left_out = incomplete if kept is not None else set()
        unknown = sorted(set(fold["train"] + fold["val"]) - set(subject) - left_out)
        problems += [
            f"{path.name}: fold {number}: {name} is not a case of this data set; correct or remove it" for name in unknown
        ]
        problems += [f"fold {number}: {part} is empty" for part in ("train", "val") if not fold[part]]
        problems += [f"fold {number}: {n} is listed twice in {p}" for p in fold for n, k in Counter(fold[p]).items() if k > 1]
        shared = {subject.get(n, n) for n in fold["train"]} & {subject.get(n, n) for n in fold["val"]}
        for name in sorted(shared):
            both = [f"{n} ({part})" for part in ("train", "val") for n in fold[part] if subject.get(n, n) == name]
            problems.append(f"fold {number}: subject {name} is in train and val: {', '.join(both)}; keep all visits together")
    held_out = Counter(name for fold in folds for name in fold["val"])
    problems += [f"{name} is held out in {k} folds, so it would be counted {k} times" for name, k in held_out.items() if k > 1]
    if kept is not None:
        folds = [{part: [name for name in names if name in kept] for part, names in fold.items()} for fold in folds]
        problems += [f"fold {n}: no case of {part} is left" for n, fold in enumerate(folds) for part in fold if not fold[part]]
    if problems:
        raise InputProblemsError(str(path), list(dict.fromkeys(problems)))
    return folds


def prepare(raw: Path, out: Path, params: Perfusion, *, doubts: list[str] | None = None) -> tuple[Prepared, list[str]]:
    """Write the prepared data set to `out`, atomically; returns it and one sentence per problem that was skipped. Adds a sentence
    to `doubts` for each thing that is doubtful, but no fault.

    All problems of the raw folder are listed at once; with `on_error: skip` the cases concerned are left out instead.
    """
    reject_overlap(raw, out)
    skip = params.data.on_error == "skip"
    dataset, problems = read_dataset(raw, params.data.subject_pattern)
    if dataset is None:
        raise InputProblemsError(str(raw), problems)
    _print_people(dataset.cases)
    drawn = find_labels(Path(raw) / "truth")[0]  # only synthetic data have this folder
    if not drawn.keys() >= {case.name for case in dataset.cases}:
        drawn = {}
    with atomic_folder(out) as folder:
        table, geometry, spacing_mm = _resample_cases(
            dataset, problems, folder, params.data.normalisation, drawn, doubts, skip=skip
        )
        if problems and (not skip or table.empty):
            hint = "" if skip else " (perfusion.data.on_error=skip would leave these cases out)"
            raise InputProblemsError(f"{raw}{hint}", problems)
        kept = set(table["case"])
        folds = make_folds(raw, dataset.cases, params.data, kept=kept)
        names = ["truth", *(["oracle"] if drawn else [])]
        _join_cases(folder, table, geometry, len(dataset.channels), params.training.patch, names)
        table.to_csv(folder / "cases.csv", index=False)
        values = {"channels": dataset.channels, "spacing_mm": spacing_mm, "normalisation": params.data.normalisation}
        write_json(folder / "dataset.json", values)
        write_json(folder / "geometry.json", {n: g.as_json() for n, g in zip(table["case"], geometry, strict=True)})
        write_json(folder / "splits_final.json", folds)
    return load(out), problems


def _resample_cases(
    dataset: Dataset,
    problems: list[str],
    folder: Path,
    normalisation: Normalisation,
    drawn: dict[str, Path],
    doubts: list[str] | None,
    *,
    skip: bool,
) -> tuple[pd.DataFrame, list[Geometry], list[float]]:
    """Write each case to folder/NUMBER.npz, one in memory at a time. Returns the table of cases, their geometry and the median
    spacing; adds to `problems` and `doubts`."""
    spacings = []
    for case in dataset.cases:
        with suppress(InputError):  # read_case reports it
            spacings.append(read_spacing(case.images[0]))
    spacing = [round(float(mm), 4) for mm in np.median(spacings or [(1, 1, 1)], axis=0)]  # oblique affines are inexact
    digests, people = dict[str, list[str]](), dict[str, str]()
    rows, geometry = [], list[Geometry]()
    first = truth_at = 0
    for case in dataset.cases:
        try:
            channels, grid, label = read_case(case, dataset)
            digests[case.name] = [digest_of(channel) for channel in channels]
            people[case.name] = case.subject
            print_doubts(case.name, channels, grid, label, found=doubts)
            sides = {"truth": label}
            if case.name in drawn:
                sides["oracle"] = read_label(replace(case, label=drawn[case.name]), grid, dataset.values)
        except InputError as error:
            problems += sentences(error)
            continue
        if problems and not skip:
            continue  # after a problem, cases are read only to find further problems
        found = resample(channels, grid, (spacing[1], spacing[2]), normalisation)
        images, mapping = found.images, found.geometry
        masks = np.stack([mapping.resample_mask(mapping.crop(side)) for side in label], axis=1).astype(np.uint8)
        flat = {name: (left + 2 * right).astype(np.uint8).ravel() for name, (left, right) in sides.items()}
        np.savez(folder / f"{len(geometry)}.npz", images=images, masks=masks, brain=found.brain, **flat)
        volume = {f"{side}_ml": float(label[i].sum()) * grid.voxel_ml for i, side in enumerate(SIDES)}
        place = {"first": first, "slices": len(images), "truth_at": truth_at}
        constants = dict(zip(SCALING, found.scaling[:2].flat, strict=True))
        rows.append({"case": case.name, "subject": case.subject} | place | volume | constants)
        geometry.append(mapping)
        first, truth_at = first + len(images), truth_at + label[0].size
    if shared := same_contents(digests, people):  # a leak, whatever is skipped
        raise InputProblemsError("imagesTr", problems + shared)
    return pd.DataFrame(rows, columns=COLUMNS), geometry, spacing


def _join_cases(
    folder: Path, table: pd.DataFrame, geometry: list[Geometry], channels: int, patch: Sequence[int], names: list[str]
) -> None:
    """Join the cases' files into one array each, and the labels in `names` too, now that the largest frame is known."""
    largest = np.max([*(mapping.size for mapping in geometry), patch], axis=0)
    height, width = (int(edge + edge % 2) for edge in largest)  # even, like the patch: offsets are whole pixels
    slices, voxels = int(table["slices"].sum()), sum(int(np.prod(mapping.grid.shape)) for mapping in geometry)
    images = new_array(folder / "images.npy", np.float32, (slices, channels, height, width))
    masks = new_array(folder / "masks.npy", np.uint8, (slices, len(SIDES), height, width))
    brain = new_array(folder / "brain.npy", np.uint8, (slices, height, width))
    volumes = {name: new_array(folder / f"{name}.npy", np.uint8, (voxels,)) for name in names}
    for number, (row, mapping) in enumerate(zip(table.itertuples(), geometry, strict=True)):
        path = folder / f"{number}.npz"
        with np.load(path) as case:
            chosen = slice(row.first, row.first + row.slices)
            centred(images[chosen], mapping.size)[:] = case["images"]
            centred(masks[chosen], mapping.size)[:] = case["masks"]
            centred(brain[chosen], mapping.size)[:] = case["brain"]
            for name, array in volumes.items():
                array[row.truth_at : row.truth_at + len(case[name])] = case[name]
        path.unlink()
    for array in (images, masks, brain, *volumes.values()):
        array.flush()
