"""The objectives: graded F1, online triplets, and contrast weighted by Jaccard similarity.

The loss of a degenerate batch (no triplet, no finding, no relevant pair) is finite and differentiable.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.params.ct import CtTraining
from quintet.registry import Registry

OBJECTIVES = Registry("objective")
SELECTORS = Registry("selector")


def objective_loss(
    objective: str, embeddings: Tensor, logits: Tensor | None, labels: Tensor, training: CtTraining, *, selector: str
) -> Tensor:
    """The objective, plus cross-entropy of the classification head, if there is one, with its weight in `training.cross_entropy`.

    All objectives may be nearly flat at first: F1 where a finding is predicted for no scan, metric learning where no pair is more
    similar than another yet. Cross-entropy is not.
    """
    loss: Tensor = OBJECTIVES[objective](embeddings, logits, labels, training, selector)
    weight = getattr(training.cross_entropy, objective)
    if logits is not None and weight:
        loss = loss + weight * F.binary_cross_entropy_with_logits(logits.float(), labels.float())
    return loss


@OBJECTIVES.register("micro_f1")
def classify(embeddings: Tensor, logits: Tensor, labels: Tensor, training: CtTraining, selector: str) -> Tensor:
    return micro_f1_loss(logits, labels, average=training.f1_average, smooth=training.f1_smooth)


@OBJECTIVES.register("triplet")
def compare_triplets(embeddings: Tensor, logits: Tensor | None, labels: Tensor, training: CtTraining, selector: str) -> Tensor:
    return triplet_loss(embeddings, labels, margin=training.margin, selector=selector)


@OBJECTIVES.register("graded_contrast")
def compare_by_grade(embeddings: Tensor, logits: Tensor | None, labels: Tensor, training: CtTraining, selector: str) -> Tensor:
    return graded_contrastive_loss(embeddings, labels, temperature=training.temperature)


def micro_f1_loss(logits: Tensor, targets: Tensor, *, average: str = "samples", smooth: float = 0.0) -> Tensor:
    """1 - F1 of soft counts: with p = sigmoid(logits) `[B, F]` and targets t in [0, 1], TP = sum p t, FP = sum p (1 - t),
    FN = sum (1 - p) t, F1 = (2 TP + smooth) / (2 TP + FP + FN + smooth).

    `average`: "samples" is the mean of each scan's F1, which the reference calls micro-F1; "micro" uses the counts of the whole
    batch. A scan without findings has no true positive, so under "samples" it has no gradient unless `smooth` > 0.
    """
    p, t = logits.float().sigmoid(), targets.float()
    over = 1 if average == "samples" else (0, 1)
    true_positive_twice = 2 * (p * t).sum(over)
    wrong = (p * (1 - t)).sum(over) + ((1 - p) * t).sum(over)
    f1 = (true_positive_twice + smooth) / (true_positive_twice + wrong + smooth).clamp_min(1e-8)
    return 1 - f1.mean()


def graded_contrastive_loss(embeddings: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362) in which every other scan of the batch is a positive to
    the degree of its Jaccard similarity J: the mean over anchors a of - sum_b w_ab log softmax_b(cos(a, b) / temperature), with
    w_ab = J_ab / sum_c J_ac. It is least where similarities have the order of J; the positives of a triplet are all alike.

    `embeddings` `[N, E]` of length 1, `labels` `[N, F]`. An anchor to which no other scan is relevant is left out.
    """
    x = embeddings.float()
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    relevance = jaccard(labels).masked_fill(own, 0)
    total = relevance.sum(1, keepdim=True)
    similarity = (x @ x.T / temperature).masked_fill(own, torch.finfo(x.dtype).min)
    cross_entropy = -(relevance / total.clamp_min(1e-8) * F.log_softmax(similarity, 1).masked_fill(own, 0)).sum(1)
    return cross_entropy.sum() / (total > 0).sum().clamp_min(1)


def jaccard(labels: Tensor) -> Tensor:
    """`[N, F]` of 0 and 1 -> `[N, N]` Jaccard similarities; 1 if both sets are empty."""
    labels = labels.float()
    common = labels @ labels.T
    union = labels.sum(1)[:, None] + labels.sum(1)[None, :] - common
    return torch.where(union > 0, common / union.clamp_min(1), 1.0)


def shares_finding(labels: Tensor) -> Tensor:
    """`[N, F]` of 0 and 1 -> `[N, N]` bool: a common finding, or no finding in either (Jaccard similarity 1)."""
    return jaccard(labels) > 0


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
