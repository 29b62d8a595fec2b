"""Balanced batches for learning from pairs and triplets: classes are label sets, with or without findings in common."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from quintet.errors import InputError
from quintet.training.batches import rank_and_world_size


class BalancedBatches(Sampler[list[int]]):
    """Batches of `classes` label sets x `samples` scans of each, in an order that depends on (seed, epoch) alone.

    `overlap`: the first two sets of a batch have no finding in common, so that there is a triplet, but the others are any, so
    that a batch has partial overlaps in it. Otherwise (published) no two sets of a batch have a common finding.

    A scan is not drawn again until all scans of its set have been drawn. An epoch has as many batches as are needed to draw every
    scan once. Under DDP with n ranks, each rank takes every n-th batch.
    """

    def __init__(
        self, rows: NDArray[np.int64], labels: NDArray[np.floating], *, classes: int, samples: int, overlap: bool, seed: int
    ) -> None:
        sets, set_of = np.unique(labels, axis=0, return_inverse=True)
        self.members = [rows[set_of.ravel() == k] for k in range(len(sets))]
        self.overlap = overlap
        self.disjoint = [np.flatnonzero(~row) for row in sets @ sets.T > 0]
        self.disjoint = [others[others != k] for k, others in enumerate(self.disjoint)]
        self.first_sets = [k for k in range(len(sets)) if self._can_start(k, classes)]
        if not self.first_sets:
            which = "two of them with" if overlap else "with"
            raise InputError(
                f"a batch needs {classes} label sets, {which} no finding in common, and the training scans have too few; "
                "lower ct.training.classes or use objective=micro_f1"
            )
        self.classes, self.samples, self.seed, self.epoch = classes, samples, seed, 0
        self.count = math.ceil(len(rows) / (classes * samples))

    def _can_start(self, first: int, classes: int) -> bool:
        """Whether some draw of `_draw_sets` succeeds."""
        if self.overlap:
            return len(self.disjoint[first]) > 0 and len(self.members) >= classes
        return self._has_disjoint(self.disjoint[first], classes - 1)

    def _has_disjoint(self, candidates: NDArray[np.int64], count: int) -> bool:
        """Whether `count` of the label sets `candidates` have no finding in common."""
        rest = [np.intersect1d(candidates[candidates > k], self.disjoint[k]) for k in candidates] if count > 0 else []
        return count == 0 or any(self._has_disjoint(own, count - 1) for own in rest)

    def _draw_sets(self, first: int, classes: int, rng: np.random.Generator) -> list[int] | None:
        """`first` and further sets in random order, see `overlap`; None if there are not enough."""
        chosen = [first]
        candidates = self.disjoint[first]
        while len(chosen) < classes:
            if not len(candidates):
                return None
            chosen.append(int(rng.choice(candidates)))
            if self.overlap:
                candidates = np.setdiff1d(np.arange(len(self.members)), chosen)
            else:
                candidates = np.intersect1d(candidates, self.disjoint[chosen[-1]])
        return chosen

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / rank_and_world_size()[1])

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        remaining: list[list[int]] = [[] for _ in self.members]
        weights = np.array([len(self.members[k]) for k in self.first_sets], float)
        rank, processes = rank_and_world_size()
        for number in range(len(self) * processes):
            sets = None
            while sets is None:
                sets = self._draw_sets(int(rng.choice(self.first_sets, p=weights / weights.sum())), self.classes, rng)
            batch: list[int] = []
            for k in sets:
                for _ in range(self.samples):
                    if not remaining[k]:
                        remaining[k] = rng.permutation(self.members[k]).tolist()
                    batch.append(remaining[k].pop())
            if number % processes == rank:
                yield batch
