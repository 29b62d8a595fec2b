"""Scores by hand, the rule for empty masks, and what is written."""

import json

import numpy as np
import pandas as pd
import pytest

from quintet.imaging.volumes import Grid
from quintet.perfusion.evaluation.scores import (
    Predicted,
    asymmetry,
    case_scores,
    dice_score,
    evaluate,
    summary,
    surface_distances_mm,
)
from quintet.runs import Record

SPACING = (2.0, 3.0, 6.0)
GRID = Grid((20, 20, 6), np.diag([*SPACING, 1.0]))


def box(x0, x1, y0=5, y1=15, z0=1, z1=5):
    mask = np.zeros(GRID.shape, bool)
    mask[x0:x1, y0:y1, z0:z1] = True
    return mask


def test_dice_by_hand_and_the_rule_for_empty_masks():
    assert dice_score(box(2, 6), box(4, 8)) == 0.5
    nothing = np.zeros(GRID.shape, bool)
    assert dice_score(nothing, nothing) == 1
    assert dice_score(nothing, box(2, 6)) == dice_score(box(2, 6), nothing) == 0
    assert all(np.isnan(surface_distances_mm(nothing, box(2, 6), SPACING)))
    assert all(np.isnan(surface_distances_mm(nothing, nothing, SPACING)))


def test_distances_are_in_mm_along_each_axis():
    """A plate moved by one voxel: distance 2, 3 or 6 mm at the 95th percentile."""
    for axis, step in enumerate(SPACING):
        plate = np.zeros(GRID.shape, bool)
        plate[(slice(None),) * axis + (slice(2, 3),)] = True
        moved = np.roll(plate, 1, axis)
        assert surface_distances_mm(moved, plate, SPACING) == pytest.approx((step, step))
    assert surface_distances_mm(box(2, 8), box(2, 8), SPACING) == (0, 0)


def test_distances_equal_those_of_a_naive_search():
    rng = np.random.default_rng(0)
    from scipy.ndimage import binary_erosion, gaussian_filter

    a, b = (gaussian_filter(rng.normal(size=GRID.shape), 2) > 0 for _ in range(2))

    def surface(mask):
        return np.argwhere(mask & ~binary_erosion(mask)) * np.array(SPACING)

    between = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=-1)
    one, other = between.min(1), between.min(0)
    hd95, assd = surface_distances_mm(a, b, SPACING)
    assert hd95 == pytest.approx(max(np.percentile(one, 95), np.percentile(other, 95)), rel=1e-4)
    assert assd == pytest.approx((one.sum() + other.sum()) / (len(one) + len(other)), rel=1e-4)


def test_scores_of_a_case_by_hand():
    true = np.stack([box(2, 10), box(9, 17)])  # one column of voxels belongs to both
    predicted = np.stack([box(2, 11), box(9, 17)])
    row = case_scores(predicted, true, SPACING)
    assert row["dice_left"] == pytest.approx(16 / 17)
    assert row["dice_right"] == 1
    assert row["dice"] == pytest.approx((16 / 17 + 1) / 2)
    assert row["gap"] == pytest.approx(16 / 17 - 1)
    assert row["volume_error_left"] == pytest.approx(1 / 8)
    assert row["dice_overlap"] == pytest.approx(2 / 3)
    assert row["asymmetry"] == asymmetry(9, 8) == pytest.approx(1 / 17)
    assert row["asymmetry_error"] == pytest.approx(1 / 17)
    without_overlap = case_scores(np.stack([box(2, 9), box(9, 17)]), np.stack([box(2, 9), box(9, 17)]), SPACING)
    assert np.isnan(without_overlap["dice_overlap"])


def cases():
    rng = np.random.default_rng(0)
    for number in range(4):
        true = np.stack([box(2, 10), box(9, 17)])
        if number == 3:
            true[1] = False  # an artery that supplies nothing
        flow = rng.normal(size=(2, *GRID.shape)).astype(np.float32)
        probability = np.where(np.stack([box(2, 10 + number), box(9, 17)]), 0.9, 0.1).astype(np.float32)
        yield Predicted(f"P{number // 2}-v{number % 2 + 1}", f"P{number // 2}", GRID, flow, probability, true)


def test_what_is_written_and_that_undefined_distances_are_counted(tmp_path):
    record = Record("perfusion", "test", "shared", 0, {}, {})
    metrics = evaluate(cases(), record=record, out=tmp_path, save_probabilities=True)
    tidy = pd.read_csv(tmp_path / "cases.csv")
    assert metrics["undefined_distances"] == 1
    assert metrics["cases"] == 4
    assert metrics["subjects"] == 2
    assert tidy["value"].notna().all()
    wide = tidy.pivot_table(index=["group", "case"], columns="metric", values="value")
    assert metrics["dice"] == pytest.approx(wide["dice"].mean())
    assert metrics["dice_of_subjects"] == pytest.approx(wide["dice"].groupby("group").mean().mean())
    assert wide.loc[("P1", "P1-v2"), "dice_right"] == 0
    assert wide["hd95_mm_right"].isna().sum() == 1
    described = json.loads((tmp_path / "validation_summary.json").read_text())
    assert len(described["metric_per_case"]) == 4
    assert described["mean"]["left"]["Dice"] == pytest.approx(metrics["dice_left"])
    assert described["foreground_mean"]["Dice"] == pytest.approx(metrics["dice"])
    first = described["metric_per_case"][0]["metrics"]["left"]
    assert first["TP"] + first["FP"] + first["FN"] + first["TN"] == np.prod(GRID.shape)
    saved = np.load(tmp_path / "probabilities/P0-v1.npy")
    assert saved.shape == (6, 20, 20, 2)
    assert (tmp_path / "figures/overlays.png").stat().st_size > 10_000


def test_summary_leaves_out_what_is_undefined_everywhere():
    masks = np.stack([box(2, 9), box(9, 17)])
    table = pd.DataFrame([{"case": "a", "subject": "a", **case_scores(masks, masks, SPACING)}])
    metrics = summary(table)
    assert "dice_overlap" not in metrics
    assert metrics["cases_without_overlap_zone"] == 1
