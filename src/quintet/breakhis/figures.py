"""Figures of one evaluated run, and of all runs together: curves, confusion, calibration, attention, Grad-CAM."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from quintet.breakhis.metrics import Predicted, reliability
from quintet.breakhis.tree import CLASSES, TYPES
from quintet.figures import new_figure, plot_learning_curves, save_figure

Floats = NDArray[np.float64]
Labelled = tuple[NDArray[Any], Floats]  # labels, probabilities
BLUE, GREY = "#2b6cb0", "#a0aec0"
CODES = list(TYPES.values())


def draw_all(
    folder: Path,
    predicted: Predicted,
    table: pd.DataFrame,
    types: NDArray[np.floating[Any]],
    *,
    threshold: float,
    title: str,
    history: pd.DataFrame | None,
) -> None:
    """Curves, confusion and calibration; with `history` also attention and learning curves."""
    pooled = (table["malignant"].to_numpy(), table["probability"].to_numpy())
    diagnostics(
        folder / "diagnostics.png",
        [pooled],
        pooled[1] >= threshold,
        title=f"{title}: {len(table)} patients",
        types=(types, predicted.types),
    )
    if history is not None:
        if predicted.hierarchy is not None or predicted.fusion is not None:
            attention(folder / "attention.png", predicted, title)
        plot_learning_curves(
            folder / "learning_curves.png",
            history,
            title=title,
            loss_unit="focal loss",
            lower_is_better=False,
            score="valid_balanced_accuracy",
            score_label="validation balanced accuracy",
        )


def diagnostics(
    path: Path,
    folds: Sequence[Labelled],
    malignant: NDArray[np.bool_],
    *,
    title: str,
    types: tuple[NDArray[Any], Floats] | None = None,
) -> None:
    """ROC and precision-recall (each fold, and pooled), confusion of the classes and types, reliability.

    `malignant`: what was said, fold after fold, each at its own threshold. A curve needs both classes.
    """
    labels, p = (np.concatenate(part) for part in zip(*folds, strict=True))
    figure, axes = new_figure(19 if types else 15, 3.9, 1, 5 if types else 4)
    roc, pr, confusion, calibration = axes[:4]
    for number, (own, values) in enumerate([*folds, (labels, p)] if len(folds) > 1 else folds):
        if len(set(own.tolist())) < 2:
            continue
        last = number == (len(folds) if len(folds) > 1 else 0)
        how: dict[str, Any] = {"color": BLUE, "linewidth": 2} if last else {"color": GREY, "linewidth": 0.8}
        false, true, _ = roc_curve(own, values)
        precision, recall, _ = precision_recall_curve(own, values)
        roc.plot(false, true, label=None if len(folds) == 1 else "pooled" if last else f"fold {number}", **how)
        pr.plot(recall, precision, **how)
    roc.plot([0, 1], [0, 1], ":", color="#999999", linewidth=0.8)
    roc.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity")
    pr.axhline(labels.mean(), color="#999999", linewidth=0.8, linestyle=":")
    pr.set(title="Precision and recall", xlabel="recall", ylabel="precision", ylim=(0, 1.03))
    if len(folds) > 1:
        roc.legend(fontsize=7)
    matrix(confusion, _count(labels, malignant.astype(int), 2), CLASSES, "Classes")
    curve = reliability(labels, p)
    calibration.plot([0, 1], [0, 1], ":", color="#999999", linewidth=0.8)
    calibration.plot(curve["predicted"], curve["observed"], "-", color=BLUE, linewidth=1)
    calibration.scatter(curve["predicted"], curve["observed"], s=12 * curve["count"], color=BLUE)
    calibration.set(title="Reliability (area: patients)", xlabel="probability of malignant", ylabel="share of malignant")
    if types:
        # somebody with two types counts as the one that was said, if it is among them
        said_type = types[1].argmax(1)
        true_type = np.where(types[0][np.arange(len(said_type)), said_type] > 0, said_type, types[0].argmax(1))
        matrix(axes[4], _count(true_type, said_type, len(CODES)), CODES, "Types")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _count(true: NDArray[Any], said: NDArray[Any], kinds: int) -> NDArray[np.int64]:
    return np.bincount(true * kinds + said, minlength=kinds**2).reshape(kinds, kinds)


def matrix(
    axes: Axes, values: NDArray[Any], names: Sequence[str], title: str, *, rows: str = "true", columns: str = "said"
) -> None:
    """A labelled grid of numbers, empty cells left blank."""
    axes.imshow(values, cmap="Blues", vmin=0)
    middle = float(np.max(values)) / 2
    for (i, j), value in np.ndenumerate(values):
        if value:
            text = f"{value:.2f}" if isinstance(value, float) else str(value)
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value > middle else "black")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(title=title, xlabel=columns, ylabel=rows)


def attention(path: Path, predicted: Predicted, title: str) -> None:
    """Who looked where between the magnifications (rows look at columns), and how much each weighs in the fusion."""
    names = predicted.magnifications
    figure, (left, middle, right) = new_figure(12, 3.8, 1, 3)
    for axis, values, heading in (
        (left, predicted.hierarchy, "Hierarchical attention"),
        (middle, predicted.fusion, "Self-attention of the fusion"),
    ):
        if values is None:
            axis.axis("off")
        else:
            matrix(axis, values, names, heading, rows="looks", columns="at")
    if predicted.importance is None:
        right.axis("off")
    else:
        right.bar(names, predicted.importance.mean(0), color=BLUE)
        right.set(title="Learned importance", ylabel="weight")
    figure.suptitle(f"{title}: means over patients", fontsize=10)
    save_figure(figure, path)


Shown = tuple[NDArray[np.uint8], Floats] | None  # image [S, S, 3] and heat [S, S]; None: the patient has none


def cam_page(path: Path, rows: Mapping[str, Sequence[Shown]], magnifications: Sequence[str], title: str) -> None:
    """One row a patient: an image of each magnification, beside it what spoke for malignant (Grad-CAM)."""
    figure, axes = new_figure(1.9 * 2 * len(magnifications), 2.05 * len(rows) + 0.6, len(rows), 2 * len(magnifications))
    for line, (label, pictures) in zip(np.reshape(axes, (len(rows), -1)), rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for m, picture in enumerate(pictures):
            if picture is not None:
                line[2 * m].imshow(picture[0])
                line[2 * m + 1].set_title(magnifications[m], fontsize=8)
                line[2 * m + 1].imshow(picture[0])
                line[2 * m + 1].imshow(picture[1], cmap="inferno", alpha=0.55, vmin=0, vmax=1)
        line[0].set_title(label, fontsize=8, loc="left", parse_math=False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
