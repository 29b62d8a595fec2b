"""The raw folder: one entry a study (a DICOM series folder or a NIfTI file), and labels.csv (study, findings as 0 or 1; a
column `patient` groups studies)."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from quintet.errors import InputError
from quintet.imaging.cubes import Cube, Scan, Volume, to_cube
from quintet.imaging.dicom import dicom_files, read_series
from quintet.imaging.volumes import NIFTI, read_nifti
from quintet.tables import read_text_table

LABELS = "labels.csv"
NOT_FINDINGS = ("study", "patient")


@dataclass(frozen=True)
class Labels:
    """`table`: index study, columns patient (the study itself where the file has none) and one of 0 and 1 for each finding."""

    table: pd.DataFrame

    @property
    def findings(self) -> list[str]:
        return [name for name in self.table if name != "patient"]


def find_studies(raw: Path) -> dict[str, Path]:
    """Every study below `raw`: name -> series folder or NIfTI file, sorted."""
    if not Path(raw).is_dir():
        raise InputError(f"{raw}: no such folder; expected one entry a study (a DICOM series folder or a NIfTI file)")
    found: dict[str, Path] = {}
    for path in sorted(Path(raw).iterdir()):
        suffix = next((end for end in reversed(NIFTI) if path.name.lower().endswith(end)), None)
        if path.name.startswith(".") or not (path.is_dir() or suffix):
            continue
        name = path.name[: -len(suffix)] if suffix else path.name
        if name in found:
            raise InputError(f"{path} and {found[name]} are both study {name}; keep one")
        found[name] = path
    if not found:
        raise InputError(f"{raw}: no study in it; expected DICOM series folders or NIfTI files")
    return found


def read_labels(raw: Path) -> Labels:
    """Read labels.csv, all its problems listed at once."""
    path = Path(raw) / LABELS
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV with study,finding_1,... (0 or 1) and, if known, patient")
    table = read_text_table(path)
    findings = [name for name in table if name not in NOT_FINDINGS]
    problems = [] if "study" in table else ["no column `study`"]
    problems += [] if findings else ["no column of a finding (0 or 1)"]
    problems += [] if len(table) else ["no row"]
    if not problems:
        problems += [f"row {i + 2}: no study" for i in table.index[table["study"] == ""]]
        problems += [f"row {i + 2}: study {table['study'][i]} stands twice" for i in table.index[table["study"].duplicated()]]
        for name in findings:
            wrong = table.index[~table[name].isin(["0", "1"])]
            problems += [f"row {i + 2}: {name} of {table['study'][i]} is {table[name][i]!r}, expected 0 or 1" for i in wrong]
        if "patient" in table:
            problems += [f"row {i + 2}: no patient of {table['study'][i]}" for i in table.index[table["patient"] == ""]]
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise InputError(f"{path}: {shown}")
    table["patient"] = table["patient"] if "patient" in table else table["study"]
    return Labels(table.set_index("study")[["patient", *findings]].astype(dict.fromkeys(findings, int)))


def match(studies: dict[str, Path], labels: Labels) -> tuple[list[str], list[str]]:
    """The studies that have both an entry and labels, sorted, and a problem for each that lacks one."""
    problems = [
        f"{path}: study {name} stands not in {LABELS}; add its row"
        for name, path in studies.items()
        if name not in labels.table.index
    ]
    problems += [
        f"{LABELS}: study {name} has neither a folder nor a NIfTI file of that name"
        for name in labels.table.index
        if name not in studies
    ]
    return [name for name in sorted(studies) if name in labels.table.index], problems


def open_scan(path: Path) -> Scan:
    if path.is_dir():
        return read_series(path)
    array, grid = read_nifti(path)
    if array.ndim != 3:
        raise InputError(f"{path}: {array.shape[3]} volumes in one file, expected one; split them")
    return Volume(array, grid)


def read_cube(path: Path, size: int, window_hu: tuple[float, float], *, threads: int = 1) -> tuple[Cube, dict[str, object]]:
    """What every study goes through, in training and search alike: its cube, and what its file says about the acquisition."""
    scan = open_scan(path)
    try:
        cube = to_cube(scan, size, window_hu, threads=threads)
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    x, y, z = scan.grid.shape
    spacing = scan.grid.spacing_mm
    return cube, {
        "format": "DICOM" if path.is_dir() else "NIfTI",
        "columns": x,
        "rows": y,
        "slices": z,
        "spacing_mm": " x ".join(f"{v:.3g}" for v in spacing),
    }


def fingerprint(path: Path) -> str:
    """Changes when a study's files do: their names, sizes and times."""
    files = dicom_files(path) if path.is_dir() else [path]
    return str(hash_of([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]))


def hash_of(value: object) -> str:
    import hashlib

    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
