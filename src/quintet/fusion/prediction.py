"""Trained runs applied to a user's folder: `quintet predict fusion` and `quintet evaluate fusion`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError, InputProblemsError
from quintet.fusion.data.cubes import Cubes
from quintet.fusion.data.prepare import find_new_patients, read_new
from quintet.fusion.data.raw import read_table, targets, without_target
from quintet.fusion.data.tabular import subjects_of
from quintet.fusion.evaluation.figures import montage
from quintet.fusion.evaluation.inference import Model, Values, load_models
from quintet.fusion.evaluation.patterns import RECORDED
from quintet.fusion.evaluation.scores import evaluate, predictions
from quintet.params import Fusion
from quintet.params.fusion import ADAPTS
from quintet.runs import load_joint

Vectors = Sequence[NDArray[np.float32]]


def predict_folder(
    models: Sequence[Model],
    source: Path,
    out: Path,
    problems: list[str],
    *,
    overlays: Path | None,
    ttt: bool = False,
    listed: Sequence[str] = (),
) -> int:
    """Predict every patient of a folder with the mean of the models; returns the number of patients. `listed`: further patients,
    who may have a row in the tables alone.

    `out` gets one row per patient: modalities used, probability of each class (or risk), spread over samples, and with `ttt`
    whether the weights were adapted. `overlays`: a folder for one picture of each patient's cubes. Adds a sentence to `problems`
    for each image or patient that cannot be read.
    """
    if ttt and (methods := {model.net.method for model in models if not model.adapts}):
        raise InputError(
            f"--ttt: {', '.join(sorted(methods))} has no losses for test-time training; give runs of {' or '.join(ADAPTS)}"
        )
    first = models[0]
    rows = []
    for name, cubes, vectors, present in read_new(
        source, first.preparation, first.encoder, first.vector_encoders, problems, listed=listed
    ):
        values, spread, adapted = _predict(models, name, cubes, vectors, present, ttt=ttt)
        row: dict[str, Any] = {"patient": name, "modalities": _used(first, present)}
        columns = [f"probability_{label}" for label in first.classes] or ["risk"]
        row |= dict(zip(columns, values, strict=True))
        rows.append(row | {"spread": spread} | ({"adapted": adapted} if ttt else {}))
        if overlays and first.preparation.cubes:
            montage(overlays / f"{name}.png", [(name, cubes, present)], first.preparation)
    pd.DataFrame(rows).to_csv(out, index=False)
    return len(rows)


def _predict(
    models: Sequence[Model], name: str, cubes: Cubes, vectors: Vectors, present: NDArray[np.bool_], *, ttt: bool
) -> tuple[Values, float, bool]:
    """One patient: mean prediction `[outputs]` of the models, mean spread, and whether every model was adapted."""
    found = []
    for model in models:
        patient = model.encode([name], cubes[None], [v[None] for v in vectors], present[None])
        if ttt:
            values, spread, adapted = model.adapted(patient, patient.present)
            found.append((values[0], float(spread[0]), bool(adapted[0])))
        else:
            values, spread = model(patient, patient.present)
            found.append((values[0], float(spread[0]), False))
    each_values, each_spread, each_adapted = zip(*found, strict=True)
    return np.mean(each_values, 0), float(np.mean(each_spread)), all(each_adapted)


def _used(model: Model, present: NDArray[np.bool_]) -> str:
    return "+".join(np.array(model.modalities)[present])


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, params: Fusion, device: str) -> dict[str, float]:
    """Score the mean prediction of the runs on every labelled patient of a raw folder, from all modalities of each, into the
    folder `out`."""
    models = load_models(runs, device)
    first, classes = models[0], models[0].classes
    preparation = first.preparation.model_copy(update={"columns": params.data.columns})
    patients, _, problems = find_new_patients(raw, preparation)
    clinical = read_table(raw, preparation.tables, preparation.columns)
    keep = params.data.unlabelled == "keep"
    target, unlabelled = targets(clinical, list(patients), preparation, unlabelled=keep)
    waiting = without_target(clinical, list(patients), preparation) & keep
    if waiting.any():
        print(f"note: patients without an outcome yet, not scored: {waiting.sum()} (fusion.data.unlabelled=refuse lists them)")
    scored = target[~waiting]
    if scored.empty:
        raise InputError(f"{clinical.path}: no patient of {raw} has an outcome there yet; fill in those of the patients to score")
    if "label" in scored and not unlabelled and scored["label"].nunique() < 2:
        raise InputError(f"{raw}: every patient is {scored['label'].iloc[0]!r}; scores need patients of two classes")
    problems.clear()  # reading the folder again finds the same ones
    names, used, values, spread = [], [], [], []
    for name, cubes, vectors, present in read_new(raw, preparation, first.encoder, first.vector_encoders, problems):
        if waiting[name]:
            continue
        prediction, own_spread, _ = _predict(models, name, cubes, vectors, present, ttt=False)
        names.append(name)
        used.append(_used(first, present))
        values.append(prediction)
        spread.append(own_spread)
    if problems or unlabelled:
        raise InputProblemsError(str(raw), problems + unlabelled)
    target = target.loc[names]
    if classes:
        if unknown := sorted(set(target["label"]) - set(classes)):
            raise InputError(f"{raw}: the label {unknown[0]!r} is not one of the run's classes ({', '.join(classes)})")
        known = np.stack([[classes.index(label) for label in target["label"]], np.ones(len(target))], 1)
    else:
        known = target[["time", "event"]].to_numpy(float)
    record = load_joint(runs)
    people = subjects_of(names, params.data)
    table = predictions(
        record.config, RECORDED, np.array(names), used, np.stack(values), known, classes, subjects=people, spread=np.array(spread)
    )
    return evaluate({record.config: table}, classes, record=record, out=out)
