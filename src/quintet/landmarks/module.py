"""The LightningModule, and one call that trains a configuration into a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from quintet.backbones import NOT_BACKBONE, RESNET18_URL
from quintet.errors import InputError
from quintet.files import atomic_folder
from quintet.landmarks.anatomy import PIXELS
from quintet.landmarks.augmentation import augment
from quintet.landmarks.data import Prepared
from quintet.landmarks.losses import LOSSES
from quintet.landmarks.networks import LandmarkNet
from quintet.params import Compute, Landmarks, LandmarksChoice
from quintet.runs import Record
from quintet.training.batches import batch_loader
from quintet.training.fit import Monitor, adam_optimizer, cosine_with_warmup, fit, set_threads_and_seed, with_step_schedule
from quintet.training.models import load_model, load_pretrained_weights, save_model

PERFECT_PX = 0.5  # below the annotation's own rounding


class Batches(Dataset[dict[str, Any]]):
    """Rows of a prepared data set; an item is asked for by a list of rows and is a whole batch."""

    def __init__(self, data: Prepared, rows: np.ndarray[Any, Any]) -> None:
        self.place = {int(row): i for i, row in enumerate(rows)}
        self.images = torch.from_numpy(np.array(data.images[rows]))[:, None]  # in memory: size^2 bytes per image
        self.points = torch.from_numpy(data.points[rows]).float()
        self.cases = data.cases["stem"].to_numpy()[rows]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: list[int]) -> dict[str, Any]:
        places = [self.place[row] for row in rows]
        return {"images": self.images[places], "points": self.points[places], "case": list(self.cases[places])}


class LandmarkModule(L.LightningModule):
    """Augments on the device, predicts fractions, and weighs the loss terms in pixels at 224 (or in fractions)."""

    def __init__(self, choice: LandmarksChoice, shared: Landmarks, *, steps: int, debug: bool = False) -> None:
        super().__init__()
        self.choice, self.shared, self.steps, self.debug = choice, shared, steps, debug
        self.unit = PIXELS if shared.units == "pixels" else 1.0
        self.net = LandmarkNet(
            arch=choice.arch, head=choice.head, attention=choice.attention, width=shared.width, dropout=shared.dropout
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if choice.trains == "head":  # batch norm still adapts its statistics, as in the reference
            self.net.backbone.requires_grad_(False)

    def loss(self, predicted: Tensor, true: Tensor) -> Tensor:
        terms = [
            getattr(self.shared.loss_weights, name)
            * LOSSES[name](
                predicted * self.unit, true * self.unit, omega=self.shared.wing_omega, epsilon=self.shared.wing_epsilon
            )
            for name in self.choice.losses
        ]
        return torch.stack(terms).sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        images, points = batch["images"].float() / 255, batch["points"]
        if not self.debug:
            images, points = augment(images, points, self.shared.augment)
        predicted, _ = self.net(images.contiguous(memory_format=torch.channels_last))
        loss = self.loss(predicted, points)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(points))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        predicted, _ = self.net((batch["images"].float() / 255).contiguous(memory_format=torch.channels_last))
        count = len(predicted)
        error = (predicted - batch["points"]).norm(dim=-1).mean() * PIXELS
        self.log("valid_loss", self.loss(predicted, batch["points"]), batch_size=count, sync_dist=True)
        self.log("valid_error_px", error, prog_bar=True, batch_size=count, sync_dist=True)

    def configure_optimizers(self) -> Any:
        groups = [{"params": [*self.net.attention.parameters(), *self.net.head.parameters()], "lr": self.choice.rate_head}]
        if self.choice.trains == "all":
            groups.insert(0, {"params": list(self.net.backbone.parameters()), "lr": self.choice.rate_backbone})
        optimizer = adam_optimizer(groups, self.shared)
        return with_step_schedule(optimizer, cosine_with_warmup(optimizer, self.shared, self.steps))


@dataclass(frozen=True)
class Start:
    """Where the weights come from: a run folder of an earlier phase, or None for `landmarks.weights`."""

    run: Path | None

    def fill(self, net: LandmarkNet, weights: str) -> str:
        if self.run is None:
            if weights == "none":
                return "random"
            return load_pretrained_weights(net.backbone.net, weights, RESNET18_URL, drop=NOT_BACKBONE)
        state, _ = load_model(self.run / "model" / "model.pt")
        # a later phase may add attention: those weights stay new; everything else must be there and fit
        try:
            missing, unknown = net.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise InputError(f"{self.run} does not fit the network (is its arch, head or width another one?): {error}") from None
        if unknown or [name for name in missing if not name.startswith("attention.")]:
            raise InputError(f"{self.run} does not fit the network: missing {missing[:3]}, unknown {unknown[:3]}")
        return str(self.run)


def train(
    data: Prepared, out: Path, choice: LandmarksChoice, shared: Landmarks, compute: Compute, *, record: Record, start: Path | None
) -> Record:
    """Train one configuration and write `out` = {model.pt, history.csv}; returns the record with the final training metrics."""
    set_threads_and_seed(compute, record.seed)
    rows, held_out = data.rows("train"), data.rows("valid")
    train_batches = batch_loader(Batches(data, rows), rows, shared.batch_size, seed=record.seed, shuffle=True)
    valid_batches = batch_loader(Batches(data, held_out), held_out, 64, seed=0, shuffle=False)
    steps = choice.epochs * -(-len(train_batches) // shared.accumulate)
    module = LandmarkModule(choice, shared, steps=steps, debug=compute.debug)
    weights = shared.weights if choice.arch == "resnet18" else "none"  # they are a ResNet's
    record.tags["weights"] = Start(start).fill(module.net, weights)
    fitted = fit(
        module,
        train_batches,
        valid_batches,
        epochs=choice.epochs,
        seed=record.seed,
        how=shared,
        compute=compute,
        record=record,
        goal=Monitor("valid_error_px", lower_is_better=True, perfect=PERFECT_PX, keep="best", patience=shared.patience),
    )
    build = {name: getattr(choice, name) for name in ("arch", "head", "attention")} | {
        "width": shared.width,
        "dropout": shared.dropout,
        "size": shared.size,
        "clahe": shared.clahe,
    }
    with atomic_folder(out) as folder:
        save_model(folder / "model.pt", fitted.state, build)
        fitted.history.to_csv(folder / "history.csv", index=False)
    return record
