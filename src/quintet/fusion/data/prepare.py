"""Raw patients and masks -> the prepared data set: one cube per image, vectors, clinical features, targets and a split."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray

from quintet.arrays import new_array
from quintet.errors import InputError, InputProblemsError, sentences
from quintet.files import atomic_folder, reject_overlap, write_json
from quintet.fusion.data.clinical import Category, Encoder
from quintet.fusion.data.cubes import Cubes, Image, make_cubes
from quintet.fusion.data.preparation import Preparation
from quintet.fusion.data.prepared import TRUTH, VECTORS, VOLUMES, Prepared, load
from quintet.fusion.data.raw import (
    FEATURES,
    check_join,
    find_patients,
    other_spelling,
    overview,
    read_image,
    read_table,
    read_vectors,
)
from quintet.fusion.data.segmentation import TABLE, Mask, make_mask, mask_of, segmenter_for, stored_masks
from quintet.fusion.data.tabular import Files, read_tables, subjects_of
from quintet.fusion.data.vectors import VectorEncoder, encode
from quintet.params import Fusion
from quintet.params.fusion import CLINICAL
from quintet.subjects import describe, same_contents, same_files
from quintet.tables import read_text_table, spelled_alike

CHECKED_SIZE = 4  # of the cubes that `check` makes
FAR_SD = 4.0  # how far the median of new patients may be from the training mean without a warning


def check(raw: Path, params: Fusion) -> list[str]:
    """Every problem of a raw folder, including voxels, tables and split."""
    tables = read_vectors(raw, params.data.vectors)
    preparation = Preparation.of(params)
    patients, problems = find_all_patients(raw, preparation, tables)
    print(overview(raw, patients, preparation))
    people = dict(zip(patients, subjects_of(list(patients), params.data), strict=True))
    print(describe(list(people), list(people.values()), "fusion.data.subject_pattern"))
    small = preparation.model_copy(update={"size": CHECKED_SIZE})
    checked = (delayed(_check_images)(name, files, small) for name, files in patients.items() if files)
    digests = {}
    for name, wrong, own in Parallel(n_jobs=-1, batch_size=16, backend="multiprocessing")(checked):  # forks: no imports
        problems += wrong
        digests[name] = own
    problems += same_contents(digests, people)
    problems += same_files({name: list(files.values()) for name, files in patients.items()}, people)
    try:
        problems += read_tables(raw, patients, tables, params)[1]
    except InputError as error:
        problems += sentences(error)
    return problems


def _check_images(name: str, files: Files, preparation: Preparation) -> tuple[str, list[str], list[str]]:
    """The patient, what preparation would say of the images, which are read once, and hashes of their voxels. Masks that
    TotalSegmentator would make are taken as whole images."""
    problems, images, masks, digests = [], dict[str, Image](), dict[str, Mask](), list[str]()
    for modality, path in files.items():
        segmenter = segmenter_for(preparation.segmentation, modality)
        try:
            images[modality] = array, grid = read_image(path, preparation.channels_of(modality))
            whole = segmenter.kind == "totalsegmentator"
            masks[modality] = np.ones(grid.shape, bool) if whole else make_mask(path, array, segmenter)
        except InputError as error:
            problems.append(f"patient {name}: {error}")
    try:
        make_cubes(files, masks, preparation, digests, images)
    except InputError as error:
        problems.append(f"patient {name}: {error}")
    return name, problems, digests


def find_all_patients(
    raw: Path, preparation: Preparation, tables: Mapping[str, pd.DataFrame], listed: Sequence[str] = ()
) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """The files of every patient who has a folder or a row in one of the tables, or is listed, and a problem for each ambiguous
    file."""
    listed = [*listed, *(str(name) for table in tables.values() for name in table.index)]
    return find_patients(raw, preparation.names, preparation.modalities, listed)


def find_new_patients(
    raw: Path, preparation: Preparation, listed: Sequence[str] = ()
) -> tuple[dict[str, dict[str, Path]], dict[str, pd.DataFrame], list[str]]:
    """The patients of a folder that may lack tables of some modalities: their files, these tables, and ambiguous files."""
    tables = read_vectors(raw, [name for name in preparation.vectors if (Path(raw) / FEATURES / f"{name}.csv").is_file()])
    patients, problems = find_all_patients(raw, preparation, tables, listed)
    return patients, tables, problems


def _prepare_patient(
    name: str, files: Files, masks: Path, preparation: Preparation
) -> tuple[Cubes, list[bool], list[str], list[str]]:
    """Cubes, which modalities they contain, hashes of the images' voxels, problems."""
    modalities, digests = preparation.modalities, list[str]()
    try:
        own_masks = stored_masks(masks, name, modalities)
        cubes = make_cubes(files, own_masks, preparation, digests)
        return cubes, [m in files and m in own_masks for m in modalities], digests, []
    except InputError as error:
        return make_cubes({}, {}, preparation), [False] * len(modalities), [], [f"patient {name}: {error}"]


def prepare(raw: Path, masks: Path, out: Path, params: Fusion, *, workers: int = 1) -> tuple[Prepared, list[str]]:
    """Write the prepared data set to `out`, whole or not at all; returns it and a sentence for each skipped problem. Each worker
    keeps one patient in memory."""
    reject_overlap(raw, out)
    preparation = Preparation.of(params)
    modalities, size = preparation.modalities, preparation.size
    tables = read_vectors(raw, preparation.vectors)
    patients, problems = find_all_patients(raw, preparation, tables)
    if not (masks / TABLE).is_file():
        raise InputError(f"{masks}: no masks there; run `dvc repro fusion_segment`")
    status = pd.read_csv(masks / TABLE, dtype={"patient": str}, keep_default_na=False)
    problems += [f"patient {r.patient}: {r.status}" for r in status.itertuples() if r.status != "ok"]
    people = dict(zip(patients, subjects_of(list(patients), params.data), strict=True))
    problems += same_files({name: list(files.values()) for name, files in patients.items()}, people)
    known, unusable = read_tables(raw, patients, tables, params)
    problems += unusable
    table = known.table
    if not len(table):
        raise InputProblemsError(str(raw), problems)
    has = np.zeros((len(table), len(modalities)), int)
    with atomic_folder(out) as folder:
        volumes = new_array(folder / VOLUMES, np.float16, (len(table), len(preparation.cubes), size, size, size))
        prepared = Parallel(n_jobs=workers, return_as="generator", pre_dispatch="2*n_jobs")(
            delayed(_prepare_patient)(name, patients[name], masks, preparation) for name in table["patient"]
        )
        digests = {}
        for row, (cubes, contained, own, wrong) in enumerate(prepared):
            volumes[row], has[row] = cubes, contained
            digests[table["patient"].iloc[row]] = own
            problems += wrong
        if shared := same_contents(digests, people):  # a leak, whatever is skipped
            raise InputProblemsError(str(raw), problems + shared)
        volumes.flush()
        if problems and params.data.on_error == "raise":
            raise InputProblemsError(f"{raw} (fusion.data.on_error=skip would leave these out)", problems)
        table = table.assign(**{f"has/{m}": has[:, k] for k, m in enumerate(modalities)})
        kept = np.flatnonzero(table.filter(like="has/").any(axis=1))
        if len(kept) < len(table):
            np.save(folder / VOLUMES, volumes[kept])
        del volumes
        names = [*preparation.vectors, CLINICAL]
        arrays: dict[str, Any] = {name: values[kept] for name, values in zip(names, known.vectors, strict=True)}
        np.savez(folder / VECTORS, **arrays)
        table.iloc[kept].to_csv(folder / "patients.csv", index=False)
        classes = sorted(set(table["label"]) - {""}) if "label" in table else []
        about = {
            "modalities": [*modalities, *names],
            "classes": classes,
            "encoder": known.encoder.to_dicts(),
            "vectors": {name: encoder.to_dict() for name, encoder in known.vector_encoders.items()},
            "how": preparation.to_dict(),
        }
        write_json(folder / "about.json", about)
        if (Path(raw) / TRUTH).is_file():
            _copy_truth(Path(raw) / TRUTH, folder / TRUTH, list(table["patient"].iloc[kept]))
    return load(out), problems


def _copy_truth(source: Path, target: Path, patients: list[str]) -> None:
    """What was drawn, of these patients. Raises InputError for a file that belongs to other patients."""
    truth = read_text_table(source).set_index("patient")
    if missing := [name for name in patients if name not in truth.index]:
        raise InputError(f"{source}: no row for {missing[0]}; only drawn data has this file, remove it")
    truth.loc[patients].to_csv(target)


def _reject_foreign_values(table: pd.DataFrame, encoder: Encoder, path: Path) -> None:
    """Raise InputError for a column of which no value could be used: other spellings, other units. Prints which columns have
    another scale than in training."""
    for column in encoder.columns:
        texts = table[column.name][table[column.name] != ""]
        if not len(texts):
            continue
        if isinstance(column, Category):
            if not texts.isin(column.values).any():
                seen = ", ".join(map(repr, column.values[:5]))
                raise InputError(
                    f"{path}: column {column.name!r}: {texts.iloc[0]!r} and all others are unknown; in training: {seen}"
                )
            continue
        numbers = pd.to_numeric(texts, errors="coerce")
        if numbers.isna().all():
            raise InputError(f"{path}: column {column.name!r}: {texts.iloc[0]!r} is no number, and neither is any other value")
        if (distance := abs(numbers.median() - column.mean) / column.sd) > FAR_SD and len(numbers) > 1:
            usual = f"the median {numbers.median():g} is {distance:.0f} SD from the training mean {column.mean:.4g}"
            print(f"warning: clinical column {column.name!r}: {usual}; is it another scale or unit?")


def read_new(
    raw: Path,
    preparation: Preparation,
    encoder: Encoder,
    vector_encoders: Mapping[str, VectorEncoder],
    problems: list[str],
    *,
    listed: Sequence[str] = (),
) -> Iterator[tuple[str, Cubes, list[NDArray[np.float32]], NDArray[np.bool_]]]:
    """Name, cubes, vectors `[W]` (the last one: clinical) and present modalities `[K]` of each patient of a folder without
    labels, one in memory at a time; adds a sentence to `problems` for each image or patient that cannot be read."""
    patients, tables, ambiguous = find_new_patients(raw, preparation, listed)
    problems += ambiguous
    for name, own in tables.items():
        if missing := vector_encoders[name].missing_columns(own):
            raise InputError(
                f"{raw}/{FEATURES}/{name}.csv: no column {missing[0]!r} ({len(missing)} of the training data are missing)"
            )
    absent = {name: pd.DataFrame(columns=encoder.columns, dtype=float) for name, encoder in vector_encoders.items()}
    vectors, has = encode(absent | tables, vector_encoders, list(patients))
    clinical = read_table(raw, preparation.tables, preparation.columns, categories=encoder.categories)
    print(overview(raw, patients, preparation))
    if clinical.path:
        check_join(clinical, list(patients))
        problems += [
            f"patient {p}: no clinical features{end}"
            for p in patients
            if "write" in (end := other_spelling(p, clinical, patients))
        ]
        if absent_columns := [column.name for column in encoder.columns if column.name not in clinical.table]:
            name, alike = absent_columns[0], spelled_alike(absent_columns[0], list(clinical.table))
            meant = f"; is it {alike!r}? Rename it" if alike else "; add it, empty where nothing is known"
            raise InputError(f"{clinical.path}: no column {name!r}, which the model was trained with{meant}")
        _reject_foreign_values(clinical.table.reindex(list(patients)).fillna(""), encoder, clinical.path)
    features, known, notes = encoder(clinical.table.reindex(list(patients)).fillna(""))
    for note in notes:
        print(f"note: {note}")
    for row, (name, files) in enumerate(patients.items()):
        masks = {}
        for modality, path in files.items():
            try:
                segmenter = segmenter_for(preparation.segmentation, modality)
                masks[modality] = mask_of(path, segmenter, preparation.channels_of(modality))[0]
            except InputError as error:
                problems.append(f"patient {name}: {error}")
        present = np.array([*(m in masks for m in preparation.modalities), *has[row], known[row]], bool)
        if not present.any():
            needed = ", ".join([*preparation.modalities, *vector_encoders])
            if not files:  # else the images' own problems say why
                problems.append(f"patient {name}: no modality; it needs one of {needed}, or clinical features")
            continue
        try:
            yield name, make_cubes(files, masks, preparation), [*(v[row] for v in vectors), features[row]], present
        except InputError as error:
            problems.append(f"patient {name}: {error}")
