"""The Lightning Trainer, built one way for every study: precision, seeds, resume, checkpoints, history, warnings."""

from quintet.training.batches import EpochBatches, batches
from quintet.training.fit import Fitted, adam_cosine, fit, forget
from quintet.training.hardware import peak_memory_mb, resolve_device, resolve_precision, set_up
from quintet.training.models import load_model, load_weights, save_model

__all__ = [
    "EpochBatches", "Fitted", "adam_cosine", "batches", "fit", "forget", "load_model", "load_weights", "peak_memory_mb",
    "resolve_device", "resolve_precision", "save_model", "set_up",
]  # fmt: skip
