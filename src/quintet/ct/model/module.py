"""The LightningModule, and one call that trains a configuration."""

from dataclasses import asdict
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from quintet.backbones import NOT_BACKBONE, RESNET18_URL
from quintet.ct.data.prepared import VOLUMES, Prepared
from quintet.ct.metrics import Scans, cosine, f1_scores, retrieve
from quintet.ct.model.augmentation import Augmentation
from quintet.ct.model.losses import objective_loss
from quintet.ct.model.networks import Proximity, network_input
from quintet.ct.model.sampling import BalancedBatches
from quintet.errors import InputError
from quintet.params import Compute, CtConfig
from quintet.params.ct import CtTraining
from quintet.runs import Record
from quintet.training.batches import EpochBatchSampler, batch_loader, gather_rows
from quintet.training.fit import (
    FitResult,
    Monitor,
    adam_optimizer,
    cosine_with_warmup,
    fit,
    set_threads_and_seed,
    with_step_schedule,
)
from quintet.training.hardware import resolve_device, resolve_workers
from quintet.training.models import TrainedModel, load_pretrained_weights

PERFECT_SCORE = 0.9999
RECALLS = np.linspace(0, 1, 21)  # precision is recorded at these in every epoch
TIE_WEIGHT = 1e-4  # micro_f1 chooses checkpoints by micro-F1, the others by NDCG@10, which breaks ties of micro-F1 too
LOSS_SCANS = 256  # the validation loss is computed on at most this many scans


class Volumes(Dataset[dict[str, Any]]):
    """Batches of stored cubes, indexed by lists of rows.

    Each process maps the file itself: pickling the map would copy the whole data set.
    """

    def __init__(self, data: Prepared) -> None:
        self.path, self.labels, self.names = data.folder / VOLUMES, torch.from_numpy(data.labels), data.table["study"].tolist()
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
    """Trains the network; after every epoch evaluates retrieval among the validation scans, and among some training scans."""

    outputs: Tensor

    def __init__(
        self,
        net: Proximity,
        config: CtConfig,
        training: CtTraining,
        data: Prepared,
        *,
        neighbours: int,
        debug: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.config, self.training_params, self.neighbours = net, config, training, neighbours
        self.augment = None if debug else Augmentation(training.augment)
        parts = {"valid": data.rows("valid"), "train_eval": data.train_eval_rows}
        self.parts = {name: rows for name, rows in parts.items() if len(rows)}
        self.scans: dict[str, Scans] = {name: data.scans(rows) for name, rows in self.parts.items()}
        self.findings = list(data.findings)
        size = (len(data.table), net.embed.out_features + len(self.findings))
        # embedding and logits of each scan, filled in validation
        self.register_buffer("outputs", torch.zeros(size), persistent=False)
        self.curves: list[dict[str, Any]] = []

    def evaluated_rows(self) -> NDArray[np.int64]:
        return np.unique(np.concatenate(list(self.parts.values())))

    def loss(self, embedding: Tensor, logits: Tensor | None, labels: Tensor, *, selector: str) -> Tensor:
        return objective_loss(self.config.objective, embedding, logits, labels, self.training_params, selector=selector)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.last_batch = batch
        volumes = batch["volumes"]
        output = self.net((self.augment or network_input)(volumes, self.net.input_size))
        loss = self.loss(output.embedding, output.logits, batch["labels"], selector=self.config.selector)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(volumes))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.outputs.zero_()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        embedding, logits = self.net(network_input(batch["volumes"], self.net.input_size))
        if logits is None:
            logits = embedding.new_zeros(len(embedding), len(self.findings))
        self.outputs[batch["rows"]] = torch.cat([embedding, logits.float()], 1)

    def on_validation_epoch_end(self) -> None:
        """Retrieval metrics of the validation scans and of some training scans, both without augmentation."""
        outputs = gather_rows(self, self.outputs).cpu()
        if not torch.isfinite(outputs).all():
            rate = self.training_params.rate
            raise InputError(f"training diverged in epoch {self.current_epoch + 1}; lower ct.training.rate ({rate})")
        classifies = self.net.head is not None
        for name, rows in self.parts.items():
            embedding, logits = outputs[rows].split([outputs.shape[1] - len(self.findings), len(self.findings)], 1)
            scans = self.scans[name]
            found = retrieve(cosine(embedding.numpy()), scans, neighbours=self.neighbours)
            p = logits.sigmoid().numpy() if classifies else found.votes
            f1 = f1_scores(p >= 0.5, scans.labels, scans.findings)
            values: dict[str, Any] = {f"map_at_{k}": _mean(found.metrics[f"ap_at_{k}"]) for k in (5, 10)}
            values |= {"ndcg_at_10": _mean(found.metrics["ndcg_at_10"]), "micro_f1": f1["micro_f1"]}
            if name == "valid":
                values["choice"] = values["ndcg_at_10"]
                if self.config.objective == "micro_f1":
                    values["choice"] = values["micro_f1"] + TIE_WEIGHT * values["ndcg_at_10"]
                some = slice(LOSS_SCANS)
                labels = torch.from_numpy(scans.labels)
                values["loss"] = self.loss(embedding[some], logits[some] if classifies else None, labels[some], selector="all")
                self._append_curves(p, scans)
            self.log_dict({f"{name}_{key}": float(value) for key, value in values.items()}, prog_bar=name == "valid")

    def _append_curves(self, p: NDArray[np.floating[Any]], scans: Scans) -> None:
        """Record this epoch's precision at fixed recalls for each finding."""
        for k, finding in enumerate(scans.findings):
            if scans.labels[:, k].any():
                precision, recall, _ = precision_recall_curve(scans.labels[:, k], p[:, k])
                values = np.interp(RECALLS, recall[::-1], np.maximum.accumulate(precision)[::-1])
                self.curves.append({"epoch": self.current_epoch, "finding": finding, "precision": values.round(6).tolist()})
            if self.logger is not None:  # compute.tensorboard
                self.logger.experiment.add_pr_curve(f"valid/{finding}", scans.labels[:, k], p[:, k], self.current_epoch)  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curves"] = self.curves

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curves = list(checkpoint.get("curves", []))

    def configure_optimizers(self) -> Any:
        training = self.training_params
        optimizer = adam_optimizer([{"params": list(self.net.parameters()), "lr": training.rate}], training)
        if training.schedule == "cosine":
            steps = int(self.trainer.estimated_stepping_batches)
            return with_step_schedule(optimizer, cosine_with_warmup(optimizer, training, steps))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, training.step_epochs, training.step_factor)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of the queries to which a scan is relevant; 0 if there is none, as in a very small validation part."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def train(
    data: Prepared,
    config: CtConfig,
    training: CtTraining,
    compute: Compute,
    *,
    neighbours: int,
    record: Record,
) -> TrainedModel:
    """Train one configuration; the record gets the final metrics and the origin of the backbone's weights.

    The result has the weights "model" (best epoch) and "final" (last epoch), and the tables "history" and "pr_curves".
    """
    set_threads_and_seed(compute, record.seed)
    build = _build_values(data, config, training)
    net = Proximity(**build)
    record.tags["weights"] = "random"
    if training.weights != "none":
        record.tags["weights"] = load_pretrained_weights(net.backbone.net, training.weights, RESNET18_URL, drop=NOT_BACKBONE)
    net.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = RetrievalModule(net, config, training, data, neighbours=neighbours, debug=compute.debug)
    volumes, sampler = Volumes(data), _sampler(data, config, training, record.seed)
    workers = 0 if compute.debug else resolve_workers(compute.workers, resolve_device(compute.device))
    fitted = fit(
        module,
        DataLoader(volumes, sampler=sampler, batch_size=None, num_workers=workers, persistent_workers=workers > 0),
        batch_loader(volumes, module.evaluated_rows(), training.batch_size, seed=0, shuffle=False),
        epochs=training.epochs,
        seed=record.seed,
        training=training,
        compute=compute,
        record=record,
        monitor=Monitor(
            "valid_choice",
            lower_is_better=False,
            perfect=PERFECT_SCORE,
            keep="best",
            patience=training.patience,
            also_perfect=("valid_ndcg_at_10",),
        ),
    )
    record.artifacts[_checkpoint_name(fitted, record)] = "model/model.pt"
    build |= {"cubes": asdict(data.cubes), "names": list(data.findings)}
    tables = {"history": fitted.history, "pr_curves": curve_table(module.curves)}
    return TrainedModel({"model": fitted.state, "final": fitted.last}, build, tables)


def _build_values(data: Prepared, config: CtConfig, training: CtTraining) -> dict[str, Any]:
    """The arguments of `Proximity`."""
    classifies = config.objective == "micro_f1" or getattr(training.cross_entropy, config.objective) > 0
    return {
        "arch": config.arch,
        "findings": len(data.findings) if classifies else 0,
        **training.model_dump(include={"input_size", "width", "units", "embedding", "dropout", "chunk"}),
        # a batch of two disjoint label sets would give them away by its statistics
        "centre": training.centre and batch_kind(config, training) != "disjoint",
    }


def batch_kind(config: CtConfig, training: CtTraining) -> str:
    """random, overlapping or disjoint."""
    return str(getattr(training.batches, config.objective, "random"))


def _sampler(data: Prepared, config: CtConfig, training: CtTraining, seed: int) -> Sampler[list[int]]:
    rows = data.rows("train")
    kind = batch_kind(config, training)
    if kind == "random":
        return EpochBatchSampler(rows, training.batch_size, seed=seed)
    balanced = training.model_dump(include={"classes", "samples"}) | {"overlap": kind == "overlapping"}
    return BalancedBatches(rows, data.labels[rows], **balanced, seed=seed)


def _checkpoint_name(fitted: FitResult, record: Record) -> str:
    """The reference's name of the best checkpoint, for MLflow."""
    best = int(fitted.metrics["best_epoch"])
    day = record.tags["started"].partition("T")[0].replace("-", "")
    return f"checkpoints/microf1_{day}_epoch={best:03d}_metric={fitted.history['valid_micro_f1'].iloc[best]:.4f}.pt"


def curve_table(curves: list[dict[str, Any]]) -> pd.DataFrame:
    """The columns epoch, finding, recall and precision; one row per entry of RECALLS."""
    table = pd.DataFrame(curves, columns=["epoch", "finding", "precision"]).explode("precision", ignore_index=True)
    table.insert(2, "recall", np.resize(RECALLS, len(table)).round(2))
    return table
