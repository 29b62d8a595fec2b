"""Figures of one evaluated run: scores by pattern, curves, calibration or survival, test-time training, cost; pictures of
cubes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from quintet.figures import new_figure, plot_learning_curves, save_figure
from quintet.fusion.evaluation import RECORDED, headline_of

COLOURS = ("#2b6cb0", "#d97706")


def draw_all(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    columns: Sequence[str],
    extra: Mapping[str, pd.DataFrame],
    *,
    title: str,
    model: Path | None,
) -> None:
    """`tables`: predictions without and, if there are, with test-time training."""
    score = "AUC" if len(columns) > 1 else "concordance"
    _by_pattern(folder / "patterns.png", tables, columns, score, title)
    _whole(folder / "everything_recorded.png", next(iter(tables.values())), columns, title)
    if len(tables) == 2:
        plain, adapted = tables.values()
        _adaptation(folder / "test_time_training.png", plain, adapted, columns, title)
    if "curves" in extra:
        _curves(folder / "steps.png", extra["curves"], score, title)
    if model is not None:
        history = pd.read_csv(model / "history.csv")
        plot_learning_curves(
            folder / "learning_curves.png",
            history,
            title=title,
            loss_unit="loss",
            lower_is_better=False,
            score="valid_score",
            score_label=f"validation {score}",
        )


def _by_pattern(path: Path, tables: Mapping[str, pd.DataFrame], columns: Sequence[str], score: str, title: str) -> None:
    names = list(dict.fromkeys(next(iter(tables.values()))["pattern"]))
    figure, axis = new_figure(9, 0.32 * len(names) + 1.4)
    for number, (config, table) in enumerate(tables.items()):
        values = [headline_of(table[table["pattern"] == name], columns) for name in names]
        axis.plot(values, np.arange(len(names)) + 0.12 * number, "o", color=COLOURS[number], label=config)
    counts = next(iter(tables.values())).groupby("pattern").size()
    axis.set_yticks(range(len(names)), [f"{name} ({counts[name]})" for name in names], fontsize=8)
    axis.invert_yaxis()
    axis.axvline(0.5, linestyle=":", color="#999999", linewidth=0.8)
    axis.set(xlabel=score, title=f"{title}: by what is there (patients)")
    axis.legend(fontsize=8)
    save_figure(figure, path)


def _whole(path: Path, table: pd.DataFrame, columns: Sequence[str], title: str) -> None:
    """Classes: ROC, calibration, spread of the draws against the error; survival: risk against time."""
    own = table[table["pattern"] == RECORDED]
    if len(columns) == 1:
        figure, axis = new_figure(6, 4)
        for event, marker, label in ((1, "o", "event"), (0, "x", "censored")):
            part = own[own["event"] == event]
            axis.plot(part["risk"], part["target"], marker, label=label, color=COLOURS[event])
        axis.set(xlabel="predicted risk (log hazard)", ylabel="days", title=title)
        axis.legend(fontsize=8)
        save_figure(figure, path)
        return
    figure, (roc, calibration, spread) = new_figure(13, 4, 1, 3)
    edges = np.linspace(0, 1, 6)
    for k, column in enumerate(columns) if len(columns) > 2 else [(1, columns[1])]:
        truth, p = (own["target"] == k).to_numpy(), own[column].to_numpy()
        if truth.any() and not truth.all():
            roc.plot(*roc_curve(truth, p)[:2], label=column.partition("/")[2])
        bins = np.clip(np.digitize(p, edges) - 1, 0, len(edges) - 2)
        groups = [(p[bins == b].mean(), truth[bins == b].mean()) for b in range(len(edges) - 1) if (bins == b).any()]
        calibration.plot(*zip(*groups, strict=True), "o-", label=column.partition("/")[2])
    for axis in (roc, calibration):
        axis.plot([0, 1], [0, 1], ":", color="#999999", linewidth=0.8)
        axis.legend(fontsize=8)
    roc.set(title="ROC", xlabel="false positives", ylabel="true positives")
    calibration.set(title="Calibration", xlabel="said", ylabel="was")
    spread.plot(own["spread"], own["brier"], "o", markersize=3, color=COLOURS[0])
    spread.set(title="Spread over draws and error", xlabel="SD of the probability over draws", ylabel="Brier score")
    figure.suptitle(f"{title}: everything recorded, {len(own)} patients", fontsize=10)
    save_figure(figure, path)


def _adaptation(path: Path, plain: pd.DataFrame, adapted: pd.DataFrame, columns: Sequence[str], title: str) -> None:
    a, b = (t[t["pattern"] == RECORDED].set_index("patient") for t in (plain, adapted))
    column = columns[-1]
    figure, axis = new_figure(5.2, 4.6)
    for refused, colour, label in ((0, "#999999", "loss did not fall: not adapted"), (1, COLOURS[0], "adapted")):
        own = b["adapted"] == refused
        axis.plot(a.loc[own, column], b.loc[own, column], "o", markersize=4, color=colour, label=f"{label} ({own.sum()})")
    ends = [min(a[column].min(), b[column].min()), max(a[column].max(), b[column].max())]
    axis.plot(ends, ends, ":", color="#999999", linewidth=0.8)
    axis.set(xlabel=f"{column} without", ylabel=f"{column} with test-time training", title=title)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def _curves(path: Path, curves: pd.DataFrame, score: str, title: str) -> None:
    kinds = list(dict.fromkeys(curves["kind"]))
    figure, axes = new_figure(5 * len(kinds), 3.6, 1, len(kinds))
    for axis, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        own = curves[curves["kind"] == kind]
        axis.plot(own["steps"], own["score"], "o-", color=COLOURS[0])
        axis.set(xlabel=f"{kind} steps", ylabel=score, title=f"by {kind} steps")
        cost = axis.twinx()
        cost.plot(own["steps"], 1000 * own["seconds_per_patient"], "s--", color=COLOURS[1], markersize=3)
        cost.set_ylabel("ms a patient (orange)")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def montage(
    path: Path, patients: Sequence[tuple[str, NDArray[np.float16], NDArray[np.bool_]]], modalities: Sequence[str]
) -> None:
    """A row a patient: the middle axial and coronal slice of each modality as the network sees it (the patient's right on the
    left)."""
    columns = 2 * len(modalities)
    figure, axes = new_figure(1.5 * columns, 1.65 * len(patients) + 0.3, len(patients), columns)
    for line, (name, cubes, present) in zip(np.reshape(axes, (len(patients), columns)), patients, strict=True):
        for k, modality in enumerate(modalities):
            middle = cubes.shape[-1] // 2
            for axis, view, label in (
                (line[2 * k], cubes[k, middle, ::-1, ::-1], "axial"),
                (line[2 * k + 1], cubes[k, ::-1, middle, ::-1], "coronal"),
            ):
                axis.set(xticks=[], yticks=[])
                axis.set_title(f"{modality}, {label}" if present[k] else f"{modality}: missing", fontsize=6)
                if present[k]:
                    axis.imshow(view.astype(np.float32), cmap="gray", vmin=0, vmax=1)
        line[0].set_ylabel(name, fontsize=6)
    save_figure(figure, path)
