"""Balanced batches for triplets: classes are label sets, and those of a batch share no finding."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from quintet.errors import InputError
from quintet.training.batches import rank_and_world_size


class BalancedBatches(Sampler[list[int]]):
    """`classes` label sets x `samples` scans of each; a function of (seed, epoch) alone.

    A scan of a set is not drawn again before all of its set were; an epoch has as many batches as would hold every scan once.
    Under
    DDP each rank takes every n-th batch.
    """

    def __init__(self, rows: NDArray[np.int64], labels: NDArray[np.floating], *, classes: int, samples: int, seed: int) -> None:
        sets, member = np.unique(labels, axis=0, return_inverse=True)
        self.members = [rows[member.ravel() == k] for k in range(len(sets))]
        common = sets @ sets.T > 0
        self.apart = [np.flatnonzero(~row) for row in common]
        self.apart = [others[others != k] for k, others in enumerate(self.apart)]
        self.first = [k for k in range(len(sets)) if self._batch_from(k, classes, np.random.default_rng(0)) is not None]
        if not self.first:
            raise InputError(
                f"no {classes} label sets of the training scans share no finding, as a triplet batch needs; lower "
                "ct.classes or use objective=micro_f1"
            )
        self.classes, self.samples, self.seed, self.epoch = classes, samples, seed, 0
        self.count = math.ceil(len(rows) / (classes * samples))

    def _batch_from(self, first: int, classes: int, rng: np.random.Generator) -> list[int] | None:
        """`first` and further sets that share no finding with it or each other, drawn in random order; None where there are not
        as many."""
        chosen = [first]
        open_ = self.apart[first]
        while len(chosen) < classes:
            if not len(open_):
                return None
            chosen.append(int(rng.choice(open_)))
            open_ = np.intersect1d(open_, self.apart[chosen[-1]])
        return chosen

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / rank_and_world_size()[1])

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        left: list[list[int]] = [[] for _ in self.members]
        weights = np.array([len(self.members[k]) for k in self.first], float)
        rank, processes = rank_and_world_size()
        for number in range(len(self) * processes):
            sets = None
            while sets is None:
                sets = self._batch_from(int(rng.choice(self.first, p=weights / weights.sum())), self.classes, rng)
            batch: list[int] = []
            for k in sets:
                for _ in range(self.samples):
                    if not left[k]:
                        left[k] = rng.permutation(self.members[k]).tolist()
                    batch.append(left[k].pop())
            if number % processes == rank:
                yield batch
