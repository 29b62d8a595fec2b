"""The LightningModule, and one call that trains a configuration into a run folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from quintet.errors import InputError
from quintet.files import atomic_folder
from quintet.params import Compute, Perfusion, PerfusionConfig
from quintet.perfusion import augmentation
from quintet.perfusion.data import Prepared
from quintet.perfusion.losses import LOSSES, base, weight_at
from quintet.perfusion.networks import build_net, divisor, plan
from quintet.runs import Record
from quintet.training.batches import batch_loader, rank_and_world_size
from quintet.training.fit import Monitor, fit, set_threads_and_seed, with_step_schedule
from quintet.training.models import save_model

POWER = 0.9  # of the polynomial decay
PERFECT_DICE = 0.995
VALIDATION_BATCH = 32


class PatchBatches(Sampler[tuple[Any, Any]]):
    """Slices of an epoch as a function of (seed, epoch) and rank: a case drawn evenly, then one of its slices.

    The last share `oversample` of a batch takes slices that hold a territory (nnU-Net's foreground oversampling).
    """

    def __init__(self, data: Prepared, cases: list[int], batch: int, iterations: int, *, oversample: float, seed: int) -> None:
        filled = np.asarray(data.masks).reshape(len(data.masks), -1).max(1) > 0
        self.all = [np.arange(data.slices(c).start, data.slices(c).stop) for c in cases]
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
            pools = [(self.filled if own else self.all)[case] for case, own in zip(cases, self.foreground, strict=True)]
            yield np.array([pool[rng.integers(len(pool))] for pool in pools]), self.foreground


class Rows(Dataset[dict[str, Any]]):
    """Names the slices of a batch; the pixels wait on the device."""

    def __init__(self, data: Prepared) -> None:
        self.cases = np.repeat(data.cases["case"].to_numpy(), data.cases["slices"])

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, chosen: Any) -> dict[str, Any]:
        rows, foreground = chosen if isinstance(chosen, tuple) else (np.asarray(chosen), np.zeros(len(chosen), bool))
        return {"rows": torch.from_numpy(rows), "foreground": torch.from_numpy(foreground), "case": sorted(set(self.cases[rows]))}


class TerritoryModule(L.LightningModule):
    """Cuts and augments patches on the device, and weighs the loss terms."""

    def __init__(self, data: Prepared, config: PerfusionConfig, shared: Perfusion, *, steps: int, debug: bool = False) -> None:
        super().__init__()
        self.config, self.shared, self.steps, self.debug = config, shared, steps, debug
        names = ("patch", "features", "attention_tokens", "deep_supervision")
        self.build = {name: getattr(shared, name) for name in names} | {
            "arch": config.arch,
            "separate_at": config.separate_at,
            "channels": data.channels,
            "spacing_mm": list(data.spacing_mm),
        }
        self.net = build_net(self.build).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.patch = (shared.patch[0], shared.patch[1])
        self.multiple = divisor(plan(shared.patch, data.spacing_mm[1:], shared.features))
        if wrong := [p for p, m in zip(shared.patch, self.multiple, strict=True) if p % m]:
            fit = [p + -p % m for p, m in zip(shared.patch, self.multiple, strict=True)]
            raise InputError(f"perfusion.patch: {wrong[0]} cannot be halved as often as the network needs; use {fit}")
        # not buffers: DDP would send them around; memory-mapped, and read where batches want them
        self.images, self.masks = torch.from_numpy(data.images), torch.from_numpy(data.masks)
        self.sizes = torch.from_numpy(data.sizes())
        self.counts = torch.zeros(3)

    def on_fit_start(self) -> None:
        self.counts = self.counts.to(self.device)
        free = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else 0
        if self.device.type != "cuda" or self.images.nbytes < free / 3:  # larger sets wait in host memory
            self.images, self.masks, self.sizes = (x.to(self.device) for x in (self.images, self.masks, self.sizes))

    def slices(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = rows.to(self.images.device)
        return tuple(x[rows].to(self.device) for x in (self.images, self.masks, self.sizes))  # type: ignore[return-value]

    def loss(self, scales: list[Tensor], masks: Tensor, progress: float) -> Tensor:
        """Mean over the images; the base at every scale (nnU-Net's weights 1, 1/2, 1/4, ... normed), the terms at full size."""
        scales = [logits.float() for logits in scales]
        weights = [0.5**i for i in range(len(scales))]
        loss = torch.zeros((), device=masks.device)
        for logits, weight in zip(scales, weights, strict=True):
            t = masks if logits.shape == masks.shape else F.interpolate(masks, size=logits.shape[-2:], mode="nearest")
            loss = loss + weight / sum(weights) * base(logits, t).mean()
        p = scales[0].sigmoid()
        for name in self.config.losses:
            loss = loss + weight_at(getattr(self.shared.loss_weights, name), progress) * LOSSES[name](p, masks).mean()
        return loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        images, masks, sizes = self.slices(batch["rows"])
        shift = augmentation.place(masks, sizes, self.patch, batch["foreground"].to(self.device))
        how = (
            self.shared.augment.model_copy(update=dict.fromkeys(self.shared.augment.model_dump(), 0.0))
            if self.debug
            else self.shared.augment
        )
        draws = augmentation.draw(shift, images.shape[1], self.patch, how)
        images, masks = augmentation.transform(images, masks, draws, self.patch)
        loss = self.loss(self.net(images.contiguous(memory_format=torch.channels_last)), masks, self.global_step / self.steps)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images, masks, _ = self.slices(batch["rows"])
        images, masks = pad_to(images, self.multiple), pad_to(masks, self.multiple).float()
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
        """nnU-Net's: SGD with Nesterov momentum, its rate falling as (1 - step / steps)^0.9."""
        how = self.shared
        optimizer = torch.optim.SGD(
            self.net.parameters(), lr=how.rate, momentum=how.momentum, nesterov=how.momentum > 0, weight_decay=how.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / self.steps) ** POWER)
        return with_step_schedule(optimizer, schedule)


def pad_to(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Zeros below and right, until rows and columns are multiples."""
    down, right = (-x.shape[2] % multiple[0], -x.shape[3] % multiple[1])
    return F.pad(x, (0, right, 0, down))


def train(data: Prepared, out: Path, config: PerfusionConfig, shared: Perfusion, compute: Compute, *, record: Record) -> Record:
    """Train one configuration on one fold and write `out` = {model.pt, history.csv}; returns the record with the final
    metrics."""
    set_threads_and_seed(compute, record.seed)
    held_out = data.part(record.fold, "val")
    sampler = PatchBatches(
        data,
        data.part(record.fold, "train"),
        shared.batch_size,
        shared.iterations,
        oversample=shared.oversample_foreground,
        seed=record.seed,
    )
    rows = np.concatenate([np.arange(data.slices(c).start, data.slices(c).stop) for c in held_out])
    steps = shared.epochs * -(-shared.iterations // shared.accumulate)
    module = TerritoryModule(data, config, shared, steps=steps, debug=compute.debug)
    fitted = fit(
        module,
        DataLoader(Rows(data), sampler=sampler, batch_size=None),
        batch_loader(Rows(data), rows, VALIDATION_BATCH, seed=0, shuffle=False),
        epochs=shared.epochs,
        seed=record.seed,
        how=shared,
        compute=compute,
        record=record,
        goal=Monitor("valid_dice", lower_is_better=False, perfect=PERFECT_DICE, keep="last"),
    )
    with atomic_folder(out) as folder:
        save_model(folder / "model.pt", fitted.state, module.build)
        fitted.history.to_csv(folder / "history.csv", index=False)
    return record
