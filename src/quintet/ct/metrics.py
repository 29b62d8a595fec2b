"""Graded retrieval metrics, exact under ties: each is its expectation over all orders of equally similar scans (McSherry and
Najork 2008, doi:10.1007/978-3-540-78646-7_38).

Relevance of a scan to a query: the Jaccard similarity of their sets of findings (1 where both sets are empty); relevant: above 0.
Left out of a query's gallery: every scan of the query's own patient, the query included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import skew
from torch import Tensor

from quintet.errors import InputError

KS = (1, 3, 5, 10, 20)
CHUNK = 1024  # queries at a time
STEP = 1e-9  # similarities that agree to it are tied; the last bits depend on the order of summation
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scans:
    """What metrics know of N scans: names, patients, findings `[N, F]` of 0 and 1."""

    names: NDArray[np.str_]
    patients: NDArray[np.str_]
    labels: NDArray[np.float32]
    findings: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)


def cosine(vectors: NDArray[np.floating[Any]]) -> Floats:
    """`[N, E]` -> `[N, N]`; a vector of length 0 is as similar to one as to another."""
    x = np.asarray(vectors, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x @ x.T


def jaccard(labels: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """`[N, F]` and `[M, F]` of 0 and 1 -> `[N, M]`; 1 where both sets are empty."""
    common = labels @ others.T
    union = labels.sum(1)[:, None] + others.sum(1)[None, :] - common
    return np.where(union > 0, common / np.maximum(union, 1), 1).astype(np.float32)


def f1_scores(predicted: NDArray[Any], true: NDArray[Any], findings: Sequence[str]) -> dict[str, float]:
    """Micro, macro and weighted F1 over findings and each finding's own, of 0 and 1 `[N, F]`; without any positive F1 is 0."""
    both = 2 * ((predicted > 0) & (true > 0)).sum(0)
    total = (predicted > 0).sum(0) + (true > 0).sum(0)
    each = both / np.maximum(total, 1)
    weights = (true > 0).sum(0)
    return {
        "micro_f1": float(both.sum() / max(total.sum(), 1)),
        "macro_f1": float(each.mean()),
        "weighted_f1": float((each * weights).sum() / max(weights.sum(), 1)),
        **{f"f1/{name}": float(value) for name, value in zip(findings, each, strict=True)},
    }


@dataclass(frozen=True)
class Retrieved:
    """Of Q queries: metrics by name `[Q]` (NaN: undefined, nothing relevant is there), the votes of the nearest scans for each
    finding `[Q, F]`, the nearest scans `[Q, K]` (-1: no further one) and their similarities."""

    metrics: Mapping[str, Floats]
    votes: Floats
    nearest: NDArray[np.int64]
    similarity: NDArray[np.float32]


def retrieve(similarity: NDArray[np.floating[Any]], scans: Scans, *, ks: Sequence[int] = KS, neighbours: int = 5) -> Retrieved:
    """Measure how each scan retrieves the others of other patients, `similarity` `[N, N]`, rows are queries.

    AP@k is normalised by min(k, relevant scans); P@k always by k.
    """
    if similarity.shape != (len(scans), len(scans)):
        raise ValueError(f"expected similarities [{len(scans)}, {len(scans)}], got {similarity.shape}")
    if not np.isfinite(similarity).all():
        raise InputError("a similarity is not finite: an embedding holds NaN or infinite values")
    sets, own = np.unique(scans.labels, axis=0, return_inverse=True)
    gains = torch.from_numpy(jaccard(sets, sets))
    kind = torch.from_numpy(own.ravel())
    patients = torch.from_numpy(np.unique(scans.patients, return_inverse=True)[1])
    labels = torch.from_numpy(np.asarray(scans.labels, np.float32))
    scores = torch.from_numpy(np.array(similarity, np.float64)).div_(STEP).round_()
    parts = [
        _chunk(
            scores[start : start + CHUNK],
            kind[start : start + CHUNK],
            patients[start : start + CHUNK],
            kind,
            patients,
            gains,
            labels,
            ks,
            neighbours,
        )
        for start in range(0, len(scans), CHUNK)
    ]
    metrics = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    votes, nearest, values = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
    return Retrieved(metrics, votes, nearest, values)


def _chunk(
    scores: Tensor,
    kind: Tensor,
    patient: Tensor,
    kinds: Tensor,
    patients: Tensor,
    gains: Tensor,
    labels: Tensor,
    ks: Sequence[int],
    neighbours: int,
) -> tuple[dict[str, Floats], Floats, NDArray[np.int64], NDArray[np.float32]]:
    """The metrics of some queries (`kind`, `patient` `[Q]`) against all scans (`kinds`, `patients` `[N]`)."""
    deepest = min(max(*ks, neighbours), scores.shape[1])
    excluded = patient[:, None] == patients[None, :]
    scores = scores.masked_fill(excluded, -torch.inf)
    gain = gains[kind][:, kinds].masked_fill_(excluded, 0)
    top, nearest = scores.topk(deepest)
    ties = _Ties(scores, top, nearest)
    relevant = (gain > 0).float()
    available = relevant.sum(1).double()
    hit, before = ties.expected(relevant), ties.found_before(relevant)
    gained = ties.expected(gain)
    places = torch.arange(1, deepest + 1, dtype=torch.float64)
    discount = 1 / torch.log2(places + 1)
    precision_terms = hit * before / places
    ideal = (gain.topk(deepest).values.double() * discount).cumsum(1)
    reached, precisions = hit.cumsum(1), precision_terms.cumsum(1)
    discounted, collected = (gained * discount).cumsum(1), gained.cumsum(1)
    metrics: dict[str, Tensor] = {}
    for k in ks:
        at = min(k, deepest) - 1
        metrics[f"precision_at_{k}"] = reached[:, at] / k
        metrics[f"recall_at_{k}"] = reached[:, at] / available
        metrics[f"ap_at_{k}"] = precisions[:, at] / available.clamp(max=k)
        metrics[f"ndcg_at_{k}"] = discounted[:, at] / ideal[:, at]
        metrics[f"jaccard_at_{k}"] = collected[:, at] / k
    votes = torch.stack(
        [ties.expected(labels[:, f].expand_as(scores))[:, :neighbours].mean(1) for f in range(labels.shape[1])], 1
    )
    there = torch.isfinite(top)
    return (
        {name: values.numpy() for name, values in metrics.items()},
        votes.numpy(),
        nearest.masked_fill(~there, -1).numpy(),
        torch.where(there, top * STEP, torch.nan).float().numpy(),
    )


class _Ties:
    """The first K places of each query's ranking, where scans of equal score share places by chance."""

    def __init__(self, scores: Tensor, top: Tensor, nearest: Tensor) -> None:
        self.nearest, self.there = nearest, torch.isfinite(top)
        self.same = (top[:, :, None] == top[:, None, :]).double()
        self.above = (top[:, None, :] > top[:, :, None]).double()
        self.size, self.start = self.same.sum(2), self.above.sum(2)  # of each place's group; places before it
        # the last group may go on beyond the K places: then its members are counted among all scans
        members = scores == top[:, -1:]
        self.cut = torch.nonzero((members.sum(1) > self.same[:, -1].sum(1)) & self.there[:, -1])[:, 0]
        self.members, self.last = members[self.cut], (top == top[:, -1:])[self.cut]
        self.size[self.cut] = torch.where(self.last, self.members.sum(1, keepdim=True).double(), self.size[self.cut])

    def _sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of `values` `[Q, N]`: the sum over each place's group, and over the groups before it, `[Q, K]`."""
        picked = (values.gather(1, self.nearest).double() * self.there)[:, :, None]
        group, earlier = (self.same @ picked).squeeze(2), (self.above @ picked).squeeze(2)
        if len(self.cut):
            whole = (values[self.cut] * self.members).sum(1, keepdim=True).double()
            group[self.cut] = torch.where(self.last, whole, group[self.cut])
        return group, earlier

    def expected(self, values: Tensor) -> Tensor:
        """The expectation of `values` `[Q, N]` at each place, `[Q, K]`; 0 at places that nobody takes."""
        return self._sums(values)[0] / self.size * self.there

    def found_before(self, relevant: Tensor) -> Tensor:
        """Expected number of relevant scans down to and with each place, given that the one there is relevant."""
        group, earlier = self._sums(relevant)
        inside = torch.arange(self.size.shape[1], dtype=torch.float64) - self.start  # the place's index in its group
        return earlier + 1 + inside * (group - 1).clamp_min(0) / (self.size - 1).clamp_min(1)


def hubness(nearest: NDArray[np.int64], count: int, k: int = 10) -> float:
    """Skewness of how often each of `count` scans is among the k nearest of another (Radovanovic et al. 2010, JMLR 11:2487);
    large
    where a few scans are everybody's neighbours."""
    listed = nearest[:, :k].ravel()
    occurrences = np.bincount(listed[listed >= 0], minlength=count)
    return float(skew(occurrences)) if occurrences.std() > 0 else 0.0
