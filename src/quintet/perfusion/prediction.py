"""From a trained run to territories: on prepared slices (evaluation) and on a user's folder (`quintet predict perfusion`)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor

from quintet.errors import InputError, Problems
from quintet.files import whole_folder
from quintet.imaging.volumes import Grid, write_nifti
from quintet.params import Perfusion
from quintet.perfusion.augmentation import mirror
from quintet.perfusion.data import Prepared, resample, uncentred
from quintet.perfusion.evaluation import Predicted, evaluate
from quintet.perfusion.figures import fullest_slice, overlay
from quintet.perfusion.geometry import Geometry
from quintet.perfusion.networks import TerritoryNet, build_net
from quintet.perfusion.nnunet import SIDES, Case, Dataset, find_images, read_dataset, read_images, read_label
from quintet.runs import Record
from quintet.training.hardware import resolve_device
from quintet.training.models import load_model

WINDOWS = 64  # at a time
OVERLAP = 0.5  # of neighbouring windows, weighted by a Gaussian, as nnU-Net does


@dataclass(frozen=True)
class Model:
    net: TerritoryNet
    build: dict[str, Any]
    device: str
    mirror_average: bool

    @staticmethod
    def load(run: Path, device: str, *, mirror_average: bool | None = None) -> "Model":
        """Rebuild a run's network; `mirror_average` defaults to what the run was evaluated with (before that: on)."""
        state, build = load_model(run / "model" / "model.pt")
        settings = run / "evaluation" / "settings.json"
        if mirror_average is None:
            saved = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
            mirror_average = bool(saved.get("mirror_average", True))
        if "spacing_mm" not in build:
            raise InputError(f"{run}: a run of another study; give one of runs/perfusion")
        net = build_net(build)
        net.load_state_dict(state)
        device = resolve_device(device)
        net = net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Model(net, build, device, mirror_average)

    @torch.inference_mode()
    def __call__(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """z-scores `[N, C, H, W]` of any size -> probabilities `[N, 2, H, W]` (left, right)."""
        x = torch.from_numpy(np.array(slices)).to(self.device)
        p = self._windows(x)
        if self.mirror_average:
            # the four mirror images; a left-right one also exchanges the sides, before and after
            p = p + mirror(self._windows(mirror(x)))
            y = x.flip(-2)
            p = (p + self._windows(y).flip(-2) + mirror(self._windows(mirror(y))).flip(-2)) / 4
        return p.float().cpu().numpy()

    def _windows(self, x: Tensor) -> Tensor:
        """Windows of the patch's size; a slice that fits into one is seen whole (padded with zeros)."""
        return sliding_window_inference(  # type: ignore[return-value]
            x,
            self.build["patch"],
            WINDOWS,
            lambda part: self.net(part.contiguous(memory_format=torch.channels_last))[0].float().sigmoid(),
            overlap=OVERLAP,
            mode="gaussian",
        )


def predict_prepared(model: Model, data: Prepared, cases: list[int]) -> Iterator[Predicted]:
    """The cases (row numbers) of a prepared data set, one at a time."""
    for case in cases:
        way = data.geometry[case]
        images = uncentred(data.images[data.slices(case)], way.size)
        probability, flow = (on_file_grid(a[:, :2], way) for a in (model(images), images))
        yield Predicted(
            data.cases.loc[case, "case"], data.cases.loc[case, "subject"], way.grid, flow, probability, data.true(case)
        )


def on_file_grid(slices: NDArray[np.float32], way: Geometry) -> NDArray[np.float32]:
    """`[slices, K, rows, columns]` -> `[K, X, Y, Z]` on the file's own grid."""
    return np.stack([way.to_file(channel) for channel in np.moveaxis(slices, 1, 0)])


def predict_images(models: Sequence[Model], images: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Mean probabilities of the models for raw channels `[C, X, Y, Z]`: `[2, X, Y, Z]`."""
    maps = []
    for model in models:
        _, rows_mm, columns_mm = model.build["spacing_mm"]
        array, way = resample(images, grid, (rows_mm, columns_mm))
        maps.append(on_file_grid(model(array), way))
    return np.mean(maps, axis=0, dtype=np.float32)


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    models = [Model.load(run, device) for run in runs]
    if len({len(model.build["channels"]) for model in models}) > 1:
        raise InputError("the given runs were trained on different numbers of channels; give runs of one data set")
    return models


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
        beside = folders.enter_context(whole_folder(Path(output)))
        pictures = folders.enter_context(whole_folder(overlays)) if overlays else None
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
            raise Problems(f"{source} (--skip leaves them out)", problems)
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
        raise Problems(str(raw), problems)
    if len(dataset.channels) != len(models[0].build["channels"]):
        raise InputError(f"{raw}: {len(dataset.channels)} channels, the run was trained on {len(models[0].build['channels'])}")

    def predicted(chosen: Dataset) -> Iterator[Predicted]:
        for case in chosen.cases:
            images, grid = read_images(case)
            yield Predicted(
                case.name, case.subject, grid, images, predict_images(models, images, grid), read_label(case, grid, chosen.values)
            )

    return evaluate(predicted(dataset), record=Record.load(runs[0]), out=out)
