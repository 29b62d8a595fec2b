"""From raw scans to one uint8 cube each, with labels and split."""

import csv
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from joblib import Parallel, delayed

from quintet import splits
from quintet.arrays import new_array
from quintet.ct.data.prepared import ABOUT, TRUTH, VOLUMES, CubeFormat, Prepared, load
from quintet.ct.data.raw import LABELS, Labels, find_scans, fingerprint, hash_of, match, read_cube, read_labels
from quintet.errors import InputError, InputProblemsError, sentences
from quintet.files import atomic_folder, reject_overlap, repository_root, write_json
from quintet.imaging.cubes import Cube
from quintet.params import Ct
from quintet.params.ct import CtData
from quintet.runs import code_md5
from quintet.subjects import digest_of, same_contents

FACTS = ("format", "columns", "rows", "slices", "spacing_mm")
MIN_PATIENTS = 6  # of a split into three parts
MIN_STRATUM = 3  # patients with one label set; sets with fewer are stratified together
CubeOrProblem = tuple[Cube, dict[str, object]] | str


def check(raw: Path, params: Ct) -> list[str]:
    """Every problem of a raw folder, including those in the voxels."""
    scans, labels = find_scans(raw), read_labels(raw, params.data.chosen_findings)
    names, problems = match(scans, labels)
    people = labels.table.loc[names, "patient"].nunique()
    print(f"{len(names)} scans of {people} people" + ("" if people < len(names) else ": is that so? Else add a column patient"))
    cubes = cube_format(params.data)
    digests = {}
    for name in names:
        try:
            digests[name] = [digest_of(read_cube(scans[name], cubes)[0])]
        except InputError as error:
            problems.append(f"scan {name}: {error}")
    problems += same_contents(digests, labels.table["patient"].to_dict())
    problems += constant_findings(labels, raw)
    try:
        make_split(labels.table.loc[names].reset_index(), params.data)
    except InputError as error:
        problems += sentences(error)
    return problems


def prepare(raw: Path, out: Path, params: Ct, *, workers: int = 1) -> tuple[Prepared, list[str]]:
    """Write the prepared data set to `out`; returns it and a sentence for each skipped scan.

    An unreadable scan does not stop the others, and all of them are listed. Cubes are kept outside `out` until all are finished,
    so that an interrupted run continues where it stopped.
    """
    reject_overlap(raw, out)
    data = params.data
    scans, labels = find_scans(raw), read_labels(raw, data.chosen_findings)
    names, problems = match(scans, labels)
    if not names:
        raise InputProblemsError(str(raw), problems)
    cubes, truth = cube_format(data), _read_truth(raw, labels)
    key = hash_of([str(Path(raw).resolve()), names, cubes, code_md5()])
    work = repository_root() / ".checkpoints" / f"ct_prepare-{key}"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work.with_suffix(".lock")):
        facts, errors = _write_cubes([(name, scans[name]) for name in names], work, cubes, workers)
        problems += errors
        volumes = np.load(work / VOLUMES, mmap_mode="r")
        digests = {name: [digest_of(volumes[names.index(name)])] for name in facts}
        shared = same_contents(digests, labels.table["patient"].to_dict())  # a leak, whatever is skipped
        if unusable := shared + constant_findings(labels, raw):
            raise InputProblemsError(str(raw), problems + unusable)
        if problems and (data.on_error == "raise" or not facts):
            hint = " (ct.data.on_error=skip would leave these scans out)" if data.on_error == "raise" else ""
            raise InputProblemsError(f"{raw}{hint}", problems)
        kept = [name for name in names if name in facts]
        table = make_split(labels.table.loc[kept].reset_index(), data)
        table = table.assign(**{fact: [facts[name][fact] for name in kept] for fact in FACTS})
        with atomic_folder(out) as folder:
            _move_rows(work / VOLUMES, folder / VOLUMES, [names.index(name) for name in kept])
            table.to_csv(folder / "index.csv", index=False)
            table[["study", "split"]].to_csv(folder / "split.csv", index=False)
            write_json(folder / ABOUT, {"findings": labels.findings, "cubes": asdict(cubes)})
            if truth is not None:
                truth.table.loc[kept, labels.findings].to_csv(folder / TRUTH)
        shutil.rmtree(work)
    work.with_suffix(".lock").unlink(missing_ok=True)
    return load(out), problems


def constant_findings(labels: Labels, raw: Path) -> list[str]:
    """A problem for each finding from which nothing can be learnt: every scan has it, none has it, or it equals another one."""
    table, where = labels.table, Path(raw) / LABELS
    always = [name for name in labels.findings if table[name].nunique() < 2]
    problems = [f"{where}: {name} is {table[name].iloc[0]} in every scan; leave it out (ct.data.findings)" for name in always]
    rest = [name for name in labels.findings if name not in always]
    return problems + [
        f"{where}: {a} and {b} are {kind} in every scan; leave one out (ct.data.findings)"
        for a, b in combinations(rest, 2)
        for kind, same in (("equal", table[a] == table[b]), ("opposite", table[a] != table[b]))
        if same.all()
    ]


def cube_format(data: CtData) -> CubeFormat:
    low, high = data.window
    return CubeFormat(data.size, (low, high), data.box_mm)


def _read_truth(raw: Path, labels: Labels) -> Labels | None:
    """The drawn findings of phantoms; None for a folder without them."""
    if not (raw / TRUTH).is_file():
        return None
    truth = read_labels(raw, labels.findings, file=TRUTH)
    if missing := sorted(set(labels.table.index) - set(truth.table.index)):
        raise InputError(f"{raw / TRUTH}: no row for {', '.join(missing[:5])}; draw the phantoms again or delete the file")
    return truth


def _write_cubes(
    scans: list[tuple[str, Path]], work: Path, cubes: CubeFormat, workers: int
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Fill work/volumes.npy, one row per scan; work/done.csv lists the finished rows. Returns acquisition facts and errors."""
    volumes_path, done_path = work / VOLUMES, work / "done.csv"
    if not volumes_path.is_file():
        done_path.unlink(missing_ok=True)
        new_array(volumes_path, np.uint8, (len(scans), *(cubes.size,) * 3)).flush()
    volumes = np.load(volumes_path, mmap_mode="r+")
    fingerprints = {name: fingerprint(path) for name, path in scans}
    facts = {name: own for name, own in _read_done(done_path).items() if own.pop("fingerprint") == fingerprints.get(name)}
    errors = []
    with done_path.open("a", newline="", encoding="utf-8") as file:
        remaining = [(row, name, path) for row, (name, path) in enumerate(scans) if name not in facts]
        if facts:
            print(f"{len(facts)} of {len(scans)} scans were finished before", flush=True)
        for row, name, result in _read_cubes(remaining, cubes, workers):
            if isinstance(result, str):
                errors.append(f"scan {name}: {result}")
                continue
            volumes[row] = result[0]
            volumes.flush()
            facts[name] = {fact: str(result[1][fact]) for fact in FACTS}
            csv.writer(file).writerow([name, fingerprints[name], *facts[name].values()])
            file.flush()
    return facts, sorted(errors)


def _read_done(path: Path) -> dict[str, dict[str, str]]:
    """The scans that an earlier run finished; an incomplete line, left by a killed process, is ignored."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        complete = [line for line in file if line.endswith("\n")]
    path.write_text("".join(complete), encoding="utf-8", newline="")
    rows = [row for row in csv.reader(complete) if len(row) == 2 + len(FACTS)]
    return {row[0]: dict(zip(("fingerprint", *FACTS), row[1:], strict=True)) for row in rows}


def _read_cubes(scans: list[tuple[int, str, Path]], cubes: CubeFormat, workers: int) -> Iterator[tuple[int, str, CubeOrProblem]]:
    """Each scan's cube or its problem, in the order of completion; each worker holds one cube in memory."""

    def jobs() -> Iterator[object]:
        for row, name, path in scans:
            yield delayed(_read_one)(row, name, path, cubes)

    workers = min(workers, max(1, len(scans)))
    yield from Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="2*n_jobs", batch_size=1)(jobs())


def _read_one(row: int, name: str, path: Path, cubes: CubeFormat) -> tuple[int, str, CubeOrProblem]:
    try:
        return row, name, read_cube(path, cubes)
    except InputError as error:
        return row, name, str(error)
    except Exception as error:  # one scan must not stop the others
        return row, name, f"{path}: {type(error).__name__}: {error}"


def _move_rows(source: Path, target: Path, rows: list[int]) -> None:
    """Move the file if all its rows are wanted; otherwise copy those that are."""
    volumes = np.load(source, mmap_mode="r")
    if rows == list(range(len(volumes))):
        shutil.move(source, target)
        return
    kept = new_array(target, np.uint8, (len(rows), *volumes.shape[1:]))
    for to, row in enumerate(rows):
        kept[to] = volumes[row]
    kept.flush()


def make_split(table: pd.DataFrame, data: CtData) -> pd.DataFrame:
    """`table` (study, patient, findings) with the columns split and train_eval added.

    A patient's scans are all in the same part. Patients are stratified by the label set of their first scan.
    """
    if data.split == "grouped":
        parts = _grouped_split(table, data)
    else:
        names = list(table["study"])
        parts = splits.read_split(Path(data.split), names, column="study")
        splits.reject_leaks(parts, list(table["patient"]), names, remedy="move all scans of a patient to one part")
    train = np.flatnonzero(np.array(parts) == "train")
    chosen = np.random.default_rng([data.split_seed, 2]).permutation(train)[: round(data.train_eval * len(train))]
    return table.assign(split=parts, train_eval=np.isin(np.arange(len(table)), chosen).astype(int))


def _grouped_split(table: pd.DataFrame, data: CtData) -> list[str]:
    """The part of each row."""
    patients = table.drop_duplicates("patient").set_index("patient")
    if len(patients) < MIN_PATIENTS:
        raise InputError(
            f"{len(patients)} patient(s) with labels and readable scans: a split into three parts needs {MIN_PATIENTS}"
        )
    label_sets = patients.drop(columns="study").astype(str).agg("+".join, axis=1)
    counts = Counter(label_sets)
    least, share = float(MIN_STRATUM), min(data.test, data.validation)
    if sum(count >= least for count in counts.values()) > 2 * share * len(patients):
        least = 1 / share  # each part gets at least one patient of each stratum, which would be far more than its share
    strata = [s if counts[s] >= least else "rare" for s in label_sets]
    if strata.count("rare") < MIN_STRATUM:
        strata = [s if s != "rare" else counts.most_common(1)[0][0] for s in strata]
    stratum_of = dict(zip(patients.index, strata, strict=True))
    test = splits.held_out_groups(list(stratum_of), strata, data.test, seed=[data.split_seed, 0])
    rest = {patient: stratum for patient, stratum in stratum_of.items() if patient not in test}
    fraction = data.validation / (1 - data.test)
    valid = splits.held_out_groups(list(rest), list(rest.values()), fraction, seed=[data.split_seed, 1])
    return ["test" if p in test else "valid" if p in valid else "train" for p in table["patient"]]
