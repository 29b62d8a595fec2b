"""What a run says of a user's folder: `quintet predict landmarks` and `quintet evaluate landmarks`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_file, atomic_folder
from quintet.imaging.pictures import DICOM, PICTURES, read_grey
from quintet.landmarks.anatomy import LANDMARKS, PIXELS
from quintet.landmarks.data import Prepared, preprocess, read_annotations
from quintet.landmarks.evaluation import evaluate, write_predictions
from quintet.landmarks.figures import overlay
from quintet.landmarks.inference import BATCH, Model
from quintet.params import Landmarks
from quintet.runs import Record


def predict_folder(runs: Sequence[Path], source: Path, output: Path, *, overlays: Path | None, device: str, skip: bool) -> int:
    """Predict every PNG, JPEG and DICOM below `source` with the mean of the given runs; returns the number of images.

    `output` has the annotation file's columns (row, x1, y1, ..., stem) in original pixels; beside it `<output>.uncertainty.csv`
    has the expected error of each landmark where the run was evaluated. Unreadable files are all listed at once.
    """
    files = sorted(p for p in Path(source).rglob("*") if p.is_file() and p.suffix.lower() in (*PICTURES, *DICOM))
    if not files:
        raise InputError(f"{source}: no .png, .jpg, .jpeg, .dcm or .dicom file below it")
    models = [Model.load(run, device) for run in runs]
    points, expected, sizes, read, problems = [], [], [], [], []
    for start in range(0, len(files), BATCH):  # memory stays bounded: originals are dropped after each batch
        originals = []
        for path in files[start : start + BATCH]:
            try:
                originals.append(read_grey(path))
                read.append(path)
            except InputError as error:
                problems.append(str(error))
        if originals:
            batch_points, batch_expected = _ensemble(models, originals)
            points.append(batch_points)
            expected.append(batch_expected)
            sizes += [(image.shape[1], image.shape[0]) for image in originals]
    if problems and (not skip or not read):
        raise InputProblemsError(f"{source} (--skip leaves them out)", problems)
    for problem in problems:
        print(f"skipped: {problem}")
    stems = _unique_stems(read, Path(source))
    cases = pd.DataFrame({"stem": stems}).assign(width=[w for w, _ in sizes], height=[h for _, h in sizes])
    with atomic_file(Path(output)) as beside:
        write_predictions(beside, cases, np.concatenate(points))
    names = [f"expected_error_px_{k:02d}" for k in range(LANDMARKS)]
    with atomic_file(Path(f"{output}.uncertainty.csv")) as beside:
        pd.DataFrame(np.concatenate(expected).round(2), columns=names).assign(stem=stems).to_csv(beside, index=False)
    if overlays is not None:
        _write_overlays(overlays, read, stems, np.concatenate(points))
    return len(read)


def _ensemble(models: list[Model], originals: list[NDArray[np.float32]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the models: points `[N, 15, 2]` and expected errors `[N, 15]` (pixels at 224)."""
    points, expected = [], []
    for model in models:
        small = np.stack([preprocess(image, size=model.build["size"], clahe=model.build["clahe"]) for image in originals])
        predicted = model(small)
        points.append(predicted.points)
        expected.append(model.calibration(predicted.signs))
    return np.mean(points, axis=0), np.mean(expected, axis=0)


def _unique_stems(files: list[Path], source: Path) -> list[str]:
    """The file's stem, or its path below `source` where two files share one."""
    stems = [path.stem for path in files]
    return [s if stems.count(s) == 1 else str(p.relative_to(source)) for s, p in zip(stems, files, strict=True)]


def _write_overlays(folder: Path, files: list[Path], stems: list[str], points: NDArray[np.float64]) -> None:
    from quintet.figures import new_figure, save_figure

    with atomic_folder(folder) as beside:
        for path, stem, landmarks in zip(files, stems, points, strict=True):
            figure, axes = new_figure(5, 5)
            overlay(axes, (read_grey(path) * 255).astype(np.uint8), landmarks)
            axes.set_title(stem, fontsize=8)
            save_figure(figure, beside / f"{stem.replace('/', '_')}.png")


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, *, device: str, params: Landmarks) -> dict[str, float]:
    """Measure the mean prediction of the runs on every image of a labelled raw folder; writes `out` and returns the metrics.

    Images that a run was trained on flatter it: give it a folder it has not seen.
    """
    rows, problems = read_annotations(raw)
    if problems:
        raise InputProblemsError(str(raw), problems)
    originals = [read_grey(row.file) for row in rows]
    points, expected = _ensemble([Model.load(run, device) for run in runs], originals)
    size = np.array([(image.shape[1], image.shape[0]) for image in originals])
    cases = pd.DataFrame({"stem": [r.stem for r in rows], "category": [r.category for r in rows]}).assign(
        width=size[:, 0], height=size[:, 1]
    )
    cases["group"] = cases["stem"]
    true = np.stack([row.points_px for row in rows]) / size[:, None, :]
    images = np.stack([preprocess(image, size=PIXELS, clahe=0) for image in originals])
    return evaluate(Prepared(images, true, cases), np.arange(len(rows)), points, expected, record=Record.load(runs[0]), out=out)
