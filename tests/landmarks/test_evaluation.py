"""Per-case metrics and summaries compared with naive loops and hand-made cases."""

import numpy as np
import pandas as pd
import pytest

from quintet.landmarks.data.anatomy import DISTANCES, PAIRS
from quintet.landmarks.evaluation import scores


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    true = rng.random((6, 15, 2))
    predicted = true + rng.normal(0, 0.02, true.shape)
    sizes = np.array([[299.0, 299.0]] * 3 + [[500.0, 400.0]] * 3)
    return predicted, true, sizes, scores.per_case(predicted, true, sizes, np.ones((6, 15)))


def test_errors_by_a_loop(case):
    predicted, true, sizes, table = case
    for i in range(6):
        at_224 = [np.linalg.norm((predicted[i, k] - true[i, k]) * 224) for k in range(15)]
        original = [np.linalg.norm((predicted[i, k] - true[i, k]) * sizes[i]) for k in range(15)]
        assert table["error_px"][i] == pytest.approx(np.mean(at_224))
        assert table["error_original_px"][i] == pytest.approx(np.mean(original))
        assert table["error_px_07"][i] == pytest.approx(at_224[7])


def test_structure_by_a_loop(case):
    predicted, true, _, table = case
    for i, p in enumerate(predicted):
        axis = (p[1] - p[0]) / np.linalg.norm(p[1] - p[0])
        reflection = 2 * np.outer(axis, axis) - np.eye(2)  # on the axis from landmark 0 to 1
        mirrored = [np.linalg.norm(p[a] - p[0] - reflection @ (p[b] - p[0])) * 224 for a, b in PAIRS]
        spans = [abs(np.linalg.norm(p[a] - p[b]) - np.linalg.norm(true[i, a] - true[i, b])) * 224 for a, b in DISTANCES]
        assert table["symmetry_error_px"][i] == pytest.approx(np.mean(mirrored))
        assert table["distance_error_px"][i] == pytest.approx(np.mean(spans))
        assert table["left_right_confused"][i] == float(any(p[a, 0] > p[b, 0] for a, b in PAIRS))


def test_along_and_across_the_axis():
    """Of an upright axis, a vertical shift counts as along only and a horizontal one as across only."""
    true = np.full((2, 15, 2), 0.5)
    true[:, 0], true[:, 1] = [0.5, 0.1], [0.5, 0.9]
    predicted = true.copy()
    predicted[0, :, 1] += 0.01
    predicted[1, :, 0] += 0.01
    table = scores.per_case(predicted, true, np.full((2, 2), 224.0), np.ones((2, 15)))
    np.testing.assert_allclose(table["along_axis_error_px"], [2.24, 0], atol=1e-9)
    np.testing.assert_allclose(table["across_axis_error_px"], [0, 2.24], atol=1e-9)


def test_summary_counts_shares_and_categories():
    error = np.array([[4.0] * 15, [6.0] * 15, [9.0] * 15, [20.0] * 15])
    table = pd.DataFrame({"error_px": error.mean(1), "expected_error_px": [1.0, 2.0, 3.0, 4.0]})
    for name in (
        "error_original_px",
        "along_axis_error_px",
        "across_axis_error_px",
        "symmetry_error_px",
        "distance_error_px",
        "left_right_confused",
    ):
        table[name] = 0.0
    metrics = scores.summary(table, np.array(["COVID", "COVID", "Normal", "Normal"], dtype=object), error, error)
    assert metrics["error_px"] == 9.75
    assert metrics["error_px_median"] == 7.5
    assert [metrics[f"share_below_{t}_px"] for t in ("5", "8.5", "10", "15")] == [0.25, 0.5, 0.75, 0.75]
    assert metrics["error_px_COVID"] == 5
    assert metrics["error_px_Normal"] == 14.5
    assert metrics["calibration_error_px"] == 0
    assert metrics["risk_at_80_percent_coverage_px"] == pytest.approx((4 + 6 + 9) / 3)
    assert metrics["error_px_low"] < 9.75 < metrics["error_px_high"]
