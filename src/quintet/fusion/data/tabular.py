"""What is known of patients apart from their images: targets, split, clinical features and modalities that are tables."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import splits
from quintet.errors import InputError, InputProblemsError, sentences
from quintet.fusion.data.clinical import Encoder, reject_leaks, reject_spellings
from quintet.fusion.data.preparation import Preparation
from quintet.fusion.data.prepared import EXTERNAL, UNLABELLED
from quintet.fusion.data.raw import Clinical, check_join, read_table, targets, without_target
from quintet.fusion.data.vectors import VectorEncoder, encode
from quintet.params import Fusion
from quintet.params.fusion import CLINICAL, FusionData
from quintet.subjects import subject_of
from quintet.tables import DECIMAL_COMMA, spelled_alike

# for missing values, in many tables
CODES = (-9, -99, -999, -9999, -8, -88, -888, -8888, 88, 888, 8888, 99, 999, 9999, 99999)
NEGATIVE_CODES, MIN_OTHERS = (-1, -2, -7, -8, -9), 10  # in a column of at least so many other values, none of them negative
LARGEST = 1e12  # number of a clinical column
QUANTITY = re.compile(
    r"[<>~]?\s*[+-]?\d[\d.,]*\s*(%|years?|yrs?|y|months?|days?|mm|cm|ml|mg|kg)|\d{1,3}(,\d{3})+"
    r"|\d{4}-\d\d-\d\d|\d{1,2}[./]\d{1,2}[./]\d{2,4}",
    re.IGNORECASE,
)
MIN_IDENTIFIERS = 20  # patients
MIN_PER_CLASS = 4  # patients; with fewer, a class cannot be in all three parts
Files = Mapping[str, Path]  # modality -> file


@dataclass(frozen=True)
class Tables:
    """What is known of the usable patients apart from their images. `vectors`: `[N, W]` of each modality that is a table, last of
    the clinical features; `table`: patient, subject (the person),
    split, target, has/MODALITY for these."""

    table: pd.DataFrame
    vectors: list[NDArray[np.float32]]
    encoder: Encoder
    vector_encoders: dict[str, VectorEncoder]


def clinical_features(clinical: Clinical, patients: Sequence[str], data: FusionData) -> pd.DataFrame:
    """The clinical table without the targets and `fusion.data.drop`; a patient who is not in the table has empty values."""
    c = data.columns
    left_out = {c.label, c.time, c.event, c.hospital, *data.drop}
    if clinical.path and (unknown := [name for name in data.drop if name not in clinical.table]):
        columns = ", ".join(clinical.table)
        raise InputError(f"fusion.data.drop: {clinical.path} has no column {', '.join(unknown)}; its columns: {columns}")
    return clinical.table.drop(columns=[name for name in clinical.table if name in left_out]).reindex(list(patients)).fillna("")


def read_tables(
    raw: Path, patients: Mapping[str, Files], tables: Mapping[str, pd.DataFrame], params: Fusion
) -> tuple[Tables, list[str]]:
    """The usable patients' tables, and a problem for each other patient."""
    problems: list[str] = []
    try:
        return _read_tables(raw, patients, tables, params, problems), problems
    except InputError as error:
        if problems:  # of single patients, which may be why the table as a whole is no good
            raise InputProblemsError(str(raw), [*problems, *sentences(error)]) from None
        raise


def _read_tables(
    raw: Path, patients: Mapping[str, Files], tables: Mapping[str, pd.DataFrame], params: Fusion, problems: list[str]
) -> Tables:
    data = params.data
    clinical = read_table(raw, data.tables, data.columns)
    check_join(clinical, list(patients))
    target, more = targets(clinical, list(patients), Preparation.of(params), unlabelled=data.unlabelled == "keep")
    problems += more
    features = clinical_features(clinical, list(patients), data)
    elsewhere = _external(clinical, list(patients), data)
    labelled = (target["label"] != "") if "label" in target else (target["time"] > 0) & target["event"].isin([0, 1])
    waiting = without_target(clinical, list(patients), Preparation.of(params)) & (data.unlabelled == "keep")
    usable = labelled | (waiting & ~elsewhere)
    if count := int((waiting & ~elsewhere).sum()):
        print(f"note: {count} patients have no outcome yet; imputation alone learns from them (unlabelled=refuse lists them)")
    known = (features != "").any(axis=1) if len(features.columns) else pd.Series(False, index=features.index)
    empty = [p for p in patients if not (patients[p] or known[p] or any(p in t.index for t in tables.values()))]
    problems += [
        f"patient {p}: no modality (no image that matches fusion.data.names and fusion.data.modalities, no row in the tables of "
        "fusion.data.vectors, no clinical value)"
        for p in empty
    ]
    if left_out := int((elsewhere & waiting).sum()):
        print(f"note: {left_out} patients of {', '.join(data.external)} (fusion.data.external) have no outcome yet; not used")
    if count := int((elsewhere & ~waiting).sum()):
        print(f"note: {count} patients of {', '.join(data.external)} (fusion.data.external) are only tested")
    kept = [p for p in patients if usable[p] and p not in empty]
    table = target.loc[kept].reset_index()
    table.insert(1, "subject", subjects_of(kept, data))
    with_target, external = labelled[kept].to_numpy(), elsewhere[kept].to_numpy()
    table.insert(2, "split", UNLABELLED)
    table.loc[external, "split"] = EXTERNAL
    with_target = with_target & ~external
    if data.task == "classification":
        _reject_equal_numbers(table.loc[with_target, "label"], f"{clinical.path}: column {data.columns.label!r}")
        classes = table.loc[with_target, "label"]
        reject_spellings(classes, f"{clinical.path}: column {data.columns.label!r}")
        if codes := sorted(set(classes) & {str(code) for code in CODES if code < 0}):
            raise InputError(f"{clinical.path}: {data.columns.label} is {codes[0]}: a code for missing? Leave the cells empty")
        print("note: classes: " + ", ".join(f"{name} ({count})" for name, count in sorted(classes.value_counts().items())))
    table.loc[with_target, "split"] = _split(table[with_target], data)
    _check_parts(table)
    table = _without_tested_people(table, data)
    kept, with_target = table["patient"].tolist(), ~table["split"].isin([UNLABELLED, EXTERNAL]).to_numpy()
    if data.task == "classification":
        external = (table["split"] == EXTERNAL).to_numpy()
        if unknown := sorted(set(table.loc[external, "label"]) - set(table.loc[with_target, "label"])):
            raise InputError(f"{clinical.path}: {unknown[0]!r} occurs only in fusion.data.external; no run can learn it")
    if data.task == "survival" and params.training.survival_loss == "mse" and (censored := int((table["event"] == 0).sum())):
        raise InputError(
            f"fusion.training.survival_loss=mse treats times as known, but {censored} patients are censored; "
            "use survival_loss: cox"
        )
    train = table.loc[table["split"] == "train", "patient"]
    if untrained := [m for m in data.modalities if not any(m in patients[p] for p in train)]:
        raise InputError(
            f"no training patient has {untrained[0]}; remove it from fusion.data.modalities, or correct fusion.data.names"
        )
    if unusable := _unusable_columns(features, target.loc[kept][with_target], list(train), data):
        raise InputProblemsError(str(clinical.path), unusable)
    encoder = Encoder.fit(features.loc[train])
    clinical_values, has_clinical, notes = encoder(features.loc[kept])
    for note in [*_identifiers(features.loc[kept]), *notes]:
        print(f"note: {note}")
    vector_encoders = {name: VectorEncoder.fit(t[t.index.isin(train)], data.components) for name, t in tables.items()}
    vectors, has = encode(tables, vector_encoders, kept)
    names, flags = [*tables, CLINICAL], np.column_stack([has, has_clinical]).astype(int)
    table = table.assign(**{f"has/{name}": flags[:, k] for k, name in enumerate(names)})
    return Tables(table, [*vectors, clinical_values], encoder, vector_encoders)


def _reject_equal_numbers(labels: pd.Series, where: str) -> None:
    """Raise InputError for labels such as 1 and 1.0."""
    numbers = pd.to_numeric(pd.Series(sorted(labels.unique())), errors="coerce")
    if len(twice := numbers[numbers.notna() & numbers.duplicated(keep=False)]):
        first, second = [sorted(labels.unique())[k] for k in twice.index[:2]]
        raise InputError(f"{where}: {first!r} and {second!r} are one number; use one of them")


def _unusable_columns(features: pd.DataFrame, target: pd.DataFrame, train: list[str], data: FusionData) -> list[str]:
    """A sentence for each clinical column that reveals the answer, or is neither numbers nor a few categories."""
    found = []
    for name in features:
        column = features[[name]]
        if wrong := _wrong_values(features[name]):
            found.append(f"clinical column {name!r}: {wrong}")
            continue
        try:
            if "label" in target:
                reject_leaks(column.loc[target.index], target["label"], data.columns.label)
            else:
                reject_leaks(column.loc[target.index], target["event"], data.columns.time, target["time"])
            Encoder.fit(column.loc[train])
        except InputError as error:
            found.append(str(error))
    return found


def _wrong_values(column: pd.Series) -> str:
    """What is wrong with the values of a column (index patient, text), and the remedy: numbers that are infinite or a code for a
    missing value, and numbers or dates that are written as text; empty if nothing is."""
    texts = column[column != ""]
    numbers = pd.to_numeric(texts, errors="coerce")
    if len(infinite := numbers.index[np.abs(numbers) > LARGEST]):
        return f"patient {infinite[0]} has {texts[infinite[0]]!r}; correct it, or leave it empty"
    others = numbers[~numbers.isin(CODES)].dropna()
    width = others.max() - others.min() if len(others) else 0.0
    for code in numbers[numbers.isin(CODES)].unique():
        if width and not others.min() - width <= code <= others.max() + width:
            return f"{code:g} is far from the others ({others.min():g} to {others.max():g}): a code for missing? Leave it empty"
    negative = numbers[numbers < 0].unique()
    if len(negative) == 1 and negative[0] in NEGATIVE_CODES and (numbers >= 0).sum() >= MIN_OTHERS:
        return f"{negative[0]:g} is the only negative value: a code for missing? Leave it empty"
    if len(texts) and numbers.isna().all() and texts.map(lambda text: bool(QUANTITY.fullmatch(text))).all():
        return f"{texts.iloc[0]!r} is a number or a date written as text; write plain numbers"
    if len(texts) and numbers.isna().any() and texts[numbers.isna()].map(lambda text: bool(DECIMAL_COMMA.fullmatch(text))).all():
        return f"{texts[numbers.isna()].iloc[0]!r} has a decimal comma; write a point, or separate the columns with semicolons"
    return ""


def _identifiers(features: pd.DataFrame) -> Iterator[str]:
    """A question for each column of different long numbers of one length."""
    for name in features:
        values = features[name][features[name] != ""]
        long = values.str.fullmatch(r"\d{6,}").all() and values.str.len().nunique() == 1
        if long and len(values) >= MIN_IDENTIFIERS and values.is_unique:
            yield f"is clinical column {name!r} an identifier or a date? Then leave it out with fusion.data.drop=[{name}]"


def _external(clinical: Clinical, patients: Sequence[str], data: FusionData) -> pd.Series:
    """Which of `patients` (the index) are of a hospital whose patients are only tested."""
    column = data.columns.hospital
    hospital = clinical.table.get(column, pd.Series(dtype=str))
    if column not in clinical.table and (meant := spelled_alike(column, list(clinical.table))):
        raise InputError(f"{clinical.path}: is the column {meant!r} the hospital? Call it {column!r}, or set fusion.data.columns")
    reject_spellings(hospital, f"{clinical.path}: column {column!r}")
    known = ", ".join(sorted(set(hospital) - {""}))
    if known and (absent := [name for name in data.external if name not in set(hospital)]):
        print(f"note: no patient is of {', '.join(absent)} (fusion.data.external); the column {column!r} has {known}")
    return hospital.reindex(list(patients)).isin(data.external)


def _split(table: pd.DataFrame, data: FusionData) -> list[str]:
    names = list(table["patient"])
    people = subjects_of(names, data)
    if data.split != "stratified":
        parts = splits.read_split(Path(data.split), names, column="patient")
        splits.reject_leaks(
            parts, people, names, remedy="move one person's visits to one part, or set fusion.data.subject_pattern"
        )
        return parts
    strata = [str(s) for s in (table["label"] if "label" in table else table["event"].map({0: "censored", 1: "event"}))]
    for stratum in sorted(set(strata)):
        if (count := strata.count(stratum)) < MIN_PER_CLASS:
            raise InputError(f"{stratum!r}: {count} patient(s) with a target; a split into three parts needs {MIN_PER_CLASS}")
    if data.task == "classification" and len(set(strata)) < 2:
        raise InputError(
            f"every patient is {strata[0]!r}: a classification needs two classes (fusion.data.columns.label)"
            if strata
            else "no patient has a target"
        )
    stratum_of = dict(zip(reversed(people), reversed(strata), strict=True))  # of a person's first visit
    of_people = list(stratum_of)
    test = splits.held_out_groups(of_people, [stratum_of[p] for p in of_people], data.test, seed=[data.split_seed, 0])
    rest = [p for p in of_people if p not in test]
    share = data.validation / (1 - data.test)
    valid = splits.held_out_groups(rest, [stratum_of[p] for p in rest], share, seed=[data.split_seed, 1])
    return ["test" if p in test else "valid" if p in valid else "train" for p in people]


def subjects_of(names: Sequence[str], data: FusionData) -> list[str]:
    """The person of each patient's folder: several visits of one person have folders of their own."""
    pattern = re.compile(data.subject_pattern)
    return [subject_of(name, pattern) for name in names]


def _without_tested_people(table: pd.DataFrame, data: FusionData) -> pd.DataFrame:
    """The table without visits that have no outcome, but are of a person with another visit in validation or test: imputation
    learns from such visits. Raises InputProblemsError if a person is in another hospital too."""
    people = pd.Series(subjects_of(list(table["patient"]), data), index=table.index)
    known = table["split"] != UNLABELLED
    remedy = "name other people differently, or set fusion.data.subject_pattern"
    splits.reject_leaks(table["split"][known].tolist(), people[known].tolist(), table["patient"][known].tolist(), remedy=remedy)
    tested = set(people[table["split"].isin(["valid", "test", EXTERNAL])])
    left_out = ~known & people.isin(tested)
    if left_out.any():
        print(f"note: {int(left_out.sum())} visits without an outcome are of people in validation or test; not used")
    return table[~left_out].reset_index(drop=True)


def _check_parts(table: pd.DataFrame) -> None:
    """Raise InputError if a part lacks a class, or has no two patients of whom one is known to have had the event first: nothing
    could be learnt from it, or scored on it."""
    parts = table[table["split"].isin(splits.PARTS)]
    for part in splits.PARTS:
        own = parts[parts["split"] == part]
        if "label" in own:
            if absent := sorted(set(parts["label"]) - set(own["label"])):
                raise InputError(f"the {part} part has {len(own)} patient(s), none of them {absent[0]!r}; move some into it")
        elif not (own["time"][own["event"] == 1] < own["time"].max()).any():
            raise InputError(
                f"the {part} part has {len(own)} patient(s), and no event before the longest time; move patients into it"
            )
