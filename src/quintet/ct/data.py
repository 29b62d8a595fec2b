"""Raw studies -> one cube of uint8 each, with labels and split.

Prepared: volumes.npy `[N, size, size, size]` uint8 (memory-mapped at training), index.csv (one row a study: study, patient,
split, train_eval, the findings, what its file says), split.csv (study, split)."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from joblib import Parallel, delayed
from numpy.typing import NDArray

from quintet import splits
from quintet.arrays import new_array
from quintet.ct.raw import find_studies, fingerprint, hash_of, match, read_cube, read_labels
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_folder, refuse_overlap, repository_root, write_json
from quintet.params import Ct

VOLUMES = "volumes.npy"
FACTS = ("format", "columns", "rows", "slices", "spacing_mm")
FEWEST = 3  # patients of a label set, or the set is stratified with other rare ones


@dataclass(frozen=True)
class Prepared:
    volumes: NDArray[np.uint8]  # [N, S, S, S], rows as in the index
    index: pd.DataFrame
    findings: list[str]
    folder: Path

    def rows(self, part: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.index["split"] == part)

    @property
    def train_eval(self) -> NDArray[np.int64]:
        """The training scans whose embeddings are measured too."""
        return np.flatnonzero(self.index["train_eval"] == 1)

    @property
    def labels(self) -> NDArray[np.float32]:
        """`[N, F]`, 0 or 1."""
        return self.index[self.findings].to_numpy(np.float32)


def check(raw: Path, params: Ct) -> list[str]:
    """Every problem of a raw folder, voxels included."""
    studies, labels = find_studies(raw), read_labels(raw)
    names, problems = match(studies, labels)
    for name in names:
        try:
            read_cube(studies[name], 16, _window(params))
        except InputError as error:
            problems.append(f"study {name}: {error}")
    try:
        make_split(labels.table.loc[names].reset_index(), params)
    except InputProblemsError as error:
        problems += error.problems
    except InputError as error:
        problems.append(str(error))
    return problems


def _window(params: Ct) -> tuple[float, float]:
    return params.window[0], params.window[1]


def prepare(raw: Path, out: Path, params: Ct, *, workers: int = 1) -> tuple[Prepared, list[str]]:
    """Write the prepared data set to `out`, whole or not at all; returns it and a sentence for each skipped study.

    A study that cannot be read costs only itself, and all of them are listed. An interrupted run goes on where it stopped: cubes
    are kept outside of `out` until all are there.
    """
    refuse_overlap(raw, out)
    studies, labels = find_studies(raw), read_labels(raw)
    names, problems = match(studies, labels)
    if not names:
        raise InputProblemsError(str(raw), problems)
    key = hash_of([str(Path(raw).resolve()), names, params.size, params.window])
    work = repository_root() / ".checkpoints" / f"ct_prepare-{key}"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work.with_suffix(".lock")):
        facts, errors = _cubes([(name, studies[name]) for name in names], work, params, workers)
        problems += errors
        if problems and (params.on_error == "raise" or not facts):
            hint = " (ct.on_error=skip would leave these studies out)" if params.on_error == "raise" else ""
            raise InputProblemsError(f"{raw}{hint}", problems)
        kept = [name for name in names if name in facts]
        table = labels.table.loc[kept].reset_index()
        index = make_split(table, params).assign(**{fact: [facts[name][fact] for name in kept] for fact in FACTS})
        with atomic_folder(out) as folder:
            _move_rows(work / VOLUMES, folder / VOLUMES, [names.index(name) for name in kept])
            index.to_csv(folder / "index.csv", index=False)
            index[["study", "split"]].to_csv(folder / "split.csv", index=False)
            write_json(folder / "findings.json", labels.findings)
        shutil.rmtree(work)
    work.with_suffix(".lock").unlink(missing_ok=True)
    return load(out), problems


def _cubes(studies: list[tuple[str, Path]], work: Path, params: Ct, workers: int) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Fill work/volumes.npy, a row a study; work/done.csv says which rows are there. Returns facts and errors."""
    shape = (len(studies), params.size, params.size, params.size)
    path, done_path = work / VOLUMES, work / "done.csv"
    if not path.is_file():
        done_path.unlink(missing_ok=True)
        new_array(path, np.uint8, shape).flush()
    volumes = np.load(path, mmap_mode="r+")
    prints = {name: fingerprint(p) for name, p in studies}
    facts = {name: own for name, own in _done(done_path).items() if own.pop("fingerprint") == prints.get(name)}
    errors = []
    with done_path.open("a", newline="", encoding="utf-8") as file:
        left = [(row, name, p) for row, (name, p) in enumerate(studies) if name not in facts]
        if facts:
            print(f"{len(facts)} of {len(studies)} studies are there already", flush=True)
        for row, name, result in _read_all(left, params, workers):
            if isinstance(result, str):
                errors.append(f"study {name}: {result}")
                continue
            volumes[row] = result[0]
            volumes.flush()
            own = {fact: str(result[1][fact]) for fact in FACTS}
            csv.writer(file).writerow([name, prints[name], *own.values()])
            file.flush()
            facts[name] = own
    return facts, sorted(errors)


def _done(path: Path) -> dict[str, dict[str, str]]:
    """The studies of an earlier run; a line that a kill cut off does not count."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        whole = [line for line in file if line.endswith("\n")]
    path.write_text("".join(whole), encoding="utf-8", newline="")
    rows = [row for row in csv.reader(whole) if len(row) == 2 + len(FACTS)]
    return {row[0]: dict(zip(("fingerprint", *FACTS), row[1:], strict=True)) for row in rows}


Read = tuple[NDArray[np.uint8], dict[str, object]] | str


def _read_all(studies: list[tuple[int, str, Path]], params: Ct, workers: int) -> Iterator[tuple[int, str, Read]]:
    """Each study's cube, or what is wrong with it, as they come; one cube a worker in memory."""

    def jobs() -> Iterator[object]:
        for row, name, path in studies:
            yield delayed(_read)(row, name, path, params.size, _window(params))

    workers = min(workers, max(1, len(studies)))
    yield from Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="2*n_jobs", batch_size=1)(jobs())


def _read(row: int, name: str, path: Path, size: int, window_hu: tuple[float, float]) -> tuple[int, str, Read]:
    try:
        return row, name, read_cube(path, size, window_hu)
    except InputError as error:
        return row, name, str(error)
    except Exception as error:  # one study must not cost the others
        return row, name, f"{path}: {type(error).__name__}: {error}"


def _move_rows(source: Path, target: Path, rows: list[int]) -> None:
    """The file itself where all rows are wanted, else a copy of those, row by row."""
    volumes = np.load(source, mmap_mode="r")
    if rows == list(range(len(volumes))):
        shutil.move(source, target)
        return
    kept = new_array(target, np.uint8, (len(rows), *volumes.shape[1:]))
    for to, row in enumerate(rows):
        kept[to] = volumes[row]
    kept.flush()


def make_split(table: pd.DataFrame, params: Ct) -> pd.DataFrame:
    """`table` (study, patient, findings) with the columns split and train_eval. Patients stay together; their strata are the
    label
    sets of their first scans."""
    findings = [name for name in table if name not in ("study", "patient")]
    patients = list(table["patient"])
    if params.split != "grouped":
        parts = splits.read_split(Path(params.split), list(table["study"]), column="study")
        splits.refuse_leaks(parts, patients, list(table["study"]), remedy="move all studies of a patient to one part")
    else:
        people = table.drop_duplicates("patient").set_index("patient")
        sets = people[findings].astype(str).agg("+".join, axis=1)
        counts = Counter(sets)
        strata = [s if counts[s] >= FEWEST else "rare" for s in sets]
        if strata.count("rare") < FEWEST:
            strata = [s if s != "rare" else counts.most_common(1)[0][0] for s in strata]
        if len(people) < 6:
            raise InputError(f"{len(people)} patient(s) with labels and readable scans: a split into three parts needs 6")
        names = list(people.index)
        test = splits.held_out_groups(names, strata, params.test, seed=[params.split_seed, 0])
        rest = [(n, s) for n, s in zip(names, strata, strict=True) if n not in test]
        share = params.validation / (1 - params.test)
        valid = splits.held_out_groups([n for n, _ in rest], [s for _, s in rest], share, seed=[params.split_seed, 1])
        parts = ["test" if p in test else "valid" if p in valid else "train" for p in patients]
    train = np.flatnonzero(np.array(parts) == "train")
    chosen = np.random.default_rng([params.split_seed, 2]).permutation(train)[: round(params.train_eval * len(train))]
    return table.assign(split=parts, train_eval=np.isin(np.arange(len(table)), chosen).astype(int))


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. The volumes stay on disk (memory-mapped) until rows are taken."""
    folder = Path(folder)
    if not (folder / "index.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro ct_prepare`")
    index = pd.read_csv(folder / "index.csv", dtype={"study": str, "patient": str}, keep_default_na=False)
    findings = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    return Prepared(np.load(folder / VOLUMES, mmap_mode="r"), index, findings, folder)
