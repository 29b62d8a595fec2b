"""Inference with a trained run: slices to territories."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor

from quintet.errors import InputError
from quintet.params import Compute
from quintet.params.perfusion import PerfusionEvaluation
from quintet.perfusion.data.geometry import on_file_grid
from quintet.perfusion.data.prepared import Prepared, centred
from quintet.perfusion.evaluation.scores import Predicted, evaluate
from quintet.perfusion.model.augmentation import mirror
from quintet.perfusion.model.networks import TerritoryNet, build_net
from quintet.runs import Record
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

WINDOWS = 64  # per batch
OVERLAP = 0.5  # of neighbouring windows, weighted by a Gaussian, as nnU-Net does


@dataclass(frozen=True)
class Model:
    net: TerritoryNet
    build: dict[str, Any]
    device: str
    mirror_average: bool

    @staticmethod
    def load(run: Path, device: str, *, mirror_average: bool | None = None) -> "Model":
        """Rebuild a run's network. `mirror_average` defaults to the value used in the run's evaluation, or True without one."""
        net, build = load_network(run / "model" / "model.pt", "perfusion", "spacing_mm", build_net)
        settings = run / "evaluation" / "settings.json"
        if mirror_average is None:
            saved = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
            mirror_average = bool(saved.get("mirror_average", True))
        device = resolve_device(device)
        net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Model(net, build, device, mirror_average)

    @torch.inference_mode()
    def __call__(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised maps `[N, C, H, W]` of any size -> probabilities `[N, 2, H, W]` (left, right)."""
        x = torch.from_numpy(np.array(slices)).to(self.device)
        axes = [axis for axis, used in self.build["mirrors"].items() if used] if self.mirror_average else []
        turns = [some for count in range(len(axes) + 1) for some in combinations(axes, count)]
        p = torch.stack([self._mirrored(x, axes) for axes in turns]).mean(0)
        return p.cpu().numpy()

    def _mirrored(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """The prediction for a mirror image, mirrored back; left-right also exchanges the sides, before and after."""

        def turned(y: Tensor) -> Tensor:
            y = mirror(y) if "left_right" in axes else y
            return y.flip(-2) if "front_back" in axes else y

        return turned(self._windows(turned(x)))

    def _windows(self, x: Tensor) -> Tensor:
        """Sliding windows of the patch's size; a slice that fits into one window is padded with zeros."""
        return sliding_window_inference(  # type: ignore[return-value]
            x,
            self.build["patch"],
            WINDOWS,
            lambda part: self.net(part.contiguous(memory_format=torch.channels_last))[0].float().sigmoid(),
            overlap=OVERLAP,
            mode="gaussian",
        )


def evaluate_run(
    run: Path, data: Prepared, out: Path, evaluation: PerfusionEvaluation, compute: Compute, *, record: Record
) -> dict[str, float]:
    """Predict the held-out cases of the run's fold and score them into the folder `out`; returns the metrics."""
    model = Model.load(run, compute.device, mirror_average=evaluation.mirror_average)
    rows = data.rows("val", record.fold)
    started = time.monotonic()
    metrics = evaluate(
        predict_prepared([model], data, rows),
        record=record,
        out=out,
        history=pd.read_csv(run / "model" / "history.csv"),
        save_probabilities=evaluation.save_probabilities,
    )
    return metrics | {"evaluation_seconds_per_case": (time.monotonic() - started) / len(rows)}


def evaluate_ensemble(
    runs: Sequence[Path], data: Prepared, out: Path, evaluation: PerfusionEvaluation, compute: Compute, *, record: Record
) -> dict[str, float]:
    """Score the mean probability of trained runs on the held-out cases of the record's fold into the folder `out`."""
    models = [Model.load(run, compute.device, mirror_average=evaluation.mirror_average) for run in runs]
    return evaluate(predict_prepared(models, data, data.rows("val", record.fold)), record=record, out=out)


def predict_prepared(models: Sequence[Model], data: Prepared, rows: list[int]) -> Iterator[Predicted]:
    """The mean prediction of the models for the cases in `rows` of a prepared data set, one at a time."""
    for row in rows:
        geometry = data.geometry[row]
        images = centred(data.images[data.slices(row)], geometry.size)
        mean = np.stack([model(images) for model in models]).mean(0)
        probability, flow = (on_file_grid(array[:, :2], geometry) for array in (mean, images))
        case, subject = data.table.loc[row, ["case", "subject"]]
        yield Predicted(case, subject, geometry.grid, flow, probability, data.label_masks(row))


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    """Load runs whose predictions will be averaged; they must have the same number of channels."""
    models = [Model.load(run, device) for run in runs]
    if len({len(model.build["channels"]) for model in models}) > 1:
        raise InputError("the given runs were trained on different numbers of channels; give runs of one data set")
    return models
