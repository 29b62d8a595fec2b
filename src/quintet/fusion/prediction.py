"""What runs say of a user's folder: `quintet predict fusion` and `quintet evaluate fusion`."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_file, atomic_folder
from quintet.fusion.data import Cubes, read_new
from quintet.fusion.inference import Model, Values, load_models
from quintet.params import Fusion
from quintet.params.fusion import ADAPTS, CLINICAL
from quintet.runs import Record


def predict_folder(
    runs: Sequence[Path], source: Path, output: Path, *, overlays: Path | None, device: str, skip: bool, ttt: bool = False
) -> int:
    """Predict every patient of a folder into a CSV: patient, modalities used, probability of each class (or risk), spread over
    draws; returns their number. `overlays`: a picture of each patient's cubes."""
    models, problems = load_models(runs, device), list[str]()
    if ttt and (plain := [str(run) for run, model in zip(runs, models, strict=True) if not model.adapts]):
        raise InputError(f"--ttt: {', '.join(plain)} has no losses to adapt by; give a run of {' or '.join(ADAPTS)}")
    how = preparation(models[0])
    rows = []
    with atomic_folder(overlays) if overlays else nullcontext() as pictures:
        for name, cubes, features, present in read_new(source, how, models[0].encoder, problems):
            row: dict[str, Any] = {"patient": name, "modalities": "+".join(np.array([*how.modalities, CLINICAL])[present])}
            found = [_one(model, name, cubes, features, present, ttt=ttt) for model in models]
            values = np.mean([one[0] for one in found], 0)
            row |= (
                {f"probability_{c}": values[k] for k, c in enumerate(models[0].classes)}
                if models[0].classes
                else {"risk": values[0]}
            )
            rows.append(
                row
                | {"spread": float(np.mean([one[1] for one in found]))}
                | ({"adapted": all(one[2] for one in found)} if ttt else {})
            )
            if pictures:
                from quintet.fusion.figures import montage

                montage(pictures / f"{name}.png", [(name, cubes, present)], how.modalities)
        if problems and (not skip or not rows):
            raise InputProblemsError(f"{source} (--skip leaves them out)", problems)
    with atomic_file(output) as beside:
        pd.DataFrame(rows).to_csv(beside, index=False)
    for problem in problems:
        print(f"skipped: {problem}")
    return len(rows)


def _one(
    model: Model, name: str, cubes: Cubes, features: NDArray[np.float32], present: NDArray[np.bool_], *, ttt: bool
) -> tuple[Values, float, bool]:
    patient = model.encode([name], cubes[None], features[None], present[None])
    if ttt:
        values, spread, adapted = model.adapted(patient, patient.present)
        return values[0], float(spread[0]), bool(adapted[0])
    values, spread = model(patient, patient.present)
    return values[0], float(spread[0]), False


def preparation(model: Model) -> Fusion:
    """The parameters that a model's patients were prepared with; the rest is of no consequence here and left as it comes."""
    from quintet.params.fusion import FusionColumns

    how = model.prepared
    return Fusion.model_construct(**(how | {"columns": FusionColumns(**how["columns"])}))


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, *, device: str, params: Fusion) -> dict[str, float]:
    """Measure the mean prediction of runs on every labelled patient of a folder, from everything that each has; writes `out` and
    returns the metrics. Patients that a run was trained on flatter it."""
    from quintet.fusion.evaluation import RECORDED, evaluate, predictions
    from quintet.fusion.raw import find_patients, read_table, targets

    models = load_models(runs, device)
    how = preparation(models[0]).model_copy(update={"columns": params.columns})
    patients, problems = find_patients(raw, how.names, how.modalities)
    target, missing = targets(read_table(raw, how.tables, how.columns), list(patients), how)
    if missing:
        raise InputProblemsError(str(raw), problems + missing)
    names, used, values, spread = [], [], [], []
    for name, cubes, features, present in read_new(raw, how, models[0].encoder, problems):
        found = [_one(model, name, cubes, features, present, ttt=False) for model in models]
        names.append(name)
        used.append("+".join(np.array([*how.modalities, CLINICAL])[present]))
        values.append(np.mean([one[0] for one in found], 0))
        spread.append(np.mean([one[1] for one in found]))
    if problems:
        raise InputProblemsError(str(raw), problems)
    own, classes = target.loc[names], models[0].classes
    if classes:
        if unknown := sorted(set(own["label"]) - set(classes)):
            raise InputError(f"{raw}: the label {unknown[0]!r} is none of the run's classes ({', '.join(classes)})")
        known = np.stack([[classes.index(label) for label in own["label"]], np.ones(len(own))], 1)
    else:
        known = own[["time", "event"]].to_numpy(float)
    record = Record.load(runs[0])
    table = predictions(record.config, RECORDED, np.array(names), used, np.stack(values), known, classes, spread=np.array(spread))
    return evaluate({record.config: table}, classes, record=record, out=out)
