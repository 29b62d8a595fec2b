"""The LightningModule, and `train`, which trains one configuration."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from quintet.errors import InputError
from quintet.params import Compute, PerfusionConfig
from quintet.params.perfusion import PerfusionAugment, PerfusionTraining
from quintet.perfusion.data.prepared import Prepared
from quintet.perfusion.model import augmentation
from quintet.perfusion.model.losses import LOSSES, base, weight_at
from quintet.perfusion.model.networks import TerritoryNet, build_net, divisor, plan_stages
from quintet.runs import Record
from quintet.training.batches import DeviceArrays, batch_loader, rank_and_world_size
from quintet.training.fit import Monitor, fit, set_threads_and_seed, with_step_schedule
from quintet.training.hardware import compile_network
from quintet.training.models import TrainedModel

POWER = 0.9  # of the polynomial decay
PERFECT_DICE = 0.995
VALIDATION_BATCH = 32


class PatchBatchSampler(Sampler[tuple[Any, Any]]):
    """Batches of slices that depend on (seed, epoch, rank) alone: a case is drawn uniformly, then one of its slices.

    The last part of each batch, a fraction `oversample`, has slices that contain a territory (nnU-Net's foreground oversampling).
    """

    def __init__(self, data: Prepared, cases: list[int], batch: int, iterations: int, *, oversample: float, seed: int) -> None:
        filled = np.asarray(data.masks).reshape(len(data.masks), -1).max(1) > 0
        self.all = [np.arange(data.slices(case).start, data.slices(case).stop) for case in cases]
        self.filled = [rows[filled[rows]] if filled[rows].any() else rows for rows in self.all]
        self.foreground = np.arange(batch) >= round(batch * (1 - oversample))
        self.iterations, self.seed, self.epoch = iterations, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        rng = np.random.default_rng([self.seed, self.epoch, rank_and_world_size()[0]])
        for _ in range(self.iterations):
            cases = rng.integers(len(self.all), size=len(self.foreground))
            pools = [(self.filled if filled else self.all)[case] for case, filled in zip(cases, self.foreground, strict=True)]
            yield np.array([pool[rng.integers(len(pool))] for pool in pools]), self.foreground


class Rows(Dataset[dict[str, Any]]):
    """The row numbers of a batch's slices; TerritoryModule holds their pixels."""

    def __init__(self, data: Prepared) -> None:
        self.cases = np.repeat(data.table["case"].to_numpy(), data.table["slices"])

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, chosen: Any) -> dict[str, Any]:
        rows, foreground = chosen if isinstance(chosen, tuple) else (np.asarray(chosen), np.zeros(len(chosen), bool))
        return {"rows": torch.from_numpy(rows), "foreground": torch.from_numpy(foreground), "case": sorted(set(self.cases[rows]))}


class TerritoryModule(L.LightningModule):
    """Cuts and augments patches on the device, and weights the loss terms."""

    def __init__(
        self, net: TerritoryNet, config: PerfusionConfig, training: PerfusionTraining, data: Prepared, augment: PerfusionAugment
    ) -> None:
        super().__init__()
        self.net, self.config, self.training_params, self.steps = net, config, training, 1
        self.augment = augment
        self.patch = (training.patch[0], training.patch[1])
        self.size_divisor = divisor(plan_stages(training.patch, data.spacing_mm[1:], training.features))
        if wrong := [p for p, m in zip(training.patch, self.size_divisor, strict=True) if p % m]:
            larger = [p + -p % m for p, m in zip(training.patch, self.size_divisor, strict=True)]
            raise InputError(f"perfusion.training.patch: {wrong[0]} cannot be halved as often as the network needs; use {larger}")
        self.slices = DeviceArrays(*data.tensors())  # images, masks, sizes
        self.counts = torch.zeros(3)

    def on_fit_start(self) -> None:
        self.counts = self.counts.to(self.device)
        self.slices.move_to(self.device)

    def loss(self, scales: list[Tensor], masks: Tensor, progress: float) -> Tensor:
        """Mean over the images: the base loss at every scale (nnU-Net's weights 1, 1/2, 1/4, ... normalised), added terms at full
        resolution only."""
        scales = [logits.float() for logits in scales]
        weights = [0.5**i for i in range(len(scales))]
        loss = torch.zeros((), device=masks.device)
        for logits, weight in zip(scales, weights, strict=True):
            t = masks if logits.shape == masks.shape else F.interpolate(masks, size=logits.shape[-2:], mode="nearest-exact")
            loss = loss + weight / sum(weights) * base(logits, t).mean()
        p = scales[0].sigmoid()
        for name in self.config.losses:
            loss = loss + weight_at(getattr(self.training_params.loss_weights, name), progress) * LOSSES[name](p, masks).mean()
        return loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        images, masks, sizes = self.slices[batch["rows"]]
        shift = augmentation.sample_offsets(masks, sizes, self.patch, batch["foreground"].to(self.device))
        drawn = augmentation.draw_params(shift, images.shape[1], self.patch, self.augment)
        images, masks = augmentation.transform(images, masks, drawn, self.patch)
        loss = self.loss(self.net(images.contiguous(memory_format=torch.channels_last)), masks, self.global_step / self.steps)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images, masks, _ = self.slices[batch["rows"]]
        images, masks = pad_to(images, self.size_divisor), pad_to(masks, self.size_divisor).float()
        logits = self.net(images.contiguous(memory_format=torch.channels_last))
        self.log("valid_loss", self.loss(logits, masks, self.global_step / self.steps), batch_size=len(images), sync_dist=True)
        predicted = (logits[0] > 0).float()
        self.counts += torch.stack([(predicted * masks).sum(), predicted.sum(), masks.sum()])

    def on_validation_epoch_end(self) -> None:
        """Dice over all held-out pixels of both territories: counts are added, then divided once."""
        counts: Any = self.all_gather(self.counts)
        both, predicted, true = counts.reshape(-1, 3).sum(0)
        self.log("valid_dice", 2 * both / (predicted + true).clamp_min(1), prog_bar=True, rank_zero_only=False)
        self.counts.zero_()

    def configure_optimizers(self) -> Any:
        """nnU-Net's: SGD with Nesterov momentum and the learning rate times (1 - step / steps)^0.9."""
        self.steps = int(self.trainer.estimated_stepping_batches)
        training = self.training_params
        optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=training.rate,
            momentum=training.momentum,
            nesterov=training.momentum > 0,
            weight_decay=training.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / self.steps) ** POWER)
        return with_step_schedule(optimizer, schedule)


def pad_to(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Pad `[B, C, H, W]` with zeros below and on the right to multiples of (rows, columns)."""
    down, right = (-x.shape[2] % multiple[0], -x.shape[3] % multiple[1])
    return F.pad(x, (0, right, 0, down))


def _no_augmentation(augment: PerfusionAugment) -> PerfusionAugment:
    return augment.model_copy(update=dict.fromkeys(augment.model_dump(), 0.0))


def train(
    data: Prepared, config: PerfusionConfig, training: PerfusionTraining, compute: Compute, *, record: Record
) -> TrainedModel:
    """Train one configuration on one fold; the record gets the final metrics."""
    set_threads_and_seed(compute, record.seed)
    sampler = PatchBatchSampler(
        data,
        data.rows("train", record.fold),
        training.batch_size,
        training.iterations,
        oversample=training.oversample_foreground,
        seed=record.seed,
    )
    slices = [data.slices(row) for row in data.rows("val", record.fold)]
    held_out = np.concatenate([np.arange(chosen.start, chosen.stop) for chosen in slices])
    augment = _no_augmentation(training.augment) if compute.debug else training.augment
    shape = ("patch", "features", "attention_tokens", "deep_supervision")
    build = {name: getattr(training, name) for name in shape} | {
        "arch": config.arch,
        "separate_at": config.separate_at,
        "channels": data.channels,
        "spacing_mm": list(data.spacing_mm),
        # for prediction: it mirrors along the axes that training did
        "normalisation": data.normalisation,
        "mirrors": {axis: getattr(augment, f"mirror_{axis}") > 0 for axis in ("left_right", "front_back")},
    }
    net = build_net(build).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compile_network(net, compute)
    fitted = fit(
        TerritoryModule(net, config, training, data, augment),
        DataLoader(Rows(data), sampler=sampler, batch_size=None),
        batch_loader(Rows(data), held_out, VALIDATION_BATCH, seed=0, shuffle=False),
        epochs=training.epochs,
        seed=record.seed,
        training=training,
        compute=compute,
        record=record,
        monitor=Monitor("valid_dice", lower_is_better=False, perfect=PERFECT_DICE, keep="last"),
    )
    return TrainedModel({"model": fitted.state}, build, {"history": fitted.history})
