"""The LightningModule, and one call that trains a configuration on a fold into a run folder."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from quintet.breakhis.augmentation import Augmentation
from quintet.breakhis.data import Prepared
from quintet.breakhis.losses import focal_loss, mixup, soft_targets
from quintet.breakhis.networks import MagnificationNet, normalise, weights_url
from quintet.breakhis.sampling import NONE, InOrder, Item, QuadrupleBatches, automatic_batch, epoch_quadruples, utilisation
from quintet.breakhis.tree import MAGNIFICATIONS
from quintet.errors import InputError
from quintet.files import atomic_folder
from quintet.params import BreakHis, BreakHisConfig, Compute
from quintet.params.breakhis import BreakHisAugment
from quintet.runs import Record
from quintet.training.fit import Monitor, adam_optimizer, cosine_with_warmup, fit, set_threads_and_seed, with_step_schedule
from quintet.training.hardware import resolve_device, resolve_workers
from quintet.training.models import load_pretrained_weights, save_model

NOT_BACKBONE = ("_fc.",)  # ImageNet's classifier
PERFECT = 0.995
LOSS_GAP = 0.1
VALIDATION_BATCH = 32

NEVER = 10**9  # epochs


class Quadruples(Dataset[dict[str, Any]]):
    """Batches from the cached arrays, asked for by (quadruples, patients, seeds); augmented in the process that reads them."""

    def __init__(self, data: Prepared, magnifications: list[str], names: list[str], augment: BreakHisAugment | None) -> None:
        self.arrays = [data.images[m] for m in magnifications]
        self.size = next(array.shape[1] for array in self.arrays)
        self.names, self.labels, self.types = names, data.classes(names), data.types(names)
        self.augment = Augmentation(augment) if augment else None

    def __getitem__(self, item: Item) -> dict[str, Any]:
        quadruples, owner, seeds = item
        images = [np.zeros((len(quadruples), self.size, self.size, 3), np.uint8) for _ in self.arrays]
        for i, (rows, seed) in enumerate(zip(quadruples, seeds, strict=True)):
            if self.augment:
                self.augment.seed(int(seed))
            for m, row in enumerate(rows):
                if row != NONE:
                    image = self.arrays[m][row]
                    images[m][i] = self.augment(image) if self.augment else image
        return {
            "images": [torch.from_numpy(i) for i in images],
            "present": torch.from_numpy(quadruples != NONE),
            "classes": torch.from_numpy(np.eye(2, dtype=np.float32)[self.labels[owner]]),
            "types": torch.from_numpy(self.types[owner]),
            "patients": torch.from_numpy(owner),
            "case": [self.names[i] for i in owner],
        }


def class_weights(shares: NDArray[np.floating[Any]]) -> Tensor:
    """N / (K N_k) of the shares `[N, K]` that N patients have in K classes; 0 for a class that nobody has."""
    counts = shares.sum(0)
    weights = np.divide(len(shares), (counts > 0).sum() * counts, out=np.zeros_like(counts), where=counts > 0)
    return torch.from_numpy(weights).float()


class MagnificationModule(L.LightningModule):
    """`labels` are the validation patients' classes, `[P]`."""

    def __init__(
        self,
        net: MagnificationNet,
        shared: BreakHis,
        *,
        steps: int,
        weights: tuple[Tensor, Tensor],
        labels: NDArray[np.int64],
        used: tuple[list[float], list[float]],
        debug: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.shared, self.steps, self.labels, self.used, self.debug = net, shared, steps, labels, used, debug
        self.register_buffer("class_weights", weights[0], persistent=False)
        self.register_buffer("type_weights", weights[1], persistent=False)
        # per validation patient: quadruples, correct ones, sum of the malignant probability
        self.register_buffer("sums", torch.zeros(len(labels), 3, dtype=torch.float64), persistent=False)

    def loss(self, classes: Tensor, types: Tensor, targets: list[Tensor]) -> Tensor:
        how = self.shared.loss
        soft = [soft_targets(t, how.smoothing) for t in targets]
        focal: dict[str, float] = {"alpha": how.alpha, "gamma": how.gamma}
        loss = focal_loss(classes, soft[0], weights=self.class_weights, **focal)  # type: ignore[arg-type]
        return loss + how.types * focal_loss(types, soft[1], weights=self.type_weights, **focal)  # type: ignore[arg-type]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        images, present, targets = [normalise(i) for i in batch["images"]], batch["present"], [batch["classes"], batch["types"]]
        if not self.debug:
            if self.shared.mixup > 0:
                images, targets = mixup(images, present, targets, alpha=self.shared.mixup)
            kept = present & (torch.rand(present.shape, device=present.device) >= self.shared.drop_magnification)
            present = torch.where(kept.any(1, keepdim=True), kept, present)
        scores = self.net(images, present)
        loss = self.loss(scores.classes, scores.types, targets)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(present))
        return loss

    def on_train_epoch_start(self) -> None:
        each, so_far = (values[self.current_epoch] for values in self.used)
        self.log_dict({"utilisation": each, "coverage": so_far}, rank_zero_only=True)

    def on_validation_epoch_start(self) -> None:
        self.sums.zero_()  # type: ignore[operator]
        if self.shared.validation_dropout:  # the reference's, for comparison
            for module in self.net.modules():
                if isinstance(module, nn.Dropout):
                    module.train()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        scores = self.net([normalise(i) for i in batch["images"]], batch["present"])
        loss = self.loss(scores.classes, scores.types, [batch["classes"], batch["types"]])
        self.log("valid_loss", loss, batch_size=len(batch["present"]), sync_dist=True)
        p = scores.classes.double().softmax(-1)[:, 1]
        right = (p >= 0.5) == (batch["classes"][:, 1] > 0.5)
        self.sums.index_add_(0, batch["patients"], torch.stack([torch.ones_like(p), right.double(), p], 1))  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """A patient's share of correct quadruples, averaged by patient, then by class; and the AUC of patient means."""
        sums: Any = self.all_gather(self.sums)  # type: ignore[arg-type]
        count, right, p = sums.reshape(-1, len(self.labels), 3).sum(0).cpu().numpy().T
        share, mean = right / count, p / count
        if not np.isfinite(mean).all():
            raise InputError(f"training diverged in epoch {self.current_epoch + 1}; lower breakhis.rate ({self.shared.rate})")
        balanced = np.mean([share[self.labels == k].mean() for k in (0, 1)])
        metrics = {"valid_balanced_accuracy": balanced, "valid_auc": roc_auc_score(self.labels, mean)}
        self.log_dict({name: float(value) for name, value in metrics.items()}, prog_bar=True, rank_zero_only=False)

    def configure_optimizers(self) -> Any:
        how = self.shared
        trained = [p for p in self.net.parameters() if p.requires_grad]
        optimizer = adam_optimizer([{"params": trained, "lr": how.rate}], how, decoupled=True)
        if how.schedule == "cosine":
            return with_step_schedule(optimizer, cosine_with_warmup(optimizer, how, self.steps))
        falling = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=how.plateau_factor, patience=how.plateau_patience, min_lr=how.rate_floor
        )
        # Lightning steps it after the checkpoint of the epoch, so that a killed run would lose that step: see on_train_epoch_end
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "monitor": "valid_loss", "frequency": NEVER}}

    def on_train_epoch_end(self) -> None:
        if self.shared.schedule == "plateau":
            scheduler: Any = self.lr_schedulers()
            scheduler.step(self.trainer.callback_metrics["valid_loss"])


def train(data: Prepared, out: Path, config: BreakHisConfig, shared: BreakHis, compute: Compute, *, record: Record) -> Record:
    """Train one configuration on one fold and write `out` = {model.pt, history.csv}; returns the record with the final
    metrics."""
    set_threads_and_seed(compute, record.seed)
    order: list[str] = [m for m in MAGNIFICATIONS if m in config.magnifications]
    people, held_out = (data.rows(data.patients(record.fold, part), order) for part in ("train", "valid"))
    labels = data.classes(held_out.names)
    if len(set(labels)) < 2 or len(set(data.classes(people.names))) < 2:
        raise InputError(f"fold {record.fold}: no patient of one class has images at {', '.join(order)}; choose others")
    if without := [m for k, m in enumerate(order) if not any(len(rows[k]) for rows in people.rows)]:
        raise InputError(
            f"fold {record.fold}: no training patient has an image at {', '.join(without)}; leave it out of magnifications"
        )
    device = resolve_device(compute.device)
    batch = shared.batch_size
    if batch == "auto":
        batch = automatic_batch(device, sum(people.samples(shared.samples)))
    sampler = QuadrupleBatches(people, shared.samples, batch, seed=record.seed)
    workers = 0 if compute.debug else resolve_workers(compute.workers, device)
    build = {
        **config.model_dump(include={"attention", "trains"}),
        "magnifications": order,
        "backbone": shared.backbone,
        "size": data.images[order[0]].shape[1],
        "units": shared.units,
        "stochastic_depth": shared.stochastic_depth,
        "dropout": shared.dropout,
    }
    net = MagnificationNet(**build)
    record.tags["weights"] = "random"
    if shared.weights != "none":
        for backbone in net.backbones.values():
            record.tags["weights"] = load_pretrained_weights(
                backbone, shared.weights, weights_url(shared.backbone), drop=NOT_BACKBONE
            )
    record.tags["batch_size"] = str(batch)
    module = MagnificationModule(
        net.to(memory_format=torch.channels_last),
        shared,
        steps=shared.epochs * -(-len(sampler) // shared.accumulate),  # type: ignore[call-overload]
        weights=(class_weights(np.eye(2)[data.classes(people.names)]), class_weights(data.types(people.names))),
        labels=labels,
        debug=compute.debug,
        used=utilisation(people, shared.samples, seed=record.seed, epochs=shared.epochs),
    )
    if not shared.loss.class_weights:
        module.class_weights.fill_(1), module.type_weights.fill_(1)  # type: ignore[operator]
    fitted = fit(
        module,
        DataLoader(
            Quadruples(data, order, list(people.names), None if compute.debug else shared.augment),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
        ),
        DataLoader(
            Quadruples(data, order, list(held_out.names), None),
            batch_size=None,
            # the same draw after every epoch; the threshold is set on all images (evaluation)
            sampler=InOrder(*epoch_quadruples(held_out, shared.samples, seed=0, epoch=0), VALIDATION_BATCH),
        ),
        epochs=shared.epochs,
        seed=record.seed,
        how=shared,
        compute=compute,
        record=record,
        goal=Monitor(
            "valid_balanced_accuracy",
            lower_is_better=False,
            perfect=PERFECT,
            keep="best",
            patience=shared.patience,
            also_perfect=("valid_auc",),
            loss_gap=LOSS_GAP,
        ),
    )
    with atomic_folder(out) as folder:
        save_model(folder / "model.pt", fitted.state, build)
        fitted.history.to_csv(folder / "history.csv", index=False)
    return record
