"""Figures of one evaluated run: metrics by cut-off, precision and recall, similarities, a map of the embedding; montages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

from quintet.ct.metrics import KS, Scans, jaccard
from quintet.figures import new_figure, plot_learning_curves, save_figure

COLOURS = ("#2b6cb0", "#d97706", "#1a9850", "#7b3294", "#d73027")
SHOWN = {"precision": "P@k", "recall": "R@k", "ap": "mAP@k", "ndcg": "NDCG@k", "jaccard": "mean Jaccard"}


def draw_all(
    folder: Path,
    table: pd.DataFrame,
    findings: Sequence[str],
    *,
    similarity: NDArray[np.floating[Any]],
    scans: Scans,
    title: str,
    model: Path | None,
) -> None:
    """Of any similarity: metrics by k, precision and recall by finding, what separates relevant from other scans; with `model`
    (its folder) learning curves and the precision-recall curves of each epoch."""
    _retrieval(folder / "retrieval.png", table, similarity, scans, title)
    _precision_recall(folder / "precision_recall.png", table, findings, title)
    if model is not None:
        history = pd.read_csv(model / "history.csv")
        plot_learning_curves(
            folder / "learning_curves.png",
            history,
            title=title,
            loss_unit="loss",
            lower_is_better=False,
            score="valid_map_at_5",
            score_label="validation mAP@5",
        )
        curves = pd.read_csv(model / "pr_curves.csv")
        if len(curves):
            _by_epoch(folder / "precision_recall_by_epoch.png", curves, title)


def _retrieval(path: Path, table: pd.DataFrame, similarity: NDArray[np.floating[Any]], scans: Scans, title: str) -> None:
    figure, (left, middle, right) = new_figure(14, 4, 1, 3)
    for (name, label), colour in zip(SHOWN.items(), COLOURS, strict=True):
        left.plot(KS, [table[f"{name}_at_{k}"].mean() for k in KS], "o-", label=label, color=colour)
    left.set(title="Metrics by cut-off", xlabel="k", ylim=(0, 1.02), xticks=KS)
    left.legend(fontsize=8)
    others = scans.patients[:, None] != scans.patients[None, :]
    relevance = jaccard(scans.labels, scans.labels)[others]
    levels = np.unique(relevance.round(3))
    groups = [similarity[others][np.isclose(relevance, level, atol=1e-3)] for level in levels]
    middle.boxplot(groups, tick_labels=[f"{level:.2f}" for level in levels], showfliers=False)
    middle.set(title="Similarity by relevance", xlabel="Jaccard similarity of the findings", ylabel="similarity")
    kinds, member = np.unique(scans.labels, axis=0, return_inverse=True)
    at = _map(similarity)
    for k, kind in enumerate(kinds):
        own = member.ravel() == k
        names = ", ".join(f for f, there in zip(scans.findings, kind, strict=True) if there) or "none"
        right.plot(*at[own].T, "o", markersize=4, alpha=0.8, label=f"{names} ({own.sum()})", color=f"C{k}")
    right.set(title="Map of the scans (classical scaling)", xticks=[], yticks=[])
    right.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{title}: {len(scans)} queries", fontsize=10)
    save_figure(figure, path)


def _map(similarity: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Two coordinates that keep the similarities as well as two can (Torgerson 1952)."""
    centred = (similarity + similarity.T) / 2
    centred = centred - centred.mean(0) - centred.mean(1)[:, None] + centred.mean()
    values, vectors = np.linalg.eigh(centred)
    return np.asarray(vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0)))


def _precision_recall(path: Path, table: pd.DataFrame, findings: Sequence[str], title: str) -> None:
    figure, axes = new_figure(3.6 * len(findings), 3.5, 1, len(findings))
    for axis, name in zip(np.atleast_1d(axes), findings, strict=True):
        true = table[f"true/{name}"]
        for column, label, colour in (
            ("vote", "neighbours' votes", COLOURS[0]),
            ("probability", "classification head", COLOURS[1]),
        ):
            if f"{column}/{name}" in table and true.any():
                precision, recall, _ = precision_recall_curve(true, table[f"{column}/{name}"])
                axis.plot(recall, precision, color=colour, label=label)
        axis.axhline(true.mean(), linestyle=":", color="#999999", linewidth=0.8)
        axis.set(title=f"{name} ({int(true.sum())} of {len(true)})", xlabel="recall", ylabel="precision", ylim=(0, 1.03))
        axis.legend(fontsize=7)
    figure.suptitle(f"{title}: findings", fontsize=10)
    save_figure(figure, path)


def _by_epoch(path: Path, curves: pd.DataFrame, title: str) -> None:
    findings, last = list(dict.fromkeys(curves["finding"])), int(curves["epoch"].max())
    figure, axes = new_figure(3.6 * len(findings), 3.5, 1, len(findings))
    for axis, name in zip(np.atleast_1d(axes), findings, strict=True):
        for epoch, own in curves[curves["finding"] == name].groupby("epoch"):
            share = int(epoch) / max(1, last)
            axis.plot(own["recall"], own["precision"], color=(0.85 - 0.68 * share, 0.87 - 0.45 * share, 0.9 - 0.21 * share))
        axis.set(title=name, xlabel="recall", ylabel="precision (interpolated)", ylim=(0, 1.03))
    figure.suptitle(f"{title}: validation, epoch 1 (pale) to {last + 1} (blue)", fontsize=10)
    save_figure(figure, path)


View = NDArray[np.uint8]  # [3, S, S]: axial, coronal and sagittal


def views_of(cube: NDArray[np.uint8]) -> View:
    """The middle slices as radiologists look at them: the patient's right is on the left, the front and the head are up."""
    z, y, x = (side // 2 for side in cube.shape)
    return np.stack([cube[z, ::-1, ::-1], cube[::-1, y, ::-1], cube[::-1, :, x][:, ::-1]])


def montage(path: Path, rows: Sequence[tuple[str, View]], title: str) -> None:
    """One column a scan, the query first; axial, coronal and sagittal slice below each other."""
    figure, axes = new_figure(1.9 * len(rows) + 0.2, 6.4, 3, len(rows))
    for column, (label, views) in zip(np.reshape(axes, (3, -1)).T, rows, strict=True):
        for axis, view in zip(column, views, strict=True):
            axis.imshow(view, cmap="gray", vmin=0, vmax=255)
            axis.axis("off")
        column[0].set_title(label, fontsize=7, parse_math=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    save_figure(figure, path)
