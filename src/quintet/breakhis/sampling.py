"""Quadruples: one image per magnification of one patient, as a function of (seed, epoch, patient) alone.

`[Q, M]`: rows of the arrays of the M magnifications that a configuration sees (all four, or one: "quadruple" nevertheless).

No `hash()` of strings, which differs between processes; every image of a patient comes before one comes again.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from quintet.training.batches import rank_and_world_size

NONE = -1  # no image of this magnification
Rows = list[NDArray[np.int64]]  # a patient's rows per magnification; empty where there is none
Item = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # quadruples [B, M], patients [B], seeds [B]


def samples_of(count: float, base: int) -> int:
    """Quadruples an epoch of a patient with `count` images a magnification: 60 % of them up to 15, 40 % up to 30, 25 % above; at
    most twice the base."""
    share = 0.6 if count <= 15 else 0.4 if count <= 30 else 0.25
    return max(1, min(2 * base, round(share * count)))


@dataclass(frozen=True)
class Patients:
    """What is drawn from. Every patient has an image of some magnification."""

    names: Sequence[str]
    rows: Sequence[Rows]

    def samples(self, base: int) -> list[int]:
        return [samples_of(float(np.mean([len(r) for r in rows if len(r)])), base) for rows in self.rows]

    @property
    def images(self) -> int:
        return sum(len(r) for rows in self.rows for r in rows)


def epoch_quadruples(patients: Patients, base: int, *, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Quadruples `[Q, M]` and whose they are `[Q]`, patient by patient.

    Each magnification of a patient is dealt like a pack of cards: shuffled anew when it is used up.
    """
    drawn = []
    for name, rows, count in zip(patients.names, patients.rows, patients.samples(base), strict=True):
        quadruples = np.full((count, len(rows)), NONE)
        for m, own in enumerate(rows):
            if len(own):
                rounds, place = np.divmod(epoch * count + np.arange(count), len(own))
                packs = {k: _generator(seed, name, m, int(k)).permutation(own) for k in np.unique(rounds)}
                quadruples[:, m] = [packs[k][i] for k, i in zip(rounds, place, strict=True)]
        drawn.append(quadruples)
    return np.concatenate(drawn), np.repeat(np.arange(len(drawn)), [len(q) for q in drawn])


def _generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), *numbers])


def all_quadruples(patients: Patients) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every image at least once: the i-th images of all magnifications together, shorter lists starting over."""
    found = []
    for rows in patients.rows:
        count = max(len(r) for r in rows)
        found.append(np.stack([np.resize(r, count) if len(r) else np.full(count, NONE) for r in rows], axis=1))
    return np.concatenate(found), np.repeat(np.arange(len(found)), [len(q) for q in found])


def utilisation(patients: Patients, base: int, *, seed: int, epochs: int) -> tuple[list[float], list[float]]:
    """Share of the images used in each epoch, and in all epochs up to it."""
    seen: set[tuple[int, int]] = set()
    each, so_far = [], []
    for epoch in range(epochs):
        quadruples, _ = epoch_quadruples(patients, base, seed=seed, epoch=epoch)
        used = {(m, row) for m in range(quadruples.shape[1]) for row in quadruples[:, m].tolist() if row != NONE}
        seen |= used
        each.append(len(used) / patients.images)
        so_far.append(len(seen) / patients.images)
    return each, so_far


class QuadrupleBatches(Sampler[Item]):
    """Batches of an epoch's quadruples in an order drawn from (seed, epoch), nearly equal in size: batch norm needs two."""

    def __init__(self, patients: Patients, base: int, batch_size: int, *, seed: int) -> None:
        self.patients, self.base, self.batch_size, self.seed, self.epoch = patients, base, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, math.ceil(sum(self.patients.samples(self.base)) / rank_and_world_size()[1] / self.batch_size))

    def __iter__(self) -> Iterator[Item]:
        quadruples, owner = epoch_quadruples(self.patients, self.base, seed=self.seed, epoch=self.epoch)
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(quadruples))
        seeds = rng.integers(2**31, size=len(quadruples))  # of each quadruple's augmentation
        rank, processes = rank_and_world_size()
        order = np.resize(order, math.ceil(len(order) / processes) * processes)[rank::processes]
        for rows in np.array_split(order, len(self)):
            yield quadruples[rows], owner[rows], seeds[rows]


class InOrder(Sampler[Item]):
    """Batches of given quadruples, unshuffled; under DDP each rank takes every so-manieth."""

    def __init__(self, quadruples: NDArray[np.int64], owner: NDArray[np.int64], batch_size: int) -> None:
        rank, processes = rank_and_world_size()
        self.quadruples, self.owner, self.batch_size = quadruples[rank::processes], owner[rank::processes], batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.quadruples) / self.batch_size)

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self.quadruples), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self.quadruples[part], self.owner[part], np.zeros(len(self.owner[part]), np.int64)


def automatic_batch(device: str, samples: int) -> int:
    """By device, and larger where an epoch is short (the reference's rule)."""
    base = {"cuda": 16, "mps": 8}.get(device, 4)
    return min(32, base + (8 if samples < 1000 else 4 if samples < 2000 else 0))
