"""What runs say of a user's folder: `quintet predict breakhis` and `quintet evaluate breakhis`."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quintet.breakhis.data import read_images
from quintet.breakhis.evaluation import evaluate
from quintet.breakhis.inference import Images, load_models
from quintet.breakhis.metrics import Predicted, mean_of
from quintet.breakhis.sampling import Patients
from quintet.breakhis.tree import CLASSES, MAGNIFICATIONS, TYPES, picture_files, read_tree
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_file, atomic_folder
from quintet.params import BreakHis
from quintet.runs import Record


def find_patients(source: Path) -> dict[str, dict[str, list[Path]]]:
    """Folders that hold 40X, 100X, 200X or 400X, below `source` or `source` itself: name -> magnification -> files."""
    source = Path(source)
    if not source.is_dir():
        raise InputError(
            f"{source}: no such folder; give a patient's folder with {', '.join(MAGNIFICATIONS)} in it, or one above"
        )
    found: dict[Path, dict[str, list[Path]]] = defaultdict(dict)
    for path in picture_files(source):
        if (name := path.parent.absolute().name) in MAGNIFICATIONS:
            found[path.absolute().parent.parent].setdefault(name, []).append(path)
    if not found:
        raise InputError(f"{source}: no picture below it in a folder named {', '.join(MAGNIFICATIONS)}")
    names = [folder.name for folder in found]
    return {
        folder.name if names.count(folder.name) == 1 else str(folder.relative_to(source.absolute())): own
        for folder, own in sorted(found.items())
    }


def predict_folder(runs: Sequence[Path], source: Path, output: Path, *, overlays: Path | None, device: str, skip: bool) -> int:
    """Predict every patient below `source` with the mean of the given runs; returns the number of patients.

    `output` (CSV): patient, probability of malignant, class at the locked threshold, the probability of each type, magnifications
    used, their learned importance where the network has one. `overlays`: a Grad-CAM page per patient. Unreadable images are all
    listed at once.
    """
    from quintet.breakhis.cam import draw_cam

    models = load_models(runs, device)
    threshold = float(np.mean([model.threshold for model in models]))
    order, rows, problems, predicted = models[0].magnifications, [], [], 0
    with ExitStack() as opened:
        beside = opened.enter_context(atomic_file(Path(output)))
        pages = opened.enter_context(atomic_folder(overlays)) if overlays else None
        for name, files in find_patients(source).items():
            images, errors = _read_patient([files.get(m, []) for m in order], [model.size for model in models])
            problems += errors
            if not any(len(own) for own in images[0]):
                problems += [] if errors else [f"{name}: no image at {', '.join(order)}, which the run was trained on"]
                continue
            patient = Patients([name], [[np.arange(len(own)) for own in images[0]]])
            found = mean_of([model(own, patient) for model, own in zip(models, images, strict=True)])
            rows.append(_row(found, threshold, [m for m, own in zip(order, images[0], strict=True) if len(own)]))
            predicted += 1
            if pages:
                draw_cam(pages / f"{len(rows):04d}_{name.replace('/', '_')[:100]}.png", models[0], images[0], rows[-1])
        if problems and (not skip or not rows):
            raise InputProblemsError(f"{source} (--skip leaves them out)", problems)
        pd.DataFrame(rows).to_csv(beside, index=False)
    for problem in problems:
        print(f"skipped: {problem}")
    return predicted


def _read_patient(files: list[list[Path]], sizes: list[int]) -> tuple[list[Images], list[str]]:
    """Images of each magnification at each model's size, and what could not be read."""
    problems: list[str] = []
    read: dict[int, Images] = {}
    for size in sorted(set(sizes)):
        errors, images = [], []
        for paths in files:
            got = read_images(paths, size)
            errors += [str(g) for g in got if isinstance(g, InputError)]
            kept = [g[0] for g in got if not isinstance(g, InputError)]
            images.append(np.stack(kept) if kept else np.empty((0, size, size, 3), np.uint8))
        problems, read[size] = errors, images
    return [read[size] for size in sizes], problems


def _row(found: Predicted, threshold: float, used: list[str]) -> dict[str, Any]:
    p = float(found.whole[0])
    row = {
        "patient": found.patients[0],
        "probability_malignant": round(p, 4),
        "class": CLASSES[int(p >= threshold)],
        "threshold": round(threshold, 4),
    }
    row |= {f"type_{name}": round(float(v), 4) for name, v in zip(TYPES, found.types[0], strict=True)}
    row["magnifications"] = "+".join(used)
    row |= {f"images_{m}": int((found.images["magnification"] == m).sum()) for m in found.magnifications}
    if found.importance is not None:
        row |= {f"importance_{m}": round(float(v), 4) for m, v in zip(found.magnifications, found.importance[0], strict=True)}
    return row


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, *, device: str, params: BreakHis) -> dict[str, float]:
    """Measure the mean prediction of the runs on every patient of a labelled raw tree; writes `out` and returns the metrics.

    Patients that a run was trained on flatter it: give it a folder it has not seen.
    """
    models = load_models(runs, device)
    found, problems = read_tree(raw)
    if problems:
        raise InputProblemsError(str(raw), problems)
    order = models[0].magnifications
    seen: list[Predicted] = []
    names = sorted({image.patient for image in found if image.magnification in order})
    if not names:
        raise InputError(f"{raw}: no image at {', '.join(order)}, which the run was trained on")
    own = {name: [image for image in found if image.patient == name] for name in names}
    for name in names:  # one patient in memory at a time
        files = [[image.path for image in own[name] if image.magnification == m] for m in order]
        images, errors = _read_patient(files, [model.size for model in models])
        if errors:
            raise InputProblemsError(str(raw), errors)
        patient = Patients([name], [[np.arange(len(i)) for i in images[0]]])
        seen.append(mean_of([model(i, patient) for model, i in zip(models, images, strict=True)]))
    joined = Predicted(
        names,
        order,
        {s: np.concatenate([p.probability[s] for p in seen]) for s in seen[0].probability},
        np.concatenate([p.types for p in seen]),
        pd.concat([p.images for p in seen], ignore_index=True),
    )
    labels = np.array([CLASSES.index(own[name][0].tumour_class) for name in names])
    types = np.array([[np.mean([i.tumour_type == t for i in own[name]]) for t in TYPES] for name in names])
    threshold = float(np.mean([model.threshold for model in models]))
    return evaluate(joined, labels, types, threshold=threshold, record=Record.load(runs[0]), out=out)
