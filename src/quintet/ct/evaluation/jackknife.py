"""Retrieval scores of patients whose scans are queries and gallery: jackknife pseudo-values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.ct.metrics import CHUNK, Floats, Scans, Ties, metrics_at, queries
from quintet.jackknife import pseudo_values


def patient_pseudo_values(
    similarity: NDArray[np.floating[Any]], scans: Scans, metrics: Mapping[str, Floats], names: Mapping[str, int]
) -> dict[str, Floats]:
    """Jackknife pseudo-values `[patients]`, in the order of `np.unique`, of a metric's mean over patients of their query means.

    A patient is left out as a query and from the gallery of all others. `metrics`: those of `retrieve`; `names`: which, and
    their cut-off k. Only queries for which a patient is among the first scans, or among the most relevant ones, are ranked again.
    """
    count = len(np.unique(scans.patients))
    patients = torch.from_numpy(np.unique(scans.patients, return_inverse=True)[1])
    depth = min(max(names.values()), len(scans))
    without = {name: np.repeat(metrics[name][:, None], count, 1) for name in names}  # [Q, patients]
    for scores, gain, chunk in queries(similarity, scans):
        first = (scores >= scores.topk(depth).values[:, -1:]) & torch.isfinite(scores)
        affected = _per_patient(first, patients, count) > 0
        last = gain.topk(depth).values[:, -1:]
        spare = (gain >= last).sum(1, keepdim=True) - depth
        needed = (last > 0) & (_per_patient(gain == last, patients, count) > spare)
        affected |= needed | (_per_patient(gain > last, patients, count) > 0)
        pairs = torch.nonzero(affected)
        for query, patient in (part.unbind(1) for part in pairs.split(CHUNK)):
            left_out = patients[None, :] == patient[:, None]
            ties = Ties(scores[query].masked_fill(left_out, -torch.inf), depth)
            found = metrics_at(ties, gain[query].masked_fill(left_out, 0), sorted(names.values()))
            for name in names:
                without[name][chunk][query, patient] = found[name].numpy()
    member = np.eye(count)[patients]  # [Q, patients]
    return {name: _pseudo_values(metrics[name], without[name], member) for name in names}


def _pseudo_values(values: Floats, without: Floats, member: Floats) -> Floats:
    """From a metric `[Q]`, the metric `without` each patient `[Q, patients]`, and the patient of each query, one-hot."""

    def mean_over_patients(values: Floats) -> Floats:
        counts = member.T @ ~np.isnan(values)
        means = np.divide(member.T @ np.nan_to_num(values), counts, out=np.full(counts.shape, np.nan), where=counts > 0)
        return np.asarray(np.nanmean(means, 0))

    whole = float(mean_over_patients(values[:, None])[0])
    own = np.where(member > 0, np.nan, without)
    defined = ~np.isnan(own).all(0)
    estimates = np.full(member.shape[1], whole)
    estimates[defined] = mean_over_patients(own[:, defined])
    return pseudo_values(whole, estimates)


def _per_patient(chosen: Tensor, patients: Tensor, count: int) -> Tensor:
    """How many of each patient's scans are `chosen` `[Q, N]`: `[Q, patients]`."""
    return torch.zeros(len(chosen), count).index_add_(1, patients, chosen.float())
