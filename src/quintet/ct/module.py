"""The LightningModule, and one call that trains a configuration into a run folder."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from quintet.backbones import NOT_BACKBONE, RESNET18_URL
from quintet.ct.augmentation import Augmentation
from quintet.ct.data import VOLUMES, Prepared
from quintet.ct.evaluation import scans_of
from quintet.ct.losses import micro_f1_loss, triplet_loss
from quintet.ct.metrics import Scans, cosine, f1_scores, retrieve
from quintet.ct.networks import Proximity, see
from quintet.ct.sampling import BalancedBatches
from quintet.errors import InputError
from quintet.files import atomic_folder
from quintet.params import Compute, Ct, CtConfig
from quintet.runs import Record
from quintet.training.batches import EpochBatchSampler, batch_loader, gather_rows
from quintet.training.fit import Monitor, adam_optimizer, cosine_with_warmup, fit, set_threads_and_seed, with_step_schedule
from quintet.training.hardware import resolve_device, resolve_workers
from quintet.training.models import load_pretrained_weights, save_model

PERFECT = 0.9999
RECALLS = np.linspace(0, 1, 21)  # at which precision is kept, every epoch
TIE = 1e-4  # micro-F1 first; where it agrees to so much, mAP@5 chooses the checkpoint
LOSS_TRIPLETS = 256  # validation scans whose triplets give the validation loss


class Volumes(Dataset[dict[str, Any]]):
    """Batches of stored cubes, asked for by lists of rows. Each process maps the file itself: a pickled map would be a copy of
    the whole data set."""

    def __init__(self, data: Prepared) -> None:
        self.path, self.labels, self.names = data.folder / VOLUMES, torch.from_numpy(data.labels), data.index["study"].tolist()
        self.volumes: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"volumes": None}

    def __getitem__(self, rows: list[int]) -> dict[str, Any]:
        if self.volumes is None:
            self.volumes = np.load(self.path, mmap_mode="r")
        volumes = np.stack([self.volumes[row] for row in rows])
        return {
            "volumes": torch.from_numpy(volumes),
            "labels": self.labels[rows],
            "rows": torch.tensor(rows),
            "case": [self.names[row] for row in rows],
        }


class RetrievalModule(L.LightningModule):
    """`parts`: the rows (of the prepared data) whose embeddings are measured after every epoch, by name; `scans`: what is known
    of each."""

    seen: Tensor

    def __init__(self, net: Proximity, config: CtConfig, shared: Ct, data: Prepared, *, steps: int, debug: bool = False) -> None:
        super().__init__()
        self.net, self.config, self.shared, self.steps = net, config, shared, steps
        self.augment = None if debug else Augmentation(shared.augment)
        self.parts = {name: rows for name, rows in (("valid", data.rows("valid")), ("train_eval", data.train_eval)) if len(rows)}
        self.scans: dict[str, Scans] = {name: scans_of(data, rows) for name, rows in self.parts.items()}
        self.findings = list(data.findings)
        size = (len(data.index), net.embed.out_features + len(self.findings))
        # embedding and scores of each scan, filled by the second phase of an epoch
        self.register_buffer("seen", torch.zeros(size), persistent=False)
        self.curves: list[dict[str, Any]] = []

    def loss(self, embedding: Tensor, scores: Tensor | None, labels: Tensor, *, selector: str) -> Tensor:
        how = self.shared
        if scores is not None:
            return micro_f1_loss(scores, labels, average=how.f1_average, smooth=how.f1_smooth, cross_entropy=how.cross_entropy)
        return triplet_loss(embedding, labels, margin=how.margin, selector=selector)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        volumes = batch["volumes"]
        out = self.net((self.augment or see)(volumes, self.net.input_size))
        loss = self.loss(out.embedding, out.scores, batch["labels"], selector=self.config.selector)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(volumes))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.seen.zero_()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        out = self.net(see(batch["volumes"], self.net.input_size))
        scores = out.scores if out.scores is not None else out.embedding.new_zeros(len(out.embedding), len(self.findings))
        self.seen[batch["rows"]] = torch.cat([out.embedding, scores.float()], 1)

    def on_validation_epoch_end(self) -> None:
        """Second phase: the embeddings of validation and of some training scans, without augmentation, as retrieval sees them."""
        seen = gather_rows(self, self.seen).cpu()
        if not torch.isfinite(seen).all():
            raise InputError(f"training diverged in epoch {self.current_epoch + 1}; lower ct.rate ({self.shared.rate})")
        classifies = self.net.head is not None
        for name, rows in self.parts.items():
            embedding, scores = seen[rows].split([seen.shape[1] - len(self.findings), len(self.findings)], 1)
            scans = self.scans[name]
            found = retrieve(cosine(embedding.numpy()), scans, neighbours=self.shared.neighbours)
            p = scores.sigmoid().numpy() if classifies else found.votes
            f1 = f1_scores(p >= 0.5, scans.labels, scans.findings)
            values: dict[str, Any] = {f"map_at_{k}": np.nanmean(found.metrics[f"ap_at_{k}"]) for k in (5, 10)}
            values |= {"ndcg_at_10": np.nanmean(found.metrics["ndcg_at_10"]), "micro_f1": f1["micro_f1"]}
            if name == "valid":
                values["choice"] = values["micro_f1"] + TIE * values["map_at_5"]
                few = slice(LOSS_TRIPLETS)
                labels = torch.from_numpy(scans.labels)
                values["loss"] = self.loss(embedding[few], scores[few] if classifies else None, labels[few], selector="all")
                self._keep_curves(p, scans)
            self.log_dict({f"{name}_{key}": float(value) for key, value in values.items()}, prog_bar=name == "valid")

    def _keep_curves(self, p: NDArray[np.floating[Any]], scans: Scans) -> None:
        """Precision at fixed recalls of each finding, of this epoch."""
        for k, finding in enumerate(scans.findings):
            if scans.labels[:, k].any():
                precision, recall, _ = precision_recall_curve(scans.labels[:, k], p[:, k])
                at = np.interp(RECALLS, recall[::-1], np.maximum.accumulate(precision)[::-1])
                self.curves.append({"epoch": self.current_epoch, "finding": finding, "precision": at.round(6).tolist()})
            if self.logger is not None:  # compute.tensorboard
                self.logger.experiment.add_pr_curve(f"valid/{finding}", scans.labels[:, k], p[:, k], self.current_epoch)  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curves"] = self.curves

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curves = list(checkpoint.get("curves", []))

    def configure_optimizers(self) -> Any:
        how = self.shared
        optimizer = adam_optimizer([{"params": list(self.net.parameters()), "lr": how.rate}], how)
        if how.schedule == "cosine":
            return with_step_schedule(optimizer, cosine_with_warmup(optimizer, how, self.steps))
        falling = torch.optim.lr_scheduler.StepLR(optimizer, how.step_epochs, how.step_factor)
        return {"optimizer": optimizer, "lr_scheduler": falling}


def train(data: Prepared, out: Path, config: CtConfig, shared: Ct, compute: Compute, *, record: Record) -> Record:
    """Train one configuration and write `out` = {model.pt (best), final.pt (last epoch), history.csv, pr_curves.csv}; returns the
    record with the final metrics."""
    set_threads_and_seed(compute, record.seed)
    device = resolve_device(compute.device)
    rows = data.rows("train")
    classifies = config.objective == "micro_f1"
    shape = {"input_size", "width", "units", "embedding", "dropout", "chunk"}
    build = {
        "arch": config.arch,
        "findings": len(data.findings) if classifies else 0,
        **shared.model_dump(include=shape),
        # the statistics of a triplet batch, of two classes, would give the classes away
        "centre": shared.centre and classifies,
    }
    net = Proximity(**build)
    record.tags["weights"] = "random"
    if shared.weights != "none":
        record.tags["weights"] = load_pretrained_weights(net.backbone.net, shared.weights, RESNET18_URL, drop=NOT_BACKBONE)
    net.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    source = Volumes(data)
    sampler: Any = EpochBatchSampler(rows, shared.batch_size, seed=record.seed)
    if config.objective == "triplet":
        sampler = BalancedBatches(rows, data.labels[rows], classes=shared.classes, samples=shared.samples, seed=record.seed)
    workers = 0 if compute.debug else resolve_workers(compute.workers, device)
    steps = shared.epochs * -(-len(sampler) // shared.accumulate)
    module = RetrievalModule(net, config, shared, data, steps=steps, debug=compute.debug)
    fitted = fit(
        module,
        DataLoader(source, sampler=sampler, batch_size=None, num_workers=workers, persistent_workers=workers > 0),
        batch_loader(source, np.unique(np.concatenate(list(module.parts.values()))), shared.batch_size, seed=0, shuffle=False),
        epochs=shared.epochs,
        seed=record.seed,
        how=shared,
        compute=compute,
        record=record,
        goal=Monitor(
            "valid_choice",
            lower_is_better=False,
            perfect=PERFECT,
            keep="best",
            patience=shared.patience,
            also_perfect=("valid_map_at_5",),
        ),
    )
    build |= {"size": data.volumes.shape[1], "window": list(shared.window), "names": list(data.findings)}
    with atomic_folder(out) as folder:
        for name, state in (("model", fitted.state), ("final", fitted.last)):
            save_model(folder / f"{name}.pt", state, build)
        fitted.history.to_csv(folder / "history.csv", index=False)
        write_curves(folder / "pr_curves.csv", module.curves)
    best = int(fitted.metrics["best_epoch"])
    day = record.tags["started"].partition("T")[0].replace("-", "")
    reached = fitted.history["valid_micro_f1"].iloc[best]
    record.copies["model/model.pt"] = f"checkpoints/microf1_{day}_epoch={best:03d}_metric={reached:.4f}.pt"
    return record


def write_curves(path: Path, curves: list[dict[str, Any]]) -> None:
    """Rows epoch, finding, recall, precision."""
    table = pd.DataFrame(curves, columns=["epoch", "finding", "precision"]).explode("precision", ignore_index=True)
    table.insert(2, "recall", np.resize(RECALLS, len(table)).round(2))
    table.to_csv(path, index=False)
