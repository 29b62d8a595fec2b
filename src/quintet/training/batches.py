"""Batches of array rows: their order depends on (seed, epoch) alone, and each batch is one tensor operation."""

import math
import os
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class EpochBatchSampler(Sampler[list[int]]):
    """Batches of row numbers in an order that depends on (seed, epoch) alone; under DDP each rank takes its share of an epoch."""

    def __init__(self, rows: NDArray[np.int64], batch_size: int, *, seed: int, shuffle: bool = True) -> None:
        self.rows = rows
        self.batch_size, self.seed, self.shuffle, self.epoch = batch_size, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / rank_and_world_size()[1] / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.rows
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        rank, processes = rank_and_world_size()
        order = np.resize(order, math.ceil(len(order) / processes) * processes)[rank::processes]
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def rank_and_world_size() -> tuple[int, int]:
    """Rank and world size of this process, even before Lightning has started DDP."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def gather_rows(module: L.LightningModule, rows: Tensor) -> Tensor:
    """Join `[N, F]` tensors in which each rank filled some rows and left zeros in the others. A row that several ranks filled is
    the same in each."""
    gathered: Any = module.all_gather(rows)
    gathered = gathered.reshape(-1, *rows.shape)
    return gathered.gather(0, gathered.abs().sum(2, keepdim=True).argmax(0, keepdim=True).expand(1, *rows.shape))[0]


class DeviceArrays:
    """Arrays from which batches take rows. `move_to` moves them to a device, if they need less than a third of its free memory;
    larger ones stay where they are, and their rows are copied.

    They are not buffers of a module, because DDP would broadcast them.
    """

    def __init__(self, *arrays: Tensor) -> None:
        self.arrays, self.device = arrays, torch.device("cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeviceArrays":
        return self  # nothing writes to them, and a moving average starts with a copy of the whole module

    def move_to(self, device: torch.device) -> None:
        self.device = device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
        if sum(array.nbytes for array in self.arrays) < free / 3:
            self.arrays = tuple(array.to(device) for array in self.arrays)

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, ...]:
        rows = rows.to(self.arrays[0].device)
        return tuple(array[rows].to(self.device) for array in self.arrays)


def batch_loader(data: Dataset[Any], rows: NDArray[np.int64], batch_size: int, *, seed: int, shuffle: bool) -> DataLoader[Any]:
    """A loader that passes `data` the indices of a whole batch at once: one tensor operation, no workers, no collation."""
    return DataLoader(data, sampler=EpochBatchSampler(rows, batch_size, seed=seed, shuffle=shuffle), batch_size=None)
