"""Quadruples: one image per magnification of one patient, as a function of (seed, epoch, patient) alone.

They are arrays `[Q, M]` of rows in the image arrays of the M magnifications that a configuration sees. M is 4 or less, but they
are called quadruples all the same. Python's `hash()` of strings is not used because it differs between processes.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from quintet.training.batches import rank_and_world_size

MISSING = -1  # row of an image that the patient does not have
Rows = list[NDArray[np.int64]]  # a patient's rows at each magnification; empty where it has no image
Batch = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # quadruples [B, M], patients [B], seeds [B]


def samples_per_epoch(images: float, base: int) -> int:
    """How many quadruples an epoch takes from a patient with `images` per magnification.

    60 % of the images up to 15, 40 % up to 30, 25 % above; at least 1 and at most twice the base.
    """
    share = 0.6 if images <= 15 else 0.4 if images <= 30 else 0.25
    return max(1, min(2 * base, round(share * images)))


@dataclass(frozen=True)
class PatientRows:
    """Patients and their rows in the image arrays. Every patient has an image at some magnification."""

    names: Sequence[str]
    rows: Sequence[Rows]

    def samples(self, base: int) -> list[int]:
        """The number of quadruples per epoch of each patient."""
        return [samples_per_epoch(float(np.mean([len(r) for r in rows if len(r)])), base) for rows in self.rows]

    @property
    def image_count(self) -> int:
        return sum(len(r) for rows in self.rows for r in rows)


def epoch_quadruples(patients: PatientRows, base: int, *, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The quadruples of an epoch `[Q, M]` and the index of each one's patient `[Q]`, patient by patient.

    The images of a patient at a magnification are shuffled, used in turn over the epochs, and shuffled again when all were used.
    """
    per_patient = []
    for name, rows, count in zip(patients.names, patients.rows, patients.samples(base), strict=True):
        quadruples = np.full((count, len(rows)), MISSING)
        for m, available in enumerate(rows):
            if len(available):
                rounds, places = np.divmod(epoch * count + np.arange(count), len(available))
                quadruples[:, m] = [
                    available[_order(len(available), seed, name, m, int(k))[i]] for k, i in zip(rounds, places, strict=True)
                ]
        per_patient.append(quadruples)
    return _concatenate(per_patient)


def _generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), *numbers])


@lru_cache(maxsize=1 << 16)  # an order is needed in several epochs, and for the utilisation of all of them
def _order(count: int, seed: int, name: str, *numbers: int) -> NDArray[np.int64]:
    return _generator(seed, name, *numbers).permutation(count)


def _concatenate(per_patient: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.concatenate(per_patient), np.repeat(np.arange(len(per_patient)), [len(q) for q in per_patient])


def all_quadruples(patients: PatientRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Quadruples `[Q, M]` that contain every image at least once, and the index of each one's patient `[Q]`.

    The i-th images of all magnifications form a quadruple; shorter lists start over.
    """
    per_patient = []
    for rows in patients.rows:
        count = max(len(r) for r in rows)
        per_patient.append(np.stack([np.resize(r, count) if len(r) else np.full(count, MISSING) for r in rows], axis=1))
    return _concatenate(per_patient)


def utilisation(patients: PatientRows, base: int, *, seed: int, epochs: int) -> tuple[list[float], list[float]]:
    """The share of the images that is used in each epoch, and in all epochs up to and including it."""
    seen: set[tuple[int, int]] = set()
    in_epoch, so_far = [], []
    for epoch in range(epochs):
        quadruples, _ = epoch_quadruples(patients, base, seed=seed, epoch=epoch)
        used = {(m, row) for m in range(quadruples.shape[1]) for row in quadruples[:, m].tolist() if row != MISSING}
        seen |= used
        in_epoch.append(len(used) / patients.image_count)
        so_far.append(len(seen) / patients.image_count)
    return in_epoch, so_far


class QuadrupleBatches(Sampler[Batch]):
    """Batches of an epoch's quadruples in an order that depends on (seed, epoch) alone. They are nearly equal in size, because
    batch norm needs at least two samples."""

    def __init__(self, patients: PatientRows, base: int, batch_size: int, *, seed: int) -> None:
        self.patients, self.base, self.batch_size, self.seed, self.epoch = patients, base, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, math.ceil(sum(self.patients.samples(self.base)) / rank_and_world_size()[1] / self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        quadruples, owner = epoch_quadruples(self.patients, self.base, seed=self.seed, epoch=self.epoch)
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(quadruples))
        seeds = rng.integers(2**31, size=len(quadruples))  # of each quadruple's augmentation
        rank, processes = rank_and_world_size()
        order = np.resize(order, math.ceil(len(order) / processes) * processes)[rank::processes]
        for chosen in np.array_split(order, len(self)):
            yield quadruples[chosen], owner[chosen], seeds[chosen]


class SequentialBatches(Sampler[Batch]):
    """Batches of given quadruples in their order; under DDP each rank takes its share."""

    def __init__(self, quadruples: NDArray[np.int64], owner: NDArray[np.int64], batch_size: int) -> None:
        rank, processes = rank_and_world_size()
        self.quadruples, self.owner, self.batch_size = quadruples[rank::processes], owner[rank::processes], batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.quadruples) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.quadruples), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self.quadruples[part], self.owner[part], np.zeros(len(self.owner[part]), np.int64)


def automatic_batch_size(device: str, samples: int) -> int:
    """The reference's rule: it depends on the device and is larger if an epoch has few samples."""
    base = {"cuda": 16, "mps": 8}.get(device, 4)
    return min(32, base + (8 if samples < 1000 else 4 if samples < 2000 else 0))
