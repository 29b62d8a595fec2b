"""The raw folder: one entry per scan (a DICOM series folder or a NIfTI file) and labels.csv.

labels.csv has the columns study (the scan's name), optionally patient, and one column of 0 and 1 per finding. Phantoms also have
truth.csv, the same table with the findings that were drawn; labels.csv holds what a reader reports.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import nibabel as nib
import numpy as np
import pandas as pd

from quintet.ct.data.prepared import CubeFormat
from quintet.errors import InputError
from quintet.imaging.cubes import Cube, Scan, Volume, to_cube
from quintet.imaging.dicom import dicom_files, read_series
from quintet.imaging.folders import entries, files_below, print_passed_over, with_suffix
from quintet.imaging.places import has_lost_its_place
from quintet.imaging.volumes import NIFTI, read_nifti
from quintet.subjects import same_files
from quintet.tables import folded, read_text_table, spelled_alike

LABELS = "labels.csv"
UNKNOWN = ("unknown", "na", "n/a", "nan", "none", "null", "-", "?", "anonymous", "anon")  # no names of patients
TABLES = (".csv", ".tsv", ".txt", ".json", ".md")  # files beside the scans that are no scans
NOT_FINDINGS = ("study", "patient")
PERSON = re.compile(r"(patient|subject|person|participant)s?[ _.-]*(id|no|nr|number|name|key)?", re.IGNORECASE)
RUINED = re.compile(
    r"\d(\.\d+)?e\+\d+|\d{1,2}-[a-z]{3}|[a-z]{3}-\d{1,4}", re.IGNORECASE
)  # by a spreadsheet: 1.2E+11, 3-Mar, Mar-14
MAX_TOP = 0.2  # share of voxels above the window; of 250 crops around nodules at most 0.04
WHOLE_CHEST_MM, SOFT_TISSUE_HU, MIN_SOFT = 150.0, (-200.0, 300.0), 0.02  # scans of this extent have more soft tissue
MAX_WATER = 0.25  # share of voxels of one value: of phantoms and real scans at most 0.05
FINEST_MM = 0.25  # no CT scanner has voxels of a chest that are finer along all axes
MAX_JUMP = (
    10.0  # grey levels of 255, between the mean of a plane and that of both neighbours; of phantoms and real scans at most 3.3
)
MAX_SHOWN = 20  # problems of labels.csv in one message


@dataclass(frozen=True)
class Labels:
    """`table`: index study; the column patient, which is the scan's own name if the file does not give it; one column of 0 and 1
    per finding."""

    table: pd.DataFrame

    @property
    def findings(self) -> list[str]:
        return [name for name in self.table if name != "patient"]


def find_scans(raw: Path) -> dict[str, Path]:
    """Every scan in `raw`, sorted by name: name -> series folder or NIfTI file, which may be in a folder of its own. Prints how
    many other files were passed over.

    Raises InputError if there is none, or if two entries have the same name.
    """
    if not Path(raw).is_dir():
        raise InputError(f"{raw}: no such folder; expected one entry per scan (a DICOM series folder or a NIfTI file)")
    found: dict[str, Path] = {}
    passed = []
    for path in entries(raw):
        suffix = next((end for end in reversed(NIFTI) if path.name.lower().endswith(end)), None)
        if not (path.is_dir() or suffix):
            passed += [path] if path.suffix.lower() not in TABLES else []
            continue
        inside = files_below(path) if path.is_dir() else []
        images = with_suffix(inside, NIFTI)[0]
        is_series = bool(inside) and not images  # whose folder may be called x.nii
        name = normalize("NFC", path.name[: -len(suffix)] if suffix and not is_series else path.name)
        path = images[0] if len(inside) == len(images) == 1 else path
        if name in found:
            raise InputError(f"{path} and {found[name]} are both scan {name}; keep one")
        found[name] = path
    print_passed_over(passed, raw, "a folder with a DICOM series, or a NIfTI file, per scan")
    if not found:
        one = "; if it is itself one DICOM series, give the folder above it" if passed else ""
        raise InputError(f"{raw}: contains no scan; expected DICOM series folders or NIfTI files{one}")
    return found


def read_labels(raw: Path, wanted: Sequence[str] | None = None, *, file: str = LABELS) -> Labels:
    """Read labels.csv, or another `file` of its format; raises one InputError that lists its problems. `wanted`: the findings to
    keep, in this order; None: all."""
    path = Path(raw) / file
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV file with study,finding_1,... (0 or 1) and, if known, patient")
    table = read_text_table(path)
    columns = [name for name in table if name not in NOT_FINDINGS]
    findings = [name for name in columns if wanted is None or name in wanted]
    meant = "" if "study" in table else spelled_alike("study", list(table))
    named = f"there is no column `study` (but {', '.join(table)})"
    if "patient" not in table and (person := next((name for name in columns if PERSON.fullmatch(name)), "")):
        raise InputError(
            f"{path}: does the column {person!r} name people? Call it patient; if it is a finding, call it otherwise"
        )
    problems = [] if "study" in table else [named + (f"; is it {meant!r}? Rename it" if meant else "; rename that of the scans")]
    problems += [] if columns else ["there is no column of a finding (0 or 1)"]
    problems += [] if len(table) else ["there is no row"]
    table[findings] = table[findings].replace({"0.0": "0", "1.0": "1"})  # as pandas writes whole numbers beside empty cells
    if not problems:
        problems = _row_problems(table, findings)
    if problems:
        more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise InputError(f"{path}: {'; '.join(problems[:MAX_SHOWN])}{more}")
    if missing := [name for name in wanted or () if name not in columns]:
        raise InputError(f"{path}: no column for the finding(s) {', '.join(missing)}; it has {', '.join(columns)}")
    table["patient"] = table["patient"] if "patient" in table else table["study"]
    findings = findings if wanted is None else list(wanted)
    return Labels(table.set_index("study")[["patient", *findings]].astype(dict.fromkeys(findings, int)))


def _row_problems(table: pd.DataFrame, findings: list[str]) -> list[str]:
    names = table["study"]
    problems = [f"row {i}: study is empty" for i in table.index[names == ""]]
    row_of = {name: i for i, name in reversed(list(names.items()))}
    problems += [f"row {i}: study {names[i]} is also in row {row_of[names[i]]}" for i in table.index[names.duplicated()]]
    for finding in findings:
        if len(wrong := table.index[~table[finding].isin(["0", "1"])]):
            i, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            hint = "; is it a finding at all? Else delete it, or list the findings in ct.data.findings"
            also = hint if len(wrong) == len(table) else ""
            problems.append(f"row {i}{more}: {finding} of {names[i]} is {table[finding][i]!r}, expected 0 or 1{also}")
    if "patient" in table:
        spelling: dict[str, str] = {}
        for patient in table["patient"].unique():
            first = spelling.setdefault(folded(patient), patient)
            if first != patient:
                problems.append(f"the patients {first} and {patient} look like one person; write one person alike")
        ruined = table["patient"][table["patient"].map(lambda name: bool(RUINED.fullmatch(name)))]
        if ruined.nunique() < len(ruined):
            problems.append(
                f"row {ruined.index[0]}: patient {ruined.iloc[0]} is what a spreadsheet makes of numbers and dates: several "
                "people may have it; write the names as text"
            )
        unknown = table["patient"].str.lower().isin(UNKNOWN)
        if unknown.any():
            named = f"{table['patient'][unknown].iloc[0]!r} in {int(unknown.sum())} rows"
            problems.append(f"patient is {named}, which would be one person; write each person's own name")
        problems += [f"row {i}: patient of {names[i]} is empty" for i in table.index[table["patient"] == ""]]
    return problems


def match(scans: dict[str, Path], labels: Labels) -> tuple[list[str], list[str]]:
    """The names of the usable scans that have labels, sorted, and a problem for each scan without labels, each label without
    scan, and each scan without a place."""
    labelled = labels.table.index
    without_scan = [name for name in labelled if name not in scans]
    alike = {name: spelled_alike(name, without_scan) for name in scans if name not in labelled}
    problems = [
        f"{scans[name]}: scan {name} is not in {LABELS}; "
        + (f"it has {meant!r}: write both alike" if meant else "add a row for it")
        for name, meant in alike.items()
    ]
    named = set(alike.values())
    problems += [f"{LABELS}: scan {n} has neither a folder nor a NIfTI file of that name" for n in without_scan if n not in named]
    known = [name for name in sorted(scans) if name in labelled]
    files = {name: dicom_files(scans[name]) if scans[name].is_dir() else [scans[name]] for name in known}
    problems += same_files({name: paths[:1] for name, paths in files.items()}, labels.table["patient"].to_dict())
    lost = [name for name in known if _has_lost_its_place(scans[name])]
    if len(lost) == len(known):  # a data set without places: its voxels may be of 1 mm
        return known, problems
    problems += [
        f"{scans[n]}: its affine, and so its voxel size, is the identity (but for signs), unlike others'; export it again"
        for n in lost
    ]
    return [name for name in known if name not in lost], problems


def _has_lost_its_place(path: Path) -> bool:
    try:
        image: Any = nib.load(path)
        return has_lost_its_place(image.affine)
    except Exception:
        return False  # a series; or reading the scan says what is wrong with the file


def open_scan(path: Path) -> Scan:
    if path.is_dir():
        return read_series(path)
    array, grid = read_nifti(path)
    if array.ndim != 3:
        raise InputError(f"{path}: {array.shape[3]} volumes in one file, expected one; split them")
    return Volume(array, grid)


def read_cube(path: Path, cubes: CubeFormat, *, threads: int = 1) -> tuple[Cube, dict[str, object]]:
    """A scan as a uint8 cube, and how it was acquired according to its file.

    Preparation, prediction and search all read scans with this function.
    """
    scan = open_scan(path)
    try:
        cube = to_cube(scan, cubes.size, cubes.window_hu, box_mm=cubes.box_mm, threads=threads)
        _check_tissue(cube, scan, cubes)
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    x, y, z = np.array(scan.grid.shape)[np.argsort(scan.grid.orientation[:, 0])].tolist()
    spacing = scan.grid.spacing_mm
    return cube, {
        "format": "DICOM" if path.is_dir() else "NIfTI",
        "columns": x,
        "rows": y,
        "slices": z,
        "spacing_mm": " x ".join(f"{v:.3g}" for v in spacing),
    }


def _check_tissue(cube: Cube, scan: Scan, cubes: CubeFormat) -> None:
    """Raise InputError if the size or the values are not those of a chest though their range is: in cm, negated, shifted by an
    intercept, or with slices that do not belong to their neighbours."""
    if max(scan.grid.spacing_mm) < FINEST_MM:
        shown = " x ".join(f"{v:.3g}" for v in scan.grid.spacing_mm)
        raise InputError(f"a voxel size of {shown} mm is finer than scanners resolve; is its affine in cm? Write it in mm")
    low, high = cubes.window_hu
    top = float((cube == 255).mean())
    if top > MAX_TOP:
        raise InputError(f"{top:.0%} of its voxels are above {high:g} HU, which is bone or metal; were its values negated?")
    water = round(-low / (high - low) * 255)
    if low < 0 < high and (share := float((cube == water).mean())) > MAX_WATER:
        raise InputError(f"{share:.0%} of its voxels are 0 HU, which is water; was it masked? Outside, write -1000 (air)")
    extent_mm = (np.linalg.norm(scan.grid.affine[:3, :3], axis=0) * scan.grid.shape).min()
    bounds = [(hu - low) / (high - low) * 255 for hu in SOFT_TISSUE_HU]
    soft = float(((cube >= bounds[0]) & (cube <= bounds[1])).mean())
    if extent_mm >= WHOLE_CHEST_MM and soft < MIN_SOFT:
        raise InputError(f"{soft:.1%} of its voxels are soft tissue; was the intercept subtracted twice?")
    _check_slices(cube, scan, cubes)


def _check_slices(cube: Cube, scan: Scan, cubes: CubeFormat) -> None:
    """Raise InputError if the mean of a plane is far from those of both neighbours: a slice of zeros, or with other units."""
    planes = np.moveaxis(cube, 2 - int(scan.grid.orientation[2, 0]), 0)
    inside = np.flatnonzero(planes.any((1, 2)))
    mean = planes[inside[0] : inside[-1] + 1].mean((1, 2))
    jump = np.abs(mean[1:-1] - (mean[:-2] + mean[2:]) / 2)
    if len(jump) and jump.max() > MAX_JUMP:
        low, high = cubes.window_hu
        where, hu = (jump.argmax() + 1.5) / len(mean), jump.max() / 255 * (high - low)
        raise InputError(
            f"about {where:.0%} of the way through its slices, the mean is {hu:.0f} HU away from that of the neighbours; is a "
            "slice empty, or stored with another intercept? Export it again"
        )


def fingerprint(path: Path) -> str:
    """A hash of the names, sizes and modification times of a scan's files."""
    files = dicom_files(path) if path.is_dir() else [path]
    return hash_of([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()])


def hash_of(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
