"""Turn predictions of networks and baselines into the tidy table, summary metrics and figures. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

from quintet import results
from quintet.landmarks.data.anatomy import (
    DISTANCES,
    LANDMARKS,
    NAMES,
    PAIRS,
    PIXELS,
    Points,
    axis_frame,
    to_pixels,
)
from quintet.landmarks.data.prepared import Prepared
from quintet.landmarks.evaluation import figures
from quintet.resampling import bootstrap_means, bootstrap_weights, percentile_interval
from quintet.runs import Record

UNCERTAINTY_FEATURES = ("spread", "disagreement", "template")  # pixels at 224


@dataclass(frozen=True)
class Predicted:
    """Points `[N, 15, 2]` (fractions), and uncertainty features `[N, 3]`, means over an image's landmarks in pixels at 224: width
    of the heatmaps, disagreement with the mirror image's prediction, distance from the annotation template."""

    points: Points
    uncertainty: NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """The expected error of an image is a constant plus a non-negative combination of its uncertainty features, fitted by least
    squares on the validation images; that of a landmark is this value times the landmark's share."""

    weights: list[float]  # constant, then one per uncertainty feature
    share: list[float]  # per landmark, mean 1

    @staticmethod
    def fit(predicted: Predicted, true: Points) -> "Calibration":
        error = pixel_errors(predicted.points, true)
        weights, _ = nnls(np.c_[np.ones(len(error)), predicted.uncertainty], error.mean(1))
        return Calibration(weights.tolist(), (error.mean(0) / max(error.mean(), 1e-9)).tolist())

    def __call__(self, uncertainty: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected error `[N, 15]`, pixels at 224."""
        image = self.weights[0] + uncertainty @ np.array(self.weights[1:])
        return image[:, None] * np.array(self.share)


def pixel_errors(predicted: Points, true: Points) -> NDArray[np.float64]:
    """Euclidean distance per landmark `[N, 15]` in pixels of a 224 x 224 image."""
    return np.linalg.norm((predicted - true) * PIXELS, axis=-1)


def per_case(predicted: Points, true: Points, sizes: NDArray[np.float64], expected: NDArray[np.float64]) -> pd.DataFrame:
    """One row per image. Pixels at 224 unless the name says original; `sizes` `[N, 2]` is (width, height) of the originals."""
    error = pixel_errors(predicted, true)
    along, across = axis_frame(true)
    difference = (predicted - true) * PIXELS
    length = np.linalg.norm(difference * (sizes / PIXELS)[:, None, :], axis=-1)
    left, right = (list(side) for side in zip(*PAIRS, strict=True))
    one, other = (list(side) for side in zip(*DISTANCES, strict=True))
    own_along, own_across = axis_frame(predicted)  # as in the symmetry loss in the patient's frame
    outwards = ((predicted[:, left] + predicted[:, right] - 2 * predicted[:, :1]) * own_across).sum(-1)
    asymmetry = np.hypot(outwards, ((predicted[:, left] - predicted[:, right]) * own_along).sum(-1))
    spans = [np.linalg.norm(p[:, one] - p[:, other], axis=-1) for p in (predicted, true)]
    table = {
        "error_px": error.mean(1),
        "error_original_px": length.mean(1),
        "along_axis_error_px": np.abs((difference * along).sum(-1)).mean(1),
        "across_axis_error_px": np.abs((difference * across).sum(-1)).mean(1),
        "symmetry_error_px": asymmetry.mean(1) * PIXELS,
        "distance_error_px": np.abs(spans[0] - spans[1]).mean(1) * PIXELS,
        "left_right_confused": (predicted[:, left, 0] > predicted[:, right, 0]).any(1).astype(float),
        "expected_error_px": expected.mean(1),
    }
    return pd.DataFrame(table | {f"error_px_{k:02d}": error[:, k] for k in range(LANDMARKS)})


def evaluate(
    data: Prepared,
    rows: NDArray[np.int64],
    points: Points,
    expected: NDArray[np.float64],
    *,
    record: Record,
    out: Path,
    every_image: bool = False,
    history: pd.DataFrame | None = None,
) -> dict[str, float]:
    """Score predicted points and expected errors `[N, 15]` of the images in `rows`; returns the metrics and writes cases.csv,
    predictions.csv and figures/ into `out`. `every_image`: overlays of all images, not only of examples."""
    cases = data.table.iloc[rows]
    table = per_case(points, data.points[rows], cases[["width", "height"]].to_numpy(float), expected)
    metrics = summary(table, cases["category"].to_numpy(), expected, pixel_errors(points, data.points[rows]))
    tidy = results.to_tidy(
        table, record.study, record.config, fold=record.fold, seed=record.seed, cases=cases["stem"], groups=cases["group"]
    )
    results.write(tidy, out / "cases.csv")
    write_predictions(out / "predictions.csv", cases, points)
    (out / "figures").mkdir()
    figures.plot_all(out / "figures", data, rows, points, table, title=record.name, every_image=every_image, history=history)
    return metrics


def summary(
    table: pd.DataFrame, category: NDArray[np.object_], expected: NDArray[np.float64], error: NDArray[np.float64]
) -> dict[str, float]:
    """Flat metrics: error per image (distribution, interval, fractions), structure, per category and landmark, calibration."""
    image = table["error_px"].to_numpy()
    weights = bootstrap_weights(np.arange(len(image)))  # resamples images: the 15 landmarks of an image stay together
    low, high = percentile_interval(bootstrap_means(image, weights))
    metrics = {
        "error_px": image.mean(),
        "error_px_low": low,
        "error_px_high": high,
        "error_px_median": np.median(image),
        "error_px_sd": image.std(ddof=1),
        "error_px_p95": np.percentile(image, 95),
        "test_images": float(len(image)),
    }
    metrics |= {f"share_below_{limit:g}_px": (image < limit).mean() for limit in figures.THRESHOLDS_PX}
    metrics |= {
        name: table[name].mean()
        for name in (
            "error_original_px",
            "along_axis_error_px",
            "across_axis_error_px",
            "symmetry_error_px",
            "distance_error_px",
            "left_right_confused",
        )
    }
    for name in sorted(set(category)):
        metrics[f"error_px_{name.replace(' ', '_')}"] = image[category == name].mean()
    metrics |= {
        f"error_px_{k:02d}_{name.replace(' ', '_').replace('/', '-')}": error[:, k].mean() for k, name in enumerate(NAMES)
    }
    _, risk = risk_coverage(table["expected_error_px"].to_numpy(), image)
    metrics |= {
        "calibration_error_px": calibration_error(expected.ravel(), error.ravel()),
        "risk_at_80_percent_coverage_px": risk[int(0.8 * len(image)) - 1],
    }
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}  # one image has no SD


def calibration_error(expected: NDArray[np.float64], observed: NDArray[np.float64]) -> float:
    """Mean |expected - observed| error over deciles of the expected error, in its unit (analogous to the ECE)."""
    parts = np.array_split(np.argsort(expected, kind="stable"), 10)
    return float(sum(len(p) * abs(expected[p].mean() - observed[p].mean()) for p in parts if len(p)) / len(expected))


def risk_coverage(
    expected: NDArray[np.float64], observed: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coverage (fraction of images kept, most certain first) and risk (their mean error), both `[N]`."""
    kept = np.arange(1, len(expected) + 1)
    return kept / len(expected), observed[np.argsort(expected, kind="stable")].cumsum() / kept


def write_predictions(path: Path, cases: pd.DataFrame, points: Points) -> None:
    """Write points in the format of annotations.csv: row, x1, ..., y15, stem in original pixels, without a header."""
    pixels = to_pixels(points, cases[["width", "height"]].to_numpy(float))
    table = pd.DataFrame(pixels.reshape(len(cases), -1).round(2))
    table.insert(0, "row", range(len(cases)))
    table["stem"] = list(cases["stem"])
    table.to_csv(path, index=False, header=False)
