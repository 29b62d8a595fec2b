"""Trained runs applied to a user's folder: `quintet predict perfusion` and `quintet evaluate perfusion`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError, InputProblemsError, sentences
from quintet.imaging.volumes import Grid, write_nifti
from quintet.params import Perfusion
from quintet.perfusion.data.geometry import on_file_grid
from quintet.perfusion.data.nnunet import Case, Dataset, find_images, read_case, read_dataset, read_images, read_label
from quintet.perfusion.data.prepare import print_doubts, resample
from quintet.perfusion.data.prepared import SIDES
from quintet.perfusion.evaluation.figures import fullest_slice, overlay
from quintet.perfusion.evaluation.inference import Model, load_models
from quintet.perfusion.evaluation.scores import Predicted, evaluate
from quintet.runs import load_joint


def predict_images(models: Sequence[Model], images: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Mean probabilities of the models for raw channels `[C, X, Y, Z]`: `[2, X, Y, Z]`; 0 in axial slices where every map is 0,
    of which networks have seen none."""
    maps = []
    for model in models:
        _, rows_mm, columns_mm = model.build["spacing_mm"]
        case = resample(images, grid, (rows_mm, columns_mm), model.build["normalisation"])
        maps.append(on_file_grid(model(case.images), case.geometry))
    axial = int(np.flatnonzero(grid.orientation[:, 0] == 2)[0])
    seen = (images != 0).any(tuple({0, 1, 2, 3} - {axial + 1}))
    return np.mean(maps, axis=0, dtype=np.float32) * np.expand_dims(seen, tuple({0, 1, 2} - {axial}))


def predict_folder(models: Sequence[Model], source: Path, out: Path, problems: list[str], *, overlays: Path | None) -> int:
    """Predict every case of a folder (CASE_0000.nii.gz, CASE_0001.nii.gz, ...; or its imagesTs/) with the mean of the models.

    `out` gets CASE_probabilities.nii.gz (4D: left, right) and CASE.nii.gz (1 left, 2 right, 3 both) on each case's own grid, and
    volumes.csv in ml. Returns the number of cases; adds a sentence to `problems` for each unreadable one.
    """
    folder = Path(source) / "imagesTs" if (Path(source) / "imagesTs").is_dir() else Path(source)
    found, incomplete = find_images(folder, len(models[0].build["channels"]))
    problems += incomplete
    if not found and not problems:
        raise InputError(f"{folder}: no CASE_0000.nii.gz there")
    if clash := [name for name in found if f"{name}_probabilities" in found]:
        raise InputError(
            f"{folder}: the result of case {clash[0]} would have the name of case {clash[0]}_probabilities; rename it"
        )
    rows = []
    for name, files in sorted(found.items()):
        try:
            images, grid = read_images(Case(name, name, files, None))
        except InputError as error:
            problems += sentences(error)
            continue
        print_doubts(name, images, grid)
        p = predict_images(models, images, grid)
        masks = p >= 0.5
        write_nifti(out / f"{name}_probabilities.nii.gz", np.moveaxis(p, 0, -1), grid)
        write_nifti(out / f"{name}.nii.gz", (masks[0] + 2 * masks[1]).astype(np.uint8), grid)
        territories = {**dict(zip(SIDES, masks, strict=True)), "both": masks.all(0)}
        rows.append(
            {"case": name, **{f"{territory}_ml": float(mask.sum()) * grid.voxel_ml for territory, mask in territories.items()}}
        )
        if overlays:
            overlay(overlays / f"{name}.png", fullest_slice(grid, images, None, masks), name)
    if rows:
        pd.DataFrame(rows).round(3).to_csv(out / "volumes.csv", index=False)
    return len(rows)


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, params: Perfusion, device: str) -> dict[str, float]:
    """Score the mean prediction of the runs on every case of a labelled raw folder, into the folder `out`."""
    models = load_models(runs, device)
    dataset, problems = read_dataset(raw, params.data.subject_pattern)
    if dataset is None or problems:
        raise InputProblemsError(str(raw), problems)
    if len(dataset.channels) != len(models[0].build["channels"]):
        raise InputError(f"{raw}: {len(dataset.channels)} channels, the run was trained on {len(models[0].build['channels'])}")

    for case in dataset.cases:  # every problem before the first prediction, which takes longer than reading
        try:
            print_doubts(case.name, *read_case(case, dataset))
        except InputError as error:
            problems += sentences(error)
    if problems:
        raise InputProblemsError(str(raw), problems)

    def predicted(chosen: Dataset) -> Iterator[Predicted]:
        for case in chosen.cases:
            images, grid = read_images(case)
            yield Predicted(
                case.name, case.subject, grid, images, predict_images(models, images, grid), read_label(case, grid, chosen.values)
            )

    return evaluate(predicted(dataset), record=load_joint(runs), out=out)
