"""Graded F1 as a loss, and online triplets.

Each loss of a degenerate batch (no triplet, nobody with a finding) is a finite number with a graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.registry import Registry

SELECTORS = Registry("selector")


def micro_f1_loss(
    scores: Tensor, targets: Tensor, *, average: str = "samples", smooth: float = 0.0, cross_entropy: float = 0.0
) -> Tensor:
    """1 - F1 of soft counts: with p = sigmoid(scores) `[B, F]` and targets t in [0, 1], TP = sum p t, FP = sum p (1 - t),
    FN = sum (1 - p) t, F1 = (2 TP + smooth) / (2 TP + FP + FN + smooth).

    `samples`: the mean of each scan's F1, which is what the reference calls micro-F1; `micro`: counts of the whole batch. A
    scan without findings has no true positive, so without `smooth` it teaches nothing under `samples`. F1 is flat where a
    finding is denied to everybody, and training may stay there: `cross_entropy`, the weight of the findings' mean binary
    cross-entropy beside it, leads out."""
    p, t = scores.float().sigmoid(), targets.float()
    over = 1 if average == "samples" else (0, 1)
    both = 2 * (p * t).sum(over)
    wrong = (p * (1 - t)).sum(over) + ((1 - p) * t).sum(over)
    f1 = (both + smooth) / (both + wrong + smooth).clamp_min(1e-8)
    return 1 - f1.mean() + cross_entropy * F.binary_cross_entropy_with_logits(scores.float(), t)


def shares_finding(labels: Tensor) -> Tensor:
    """`[N, F]` of 0 and 1 -> `[N, N]` bool: a common finding, or both none (their Jaccard similarity is 1)."""
    common = labels.float() @ labels.float().T > 0
    none = labels.sum(1) == 0
    return common | (none[:, None] & none[None, :])


def triplet_loss(embeddings: Tensor, labels: Tensor, *, margin: float, selector: str) -> Tensor:
    """Mean of max(0, d(a, p) - d(a, n) + margin) over the selected triplets, d the squared Euclidean distance.

    An anchor's positives share a finding with it (or, like it, have none), its negatives share none.
    """
    x = embeddings.float()
    distance = (x[:, None] - x[None, :]).square().sum(-1)
    near = shares_finding(labels)
    positive = near & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    violation = distance[:, :, None] - distance[:, None, :] + margin  # [anchor, positive, negative]
    chosen = SELECTORS[selector](violation.detach(), positive[:, :, None] & ~near[:, None, :], margin)
    return (violation.clamp_min(0) * chosen).sum() / chosen.sum().clamp_min(1)


@SELECTORS.register
def all(violation: Tensor, valid: Tensor, margin: float) -> Tensor:
    """Every triplet, also those that are in order already."""
    return valid


@SELECTORS.register
def hardest(violation: Tensor, valid: Tensor, margin: float) -> Tensor:
    """For each anchor and positive the nearest negative, where it violates the margin."""
    worst = violation.masked_fill(~valid, -torch.inf).argmax(2, keepdim=True)
    return torch.zeros_like(valid).scatter(2, worst, True) & valid & (violation > 0)


@SELECTORS.register
def random_hard(violation: Tensor, valid: Tensor, margin: float) -> Tensor:
    """For each anchor and positive one of the negatives that violate the margin, drawn at random."""
    return _one_of(valid & (violation > 0))


@SELECTORS.register
def semi_hard(violation: Tensor, valid: Tensor, margin: float) -> Tensor:
    """For each anchor and positive one of the negatives inside the margin but farther than the positive (Schroff et al. 2015,
    arXiv 1503.03832), drawn at random."""
    return _one_of(valid & (violation > 0) & (violation < margin))


def _one_of(candidates: Tensor) -> Tensor:
    """One candidate of each row, all equally likely."""
    drawn = torch.rand(candidates.shape, device=candidates.device).masked_fill(~candidates, -1).argmax(-1, keepdim=True)
    return torch.zeros_like(candidates).scatter(-1, drawn, True) & candidates
