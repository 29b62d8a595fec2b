"""`fit` trains a module. If it is killed at any moment and called again, the result is that of an uninterrupted call."""

import hashlib
import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from quintet.errors import InputError
from quintet.files import repository_root
from quintet.params import AdamCosine, Compute, Optimisation
from quintet.runs import CODE_TAGS, Record
from quintet.training.callbacks import (
    AtomicCheckpoints,
    FiniteLoss,
    History,
    Reseed,
    ResumableEarlyStopping,
    ResumePoint,
    moving_average,
)
from quintet.training.hardware import LIGHTNING_PRECISION, peak_memory_mb, resolve_device

DRIFT_EPOCHS = 5
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no tips; warnings stay


def set_threads_and_seed(compute: Compute, seed: int) -> None:
    """Set the number of threads and the seeds of this process."""
    if compute.threads:
        torch.set_num_threads(compute.threads)
    L.seed_everything(seed, workers=True, verbose=False)
    # a debugging aid of deterministic mode that costs 5 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def adam_optimizer(groups: list[dict[str, Any]], training: AdamCosine, *, decoupled: bool = False) -> torch.optim.Optimizer:
    """Adam, or AdamW if weight decay is `decoupled`."""
    on_cpu = groups[0]["params"][0].device.type == "cpu"
    # fused: 14 -> 3 ms per step of a ResNet-18 on 2 cores; on a GPU it would rule out gradient clipping under float16
    optimizer = (torch.optim.AdamW if decoupled else torch.optim.Adam)(
        groups, weight_decay=training.weight_decay, fused=on_cpu or None
    )
    # Lightning refuses to clip gradients if a fused step could unscale them itself. On a CPU nothing is scaled: float16, the only
    # precision that needs scaling, is rejected there (hardware.py).
    optimizer._step_supports_amp_scaling = False
    return optimizer


def with_step_schedule(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """The return value of configure_optimizers for a schedule that is stepped per batch."""
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def cosine_with_warmup(
    optimizer: torch.optim.Optimizer, training: AdamCosine, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up (a fraction `training.warmup` of the steps), then cosine annealing to `training.rate_floor`; per batch."""
    warm = round(training.warmup * steps)

    def factor(rate: float) -> Callable[[int], float]:
        floor = min(1.0, training.rate_floor / rate)

        def at(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            done = min(1.0, (step - warm) / max(1, steps - warm))
            return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2

        return at

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [factor(group["lr"]) for group in optimizer.param_groups])


@dataclass(frozen=True)
class Monitor:
    """The validation metric that is monitored. `perfect`: a value this good or better is suspicious and causes a warning.

    `keep`: keep the weights of the best or of the last epoch. If scores are reported on the validation cases (as in
    cross-validation), choosing the best epoch on them would be optimistic: keep the last.
    """

    metric: str
    lower_is_better: bool
    perfect: float
    keep: Literal["best", "last"]
    patience: int = 0  # epochs without a better value before stopping; 0 = off
    also_perfect: Sequence[str] = ()  # further metrics of the same scale to which `perfect` applies
    loss_gap: float = math.inf  # warn if validation loss exceeds training loss by this much over DRIFT_EPOCHS


@dataclass(frozen=True)
class FitResult:
    """Weights of the module's `net`: `state` are those that the monitor keeps, `last` those of the last epoch."""

    history: pd.DataFrame
    metrics: dict[str, float]
    state: dict[str, Tensor]
    last: dict[str, Tensor]


def fit(
    module: L.LightningModule,
    train: DataLoader[Any],
    valid: DataLoader[Any],
    *,
    epochs: int,
    seed: int,
    training: Optimisation,
    compute: Compute,
    record: Record,
    monitor: Monitor,
    weight_averaging: float = 0.0,
) -> FitResult:
    """Train `module`, whose network is `module.net`; resumes where a killed run with the same record and code stopped.

    `weight_averaging`: with a decay per step above 0, an exponential moving average of weights and batch statistics is what
    is validated and returned.

    Adds device, precision, peak memory and the final metrics to the record.
    """
    device = resolve_device(compute.device)
    precision = LIGHTNING_PRECISION[str(training.precision)]
    record.tags |= {"device": device, "precision": precision}
    code = hashlib.md5(repr([record.tags.get(tag) for tag in CODE_TAGS]).encode(), usedforsecurity=False).hexdigest()[:8]
    folder = repository_root() / ".checkpoints" / f"{record.stage}-{record.config}-{record.seed}-{record.key}-{code}"
    with _exclusive(folder):
        last, best = folder / "last.ckpt", folder / "best.ckpt"
        callbacks, history = _callbacks(last, best, record, seed=seed, monitor=monitor, weight_averaging=weight_averaging)
        trainer = _trainer(callbacks, device, precision, epochs=epochs, training=training, compute=compute, folder=folder)
        if last.is_file():
            print(f"resuming from {last}", flush=True)
            # Lightning tells the sampler the epoch too late: processes that load data have begun with epoch 0 by then
            if set_epoch := getattr(train.sampler, "set_epoch", None):
                set_epoch(torch.load(last, map_location="cpu", weights_only=True)["epoch"] + 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            trainer.fit(module, train, valid, ckpt_path=last if last.is_file() else None, weights_only=True)
        if not trainer.is_global_zero:
            raise SystemExit(0)  # under DDP only the first process evaluates and writes
        final = _weights(last)
        state = _weights(best) if monitor.keep == "best" else final
        net: torch.nn.Module = module.net  # type: ignore[assignment]
        record.epochs = history.memory
        table = pd.DataFrame(history.rows)
        metrics = summarize(table, monitor) | {
            "train_seconds": history.seconds,
            "peak_memory_mb": peak_memory_mb(),
            "parameters": float(sum(p.numel() for p in net.parameters())),
        }
        if torch.cuda.is_available():
            metrics["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        record.metrics |= metrics
        return FitResult(table, metrics, state, final)


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")}


def delete_resume_checkpoints(record: Record) -> None:
    """Remove the resume checkpoints of a finished stage; called when its outputs are in place."""
    for folder in (repository_root() / ".checkpoints").glob(f"{record.stage}-{record.config}-{record.seed}-{record.key}*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock the folder. A killed `dvc` leaves its stage process alive; a second process waits for it instead of writing to the
    same files."""
    folder.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", 0)) > 0:  # under DDP rank 0 holds the lock for all
        yield
        return
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process trains the same run ({folder.name}); waiting for it to end", flush=True)
        lock.acquire()
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        lock.release()


def _callbacks(
    last: Path, best: Path, record: Record, *, seed: int, monitor: Monitor, weight_averaging: float
) -> tuple[list[Callback], History]:
    mode = "min" if monitor.lower_is_better else "max"
    history = History(record)
    callbacks: list[Callback] = [Reseed(seed), FiniteLoss(), history]
    if monitor.keep == "best":
        callbacks.append(
            ModelCheckpoint(
                best.parent,
                best.stem,
                monitor=monitor.metric,
                mode=mode,
                save_weights_only=not weight_averaging,  # Lightning puts averaged weights into whole checkpoints only
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )
    callbacks.append(ResumePoint(last))
    if weight_averaging:
        callbacks.append(moving_average(weight_averaging))
    if sys.stderr.isatty():
        callbacks.append(TQDMProgressBar(leave=False))
    if monitor.patience:
        callbacks.append(
            ResumableEarlyStopping(monitor.metric, mode=mode, patience=monitor.patience, check_on_train_epoch_end=True)
        )
    return callbacks, history


def _trainer(
    callbacks: list[Callback], device: str, precision: str, *, epochs: int, training: Optimisation, compute: Compute, folder: Path
) -> L.Trainer:
    logger: Any = False
    if compute.tensorboard:
        from lightning.pytorch.loggers import TensorBoardLogger

        try:
            logger = TensorBoardLogger(repository_root() / "logs" / "tensorboard", name=folder.name, version="")
        except ModuleNotFoundError:
            raise InputError("compute.tensorboard=true needs a package: pip install -c constraints.txt tensorboard") from None
    return L.Trainer(
        max_epochs=epochs,
        accelerator=device,
        # a single process, or those that torchrun or SLURM started
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        num_nodes=int(os.environ.get("WORLD_SIZE", 1)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        precision=precision,  # type: ignore[arg-type]
        # grid_sample's backward has no deterministic CUDA kernel; images need no gradient, so a warning is enough
        deterministic=True if device == "cpu" else "warn",
        gradient_clip_val=training.clip_norm or None,
        accumulate_grad_batches=training.accumulate,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        logger=logger,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        use_distributed_sampler=False,  # EpochBatchSampler does it
        num_sanity_val_steps=0,
    )


def summarize(history: pd.DataFrame, monitor: Monitor) -> dict[str, float]:
    """Best value and epoch, and warnings for overfitting and for suspiciously good validation (also printed)."""
    values = history[monitor.metric]
    best = int(values.idxmin() if monitor.lower_is_better else values.idxmax())
    recent = history.tail(DRIFT_EPOCHS)
    slope = {
        name: np.polyfit(recent["epoch"], recent[name], 1)[0] if len(recent) > 1 else 0.0 for name in ("train_loss", "valid_loss")
    }
    drift = len(recent) == DRIFT_EPOCHS and slope["train_loss"] < 0 < slope["valid_loss"]
    drift = bool(drift and recent["valid_loss"].iloc[-1] > recent["train_loss"].iloc[-1])
    gap = len(recent) == DRIFT_EPOCHS and bool((recent["valid_loss"] - recent["train_loss"] > monitor.loss_gap).all())
    kept = history.iloc[best if monitor.keep == "best" else -1][[monitor.metric, *monitor.also_perfect]]
    suspicious = kept[kept <= monitor.perfect] if monitor.lower_is_better else kept[kept >= monitor.perfect]
    if drift:
        print(f"warning: over the last {DRIFT_EPOCHS} epochs training loss fell while validation loss rose (overfitting)")
    if gap:
        print(f"warning: validation loss exceeded training loss by {monitor.loss_gap} for {DRIFT_EPOCHS} epochs (overfitting)")
    for name, value in suspicious.items():
        print(f"warning: {name} reached {value:.3g}, almost perfect; with more than a few validation cases, look for a leak")
    return {
        f"best_{monitor.metric}": float(values[best]),
        f"last_{monitor.metric}": float(values.iloc[-1]),
        "best_epoch": float(history["epoch"].iloc[best]),
        "warning_drift": float(drift or gap),
        "warning_perfect_validation": float(len(suspicious) > 0),
    }
