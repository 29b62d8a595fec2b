"""Graded retrieval metrics that are exact under ties: each is its expectation over all orders of equally similar scans (McSherry
and Najork 2008, doi:10.1007/978-3-540-78646-7_38).

The relevance of a scan to a query is the Jaccard similarity of their sets of findings (1 if both sets are empty); a scan is
relevant if it is above 0. A query's gallery excludes every scan of the query's own patient, including the query itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import skew
from torch import Tensor

from quintet.errors import InputError

KS = (1, 3, 5, 10, 20)
PSEUDO_VALUE = "{}/pseudo_value"  # of a metric, for a patient, in the tidy table
CHUNK = 1024  # queries at a time
TOLERANCE = 1e-9  # similarities that agree to within this are tied; their last bits depend on the order of summation
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scans:
    """What the metrics need of N scans."""

    names: NDArray[np.str_]
    patients: NDArray[np.str_]
    labels: NDArray[np.float32]  # [N, F], 0 or 1
    findings: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)


def cosine(vectors: NDArray[np.floating[Any]]) -> Floats:
    """Cosine similarities `[N, N]` of `[N, E]`; those of a vector of length 0 are 0."""
    x = np.asarray(vectors, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x @ x.T


def jaccard(labels: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Jaccard similarities `[N, M]` of the sets of findings `[N, F]` and `[M, F]`; 1 if both sets are empty."""
    common = labels @ others.T
    union = labels.sum(1)[:, None] + others.sum(1)[None, :] - common
    return np.where(union > 0, common / np.maximum(union, 1), 1).astype(np.float32)


def f1_scores(predicted: NDArray[Any], true: NDArray[Any], findings: Sequence[str]) -> dict[str, float]:
    """Micro, macro and weighted F1 over findings, and the F1 of each, from `[N, F]` of 0 and 1; 0 if there are no positives.

    scikit-learn gives the same numbers for several findings, but treats a single column as two classes.
    """
    true_positive_twice = 2 * ((predicted > 0) & (true > 0)).sum(0)
    total = (predicted > 0).sum(0) + (true > 0).sum(0)
    f1 = true_positive_twice / np.maximum(total, 1)
    support = (true > 0).sum(0)
    return {
        "micro_f1": float(true_positive_twice.sum() / max(total.sum(), 1)),
        "macro_f1": float(f1.mean()),
        "weighted_f1": float((f1 * support).sum() / max(support.sum(), 1)),
        **{f"f1/{name}": float(value) for name, value in zip(findings, f1, strict=True)},
    }


@dataclass(frozen=True)
class Retrieved:
    """The result of Q queries."""

    metrics: Mapping[str, Floats]  # name -> [Q]; NaN where undefined because nothing is relevant
    votes: Floats  # [Q, F], share of the nearest scans that have each finding
    nearest: NDArray[np.int64]  # [Q, K], rows of the nearest scans; -1: there are no more
    similarity: NDArray[np.float32]  # [Q, K]


def retrieve(similarity: NDArray[np.floating[Any]], scans: Scans, *, ks: Sequence[int] = KS, neighbours: int = 5) -> Retrieved:
    """Evaluate how each scan retrieves the scans of other patients from `similarity` `[N, N]`, whose rows are queries.

    AP@k is normalised by min(k, number of relevant scans), P@k always by k. Raises InputError if a similarity is not finite.
    """
    labels = torch.from_numpy(np.asarray(scans.labels, np.float32))
    parts = [_chunk(scores, gain, labels, ks, neighbours) for scores, gain, _ in queries(similarity, scans)]
    metrics = {name: np.concatenate([part.metrics[name] for part in parts]) for name in parts[0].metrics}
    votes, nearest, values = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("votes", "nearest", "similarity")
    )
    return Retrieved(metrics, votes, nearest, values)


def queries(similarity: NDArray[np.floating[Any]], scans: Scans) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Chunks of queries: similarities in units of TOLERANCE `[Q, N]`, -inf for excluded scans; relevance `[Q, N]`, 0 for excluded
    scans; the rows."""
    if similarity.shape != (len(scans), len(scans)):
        raise ValueError(f"expected similarities [{len(scans)}, {len(scans)}], got {similarity.shape}")
    if not np.isfinite(similarity).all():
        raise InputError("a similarity is not finite: an embedding contains NaN or infinite values")
    label_sets, set_of = np.unique(scans.labels, axis=0, return_inverse=True)
    gains = torch.from_numpy(jaccard(label_sets, label_sets))
    sets = torch.from_numpy(set_of.ravel())
    patients = torch.from_numpy(np.unique(scans.patients, return_inverse=True)[1])
    scores = torch.from_numpy(np.array(similarity, np.float64)).div_(TOLERANCE).round_()
    for start in range(0, len(scans), CHUNK):
        chunk = slice(start, start + CHUNK)
        excluded = patients[chunk, None] == patients[None, :]
        gain = gains[sets[chunk]][:, sets].masked_fill_(excluded, 0)
        yield scores[chunk].masked_fill(excluded, -torch.inf), gain, chunk


def _chunk(scores: Tensor, gain: Tensor, labels: Tensor, ks: Sequence[int], neighbours: int) -> Retrieved:
    """The metrics of some queries, see `queries`; `labels` `[N, F]`."""
    ties = Ties(scores, min(max(*ks, neighbours), scores.shape[1]))
    votes = [ties.expected(labels[:, f].expand_as(scores))[:, :neighbours].mean(1) for f in range(labels.shape[1])]
    return Retrieved(
        {name: values.numpy() for name, values in metrics_at(ties, gain, ks).items()},
        torch.stack(votes, 1).numpy(),
        ties.nearest.masked_fill(~ties.taken, -1).numpy(),
        torch.where(ties.taken, ties.top * TOLERANCE, torch.nan).float().numpy(),
    )


def metrics_at(ties: "Ties", gain: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Each `[Q]`; `gain` `[Q, N]`."""
    depth = ties.top.shape[1]
    relevant = (gain > 0).float()
    relevant_count = relevant.sum(1).double()
    ranks = torch.arange(1, depth + 1, dtype=torch.float64)
    discount = 1 / torch.log2(ranks + 1)
    hits, gained = ties.expected(relevant), ties.expected(gain)
    precision_sum = (hits * ties.expected_hits(relevant) / ranks).cumsum(1)
    ideal_dcg = (gain.topk(depth).values.double() * discount).cumsum(1)
    hit_count = hits.cumsum(1)
    dcg, gain_sum = (gained * discount).cumsum(1), gained.cumsum(1)
    metrics: dict[str, Tensor] = {}
    for k in ks:
        last = min(k, depth) - 1
        metrics[f"precision_at_{k}"] = hit_count[:, last] / k
        metrics[f"recall_at_{k}"] = hit_count[:, last] / relevant_count
        metrics[f"ap_at_{k}"] = precision_sum[:, last] / relevant_count.clamp(max=k)
        metrics[f"ndcg_at_{k}"] = dcg[:, last] / ideal_dcg[:, last]
        metrics[f"jaccard_at_{k}"] = gain_sum[:, last] / k
    return metrics


class Ties:
    """The first `depth` places (K) of each query's ranking, in which scans with equal scores are in random order."""

    def __init__(self, scores: Tensor, depth: int) -> None:
        top, self.nearest = scores.topk(depth)
        self.top = top
        self.taken = torch.isfinite(top)
        self.same = (top[:, :, None] == top[:, None, :]).double()
        self.above = (top[:, None, :] > top[:, :, None]).double()
        # per place: the number of scans tied with the one there, and the number of places before that group
        self.size, self.start = self.same.sum(2), self.above.sum(2)
        # the last group may extend beyond the K places: then its members are counted among all scans
        members = scores == top[:, -1:]
        self.cut = torch.nonzero((members.sum(1) > self.same[:, -1].sum(1)) & self.taken[:, -1])[:, 0]
        self.members, self.last = members[self.cut], (top == top[:, -1:])[self.cut]
        self.size[self.cut] = torch.where(self.last, self.members.sum(1, keepdim=True).double(), self.size[self.cut])

    def _sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of `values` `[Q, N]` over each place's group, and over the groups before it, both `[Q, K]`."""
        ranked = (values.gather(1, self.nearest).double() * self.taken)[:, :, None]
        group, earlier = (self.same @ ranked).squeeze(2), (self.above @ ranked).squeeze(2)
        if len(self.cut):
            whole = (values[self.cut] * self.members).sum(1, keepdim=True).double()
            group[self.cut] = torch.where(self.last, whole, group[self.cut])
        return group, earlier

    def expected(self, values: Tensor) -> Tensor:
        """The expectation of `values` `[Q, N]` at each place, `[Q, K]`; 0 at places without a scan."""
        return self._sums(values)[0] / self.size * self.taken

    def expected_hits(self, relevant: Tensor) -> Tensor:
        """The expected number of relevant scans up to and including each place, given that the scan there is relevant."""
        group, earlier = self._sums(relevant)
        index_in_group = torch.arange(self.size.shape[1], dtype=torch.float64) - self.start
        return earlier + 1 + index_in_group * (group - 1).clamp_min(0) / (self.size - 1).clamp_min(1)


def hubness(nearest: NDArray[np.int64], count: int, k: int = 10) -> float:
    """Skewness of how often each of `count` scans is among the k nearest of another (Radovanovic et al. 2010, JMLR 11:2487).

    It is large if a few scans are the neighbours of many.
    """
    listed = nearest[:, :k].ravel()
    occurrences = np.bincount(listed[listed >= 0], minlength=count)
    return float(skew(occurrences)) if occurrences.std() > 0 else 0.0
