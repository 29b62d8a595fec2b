"""Trained runs applied to a user's folder: `quintet predict breakhis` and `quintet evaluate breakhis`."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quintet.breakhis.data.classes import CLASSES, MAGNIFICATIONS, TYPES
from quintet.breakhis.data.prepare import read_images
from quintet.breakhis.data.sampling import PatientRows
from quintet.breakhis.data.tree import parse_name, read_tree
from quintet.breakhis.evaluation.cam import plot_patient_cam
from quintet.breakhis.evaluation.inference import Images, Model, load_models
from quintet.breakhis.evaluation.metrics import Predicted, mean_prediction
from quintet.breakhis.evaluation.scores import evaluate
from quintet.errors import InputError, InputProblemsError
from quintet.imaging.folders import files_below, print_passed_over, with_suffix
from quintet.imaging.pictures import PICTURES
from quintet.runs import load_joint

FACTOR = re.compile(r"(40|100|200|400)[xX]?")  # a folder's name


def find_patients(source: Path) -> dict[str, dict[str, list[Path]]]:
    """Patient -> magnification -> files: the folders at or below `source` that contain 40X, 100X, 200X or 400X (also 40x or 40).
    Where the names of a folder's pictures are those of several patients, as in the folds of the data set's own script, each of
    them is a patient. Prints how many pictures were passed over."""
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give a folder that contains {', '.join(MAGNIFICATIONS)}, or one above it")
    folders: dict[Path, dict[str, list[Path]]] = defaultdict(dict)
    pictures, others = with_suffix(files_below(source), PICTURES)
    for path in pictures:
        if factor := FACTOR.fullmatch(path.parent.absolute().name):
            folders[path.absolute().parent.parent].setdefault(f"{factor[1]}X", []).append(path)
        else:
            others.append(path)
    print_passed_over(others, source, f"{', '.join(PICTURES)} in folders named {', '.join(MAGNIFICATIONS)}")
    if not folders:
        raise InputError(f"{source}: no picture below it in a folder named {', '.join(MAGNIFICATIONS)}")
    found: list[tuple[str, Path, dict[str, list[Path]]]] = []
    for folder, files in sorted(folders.items()):
        owners = sorted({_owner(path) for paths in files.values() for path in paths})
        if len(owners) == 1:  # the names of pictures know the patient better than a folder called train or test
            found.append((folder.name if owners[0] in folder.name else owners[0], folder, files))
            continue
        if "" in owners:
            foreign = next(path.name for paths in files.values() for path in paths if not _owner(path))
            some = ", ".join(filter(None, owners[:3]))
            remedy = "rename it if it is a copy, or make one folder per patient"
            raise InputError(f"{folder}: pictures of {some} beside others, such as {foreign}; {remedy}")
        for owner in owners:
            own = {m: [path for path in paths if _owner(path) == owner] for m, paths in files.items()}
            found.append((owner, folder / owner, {m: paths for m, paths in own.items() if paths}))
    names = [name for name, _, _ in found]
    where = source.absolute()
    return {n if names.count(n) == 1 else str(place.relative_to(where)): files for n, place, files in found}


def _owner(path: Path) -> str:
    """The patient in a picture's name; empty if it is not a name of the data set."""
    parts = parse_name(path.stem)
    return parts[1] if parts else ""


def predict_folder(models: Sequence[Model], source: Path, out: Path, problems: list[str], *, overlays: Path | None) -> int:
    """Predict every patient below `source` with the mean of the models; returns the number of patients.

    `out` (CSV) has one row per patient: probability of malignant, class at the threshold, probability of each type, the
    magnifications used, and their importance if the network learns one. `overlays` gets one Grad-CAM picture per patient. Adds a
    sentence to `problems` for each unreadable image and for each patient without any usable image.
    """
    threshold = float(np.mean([model.threshold for model in models]))
    order, rows = models[0].magnifications, list[dict[str, Any]]()
    for name, files in find_patients(source).items():
        images, errors = _read_patient([files.get(m, []) for m in order], [model.size for model in models])
        problems += errors
        if not any(len(stack) for stack in images[0]):
            problems += [] if errors else [f"{name}: no image at {', '.join(order)}, which the run was trained on"]
            continue
        predicted = _predict_patient(models, name, images)
        rows.append(_row(predicted, threshold, [m for m, stack in zip(order, images[0], strict=True) if len(stack)]))
        if overlays:
            picture = overlays / f"{len(rows):04d}_{name.replace('/', '_')[:100]}.png"
            plot_patient_cam(picture, models[0], images[0], rows[-1])
    pd.DataFrame(rows).to_csv(out, index=False)
    return len(rows)


def _read_patient(files: list[list[Path]], sizes: list[int]) -> tuple[list[Images], list[str]]:
    """The images of each magnification at each model's size, and one sentence per unreadable file."""
    problems: list[str] = []
    images_of_size: dict[int, Images] = {}
    for size in sorted(set(sizes)):
        problems, images = [], []
        for paths in files:
            results = read_images(paths, size)
            problems += [str(result) for result in results if isinstance(result, InputError)]
            readable = [result[0] for result in results if not isinstance(result, InputError)]
            images.append(np.stack(readable) if readable else np.empty((0, size, size, 3), np.uint8))
        images_of_size[size] = images
    return [images_of_size[size] for size in sizes], problems


def _predict_patient(models: Sequence[Model], name: str, images: list[Images]) -> Predicted:
    """The mean prediction of the models, each on the images of its own size."""
    patient = PatientRows([name], [[np.arange(len(stack)) for stack in images[0]]])
    return mean_prediction([model(stacks, patient) for model, stacks in zip(models, images, strict=True)])


def _row(predicted: Predicted, threshold: float, used: list[str]) -> dict[str, Any]:
    p = float(predicted.malignant[0])
    row = {
        "patient": predicted.patients[0],
        "probability_malignant": round(p, 4),
        "class": CLASSES[int(p >= threshold)],
        "threshold": round(threshold, 4),
    }
    row |= {f"type_{name}": round(float(v), 4) for name, v in zip(TYPES, predicted.types[0], strict=True)}
    row["magnifications"] = "+".join(used)
    row |= {f"images_{m}": int((predicted.images["magnification"] == m).sum()) for m in predicted.magnifications}
    if predicted.importance is not None:
        weights = zip(predicted.magnifications, predicted.importance[0], strict=True)
        row |= {f"importance_{m}": round(float(v), 4) for m, v in weights}
    return row


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, device: str) -> dict[str, float]:
    """Score the mean prediction of the runs on every patient of a labelled raw tree, into the folder `out`."""
    models = load_models(runs, device)
    found, problems = read_tree(raw)
    if problems:
        raise InputProblemsError(str(raw), problems)
    order = models[0].magnifications
    names = sorted({image.patient for image in found if image.magnification in order})
    if not names:
        raise InputError(f"{raw}: no image at {', '.join(order)}, which the run was trained on")
    images_of = {name: [image for image in found if image.patient == name] for name in names}
    predicted: list[Predicted] = []
    for name in names:  # one patient in memory at a time
        files = [[image.path for image in images_of[name] if image.magnification == m] for m in order]
        images, errors = _read_patient(files, [model.size for model in models])
        problems += errors
        if not problems:  # after one, patients are read only to find further ones
            predicted.append(_predict_patient(models, name, images))
    if problems:
        raise InputProblemsError(str(raw), problems)
    joined = Predicted(
        names,
        order,
        {subset: np.concatenate([p.probability[subset] for p in predicted]) for subset in predicted[0].probability},
        np.concatenate([p.types for p in predicted]),
        pd.concat([p.images for p in predicted], ignore_index=True),
    )
    labels = np.array([CLASSES.index(images_of[name][0].tumour_class) for name in names])
    types = np.array([[np.mean([image.tumour_type == t for image in images_of[name]]) for t in TYPES] for name in names])
    threshold = float(np.mean([model.threshold for model in models]))
    return evaluate(joined, labels, types, threshold=threshold, record=load_joint(runs), out=out)
