"""Apply trained runs to a user's folder: `quintet predict landmarks` and `quintet evaluate landmarks`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError, InputProblemsError
from quintet.figures import new_figure, save_figure
from quintet.imaging.folders import files_below, print_passed_over, with_suffix
from quintet.imaging.pictures import DICOM, PICTURES, read_grey
from quintet.landmarks.data.anatomy import LANDMARKS, PIXELS, to_fractions, to_pixels
from quintet.landmarks.data.plausibility import inverted
from quintet.landmarks.data.prepare import preprocess, read_annotations, read_images
from quintet.landmarks.data.prepared import Prepared
from quintet.landmarks.evaluation.figures import overlay
from quintet.landmarks.evaluation.inference import BATCH, Model
from quintet.landmarks.evaluation.scores import evaluate, write_predictions
from quintet.runs import load_joint


def predict_folder(
    models: Sequence[Model], source: Path, outputs: Sequence[Path], problems: list[str], *, overlays: Path | None
) -> int:
    """Average the models' predictions for every PNG, JPEG and DICOM file below `source`; returns the number of images.

    `outputs`: a CSV with the annotation file's columns (row, x1, y1, ..., stem) in original pixels, and one with the expected
    error of each landmark. Adds a sentence to `problems` for each unreadable file.
    """
    files = _pictures(Path(source))
    points, expected, sizes, read = [], [], [], []
    for start in range(0, len(files), BATCH):  # in batches, to bound memory
        originals = []
        for path in files[start : start + BATCH]:
            try:
                originals.append(read_grey(path))
                read.append(path)
            except InputError as error:
                problems.append(str(error))
        if originals:
            batch_points, batch_expected = _ensemble(models, originals)
            batch_sizes = [(image.shape[1], image.shape[0]) for image in originals]
            points_px = to_pixels(batch_points, np.array(batch_sizes))
            for path, image, found in zip(read[-len(originals) :], originals, points_px, strict=True):
                if doubt := inverted(found, image):
                    print(f"warning: {path}: {doubt}")
            points.append(batch_points)
            expected.append(batch_expected)
            sizes += batch_sizes
    if read:
        stems = _unique_stems(read, Path(source))
        cases = pd.DataFrame({"stem": stems}).assign(width=[w for w, _ in sizes], height=[h for _, h in sizes])
        write_predictions(outputs[0], cases, np.concatenate(points))
        names = [f"expected_error_px_{k:02d}" for k in range(LANDMARKS)]
        table = pd.DataFrame(np.concatenate(expected).round(2), columns=names).assign(stem=stems)
        table.to_csv(outputs[1], index=False)
        if overlays:
            _write_overlays(overlays, read, stems, np.concatenate(points))
    return len(read)


def _pictures(source: Path) -> list[Path]:
    """Every picture and DICOM file below a folder; prints how many other files there are."""
    found, others = with_suffix(files_below(source), (*PICTURES, *DICOM))
    print_passed_over(others, source, ", ".join((*PICTURES, *DICOM)))
    if not found:
        raise InputError(f"{source}: no {', '.join((*PICTURES, *DICOM))} file below it")
    return found


def _ensemble(models: Sequence[Model], originals: list[NDArray[np.float32]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the models: points `[N, 15, 2]` and expected errors `[N, 15]` (pixels at 224). The error of the mean is usually
    smaller than the mean of the models' errors, which is all that their own calibrations can say."""
    points, expected = [], []
    for model in models:
        small = np.stack([preprocess(image, size=model.build["size"], clahe=model.build["clahe"]) for image in originals])
        sizes = np.array([(image.shape[1], image.shape[0]) for image in originals])
        predicted = model(small, sizes)
        points.append(predicted.points)
        expected.append(model.calibration(predicted.uncertainty))
    return np.mean(points, axis=0), np.mean(expected, axis=0)


def _unique_stems(files: list[Path], source: Path) -> list[str]:
    """The stem of each file, or its path below `source` if several files share a stem."""
    stems = [path.stem for path in files]
    counts = Counter(stems)
    return [s if counts[s] == 1 else str(p.relative_to(source)) for s, p in zip(stems, files, strict=True)]


def _write_overlays(folder: Path, files: list[Path], stems: list[str], points: NDArray[np.float64]) -> None:
    names = [stem.replace("/", "_")[:200] for stem in stems]
    counts = Counter(names)
    for number, (path, stem, name, landmarks) in enumerate(zip(files, stems, names, points, strict=True), 1):
        figure, axes = new_figure(5, 5)
        overlay(axes, (read_grey(path) * 255).astype(np.uint8), landmarks)
        axes.set_title(stem, fontsize=8, parse_math=False)
        save_figure(figure, folder / (f"{name}.png" if counts[name] == 1 else f"{number:04d}_{name}.png"))


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, device: str) -> dict[str, float]:
    """Score the runs' mean prediction on every image of a labelled raw folder; writes into `out`, returns metrics."""
    rows, problems = read_annotations(raw)
    originals, further, implausible = read_images(rows, lambda _, grey: grey)
    if problems := problems + further + implausible:
        raise InputProblemsError(str(raw), problems)
    points, expected = _ensemble([Model.load(run, device) for run in runs], originals)
    size = np.array([(image.shape[1], image.shape[0]) for image in originals])
    cases = pd.DataFrame({"stem": [r.stem for r in rows], "category": [r.category for r in rows]}).assign(
        width=size[:, 0], height=size[:, 1]
    )
    cases["group"] = cases["stem"]
    true = to_fractions(np.stack([row.points_px for row in rows]), size)
    images = np.stack([preprocess(image, size=PIXELS, clahe=0) for image in originals])
    return evaluate(Prepared(images, true, cases), np.arange(len(rows)), points, expected, record=load_joint(runs), out=out)
