"""Figures of one evaluated run (metrics, similarities, precision and recall), and montages of scans."""

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
PLOTTED = {"ndcg": "NDCG@k", "ap": "mAP@k", "precision": "P@k", "recall": "R@k", "jaccard": "mean Jaccard"}


def plot_all(
    folder: Path,
    table: pd.DataFrame,
    *,
    similarity: NDArray[np.floating[Any]],
    scans: Scans,
    title: str,
    model: Path | None,
) -> None:
    """Plot metrics by cut-off, similarity by relevance, and precision and recall per finding; given `model` (the folder of a
    trained model), also learning curves and the precision-recall curves of each epoch. `table` has one row per query."""
    _plot_retrieval(folder / "retrieval.png", table, similarity, scans, title)
    _plot_precision_recall(folder / "precision_recall.png", table, scans.findings, title)
    if model is not None:
        history = pd.read_csv(model / "history.csv")
        plot_learning_curves(
            folder / "learning_curves.png",
            history,
            title=title,
            loss_unit="loss",
            lower_is_better=False,
            score="valid_ndcg_at_10",
            score_label="validation NDCG@10",
        )
        curves = pd.read_csv(model / "pr_curves.csv")
        if len(curves):
            _plot_curves_by_epoch(folder / "precision_recall_by_epoch.png", curves, title)


def _plot_retrieval(path: Path, table: pd.DataFrame, similarity: NDArray[np.floating[Any]], scans: Scans, title: str) -> None:
    figure, (left, middle, right) = new_figure(14, 4, 1, 3)
    for (name, label), colour in zip(PLOTTED.items(), COLOURS, strict=True):
        left.plot(KS, [table[f"{name}_at_{k}"].mean() for k in KS], "o-", label=label, color=colour)
    left.set(title="Metrics by cut-off", xlabel="k", ylim=(0, 1.02), xticks=KS)
    left.legend(fontsize=8)
    different = scans.patients[:, None] != scans.patients[None, :]
    relevance = jaccard(scans.labels, scans.labels)[different]
    levels = np.unique(relevance.round(3))
    groups = [similarity[different][np.isclose(relevance, level, atol=1e-3)] for level in levels]
    middle.boxplot(groups, tick_labels=[f"{level:.2f}" for level in levels], showfliers=False)
    middle.set(title="Similarity by relevance", xlabel="Jaccard similarity of the findings", ylabel="similarity")
    label_sets, set_of = np.unique(scans.labels, axis=0, return_inverse=True)
    position = _two_dimensions(similarity)
    for k, labels in enumerate(label_sets):
        members = set_of.ravel() == k
        names = ", ".join(f for f, present in zip(scans.findings, labels, strict=True) if present) or "none"
        right.plot(*position[members].T, "o", markersize=4, alpha=0.8, label=f"{names} ({members.sum()})", color=f"C{k}")
    right.set(title="Map of the scans (classical MDS)", xticks=[], yticks=[])
    right.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{title}: {len(scans)} queries", fontsize=10)
    save_figure(figure, path)


def _two_dimensions(similarity: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Classical multidimensional scaling (Torgerson 1952) of `[N, N]` to `[N, 2]`."""
    centred = (similarity + similarity.T) / 2
    centred = centred - centred.mean(0) - centred.mean(1)[:, None] + centred.mean()
    values, vectors = np.linalg.eigh(centred)
    return np.asarray(vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0)))


def _plot_precision_recall(path: Path, table: pd.DataFrame, findings: Sequence[str], title: str) -> None:
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


def _plot_curves_by_epoch(path: Path, curves: pd.DataFrame, title: str) -> None:
    findings, last = list(dict.fromkeys(curves["finding"])), int(curves["epoch"].max())
    figure, axes = new_figure(3.6 * len(findings), 3.5, 1, len(findings))
    for axis, name in zip(np.atleast_1d(axes), findings, strict=True):
        for epoch, own in curves[curves["finding"] == name].groupby("epoch"):
            progress = int(epoch) / max(1, last)
            axis.plot(
                own["recall"], own["precision"], color=(0.85 - 0.68 * progress, 0.87 - 0.45 * progress, 0.9 - 0.21 * progress)
            )
        axis.set(title=name, xlabel="recall", ylabel="precision (interpolated)", ylim=(0, 1.03))
    figure.suptitle(f"{title}: validation, epoch 1 (pale) to {last + 1} (blue)", fontsize=10)
    save_figure(figure, path)


Views = NDArray[np.uint8]  # [3, S, S]: axial, coronal and sagittal


def middle_slices(cube: NDArray[np.uint8]) -> Views:
    """The middle slices in radiological convention: the patient's right is on the left, anterior and head are at the top."""
    z, y, x = (side // 2 for side in cube.shape)
    return np.stack([cube[z, ::-1, ::-1], cube[::-1, y, ::-1], cube[::-1, :, x][:, ::-1]])


def montage(path: Path, scans: Sequence[tuple[str, Views]], title: str) -> None:
    """Plot one column per scan (label, slices), with the axial, coronal and sagittal slices one below the other."""
    figure, axes = new_figure(1.9 * len(scans) + 0.2, 6.4, 3, len(scans))
    for column, (label, views) in zip(np.reshape(axes, (3, -1)).T, scans, strict=True):
        for axis, view in zip(column, views, strict=True):
            axis.imshow(view, cmap="gray", vmin=0, vmax=255)
            axis.axis("off")
        column[0].set_title(label, fontsize=7, parse_math=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    save_figure(figure, path)
