"""What runs say of a user's folder: `quintet predict perfusion` and `quintet evaluate perfusion`."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_folder
from quintet.imaging.volumes import Grid, write_nifti
from quintet.params import Perfusion
from quintet.perfusion.data import resample
from quintet.perfusion.evaluation import Predicted, evaluate
from quintet.perfusion.figures import fullest_slice, overlay
from quintet.perfusion.inference import Model, load_models, on_file_grid
from quintet.perfusion.nnunet import SIDES, Case, Dataset, find_images, read_dataset, read_images, read_label
from quintet.runs import Record


def predict_images(models: Sequence[Model], images: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Mean probabilities of the models for raw channels `[C, X, Y, Z]`: `[2, X, Y, Z]`."""
    maps = []
    for model in models:
        _, rows_mm, columns_mm = model.build["spacing_mm"]
        array, way = resample(images, grid, (rows_mm, columns_mm))
        maps.append(on_file_grid(model(array), way))
    return np.mean(maps, axis=0, dtype=np.float32)


def predict_folder(runs: Sequence[Path], source: Path, output: Path, *, overlays: Path | None, device: str, skip: bool) -> int:
    """Predict every case of a folder (CASE_0000.nii.gz, CASE_0001.nii.gz, ...; or its imagesTs/) with the mean of the given runs.

    `output` gets, on each case's own grid, CASE_probabilities.nii.gz (4D: left, right) and CASE.nii.gz (1 left, 2 right, 3 both),
    and volumes.csv in ml. Unreadable cases are all listed at once. Returns the number of cases.
    """
    models = load_models(runs, device)
    folder = Path(source) / "imagesTs" if (Path(source) / "imagesTs").is_dir() else Path(source)
    found, problems = find_images(folder, len(models[0].build["channels"]))
    if not found and not problems:
        raise InputError(f"{folder}: no CASE_0000.nii.gz there")
    rows = []
    with ExitStack() as folders:
        beside = folders.enter_context(atomic_folder(Path(output)))
        pictures = folders.enter_context(atomic_folder(overlays)) if overlays else None
        for name, files in sorted(found.items()):
            try:
                images, grid = read_images(Case(name, name, files, None))
            except InputError as error:
                problems.append(str(error))
                continue
            p = predict_images(models, images, grid)
            masks = p >= 0.5
            write_nifti(beside / f"{name}_probabilities.nii.gz", np.moveaxis(p, 0, -1), grid)
            write_nifti(beside / f"{name}.nii.gz", (masks[0] + 2 * masks[1]).astype(np.uint8), grid)
            voxel_ml = float(np.prod(grid.spacing_mm)) / 1000
            areas = {**dict(zip(SIDES, masks, strict=True)), "both": masks.all(0)}
            rows.append({"case": name, **{f"{what}_ml": float(mask.sum()) * voxel_ml for what, mask in areas.items()}})
            if pictures:
                overlay(pictures / f"{name}.png", fullest_slice(grid, images, None, masks), name)
        if problems and (not skip or not rows):
            raise InputProblemsError(f"{source} (--skip leaves them out)", problems)
        pd.DataFrame(rows).round(3).to_csv(beside / "volumes.csv", index=False)
    for problem in problems:
        print(f"skipped: {problem}")
    return len(rows)


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, *, device: str, params: Perfusion) -> dict[str, float]:
    """Measure the mean prediction of the runs on every case of a labelled raw folder; writes `out` and returns the metrics.

    Cases that a run was trained on flatter it: give it a folder it has not seen.
    """
    models = load_models(runs, device)
    dataset, problems = read_dataset(raw, params.subject_pattern)
    if dataset is None or problems:
        raise InputProblemsError(str(raw), problems)
    if len(dataset.channels) != len(models[0].build["channels"]):
        raise InputError(f"{raw}: {len(dataset.channels)} channels, the run was trained on {len(models[0].build['channels'])}")

    def predicted(chosen: Dataset) -> Iterator[Predicted]:
        for case in chosen.cases:
            images, grid = read_images(case)
            yield Predicted(
                case.name, case.subject, grid, images, predict_images(models, images, grid), read_label(case, grid, chosen.values)
            )

    return evaluate(predicted(dataset), record=Record.load(runs[0]), out=out)
