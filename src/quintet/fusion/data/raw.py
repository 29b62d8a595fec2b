"""The raw folder: one folder per patient with one NIfTI file per modality, recognised by name patterns; features/NAME.csv for
each modality that is a table of numbers; a clinical table.

The generic layout (`patient_001/mri_t1ce.nii.gz`), both generations of BraTS (`BraTS-x/BraTS-x-t1c.nii.gz`, `x/x_t1ce.nii.gz`)
and others differ only in the patterns (`fusion.data.names`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.fusion.data.preparation import Preparation
from quintet.imaging.folders import entries, is_hidden, with_suffix
from quintet.imaging.volumes import NIFTI, Grid, read_nifti
from quintet.params.fusion import FusionColumns
from quintet.tables import read_text_table, spelled_alike

FEATURES = "features"  # the folder with tables of numbers
SPREADSHEET_ERRORS = ("#n/a", "#na", "#null!", "#value!", "#ref!", "#div/0!", "#num!", "#name?")
SURELY_MISSING = ("", "na", "nan", "n/a", "n.a.", "null", *SPREADSHEET_ERRORS)
MISSING = (
    *SURELY_MISSING,
    "none",
    "nil",
    "?",
    "-",
    "--",
    ".",
    "unknown",
    "missing",
)  # in a feature; a class may have such a name
DOCUMENTS = (".csv", ".tsv", ".xlsx", ".txt", ".json", ".md", ".pdf")  # a folder of these is no patient
MASKS = {"seg", "segmentation", "mask", "label", "labels", "roi"}  # words in a file's name
NATIVE, CONTRAST = ("mri_t1",), {"gd", "gad", "ce", "contrast", "post", "km"}


@dataclass(frozen=True)
class Clinical:
    """`table`: index patient, every column as text (empty: missing). `path`: None if there is no table."""

    table: pd.DataFrame
    path: Path | None


def find_patients(
    raw: Path, names: Mapping[str, Sequence[str]], modalities: Sequence[str], listed: Iterable[str] = ()
) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Each patient's files of `modalities`, sorted by patient, and a problem for each ambiguous file and each folder without an
    image. `listed`: further patients, who may have no files."""
    if not Path(raw).is_dir():
        raise InputError(f"{raw}: no such folder; expected one folder per patient with NIfTI files")
    patients: dict[str, dict[str, Path]] = {name: {} for name in listed}
    problems, seen = [], dict[str, Path]()
    for folder in _folders(raw):
        name, own = normalize("NFC", folder.name), dict[str, Path]()
        if name in seen:
            problems.append(f"patient {name}: {folder} and {seen[name]} are one name, its accents stored in two ways; rename one")
            continue
        seen[name] = folder
        for path in (files := _images(folder)):
            matches = _modalities_of(path, names)
            if len(matches) > 1:
                problems.append(
                    f"patient {name}: {path.name} matches the patterns of {' and '.join(matches)}; correct fusion.data.names"
                )
            elif matches and matches[0] in own:
                problems.append(f"patient {name}: {own[matches[0]].name} and {path.name} are both {matches[0]}; keep one")
            elif matches and matches[0] in modalities:
                own[matches[0]] = path
        if files:
            patients[name] = own
        elif modalities and name not in patients:
            inside = sorted(p.name for p in folder.iterdir() if not is_hidden(p.name))
            if inside and all(name.lower().endswith(DOCUMENTS) for name in inside):
                continue
            held = f"only {', '.join(inside[:3])}" if inside else "nothing"
            problems.append(f"patient {name}: no NIfTI file in {folder}, {held}; convert it, move it up, or remove the folder")
    if not patients and not problems:
        tables = " (tables alone: fusion.data.modalities: [] and their names in fusion.data.vectors)"
        hint = tables if (Path(raw) / FEATURES).is_dir() else ""
        raise InputError(f"{raw}: no folder with NIfTI files in it; expected one folder per patient{hint}")
    return dict(sorted(patients.items())), problems


def overview(raw: Path, patients: Mapping[str, Mapping[str, Path]], preparation: Preparation) -> str:
    """How many patients have each imaging modality, and which files were passed over, in one line."""
    counts = {m: sum(m in own for own in patients.values()) for m in preparation.modalities}
    passed: Counter[str] = Counter()
    for folder in _folders(raw):
        used = set(patients.get(normalize("NFC", folder.name), {}).values())
        passed.update(p.name.replace(folder.name, "*") for p in folder.iterdir() if p not in used and not is_hidden(p.name))
    found = f"{len(patients)} patients" + (": " + ", ".join(f"{m} {count}" for m, count in counts.items()) if counts else "")
    left = f"; {sum(passed.values())} passed over: " + ", ".join(f"{n} ({c})" for n, c in passed.most_common(5)) if passed else ""
    return found + left + (", ..." if len(passed) > 5 else "")


def _folders(raw: Path) -> list[Path]:
    return [path for path in entries(raw) if path.is_dir() and path.name != FEATURES]


def _images(folder: Path) -> list[Path]:
    return with_suffix(entries(folder), NIFTI)[0]


def _modalities_of(path: Path, names: Mapping[str, Sequence[str]]) -> list[str]:
    """The modalities whose patterns a file's name matches, without the patient's own name (`ROI-7_t1`, `CE_03-pet`). A mask is no
    image, and an image with contrast no native one."""
    stem, patient = (normalize("NFC", text).lower() for text in (path.name, path.parent.name))
    stem = stem.removesuffix(".gz").removesuffix(".nii")
    rest = stem.removeprefix(patient)
    stem = rest if rest and not rest[0].isalnum() else stem
    words = set(re.split(r"[^a-z0-9]+", stem))
    if words & MASKS:
        return []
    found = [m for m in names if any(fnmatch(stem, pattern.lower()) for pattern in names[m])]
    return [m for m in found if not (m in NATIVE and words & CONTRAST)]


def read_table(
    raw: Path, tables: Sequence[str], columns: FusionColumns, *, categories: Mapping[str, Sequence[str]] | None = None
) -> Clinical:
    """Read the first of `tables` that exists; `categories`: the texts that a column had in training, none of which means that the
    value is missing. Raises InputError, naming rows, if a patient has no name or is listed twice."""
    path = next((Path(raw) / name for name in tables if (Path(raw) / name).is_file()), None)
    if path is None:
        stems = {Path(name).stem.lower() for name in tables}
        alike = [p.name for p in sorted(Path(raw).iterdir()) if p.is_file() and p.stem.lower() in stems]
        others = [p.name for p in entries(Path(raw)) if p.suffix.lower() in (".csv", ".tsv")]
        meant = f"; save {alike[0]} as {tables[0]}" if alike else f"; is it {others[0]}? See fusion.data.tables" if others else ""
        print(f"note: no clinical table in {raw} ({', '.join(tables)}){meant}")
        return Clinical(pd.DataFrame(), None)
    table = read_text_table(path)
    patient = table.columns[0] if columns.patient == "auto" else columns.patient
    if patient not in table:
        raise InputError(f"{path}: no column {patient!r} (fusion.data.columns.patient); its columns: {', '.join(table.columns)}")
    problems = [f"row {i}: no patient" for i in table.index[table[patient] == ""]]
    twice = table.index[table[patient].duplicated() & (table[patient] != "")]
    problems += [f"row {i}: patient {table[patient][i]} is listed twice" for i in twice]
    if problems:
        named = f"column {patient!r}, taken as the patient (fusion.data.columns.patient): "
        raise InputError(f"{path}: {named}{'; '.join(problems[:5])}" + (", ..." if len(problems) > 5 else ""))
    table = table.set_index(patient).rename_axis("patient")
    known = categories or {}
    return Clinical(table.apply(lambda column: _without_missing(column, columns.label, known.get(str(column.name), ()))), path)


def _without_missing(column: pd.Series, label: str, known: Sequence[str]) -> pd.Series:
    """A column with empty cells where a word says that the value is missing. In the label only words that are no class's name;
    `-` is a value beside `+`, and a `known` text always is."""
    words = set(SURELY_MISSING if column.name == label else MISSING) - ({"-"} if (column == "+").any() else set())
    return column.mask(column.str.lower().isin(words) & ~column.isin(known), "")


def read_vectors(raw: Path, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The tables of the modalities `names`: index patient, columns of numbers, NaN where missing; rows without any number are
    left out.

    Raises InputError, naming the file and the row, for a missing file, a text that is not a number, or a patient listed twice.
    """
    return {name: _read_numbers(Path(raw) / FEATURES / f"{name}.csv") for name in names}


def _read_numbers(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file; fusion.data.vectors names it, so it must hold one row of numbers per patient")
    table = read_text_table(path)
    patient = table.columns[0]
    problems = [f"row {i}: no patient" for i in table.index[table[patient] == ""]]
    problems += [f"row {i}: patient {table[patient][i]} is listed twice" for i in table.index[table[patient].duplicated()]]
    texts = table.set_index(patient).rename_axis("patient")
    numbers = texts.apply(pd.to_numeric, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
    missing = texts.apply(lambda column: column.str.lower().isin(MISSING))
    for row, column in np.argwhere((numbers.isna() & ~missing).to_numpy())[:20]:
        text, name = texts.iat[row, column], texts.columns[column]
        problems.append(f"row {table.index[row]}: {name} is {text!r}, expected a number (leave missing ones empty)")
    if problems:
        raise InputError(f"{path}: {'; '.join(problems[:20])}")
    if not len(texts.columns):
        raise InputError(f"{path}: one column; expected the patient in the first and numbers in the others")
    return numbers.dropna(how="all")


def without_target(clinical: Clinical, patients: Sequence[str], preparation: Preparation) -> pd.Series:
    """Which of `patients` (the index) are in the table with an empty label or time: their outcome is not known yet."""
    column = preparation.columns.label if preparation.task == "classification" else preparation.columns.time
    values = clinical.table[column] if column in clinical.table else pd.Series(dtype=str)
    return values.reindex(list(patients)) == ""


def targets(
    clinical: Clinical, patients: Sequence[str], preparation: Preparation, *, unlabelled: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """The label (text), or time and event, of each of `patients` (the index), and a problem for each patient without one;
    `unlabelled`: except for those whose outcome is not known yet."""
    table, columns = clinical.table.reindex(list(patients)).fillna(""), preparation.columns
    classification = preparation.task == "classification"
    needed = [columns.label] if classification else [c for c in (columns.time, columns.event) if c]
    where = clinical.path or f"no table ({', '.join(preparation.tables)})"
    if missing := [c for c in needed if c not in table]:
        alike = spelled_alike(missing[0], list(clinical.table))
        meant = f"; is it {alike!r}?" if alike else ""
        raise InputError(f"{where}: no column {', '.join(missing)} (fusion.data.columns); training and evaluation need it{meant}")
    problems, result = [], pd.DataFrame(index=table.index)
    asked = ~(without_target(clinical, patients, preparation) & unlabelled)
    if classification:
        result["label"] = table[columns.label]
        unclear = result["label"][result["label"].str.lower().isin(MISSING) & (result["label"] != "")]
        if len(unclear) and not ({*result["label"]} >= {"+", "-"}):
            raise InputError(
                f"{where}: {columns.label} is {unclear.iloc[0]!r} in {len(unclear)} rows: a class, or missing? Give the class "
                "another name, or leave the cells empty"
            )
        file = clinical.path.name if clinical.path else "the table"
        problems = [
            f"patient {p}: no {columns.label} in {file}{other_spelling(p, clinical, patients)}"
            for p in table.index[asked & (table[columns.label] == "")]
        ]
    else:
        result["time"] = pd.to_numeric(table[columns.time], errors="coerce")
        result["event"] = pd.to_numeric(table[columns.event], errors="coerce") if columns.event else 1.0
        given = table[columns.event][asked] if columns.event else pd.Series(dtype=str)
        if len(given) and not pd.to_numeric(given, errors="coerce").isin([0, 1]).any():
            words = ", ".join(map(repr, sorted(set(given))[:3]))
            raise InputError(f"{where}: column {columns.event!r} holds {words}; write 0 (censored) or 1 (event)")
        for p in table.index[asked & (~(result["time"] > 0) | ~np.isfinite(result["time"]))]:
            given = f"{columns.time} is {table[columns.time][p]!r}, expected days above 0"
            problems.append(f"patient {p}: {given}{other_spelling(p, clinical, patients)}")
        for p in table.index[asked & ~result["event"].isin([0, 1])]:
            problems.append(f"patient {p}: {columns.event} is {table[columns.event][p]!r}, expected 0 (censored) or 1")
    return result, problems


def other_spelling(patient: str, clinical: Clinical, patients: Iterable[str]) -> str:
    """The end of a sentence about a patient who has no row: the row that is probably meant; empty if there is none."""
    if clinical.path is None or patient in clinical.table.index:
        return ""
    alike = spelled_alike(patient, sorted(set(clinical.table.index) - set(patients)))
    return f"; {clinical.path.name} has {alike!r}: write both alike" if alike else f"; it has no row in {clinical.path.name}"


def check_join(clinical: Clinical, patients: Sequence[str]) -> None:
    """Raise InputError if a clinical table has rows, but none for any of the patients; print how many rows have no patient."""
    if clinical.path is None or not len(clinical.table) or not patients:
        return
    without = [name for name in clinical.table.index if name not in set(patients)]
    if len(without) == len(clinical.table):
        example = spelled_alike(patients[0], without)
        meant = f"is {patients[0]!r} the row {example!r}? Write both alike" if example else f"its first row is {without[0]!r}"
        raise InputError(
            f"{clinical.path}: none of its {len(without)} rows belongs to one of the {len(patients)} patients ({meant}; "
            "fusion.data.columns.patient names the column)"
        )
    if without:
        print(f"note: {len(without)} rows of {clinical.path.name} have no patient here, such as {', '.join(without[:3])}")


def read_image(path: Path, channels: int = 1) -> tuple[NDArray[np.float32], Grid]:
    """One modality `[C, X, Y, Z]`. Raises InputError, naming the file, unless it has so many channels, none of them constant."""
    array, grid = read_nifti(path)
    array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    if len(array) != channels:
        raise InputError(
            f"{path}: {len(array)} volumes in one file, expected {channels}; split them, or set fusion.data.channels, the number "
            "of channels of each modality"
        )
    if min(grid.shape) < 2:
        raise InputError(f"{path}: {' x '.join(map(str, grid.shape))} voxels are not a volume")
    for number, volume in enumerate(array):
        if volume.min() == volume.max():
            which = f"channel {number}: " if channels > 1 else ""
            raise InputError(f"{path}: {which}every voxel is {volume.min():g}; remove the empty image")
    return array, grid
