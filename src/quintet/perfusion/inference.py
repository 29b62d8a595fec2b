"""A trained run at work: slices -> territories."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor

from quintet.errors import InputError
from quintet.perfusion.augmentation import mirror
from quintet.perfusion.data import Prepared, centred
from quintet.perfusion.evaluation import Predicted
from quintet.perfusion.geometry import Geometry
from quintet.perfusion.networks import TerritoryNet, build_net
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

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
        images = centred(data.images[data.slices(case)], way.size)
        probability, flow = (on_file_grid(a[:, :2], way) for a in (model(images), images))
        yield Predicted(
            data.cases.loc[case, "case"], data.cases.loc[case, "subject"], way.grid, flow, probability, data.true(case)
        )


def on_file_grid(slices: NDArray[np.float32], way: Geometry) -> NDArray[np.float32]:
    """`[slices, K, rows, columns]` -> `[K, X, Y, Z]` on the file's own grid."""
    return np.stack([way.to_file(channel) for channel in np.moveaxis(slices, 1, 0)])


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    models = [Model.load(run, device) for run in runs]
    if len({len(model.build["channels"]) for model in models}) > 1:
        raise InputError("the given runs were trained on different numbers of channels; give runs of one data set")
    return models
