"""Lightning callbacks (seeds per batch, history per epoch, resumable early stopping, a stop at the first non-finite loss) and
how checkpoints are written."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from quintet.errors import InputError
from quintet.files import atomic_file
from quintet.runs import Record
from quintet.tracking import LiveRun
from quintet.training.hardware import peak_memory_mb


class Reseed(Callback):
    """The random numbers of a batch depend on (seed, step) alone, so that a resumed run draws the same ones."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.current_epoch * 1_000_003 + batch_idx
        torch.manual_seed((self.seed * 2_654_435_761 + step + trainer.global_rank * 1_000_000_000_039) % 2**63)


class History(Callback):
    """Metrics, peak memory and time per epoch: kept in the checkpoint (so that a resumed run has them all), mirrored live to
    MLflow, and printed if there is no progress bar."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.rows: list[dict[str, Any]] = []
        self.memory: list[dict[str, float]] = []
        self.live: LiveRun | None = None
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time, including that of earlier, killed processes up to their last checkpoint."""
        return time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "memory": self.memory, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.memory = list(state_dict["rows"]), list(state_dict["memory"])
        self.started -= state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.live = LiveRun(self.record)
            for row, memory in zip(self.rows, self.memory, strict=True):
                self._mirror(row | memory)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.endswith("_step")}
        row = {"epoch": trainer.current_epoch, "lr": trainer.optimizers[0].param_groups[-1]["lr"], **metrics}
        memory = {"peak_memory_mb": peak_memory_mb()}
        if torch.cuda.is_available():
            memory["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        self.rows.append(row)
        self.memory.append(memory)
        self._mirror(row | memory)
        if trainer.progress_bar_callback is None and trainer.is_global_zero:
            left = self.seconds / len(self.rows) * ((trainer.max_epochs or 0) - len(self.rows))
            shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            print(f"epoch {len(self.rows)}/{trainer.max_epochs}  {shown}  about {left:.0f} s left", flush=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.live:
            self.live.close(failed=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.live:
            self.live.close()

    def _mirror(self, row: dict[str, Any]) -> None:
        if self.live:
            self.live.log({k: v for k, v in row.items() if k != "epoch"}, int(row["epoch"]))


class ResumePoint(Checkpoint):
    """Writes the checkpoint from which a killed run resumes: after the first epoch and the last, and after others if the previous
    one is older than `interval` seconds. (Writing it after each one took a tenth of the time of short epochs.)"""

    def __init__(self, path: Path, interval: float = 10) -> None:
        self.path, self.interval, self.written = path, interval, -math.inf

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        final = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        # every process takes part in writing, so that one decides
        if trainer.strategy.broadcast(final or time.monotonic() - self.written >= self.interval):
            trainer.save_checkpoint(self.path)
            self.written = time.monotonic()


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it. (Lightning writes it into the system's temporary folder; if that is on
    another disk, moving it copies it, and a kill or a full disk leaves half a checkpoint.)"""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_file(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class ResumableEarlyStopping(EarlyStopping):
    """Early stopping that survives a resume. Lightning restores the wait count but not that training had stopped, so a run
    killed after its last epoch would train on."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


def moving_average(decay: float) -> WeightAveraging:
    """An exponential moving average of the weights and batch statistics, which replaces them in validation and in the
    `state_dict` of checkpoints. The decay of step n is at most (1 + n) / (10 + n), so that a short training forgets its first
    weights, too."""

    def average(averaged: Any, current: Any, count: Any) -> None:
        step = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(averaged, current, count)

    return WeightAveraging(multi_avg_fn=average)


class FiniteLoss(Callback):
    """Stops at the first loss that is not finite, and names the step, the cases and the largest weights."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if torch.isfinite(loss):
            return
        batch = getattr(pl_module, "last_batch", None)
        cases = ", ".join(map(str, batch["case"])) if isinstance(batch, Mapping) and "case" in batch else "unknown"
        largest = sorted(((p.detach().abs().max().item(), n) for n, p in pl_module.named_parameters()), key=_non_finite_first)
        weights = ", ".join(f"{name} {value:.3g}" for value, name in largest[:3])
        raise InputError(
            f"the loss is {loss.item()} at step {trainer.global_step} (epoch {trainer.current_epoch}); cases: {cases}; "
            f"largest weights: {weights}. Lower the learning rate, or set precision to 32"
        )


def _non_finite_first(item: tuple[float, str]) -> float:
    return -math.inf if not math.isfinite(item[0]) else -item[0]
