"""From probabilities to scores in 3D, on each case's own grid: the tidy table, summary metrics and nnU-Net's summary.

Importing it does not import torch.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import results
from quintet.files import write_json
from quintet.imaging.volumes import Grid
from quintet.perfusion.data.prepared import SIDES
from quintet.perfusion.evaluation import figures
from quintet.runs import Record

Mask = NDArray[np.bool_]


def dice_score(predicted: Mask, true: Mask) -> float:
    """2 |P and T| / (|P| + |T|). Both empty: 1; one empty: 0."""
    total = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / total if total else 1.0


def surface_distances_mm(predicted: Mask, true: Mask, spacing_mm: tuple[float, ...]) -> tuple[float, float]:
    """95th-percentile Hausdorff distance (the larger of both directions) and average symmetric surface distance; NaN if a mask is
    empty."""
    if not (predicted.any() and true.any()):
        return float("nan"), float("nan")
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    # the box around both, with a margin: it contains the surfaces, so distances do not change
    hit = np.argwhere(predicted | true)
    box = tuple(slice(max(0, a - 1), b + 2) for a, b in zip(hit.min(0), hit.max(0), strict=True))
    p, t = (torch.from_numpy(m[box].copy())[None, None] for m in (predicted, true))
    options: dict[str, Any] = {"include_background": True, "spacing": list(spacing_mm)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's own use of its deprecated options
        hd95 = compute_hausdorff_distance(p, t, percentile=95, **options)
        assd = compute_average_surface_distance(p, t, symmetric=True, **options)
    return float(hd95), float(assd)


def asymmetry(left: float, right: float) -> float:
    """(left - right) / (left + right) of two volumes; 0 where both are 0."""
    return (left - right) / (left + right) if left + right else 0.0


def case_scores(predicted: NDArray[np.bool_], true: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> dict[str, float]:
    """Scores of `[2, X, Y, Z]` masks; NaN where a score is undefined (distance to an empty mask, no overlap zone)."""
    row: dict[str, float] = {}
    for i, side in enumerate(SIDES):
        row[f"dice_{side}"] = dice_score(predicted[i], true[i])
        row[f"hd95_mm_{side}"], row[f"assd_mm_{side}"] = surface_distances_mm(predicted[i], true[i], spacing_mm)
        volume = int(true[i].sum())
        row[f"volume_error_{side}"] = (int(predicted[i].sum()) - volume) / volume if volume else float("nan")
    row["dice"] = (row["dice_left"] + row["dice_right"]) / 2
    row["gap"] = row["dice_left"] - row["dice_right"]
    overlap = true[0] & true[1]
    row["dice_overlap"] = dice_score(predicted[0] & predicted[1], overlap) if overlap.any() else float("nan")
    sums = [[float(m.sum()) for m in masks] for masks in (predicted, true)]
    row["asymmetry"] = asymmetry(*sums[0])
    row["asymmetry_error"] = abs(asymmetry(*sums[0]) - asymmetry(*sums[1]))
    return row


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Means over the cases where a score is defined, and the number of undefined ones; `dice_of_subjects` is the mean of
    the people's means."""
    numbers = table.drop(columns=["case", "subject"])
    metrics = numbers.mean().to_dict() | {
        "dice_of_subjects": table.groupby("subject")["dice"].mean().mean(),
        "dice_sd_over_subjects": table.groupby("subject")["dice"].mean().std(),
        "dice_lowest": table["dice"].min(),
        "cases": len(table),
        "subjects": table["subject"].nunique(),
        "undefined_distances": int(numbers.filter(like="hd95").isna().sum().sum()),
        "cases_without_overlap_zone": int(numbers["dice_overlap"].isna().sum()),
    }
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


def nnunet_summary(counts: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """nnU-Net's summary layout: per case, mean per region, mean over both. `counts`: case -> one entry per side."""
    cases = [
        {"case": name, "metrics": {side: entry for side, entry in zip(SIDES, rows, strict=True)}} for name, rows in counts.items()
    ]
    mean = {side: pd.DataFrame([rows[i] for rows in counts.values()]).mean().to_dict() for i, side in enumerate(SIDES)}
    return {"foreground_mean": pd.DataFrame(mean.values()).mean().to_dict(), "mean": mean, "metric_per_case": cases}


def confusion(predicted: Mask, true: Mask) -> dict[str, float]:
    tp, fp, fn = (int(m.sum()) for m in (predicted & true, predicted & ~true, ~predicted & true))
    iou = tp / (tp + fp + fn) if tp + fp + fn else 1.0
    return {
        "Dice": dice_score(predicted, true),
        "IoU": iou,
        "TP": tp,
        "FP": fp,
        "FN": fn,
        "TN": int(predicted.size) - tp - fp - fn,
        "n_pred": tp + fp,
        "n_ref": tp + fn,
    }


@dataclass(frozen=True)
class Predicted:
    """One case on its own grid."""

    name: str
    subject: str
    grid: Grid
    flow: NDArray[np.float32]  # [2, X, Y, Z], for figures
    probability: NDArray[np.float32]  # [2, X, Y, Z]
    true: NDArray[np.bool_]  # [2, X, Y, Z]


def evaluate(
    cases: Iterable[Predicted],
    *,
    record: Record,
    out: Path,
    history: pd.DataFrame | None = None,
    save_probabilities: bool = False,
) -> dict[str, float]:
    """Score predicted cases, one at a time; returns the metrics and writes cases.csv, validation_summary.json, figures/ and, on
    request, probabilities/CASE.npy (`[slices, rows, columns, 2]` float16, canonical axes of the case's own grid) into `out`."""
    rows, counts, slices = [], {}, {}
    for case in cases:
        masks = case.probability >= 0.5
        spacing_mm = tuple(np.linalg.norm(case.grid.affine[:3, :3], axis=0).tolist())  # along X, Y, Z
        rows.append({"case": case.name, "subject": case.subject, **case_scores(masks, case.true, spacing_mm)})
        counts[case.name] = [confusion(masks[i], case.true[i]) for i in range(2)]
        slices[case.name] = figures.fullest_slice(case.grid, case.flow, case.true, masks)
        if save_probabilities:
            (out / "probabilities").mkdir(exist_ok=True)
            canonical = case.grid.to_canonical(np.moveaxis(case.probability, 0, -1))
            np.save(out / "probabilities" / f"{case.name}.npy", canonical.astype(np.float16))
    table = pd.DataFrame(rows)
    metrics = summary(table)
    tidy = results.to_tidy(
        table.drop(columns=["case", "subject"]),
        record.study,
        record.config,
        fold=record.fold,
        seed=record.seed,
        cases=table["case"],
        groups=table["subject"],
    )
    results.write(tidy.dropna(subset="value").reset_index(drop=True), out / "cases.csv")
    write_json(out / "validation_summary.json", nnunet_summary(counts))
    (out / "figures").mkdir()
    figures.plot_all(out / "figures", slices, table, title=record.name, history=history)
    return metrics
