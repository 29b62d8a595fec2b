"""The LightningModule, and one call that trains a configuration."""

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from quintet.landmarks.data.anatomy import PIXELS
from quintet.landmarks.data.prepared import Prepared
from quintet.landmarks.model.augmentation import augment
from quintet.landmarks.model.losses import LOSSES
from quintet.landmarks.model.networks import LandmarkNet, Located
from quintet.landmarks.model.weights import initialize
from quintet.params import Compute, Landmarks, LandmarksConfig
from quintet.params.landmarks import LandmarksTraining
from quintet.runs import Record
from quintet.training.batches import DeviceArrays, batch_loader
from quintet.training.fit import Monitor, adam_optimizer, cosine_with_warmup, fit, set_threads_and_seed, with_step_schedule
from quintet.training.hardware import compile_network
from quintet.training.models import TrainedModel

PERFECT_PX = 0.5  # below the rounding error of the labels
VALIDATION_BATCH = 64


class Rows(Dataset[dict[str, Any]]):
    """The row numbers of a batch's images; LandmarkModule holds their pixels."""

    def __init__(self, data: Prepared) -> None:
        self.cases = data.table["stem"].to_numpy()

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, rows: list[int]) -> dict[str, Any]:
        return {"rows": torch.tensor(rows), "case": list(self.cases[rows])}


def images_and_points(data: Prepared) -> DeviceArrays:
    """Images `[N, 1, S, S]` uint8, in memory, and points `[N, 15, 2]`."""
    return DeviceArrays(torch.from_numpy(np.array(data.images))[:, None], torch.from_numpy(data.points).float())


class LandmarkModule(L.LightningModule):
    """Augments on the device, predicts fractions, and computes the loss in pixels at 224 (or in fractions)."""

    def __init__(
        self, net: LandmarkNet, config: LandmarksConfig, training: LandmarksTraining, cases: DeviceArrays, *, debug: bool = False
    ) -> None:
        super().__init__()
        self.cases = cases
        self.net, self.config, self.training_params, self.debug = net, config, training, debug
        self.unit = PIXELS if training.units == "pixels" else 1.0
        if config.trains == "head":  # batch norm still updates its statistics, as in the reference
            self.net.backbone.requires_grad_(False)

    def on_fit_start(self) -> None:
        self.cases.move_to(self.device)

    def loss(self, found: Located, true: Tensor) -> Tensor:
        training = self.training_params
        options = {
            "omega": training.wing_omega,
            "epsilon": training.wing_epsilon,
            "frame": training.frame,
            "heatmaps": found.heatmaps,
            "sigma_px": training.heatmap_sigma_px,
            "side": self.unit,
        }
        points, true = found.points * self.unit, true * self.unit
        return torch.stack(
            [getattr(training.loss_weights, name) * LOSSES[name](points, true, **options) for name in self.config.losses]
        ).sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        images, points = self.cases[batch["rows"]]
        images = images.float() / 255
        if not self.debug:
            images, points = augment(images, points, self.training_params.augment)
        loss = self.loss(self.net(images.contiguous(memory_format=torch.channels_last)), points)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(points))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images, points = self.cases[batch["rows"]]
        found: Located = self.net((images.float() / 255).contiguous(memory_format=torch.channels_last))
        count = len(found.points)
        error = (found.points - points).norm(dim=-1).mean() * PIXELS
        self.log("valid_loss", self.loss(found, points), batch_size=count, sync_dist=True)
        self.log("valid_error_px", error, prog_bar=True, batch_size=count, sync_dist=True)

    def configure_optimizers(self) -> Any:
        groups = [{"params": [*self.net.attention.parameters(), *self.net.head.parameters()], "lr": self.config.rate_head}]
        if self.config.trains == "all":
            groups.insert(0, {"params": list(self.net.backbone.parameters()), "lr": self.config.rate_backbone})
        optimizer = adam_optimizer(groups, self.training_params)
        steps = int(self.trainer.estimated_stepping_batches)
        return with_step_schedule(optimizer, cosine_with_warmup(optimizer, self.training_params, steps))


def train(data: Prepared, config: LandmarksConfig, params: Landmarks, compute: Compute, *, record: Record) -> TrainedModel:
    """Train one configuration. Adds the final metrics and the origin of the initial weights to the record."""
    training = params.training
    set_threads_and_seed(compute, record.seed)
    net = LandmarkNet(
        arch=config.arch, head=config.head, attention=config.attention, width=training.width, dropout=training.dropout
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    record.tags["weights"] = initialize(net, config, training.weights, record.seed)
    compile_network(net, compute)
    fitted = fit(
        LandmarkModule(net, config, training, images_and_points(data), debug=compute.debug),
        batch_loader(Rows(data), data.rows("train"), training.batch_size, seed=record.seed, shuffle=True),
        batch_loader(Rows(data), data.rows("valid"), VALIDATION_BATCH, seed=0, shuffle=False),
        epochs=config.epochs,
        seed=record.seed,
        training=training,
        compute=compute,
        record=record,
        weight_averaging=training.weight_averaging,
        monitor=Monitor("valid_error_px", lower_is_better=True, perfect=PERFECT_PX, keep="best", patience=training.patience),
    )
    build = {name: getattr(config, name) for name in ("arch", "head", "attention")} | {
        "width": training.width,
        "dropout": training.dropout,
        "size": params.data.size,
        "clahe": params.data.clahe,
    }
    return TrainedModel({"model": fitted.state}, build, {"history": fitted.history})
