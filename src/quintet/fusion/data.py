"""Raw patients and masks -> one memory-mapped array of cubes, clinical features, targets and a split.

Prepared: volumes.npy `[N, M, S, S, S]` float16 (zeros where a modality is missing), clinical.npy `[N, C]`, patients.csv (a row
a patient: patient, split, label or time and event, has/MODALITY ..., has/clinical), about.json (modalities, clinical encoder,
classes)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray

from quintet import splits
from quintet.arrays import new_array
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_folder, refuse_overlap, write_json
from quintet.fusion.clinical import Encoder, refuse_leaks
from quintet.fusion.raw import Clinical, find_patients, read_image, read_table, targets
from quintet.fusion.segmentation import Mask, mask_of, segmenter_for, stored_masks
from quintet.imaging.boxes import bounds_mm, sample_cube
from quintet.params import Fusion
from quintet.params.fusion import CLINICAL

VOLUMES, FEATURES = "volumes.npy", "clinical.npy"
HIGHEST = 4.0  # times the upper percentile: lesions may be brighter than it, stray voxels are cut
SEVERAL = 4  # patients of a class, or it cannot stand in all three parts
Cubes = NDArray[np.float16]  # [M, S, S, S]


@dataclass(frozen=True)
class Prepared:
    volumes: NDArray[np.float16]  # [N, M, S, S, S]
    clinical: NDArray[np.float32]  # [N, C]
    table: pd.DataFrame
    modalities: list[str]  # imaging ones, then clinical
    classes: list[str]  # empty: survival
    encoder: Encoder
    how: dict[str, Any]  # what new patients must go through: names, segmenter, percentiles ...

    def rows(self, part: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.table["split"] == part)

    @property
    def present(self) -> NDArray[np.bool_]:
        """`[N, M + 1]`: which modalities each patient has."""
        return self.table[[f"has/{name}" for name in self.modalities]].to_numpy(bool)

    @property
    def target(self) -> NDArray[np.float32]:
        """`[N, 2]`: time and event, or the number of the class and 1."""
        if not self.classes:
            return self.table[["time", "event"]].to_numpy(np.float32)
        number = [self.classes.index(label) for label in self.table["label"]]
        return np.stack([number, np.ones(len(number))], 1).astype(np.float32)


# What new patients must go through as well, kept with a model.
PREPARATION = (
    "names",
    "tables",
    "columns",
    "drop",
    "task",
    "segmenter",
    "totalsegmentator",
    "fast",
    "segmenter_tasks",
    "skull_strip",
    "size",
    "percentiles",
)


def check(raw: Path, params: Fusion) -> list[str]:
    """Every problem of a raw folder, voxels, table and split included."""
    patients, problems = find_patients(raw, params.names, params.modalities)
    for name, files in patients.items():
        for path in files.values():
            try:
                read_image(path)
            except InputError as error:
                problems.append(f"patient {name}: {error}")
    try:
        _, _, _, more = _tables(raw, list(patients), {name: bool(files) for name, files in patients.items()}, params)
        problems += more
    except InputProblemsError as error:
        problems += error.problems
    except InputError as error:
        problems.append(str(error))
    return problems


def features_of(clinical: Clinical, patients: Sequence[str], params: Fusion) -> pd.DataFrame:
    """The clinical table without targets and what `fusion.drop` names; a patient without a row has empty values."""
    c = params.columns
    left_out = {c.label, c.time, c.event, *params.drop}
    if clinical.path and (unknown := [name for name in params.drop if name not in clinical.table]):
        raise InputError(f"fusion.drop: {clinical.path} has no column {', '.join(unknown)}; it has {', '.join(clinical.table)}")
    return clinical.table.drop(columns=[name for name in clinical.table if name in left_out]).reindex(list(patients)).fillna("")


def _tables(
    raw: Path, patients: list[str], images: Mapping[str, bool], params: Fusion
) -> tuple[pd.DataFrame, NDArray[np.float32], Encoder, list[str]]:
    """The patients that can be used (target, split, has/clinical), their clinical features, the encoder, and a problem for each
    other patient."""
    clinical = read_table(raw, params.tables, params.columns)
    target, problems = targets(clinical, patients, params)
    features = features_of(clinical, patients, params)
    usable = (target["label"] != "") if "label" in target else (target["time"] > 0) & target["event"].isin([0, 1])
    known = (features != "").any(axis=1) if len(features.columns) else pd.Series(False, index=features.index)
    nothing = [p for p in patients if not images[p] and not known[p]]
    problems += [
        f"patient {p}: no modality at all (no image that fusion.names and fusion.modalities name, no clinical value)"
        for p in nothing
    ]
    kept = [p for p in patients if usable[p] and p not in nothing]
    table = target.loc[kept].reset_index()
    table.insert(1, "split", _split(table, params))
    if params.task == "classification":
        refuse_leaks(features.loc[kept], target.loc[kept, "label"], params.columns.label)
    if params.task == "survival" and params.survival_loss == "mse" and (censored := int((table["event"] == 0).sum())):
        raise InputError(f"survival_loss=mse treats times as known, but {censored} patients are censored; use survival_loss: cox")
    train = table.loc[table["split"] == "train", "patient"]
    encoder = Encoder.fit(features.loc[train])
    encoded, has, notes = encoder(features.loc[kept])
    for note in notes:
        print(f"note: {note}")
    return table.assign(**{f"has/{CLINICAL}": has.astype(int)}), encoded, encoder, problems


def _split(table: pd.DataFrame, params: Fusion) -> list[str]:
    names = list(table["patient"])
    if params.split != "stratified":
        return splits.read_split(Path(params.split), names, column="patient")
    kinds = [str(k) for k in (table["label"] if "label" in table else table["event"].map({0: "censored", 1: "event"}))]
    for kind in sorted(set(kinds)):
        if (count := kinds.count(kind)) < SEVERAL:
            raise InputError(f"{count} patient(s) of {kind!r} with a target: a split into three parts needs {SEVERAL} of each")
    if params.task == "classification" and len(set(kinds)) < 2:
        raise InputError(
            f"every patient is {kinds[0]!r}: a classification needs two classes (fusion.columns.label)"
            if kinds
            else "no patient has a target"
        )
    test = splits.held_out_groups(names, kinds, params.test, seed=[params.split_seed, 0])
    rest = [(n, k) for n, k in zip(names, kinds, strict=True) if n not in test]
    share = params.validation / (1 - params.test)
    valid = splits.held_out_groups([n for n, _ in rest], [k for _, k in rest], share, seed=[params.split_seed, 1])
    return ["test" if n in test else "valid" if n in valid else "train" for n in names]


def cube_of(files: Mapping[str, Path], masks: Mapping[str, Mask], modalities: Sequence[str], params: Fusion) -> Cubes:
    """One patient's images in one cube, each resampled from its own grid: the cube is centred on what the masks cover together,
    its side their longest edge. Intensities: the percentiles inside the mask become 0 and 1, brighter ones stay brighter."""
    images = {m: read_image(files[m]) for m in modalities if m in files and m in masks}
    out = np.zeros((len(modalities), *(params.size,) * 3), np.float16)
    if not images:
        return out
    corners = np.stack([bounds_mm(masks[m], grid) for m, (_, grid) in images.items()])
    low, high = corners[:, 0].min(0), corners[:, 1].max(0)
    for modality, (array, grid) in images.items():
        if masks[modality].shape != array.shape:
            raise InputError(
                f"{files[modality]}: {array.shape} voxels, its mask has {masks[modality].shape}; run `dvc repro fusion_segment`"
            )
        darkest, brightest = np.percentile(array[masks[modality]], params.percentiles)
        if darkest == brightest:
            raise InputError(
                f"{files[modality]}: everything inside its mask is {darkest:g}; remove it, or choose another segmenter"
            )
        if params.skull_strip:
            array = np.where(masks[modality], array, np.float32(darkest))
        cube = sample_cube(array, grid, (low + high) / 2, float((high - low).max()), params.size, fill=float(darkest))
        out[list(modalities).index(modality)] = np.clip((cube - darkest) / (brightest - darkest), 0, HIGHEST)
    return out


def _stored(patient: str, files: Mapping[str, Path], masks: Path, params: Fusion) -> tuple[Cubes, list[bool], list[str]]:
    """Cube, which modalities are in it, problems."""
    try:
        there = stored_masks(masks, patient, params.modalities)
        cube = cube_of(files, there, params.modalities, params)
        return cube, [m in files and m in there for m in params.modalities], []
    except InputError as error:
        return (
            np.zeros((len(params.modalities), *(params.size,) * 3), np.float16),
            [False] * len(params.modalities),
            [f"patient {patient}: {error}"],
        )


def prepare(raw: Path, masks: Path, out: Path, params: Fusion, *, workers: int = 1) -> tuple[Prepared, list[str]]:
    """Write the prepared data set to `out`, whole or not at all; returns it and a sentence for each problem that was skipped.
    One patient a worker is in memory."""
    refuse_overlap(raw, out)
    patients, problems = find_patients(raw, params.names, params.modalities)
    if not (masks / "masks.csv").is_file():
        raise InputError(f"{masks}: no masks there; run `dvc repro fusion_segment`")
    status = pd.read_csv(masks / "masks.csv", dtype={"patient": str}, keep_default_na=False)
    problems += [f"patient {r.patient}: {r.status}" for r in status.itertuples() if r.status != "ok"]
    table, clinical, encoder, more = _tables(raw, list(patients), {name: bool(files) for name, files in patients.items()}, params)
    problems += more
    if not len(table):
        raise InputProblemsError(str(raw), problems)
    shape = (len(table), len(params.modalities), *(params.size,) * 3)
    has = np.zeros((len(table), len(params.modalities)), int)
    with atomic_folder(out) as folder:
        volumes = new_array(folder / VOLUMES, np.float16, shape)
        for row, (cube, there, wrong) in enumerate(_in_order(list(table["patient"]), patients, masks, params, workers)):
            volumes[row], has[row] = cube, there
            problems += wrong
        volumes.flush()
        if problems and params.on_error == "raise":
            raise InputProblemsError(f"{raw} (fusion.on_error=skip would leave these out)", problems)
        table = table.assign(**{f"has/{m}": has[:, k] for k, m in enumerate(params.modalities)})
        kept = np.flatnonzero(table.filter(like="has/").any(axis=1))
        if len(kept) < len(table):
            np.save(folder / VOLUMES, volumes[kept])
        del volumes
        np.save(folder / FEATURES, clinical[kept])
        table.iloc[kept].to_csv(folder / "patients.csv", index=False)
        classes = sorted(table["label"].unique()) if "label" in table else []
        about = {
            "modalities": params.modalities,
            "classes": classes,
            "encoder": encoder.plain(),
            "how": params.model_dump(mode="json", include=set(PREPARATION) | {"modalities"}),
        }
        write_json(folder / "about.json", about)
    return load(out), problems


def _in_order(
    names: list[str], patients: Mapping[str, Mapping[str, Path]], masks: Path, params: Fusion, workers: int
) -> Iterator[tuple[Cubes, list[bool], list[str]]]:
    yield from Parallel(n_jobs=workers, return_as="generator", pre_dispatch="2*n_jobs")(
        delayed(_stored)(name, patients[name], masks, params) for name in names
    )


def read_new(
    raw: Path, how: Fusion, encoder: Encoder, problems: list[str]
) -> Iterator[tuple[str, Cubes, NDArray[np.float32], NDArray[np.bool_]]]:
    """Name, cubes, clinical features and modalities of each patient of a folder without labels, one in memory at a time."""
    patients, found = find_patients(raw, how.names, how.modalities)
    problems += found
    clinical = read_table(raw, how.tables, how.columns)
    features, known, notes = encoder(clinical.table.reindex(list(patients)).fillna(""))
    for note in notes:
        print(f"note: {note}")
    for row, (name, files) in enumerate(patients.items()):
        masks = {}
        for modality, path in files.items():
            try:
                masks[modality] = mask_of(path, segmenter_for(how, modality))[0]
            except InputError as error:
                problems.append(f"patient {name}: {error}")
        present = np.array([m in masks for m in how.modalities] + [bool(known[row])])
        if not present.any():
            problems.append(
                f"patient {name}: no modality at all; it needs an image of {', '.join(how.modalities)}, or a clinical row"
            )
            continue
        try:
            yield name, cube_of(files, masks, how.modalities, how), features[row], present
        except InputError as error:
            problems.append(f"patient {name}: {error}")


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. The volumes stay on disk (memory-mapped) until rows are taken."""
    folder = Path(folder)
    if not (folder / "patients.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro fusion_prepare`")
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    table = pd.read_csv(folder / "patients.csv", dtype={"patient": str, "label": str}, keep_default_na=False)
    return Prepared(
        np.load(folder / VOLUMES, mmap_mode="r"),
        np.load(folder / FEATURES),
        table,
        [*about["modalities"], CLINICAL],
        about["classes"],
        Encoder.from_plain(about["encoder"]),
        about["how"],
    )
