"""Figures of one evaluated run, and of all runs together: curves, confusion, calibration, attention, Grad-CAM.

Importing it does not import torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from quintet.breakhis.data.classes import CLASSES, TYPES
from quintet.breakhis.evaluation.metrics import Predicted
from quintet.calibration import reliability
from quintet.figures import new_figure, plot_learning_curves, save_figure

Floats = NDArray[np.float64]
LabelsAndScores = tuple[NDArray[Any], Floats]  # classes [P], probabilities of malignant [P]
BLUE, GREY = "#2b6cb0", "#a0aec0"
CODES = list(TYPES.values())


def plot_all(
    folder: Path,
    predicted: Predicted,
    table: pd.DataFrame,
    types: NDArray[np.floating[Any]],
    *,
    threshold: float,
    title: str,
    history: pd.DataFrame | None,
) -> None:
    """Plot curves, confusion and calibration; with `history` also attention weights and learning curves."""
    pooled = (table["malignant"].to_numpy(), table["probability"].to_numpy())
    plot_diagnostics(
        folder / "diagnostics.png",
        [pooled],
        pooled[1] >= threshold,
        title=f"{title}: {len(table)} patients",
        types=(types, predicted.types),
    )
    if history is not None:
        if predicted.hierarchy is not None or predicted.fusion is not None:
            plot_attention(folder / "attention.png", predicted, title)
        plot_learning_curves(
            folder / "learning_curves.png",
            history,
            title=title,
            loss_unit="focal loss",
            lower_is_better=False,
            score="valid_balanced_accuracy",
            score_label="validation balanced accuracy",
        )


def plot_diagnostics(
    path: Path,
    folds: Sequence[LabelsAndScores],
    malignant: NDArray[np.bool_],
    *,
    title: str,
    types: tuple[NDArray[Any], Floats] | None = None,
    names: Sequence[str] = ("",),
) -> None:
    """Plot ROC and precision-recall curves (each fold and pooled), confusion matrices and the reliability curve.

    `malignant`: the decisions, fold after fold, each at its own threshold. `types`: true shares and predicted probabilities
    `[P, 8]`. `names`: of the folds. A curve needs both classes.
    """
    labels, p = (np.concatenate(part) for part in zip(*folds, strict=True))
    figure, axes = new_figure(19 if types else 15, 3.9, 1, 5 if types else 4)
    roc, pr, confusion, calibration = axes[:4]
    for number, (fold_labels, scores) in enumerate([*folds, (labels, p)] if len(folds) > 1 else folds):
        if len(set(fold_labels.tolist())) < 2:
            continue
        pooled = number == (len(folds) if len(folds) > 1 else 0)
        style: dict[str, Any] = {"color": BLUE, "linewidth": 2} if pooled else {"color": GREY, "linewidth": 0.8}
        false_positive, true_positive, _ = roc_curve(fold_labels, scores)
        precision, recall, _ = precision_recall_curve(fold_labels, scores)
        label = None if len(folds) == 1 else "pooled" if pooled else names[number]
        roc.plot(false_positive, true_positive, label=label, **style)
        pr.plot(recall, precision, **style)
    roc.plot([0, 1], [0, 1], ":", color="#999999", linewidth=0.8)
    roc.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity")
    pr.axhline(labels.mean(), color="#999999", linewidth=0.8, linestyle=":")
    pr.set(title="Precision and recall", xlabel="recall", ylabel="precision", ylim=(0, 1.03))
    if len(folds) > 1:
        roc.legend(fontsize=7)
    plot_matrix(confusion, _confusion(labels, malignant.astype(int), 2), CLASSES, "Classes")
    _plot_reliability(calibration, labels, p)
    if types:
        # a patient with two types counts under the predicted one if it is one of them
        predicted_type = types[1].argmax(1)
        true_type = np.where(types[0][np.arange(len(predicted_type)), predicted_type] > 0, predicted_type, types[0].argmax(1))
        plot_matrix(axes[4], _confusion(true_type, predicted_type, len(CODES)), CODES, "Types")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _plot_reliability(axes: Axes, labels: NDArray[Any], p: Floats) -> None:
    curve = reliability(labels, p)
    axes.plot([0, 1], [0, 1], ":", color="#999999", linewidth=0.8)
    axes.plot(curve["predicted"], curve["observed"], "-", color=BLUE, linewidth=1)
    axes.scatter(curve["predicted"], curve["observed"], s=12 * curve["count"], color=BLUE)
    axes.set(title="Reliability (area: patients)", xlabel="predicted probability of malignant", ylabel="share of malignant")


def _confusion(true: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[np.int64]:
    matrix: NDArray[np.int64] = confusion_matrix(true, predicted, labels=range(classes))
    return matrix


def plot_matrix(
    axes: Axes, values: NDArray[Any], names: Sequence[str], title: str, *, rows: str = "true", columns: str = "predicted"
) -> None:
    """Plot a labelled matrix of numbers; zeros are left blank."""
    axes.imshow(values, cmap="Blues", vmin=0)
    middle = float(np.max(values)) / 2
    for (i, j), value in np.ndenumerate(values):
        if value:
            text = f"{value:.2f}" if isinstance(value, float) else str(value)
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value > middle else "black")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(title=title, xlabel=columns, ylabel=rows)


def plot_attention(path: Path, predicted: Predicted, title: str) -> None:
    """Plot the attention weights between the magnifications, and the importance of each in the fusion."""
    names = predicted.magnifications
    figure, (left, middle, right) = new_figure(12, 3.8, 1, 3)
    for axes, values, heading in (
        (left, predicted.hierarchy, "Hierarchical attention"),
        (middle, predicted.fusion, "Self-attention of the fusion"),
    ):
        if values is None:
            axes.axis("off")
        else:
            plot_matrix(axes, values, names, heading, rows="query", columns="key")
    if predicted.importance is None:
        right.axis("off")
    else:
        right.bar(names, predicted.importance.mean(0), color=BLUE)
        right.set(title="Learned importance", ylabel="weight")
    figure.suptitle(f"{title}: means over patients", fontsize=10)
    save_figure(figure, path)


ImageWithMap = tuple[NDArray[np.uint8], Floats] | None  # image [S, S, 3] and map [S, S]; None: the patient has no image


def plot_cams(path: Path, rows: Mapping[str, Sequence[ImageWithMap]], magnifications: Sequence[str], title: str) -> None:
    """Plot one row per patient: an image of each magnification, and beside it the same image under its Grad-CAM."""
    figure, axes = new_figure(1.9 * 2 * len(magnifications), 2.05 * len(rows) + 0.6, len(rows), 2 * len(magnifications))
    for row, (label, pictures) in zip(np.reshape(axes, (len(rows), -1)), rows.items(), strict=True):
        for axis in row:
            axis.axis("off")
        for m, picture in enumerate(pictures):
            if picture is not None:
                row[2 * m].imshow(picture[0])
                row[2 * m + 1].set_title(magnifications[m], fontsize=8)
                row[2 * m + 1].imshow(picture[0])
                row[2 * m + 1].imshow(picture[1], cmap="inferno", alpha=0.55, vmin=0, vmax=1)
        row[0].set_title(label, fontsize=8, loc="left", parse_math=False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
