"""nnU-Net v2's raw layout: imagesTr/CASE_0000.nii[.gz], ..., labelsTr/CASE.nii[.gz], dataset.json, splits_final.json.

Files are found and read here; every problem is one sentence that names the file and the remedy.
"""

import json
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from quintet.errors import InputError, InputProblemsError
from quintet.imaging.folders import entries, print_passed_over, with_suffix
from quintet.imaging.volumes import NIFTI, Grid, read_nifti
from quintet.perfusion.data.prepared import SIDES
from quintet.subjects import same_files, subject_of
from quintet.tables import read_text

IMAGE = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})\.nii(\.gz)?$", re.IGNORECASE)
LABEL = re.compile(r"^(?P<case>.+)\.nii(\.gz)?$", re.IGNORECASE)
SIDE = {  # in a channel's name, in English, German or French
    "left": re.compile(r"^l|left|links|gauche|(?<![a-z])l(?![a-z])", re.IGNORECASE),
    "right": re.compile(r"^r|right|recht|droit|(?<![a-z])r(?![a-z])", re.IGNORECASE),
}
CHANNELS = range(2, 5)  # LICA CBF, RICA CBF, and up to two more


@dataclass(frozen=True)
class Case:
    name: str
    subject: str
    images: tuple[Path, ...]  # one file per channel
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    channels: tuple[str, ...]
    values: tuple[frozenset[int], frozenset[int]]  # label values of the left and of the right territory
    cases: list[Case]


def read_dataset(raw: Path, subject_pattern: str) -> tuple[Dataset | None, list[str]]:
    """The labelled cases of a raw folder, and one sentence per problem. Voxels are not read here."""
    raw = Path(raw)
    description = raw / "dataset.json"
    if not raw.is_dir():
        return None, [f"{raw}: no such folder; perfusion.raw must hold dataset.json, imagesTr/ and labelsTr/"]
    try:
        if not description.exists():
            raise InputError("missing; it names the channels and the label values (nnU-Net v2's raw format)")
        channels, values = _describe(json.loads(read_text(description)))
    except json.JSONDecodeError as error:
        return None, [f"{description}: no valid JSON ({error}); correct it"]
    except InputError as error:
        return None, [f"{description}: {str(error).removeprefix(f'{description}: ')}"]
    images, problems = find_images(raw / "imagesTr", len(channels))
    labels, more = find_labels(raw / "labelsTr")
    problems += more
    if numbered := [n for n in labels if n not in images and n[:-5] in images and re.fullmatch(r".+_\d{4}", n)]:
        others = f" (and {len(numbered) - 1} others)" if len(numbered) > 1 else ""
        return None, [
            *problems,
            f"{labels[numbered[0]]}{others}: a label has no channel number; rename it to {numbered[0][:-5]}.nii.gz",
        ]
    problems += [
        f"{raw}/imagesTr/{name}_*: no label labelsTr/{name}.nii.gz; add it or move the images to imagesTs/"
        for name in sorted(set(images) - set(labels))
    ]
    problems += [
        f"{labels[name]}: label without images imagesTr/{name}_0000.nii.gz, ...; add them or remove the label"
        for name in sorted(set(labels) - set(images))
        if not any(f"/{name}_" in p for p in problems)
    ]
    pattern = re.compile(subject_pattern)
    both = sorted(set(images) & set(labels))
    cases = [Case(name, subject_of(name, pattern), images[name], labels[name]) for name in both]
    people = {case.name: case.subject for case in cases}
    problems += same_files({case.name: case.images for case in cases}, people)
    if not cases and not problems:
        problems = [f"{raw}/imagesTr: no CASE_0000.nii.gz there"]
    return Dataset(channels, values, cases), problems


def _describe(description: dict[str, Any]) -> tuple[tuple[str, ...], tuple[frozenset[int], frozenset[int]]]:
    """Channel names, and the values of both territories from `"left": 1`, `"left": [1, 3]` or a separate label for both."""
    if not isinstance(description, dict) or not isinstance(description.get("labels"), dict):
        raise InputError('expected {"channel_names": {...}, "labels": {...}}, as nnU-Net v2 writes it')
    names = description.get("channel_names")
    if names is None and "modality" in description:
        raise InputError(
            'version 1 of nnU-Net\'s format ("modality"); version 2 needs "channel_names" and "labels": {name: value}'
        )
    if not isinstance(names, dict) or sorted(names) != [str(i) for i in range(len(names))] or len(names) not in CHANNELS:
        raise InputError(f'channel_names must be {{"0": ..., "1": ...}} with 2 to 4 channels, got {names!r}')
    if SIDE["right"].search(str(names["0"])) and SIDE["left"].search(str(names["1"])):
        raise InputError(f"channel_names: channel 0 must be the left artery's map and 1 the right one's, got {names}")
    if wrong := [str(names[k]) for k in "01" if re.search(r"t1|t2|flair|pd\b|anat|struct|m0", str(names[k]).lower())]:
        raise InputError(
            f"channel_names: channels 0 and 1 must be the left and the right artery's map, got {wrong[0]!r} in {names}"
        )
    labels = {name: value for name, value in description["labels"].items() if name.lower() != "background"}
    if any(not isinstance(v, int) or isinstance(v, bool) for value in labels.values() for v in _listed(value)):
        raise InputError(f"labels: values must be whole numbers or lists of them, got {description['labels']}")
    found: list[set[int]] = []
    for side in SIDES:
        ours = [v for name, v in labels.items() if re.match(rf"({side}|{side[0]}ica)", name.lower())]
        if len(ours) != 1:
            raise InputError(f'labels needs one entry "{side}" (or "{side[0].upper()}ICA"), got {sorted(labels)}')
        found.append(set(_listed(ours[0])))
    for name, value in labels.items():
        if re.match(r"(both|overlap)", name.lower()):
            for side_values in found:
                side_values.update(_listed(value))
        elif not re.match(r"(left|lica|right|rica)", name.lower()):
            raise InputError(f"labels: {name!r} is not left, right, both or background; remove it and set its voxels to 0")
    if min([0, *found[0], *found[1]]) < 0 or 0 in found[0] | found[1] or not (found[0] - found[1] and found[1] - found[0]):
        raise InputError(f"labels: each side needs a positive value of its own, got {description['labels']}")
    channels = tuple(str(names[str(i)]) for i in range(len(names)))
    return channels, (frozenset(found[0]), frozenset(found[1]))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def find_images(folder: Path, channels: int) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """Case -> its files in channel order, for the cases whose set is complete; one sentence per problem."""
    if not folder.is_dir():
        return {}, [f"{folder}: no such folder; it holds the images as CASE_0000.nii.gz (LICA), CASE_0001.nii.gz (RICA), ..."]
    found: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    problems = []
    for path in _volumes(folder):
        if not (parts := IMAGE.match(path.name)):
            problems.append(f"{path}: the name must end in the channel's number, such as _0000.nii.gz")
            continue
        found[_name(parts)][int(parts["channel"])].append(path)
    complete = {}
    for name, files in found.items():
        own = [
            f"{' and '.join(p.name for p in paths)} ({folder}): the same channel twice; keep one"
            for paths in files.values()
            if len(paths) > 1
        ]
        own += [
            f"{folder}/{name}_{i:04d}.nii.gz: missing; {channels} channels are expected"
            for i in range(channels)
            if i not in files
        ]
        own += [f"{files[i][0]}: one channel too many; {channels} are expected" for i in sorted(files) if i >= channels]
        problems += own
        if not own:
            complete[name] = tuple(files[i][0] for i in range(channels))
    return complete, problems


def find_labels(folder: Path) -> tuple[dict[str, Path], list[str]]:
    if not folder.is_dir():
        return {}, [f"{folder}: no such folder; it holds one label map per case, CASE.nii.gz"]
    found: dict[str, Path] = {}
    problems = []
    for path in _volumes(folder):
        name = _name(LABEL.match(path.name))  # type: ignore[arg-type]  # _volumes returns only such names
        if name in found:
            problems.append(f"{found[name].name} and {path.name} ({folder}): the same case twice; keep one")
        found[name] = path
    return found, problems


def case_names(folder: Path) -> set[str]:
    """The cases of which a folder has an image or a label, complete or not."""
    return {re.sub(r"_\d{4}$", "", _name(found)) for path in _volumes(folder) if (found := LABEL.match(path.name))}


def _volumes(folder: Path) -> list[Path]:
    volumes, others = with_suffix(entries(folder), NIFTI)
    print_passed_over(others, folder, " or ".join(NIFTI))
    return volumes


def _name(parts: re.Match[str]) -> str:
    return unicodedata.normalize("NFC", parts["case"])  # macOS writes umlauts as two characters


def read_images(case: Case) -> tuple[NDArray[np.float32], Grid]:
    """All channels `[C, X, Y, Z]` on their common grid. Raises InputProblemsError with a sentence for each file."""
    channels: list[NDArray[np.float32]] = []
    grids: list[Grid] = []
    problems = []
    for path in case.images:
        try:
            array, grid = read_nifti(path)
        except InputError as error:
            problems.append(str(error))
            continue
        if array.ndim != 3:
            problems.append(f"{path}: expected one volume `X, Y, Z` per channel, got shape {array.shape}; split it into files")
        elif grids and not grid.same_as(grids[0]):
            problems.append(f"{path}: {_difference(grid, grids[0], case.images[0].name, 'resample it onto that grid')}")
        else:
            channels.append(array)
            grids.append(grid)
            inside = array[array != 0]
            if not len(inside) or inside.min() == inside.max():
                what = "all voxels are 0" if not len(inside) else f"all voxels that are not 0 are {inside[0]:g}"
                problems.append(
                    f"{path}: {what}; the map was not computed, or this is the wrong file; an occluded artery needs a map too"
                )
    problems += [
        f"{case.images[a]} and {case.images[b]} hold one image; is one of them misnamed? Remove it"
        for a, b in combinations(range(len(channels)), 2)
        if len(channels) == len(case.images) and np.array_equal(channels[a], channels[b])
    ]
    if problems:
        raise InputProblemsError(case.name, problems)
    return np.stack(channels), grids[0]


def read_label(case: Case, grid: Grid | None, values: tuple[frozenset[int], frozenset[int]]) -> NDArray[np.bool_]:
    """The territories `[2, X, Y, Z]` (left, right) from an integer map or a 4D map with one channel per territory. `grid`: that
    of the images; None: unknown."""
    assert case.label is not None
    array, own = read_nifti(case.label)
    if grid is not None and not own.same_as(grid):
        remedy = "resample it (nearest) onto that grid"
        raise InputError(f"{case.label}: {_difference(own, grid, case.images[0].name, remedy)}")
    whole = np.rint(array)
    array = np.where(np.abs(array - whole) < 1e-3, whole, array)  # the values of a scaled file are not exactly whole
    allowed = {0, 1} if array.ndim == 4 else {0, *values[0], *values[1]}
    if foreign := sorted(set(np.unique(array).tolist()) - allowed):
        shown = ", ".join(f"{v:g}" for v in foreign[:5])
        if any(value != round(value) for value in foreign):
            raise InputError(f"{case.label}: {shown} are not whole numbers, the file is scaled or was interpolated; round it")
        remedy = '; voxels of both territories need "left": [1, 3], "right": [2, 3]' if 3.0 in foreign else ""
        raise InputError(f"{case.label}: label value(s) {shown} are not in dataset.json (known: {sorted(allowed)}){remedy}")
    if array.ndim == 4 and array.shape[3] != 2:
        raise InputError(f"{case.label}: a 4D label needs 2 channels (left, right), got {array.shape[3]}")
    sides = [array[..., i] > 0 if array.ndim == 4 else np.isin(array, sorted(values[i])) for i in range(2)]
    if not (sides[0].any() or sides[1].any()):
        raise InputError(f"{case.label}: the label is empty; draw it or remove the case")
    return np.stack(sides)


def read_case(case: Case, dataset: Dataset) -> tuple[NDArray[np.float32], Grid, NDArray[np.bool_]]:
    """Channels, grid and territories of a case."""
    try:
        images, grid = read_images(case)
    except InputProblemsError as error:
        try:
            read_label(case, None, dataset.values)
        except InputError as other:
            raise InputProblemsError(case.name, [*error.problems, str(other)]) from None
        raise
    label = read_label(case, grid, dataset.values)
    if not (label.any(0) & (images != 0).any(0)).any():
        raise InputError(f"{case.label}: no labelled voxel lies where the images are not 0; do they belong together?")
    return images, grid, label


def _difference(grid: Grid, other: Grid, name: str, remedy: str) -> str:
    if grid.shape != other.shape:
        return f"another shape {grid.shape} than {name} (expected {other.shape}); {remedy}"
    axes, others = ("".join(nib.aff2axcodes(g.affine)) for g in (grid, other))
    turned = (
        f"its axes run {axes}, those of {name} {others}" if axes != others else f"another affine (position, spacing) than {name}"
    )
    return (
        f"{turned}, with equal shapes; compare both in a viewer: if only the header was lost, copy the affine, otherwise {remedy}"
    )
