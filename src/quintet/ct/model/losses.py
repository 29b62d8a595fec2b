"""Graded F1 as a loss, and online triplets.

The loss of a degenerate batch (no triplet, no finding) is finite and differentiable.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.registry import Registry

SELECTORS = Registry("selector")


def micro_f1_loss(
    logits: Tensor, targets: Tensor, *, average: str = "samples", smooth: float = 0.0, cross_entropy: float = 0.0
) -> Tensor:
    """1 - F1 of soft counts: with p = sigmoid(logits) `[B, F]` and targets t in [0, 1], TP = sum p t, FP = sum p (1 - t),
    FN = sum (1 - p) t, F1 = (2 TP + smooth) / (2 TP + FP + FN + smooth).

    `average`: "samples" is the mean of each scan's F1, which the reference calls micro-F1; "micro" uses the counts of the whole
    batch. A scan without findings has no true positive, so under "samples" it has no gradient unless `smooth` > 0. F1 is flat
    where a finding is confidently predicted for no scan, and training may get stuck there; `cross_entropy`, the weight of an
    added binary cross-entropy, helps it escape.
    """
    p, t = logits.float().sigmoid(), targets.float()
    over = 1 if average == "samples" else (0, 1)
    true_positive_twice = 2 * (p * t).sum(over)
    wrong = (p * (1 - t)).sum(over) + ((1 - p) * t).sum(over)
    f1 = (true_positive_twice + smooth) / (true_positive_twice + wrong + smooth).clamp_min(1e-8)
    return 1 - f1.mean() + cross_entropy * F.binary_cross_entropy_with_logits(logits.float(), t)


def shares_finding(labels: Tensor) -> Tensor:
    """`[N, F]` of 0 and 1 -> `[N, N]` bool: a common finding, or no finding in either (Jaccard similarity 1)."""
    common = labels.float() @ labels.float().T > 0
    none = labels.sum(1) == 0
    return common | (none[:, None] & none[None, :])


def triplet_loss(embeddings: Tensor, labels: Tensor, *, margin: float, selector: str) -> Tensor:
    """Mean of max(0, d(a, p) - d(a, n) + margin) over the selected triplets, with d the squared Euclidean distance.

    `embeddings` `[N, E]`, `labels` `[N, F]`. An anchor's positives share a finding with it (or have none, like the anchor), its
    negatives share none.
    """
    x = embeddings.float()
    distance = (x[:, None] - x[None, :]).square().sum(-1)
    shared = shares_finding(labels)
    positive = shared & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    violation = distance[:, :, None] - distance[:, None, :] + margin  # [anchor, positive, negative]
    chosen = SELECTORS[selector](violation.detach(), positive[:, :, None] & ~shared[:, None, :], margin)
    return (violation.clamp_min(0) * chosen).sum() / chosen.sum().clamp_min(1)


@SELECTORS.register("all")
def select_all(violation: Tensor, valid: Tensor, margin: float) -> Tensor:
    """Every triplet, including those without a violation."""
    return valid


@SELECTORS.register("hardest")
def select_hardest(violation: Tensor, valid: Tensor, margin: float) -> Tensor:
    """For each anchor and positive, the nearest negative if it violates the margin."""
    worst = violation.masked_fill(~valid, -torch.inf).argmax(2, keepdim=True)
    return torch.zeros_like(valid).scatter(2, worst, True) & valid & (violation > 0)


@SELECTORS.register("random_hard")
def select_random_hard(violation: Tensor, valid: Tensor, margin: float) -> Tensor:
    """For each anchor and positive, a random negative of those that violate the margin."""
    return _random_candidate(valid & (violation > 0))


@SELECTORS.register("semi_hard")
def select_semi_hard(violation: Tensor, valid: Tensor, margin: float) -> Tensor:
    """For each anchor and positive, a random negative of those within the margin but farther than the positive (Schroff et al.
    2015, arXiv 1503.03832)."""
    return _random_candidate(valid & (violation > 0) & (violation < margin))


def _random_candidate(candidates: Tensor) -> Tensor:
    """One candidate per row, all with equal probability."""
    noise = torch.rand(candidates.shape, device=candidates.device).masked_fill(~candidates, -1)
    return torch.zeros_like(candidates).scatter(-1, noise.argmax(-1, keepdim=True), True) & candidates
