"""The LightningModule, and the function that trains a configuration."""

from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from quintet.backbones import weights_path
from quintet.breakhis.data.classes import MAGNIFICATIONS
from quintet.breakhis.data.prepared import Prepared
from quintet.breakhis.data.sampling import (
    MISSING,
    Batch,
    PatientRows,
    QuadrupleBatches,
    SequentialBatches,
    automatic_batch_size,
    epoch_quadruples,
    utilisation,
)
from quintet.breakhis.model.augmentation import Augmentation
from quintet.breakhis.model.losses import focal_loss, mixup, soft_targets
from quintet.breakhis.model.networks import MagnificationNet, weights_url
from quintet.errors import InputError
from quintet.params import BreakHisConfig, Compute
from quintet.params.breakhis import BreakHisAugment, BreakHisTraining
from quintet.runs import Record
from quintet.training.fit import Monitor, adam_optimizer, cosine_with_warmup, fit, set_threads_and_seed, with_step_schedule
from quintet.training.hardware import resolve_device, resolve_workers
from quintet.training.models import TrainedModel, load_pretrained_weights

NOT_BACKBONE = ("_fc.",)  # prefix of the ImageNet classifier's weights
PERFECT = 0.995
LOSS_GAP = 0.1
VALIDATION_BATCH = 32
NEVER = 10**9  # epochs


class Quadruples(Dataset[dict[str, Any]]):
    """Batches of quadruples from the prepared arrays, augmented in the process that reads them."""

    def __init__(self, data: Prepared, magnifications: list[str], names: list[str], augment: BreakHisAugment | None) -> None:
        self.arrays = [data.images[m] for m in magnifications]
        self.size = data.image_size
        self.names, self.labels, self.types = names, data.classes(names), data.types(names)
        self.augment = Augmentation(augment) if augment else None

    def __getitem__(self, batch: Batch) -> dict[str, Any]:
        quadruples, owner, seeds = batch
        images = [np.zeros((len(quadruples), self.size, self.size, 3), np.uint8) for _ in self.arrays]
        for i, (rows, seed) in enumerate(zip(quadruples, seeds, strict=True)):
            if self.augment:
                self.augment.seed(int(seed))
            for m, row in enumerate(rows):
                if row != MISSING:
                    image = self.arrays[m][row]
                    images[m][i] = self.augment(image) if self.augment else image
        return {
            "images": [torch.from_numpy(i) for i in images],
            "present": torch.from_numpy(quadruples != MISSING),
            "classes": torch.from_numpy(np.eye(2, dtype=np.float32)[self.labels[owner]]),
            "types": torch.from_numpy(self.types[owner]),
            "patients": torch.from_numpy(owner),
            "case": [self.names[i] for i in owner],
        }


def inverse_frequency(shares: NDArray[np.floating[Any]]) -> Tensor:
    """Class weights N / (K N_k) from the shares `[N, K]` of N patients in K classes; 0 for an empty class."""
    counts = shares.sum(0)
    weights = np.divide(len(shares), (counts > 0).sum() * counts, out=np.zeros_like(counts), where=counts > 0)
    return torch.from_numpy(weights).float()


class MagnificationModule(L.LightningModule):
    """`class_weights` `[2]` and `type_weights` `[8]` are those of the loss, `labels` `[P]` the classes of the validation
    patients. `usage` has the shares of the training images that are used in each epoch, and in all epochs so far."""

    class_weights: Tensor
    type_weights: Tensor
    sums: Tensor

    def __init__(
        self,
        net: MagnificationNet,
        training: BreakHisTraining,
        *,
        class_weights: Tensor,
        type_weights: Tensor,
        labels: NDArray[np.int64],
        usage: tuple[list[float], list[float]],
        debug: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.training_params, self.labels, self.usage, self.debug = net, training, labels, usage, debug
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("type_weights", type_weights, persistent=False)
        # per validation patient: quadruples, correct ones, sum of the malignant probability
        self.register_buffer("sums", torch.zeros(len(labels), 3, dtype=torch.float64), persistent=False)

    def loss(self, classes: Tensor, types: Tensor, targets: list[Tensor]) -> Tensor:
        params = self.training_params.loss
        soft = [soft_targets(t, params.smoothing) for t in targets]
        loss = focal_loss(classes, soft[0], weights=self.class_weights, alpha=params.alpha, gamma=params.gamma)
        type_loss = focal_loss(types, soft[1], weights=self.type_weights, alpha=params.alpha, gamma=params.gamma)
        return loss + params.types * type_loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        images, present = [self.net.normalise(i) for i in batch["images"]], batch["present"]
        targets = [batch["classes"], batch["types"]]
        if not self.debug:
            if self.training_params.mixup > 0:
                images, targets = mixup(images, present, targets, alpha=self.training_params.mixup)
            kept = present & (torch.rand(present.shape, device=present.device) >= self.training_params.drop_magnification)
            present = torch.where(kept.any(1, keepdim=True), kept, present)
        output = self.net(images, present)
        loss = self.loss(output.classes, output.types, targets)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(present))
        return loss

    def on_train_epoch_start(self) -> None:
        in_epoch, so_far = (values[self.current_epoch] for values in self.usage)
        self.log_dict({"utilisation": in_epoch, "coverage": so_far}, rank_zero_only=True)

    def on_validation_epoch_start(self) -> None:
        self.sums.zero_()
        if self.training_params.validation_dropout:  # as in the reference, for comparison
            for module in self.net.modules():
                if isinstance(module, nn.Dropout):
                    module.train()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        output = self.net([self.net.normalise(i) for i in batch["images"]], batch["present"])
        loss = self.loss(output.classes, output.types, [batch["classes"], batch["types"]])
        self.log("valid_loss", loss, batch_size=len(batch["present"]), sync_dist=True)
        p = output.classes.double().softmax(-1)[:, 1]
        correct = (p >= 0.5) == (batch["classes"][:, 1] > 0.5)
        self.sums.index_add_(0, batch["patients"], torch.stack([torch.ones_like(p), correct.double(), p], 1))

    def on_validation_epoch_end(self) -> None:
        """Balanced accuracy: each patient's share of correct quadruples, averaged over patients, then over classes. AUC: of the
        patients' mean probabilities."""
        sums: Any = self.all_gather(self.sums)
        count, correct, p = sums.reshape(-1, len(self.labels), 3).sum(0).cpu().numpy().T
        share, mean = correct / count, p / count
        if not np.isfinite(mean).all():
            rate = self.training_params.rate
            raise InputError(f"training diverged in epoch {self.current_epoch + 1}; lower breakhis.training.rate ({rate})")
        balanced = np.mean([share[self.labels == k].mean() for k in (0, 1)])
        metrics = {"valid_balanced_accuracy": balanced, "valid_auc": roc_auc_score(self.labels, mean)}
        self.log_dict({name: float(value) for name, value in metrics.items()}, prog_bar=True, rank_zero_only=False)

    def configure_optimizers(self) -> Any:
        training = self.training_params
        trainable = [p for p in self.net.parameters() if p.requires_grad]
        optimizer = adam_optimizer([{"params": trainable, "lr": training.rate}], training, decoupled=True)
        if training.schedule == "cosine":
            steps = int(self.trainer.estimated_stepping_batches)
            return with_step_schedule(optimizer, cosine_with_warmup(optimizer, training, steps))
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=training.plateau_factor, patience=training.plateau_patience, min_lr=training.rate_floor
        )
        # Lightning would step it after saving the epoch's checkpoint, and a resumed run would lose the step.
        # on_train_epoch_end steps it instead.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "valid_loss", "frequency": NEVER}}

    def on_train_epoch_end(self) -> None:
        if self.training_params.schedule == "plateau":
            scheduler: Any = self.lr_schedulers()
            scheduler.step(self.trainer.callback_metrics["valid_loss"])


def train(
    data: Prepared, config: BreakHisConfig, training: BreakHisTraining, compute: Compute, *, record: Record
) -> TrainedModel:
    """Train one configuration on one fold; the record gets the final metrics, the origin of the weights and the batch size."""
    set_threads_and_seed(compute, record.seed)
    order: list[str] = [m for m in MAGNIFICATIONS if m in config.magnifications]
    patients, held_out = (data.image_rows(data.patients(part, record.fold), order) for part in ("train", "valid"))
    _check_patients(data, patients, held_out, order, record.fold)
    build = {
        **config.model_dump(include={"attention", "trains"}),
        "magnifications": order,
        "backbone": training.backbone,
        "size": data.image_size,
        "units": training.units,
        "stochastic_depth": training.stochastic_depth,
        "dropout": training.dropout,
    }
    net, record.tags["weights"] = _build_net(build, training.weights)
    class_weights, type_weights = _loss_weights(data, patients, balanced=training.loss.class_weights)
    module = MagnificationModule(
        net,
        training,
        class_weights=class_weights,
        type_weights=type_weights,
        labels=data.classes(held_out.names),
        usage=utilisation(patients, training.samples, seed=record.seed, epochs=training.epochs),
        debug=compute.debug,
    )
    fitted = fit(
        module,
        _train_loader(data, patients, order, training, compute, record),
        _valid_loader(data, held_out, order, training),
        epochs=training.epochs,
        seed=record.seed,
        training=training,
        compute=compute,
        record=record,
        monitor=Monitor(
            "valid_balanced_accuracy",
            lower_is_better=False,
            perfect=PERFECT,
            keep=training.keep,
            patience=training.patience,
            also_perfect=("valid_auc",),
            loss_gap=LOSS_GAP,
        ),
    )
    return TrainedModel({"model": fitted.state}, build, {"history": fitted.history})


def _check_patients(data: Prepared, patients: PatientRows, held_out: PatientRows, order: list[str], fold: int) -> None:
    """Raise InputError if a class has no training or validation patient, or a magnification no training image."""
    if any(len(set(data.classes(part.names))) < 2 for part in (held_out, patients)):
        raise InputError(f"fold {fold}: no patient of one class has images at {', '.join(order)}; choose other magnifications")
    if without := [m for k, m in enumerate(order) if not any(len(rows[k]) for rows in patients.rows)]:
        raise InputError(f"fold {fold}: no training patient has an image at {', '.join(without)}; remove it from magnifications")


def _build_net(build: dict[str, Any], weights: str) -> tuple[MagnificationNet, str]:
    """The network, with pretrained backbones if asked for, and the origin of its weights."""
    net, origin = MagnificationNet(**build), "random"
    if weights != "none":
        for backbone in net.backbones.values():
            url = weights_url(build["backbone"])
            origin = load_pretrained_weights(backbone, weights_path(weights), url, drop=NOT_BACKBONE)
        net.pretrained = True
        net.train()  # freezes: Lightning keeps the modes that it finds
    return net.to(memory_format=torch.channels_last), origin  # type: ignore[call-overload]


def _loss_weights(data: Prepared, patients: PatientRows, *, balanced: bool) -> tuple[Tensor, Tensor]:
    classes = inverse_frequency(np.eye(2)[data.classes(patients.names)])
    types = inverse_frequency(data.types(patients.names))
    return (classes, types) if balanced else (torch.ones_like(classes), torch.ones_like(types))


def _train_loader(
    data: Prepared, patients: PatientRows, order: list[str], training: BreakHisTraining, compute: Compute, record: Record
) -> DataLoader[Any]:
    """Batches of an epoch's quadruples; the record gets the batch size."""
    device = resolve_device(compute.device)
    batch_size = training.batch_size
    if batch_size == "auto":
        batch_size = automatic_batch_size(device, sum(patients.samples(training.samples)))
    record.tags["batch_size"] = str(batch_size)
    workers = 0 if compute.debug else resolve_workers(compute.workers, device)
    return DataLoader(
        Quadruples(data, order, list(patients.names), None if compute.debug else training.augment),
        sampler=QuadrupleBatches(patients, training.samples, batch_size, seed=record.seed),
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def _valid_loader(data: Prepared, held_out: PatientRows, order: list[str], training: BreakHisTraining) -> DataLoader[Any]:
    """The same quadruples after every epoch; evaluation sets the threshold on all images."""
    quadruples, owner = epoch_quadruples(held_out, training.samples, seed=0, epoch=0)
    return DataLoader(
        Quadruples(data, order, list(held_out.names), None),
        sampler=SequentialBatches(quadruples, owner, VALIDATION_BATCH),
        batch_size=None,
    )
