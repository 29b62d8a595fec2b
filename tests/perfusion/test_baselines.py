"""Floor and ceiling: the threshold against a search by hand, and the oracle where there is a truth."""

import itertools
import shutil

import numpy as np
import pytest

from quintet import experiment, results
from quintet.params.perfusion import BASELINES, PerfusionBaselines
from quintet.perfusion import baselines
from quintet.perfusion.baselines import Threshold, choose_threshold, smoothed
from quintet.perfusion.data.prepare import prepare
from quintet.perfusion.data.prepared import centred, load
from quintet.perfusion.evaluation.scores import dice_score

FEW = PerfusionBaselines(sigma_px=[0, 2], share=[0.6, 0.3, 0.45], flow=[0, 0.7, 0.35])


def test_the_names_in_params_are_the_registry():
    assert set(BASELINES) == set(baselines.BASELINES)


def test_share_and_level_of_a_known_map():
    maps = np.zeros((1, 2, 4, 6), np.float32)
    maps[0, 0, 1:3, 1:5], maps[0, 1, 1:3, 3:5] = 30, 10
    share, level = smoothed(maps, 0)
    np.testing.assert_allclose(share[0, :, 1, 1:5], [[1, 1, 0.75, 0.75], [0, 0, 0.25, 0.25]])
    np.testing.assert_allclose(level[0, 1, 1:5], [30 / 35, 30 / 35, 40 / 35, 40 / 35])
    assert share[0, :, 0].max() == level[0, 0].max() == 0
    found = Threshold(sigma_px=0, share=0.5, flow=1.0)(maps)
    assert found[0, 0].sum() == 4
    assert not found[0, 1].any()


def test_the_search_finds_the_best_of_all_combinations(flow_arrays):
    data = load(flow_arrays)
    rows = data.rows("train", 0)[:3]

    def mean_dice(values: tuple[float, ...]) -> float:
        found = {}
        for row in rows:
            masks = centred(data.masks[data.slices(row)], data.geometry[row].size).astype(bool)
            predicted = Threshold(*values)(data.flow(row))
            found[row] = np.mean([dice_score(predicted[:, side], masks[:, side]) for side in range(2)])
        return float(np.mean(list(found.values())))

    scores = {values: mean_dice(values) for values in itertools.product(FEW.sigma_px, FEW.share, FEW.flow)}
    chosen = choose_threshold(data, rows, FEW)
    best = max(scores.values())
    assert mean_dice((chosen.sigma_px, chosen.share, chosen.flow)) == pytest.approx(best, abs=1e-6)
    assert best > min(scores.values()) + 0.05


@pytest.mark.parametrize("normalisation", ["channel", "joint"])
def test_flow_comes_back_from_either_normalisation(flow_maps, small, tmp_path, normalisation):
    changed = small.perfusion.data.model_copy(update={"normalisation": normalisation})
    prepared, _ = prepare(flow_maps, tmp_path / "out", small.perfusion.model_copy(update={"data": changed}))
    import nibabel as nib

    for row in range(3):
        name, geometry = prepared.table["case"][row], prepared.geometry[row]
        flow = prepared.flow(row)
        for side in range(2):
            raw = nib.load(flow_maps / "imagesTr" / f"{name}_{side:04d}.nii.gz").get_fdata(dtype=np.float32)
            box = geometry.crop(raw)
            resampled = flow.shape != (len(box), 2, *box.shape[1:])
            assert flow[:, side].mean() == pytest.approx(box.mean(), rel=0.05 if resampled else 1e-4)
            if not resampled:
                np.testing.assert_allclose(flow[:, side], box, atol=1e-3)
        if normalisation == "joint":
            images = centred(prepared.images[prepared.slices(row)], geometry.size)
            inside = flow[:, 1] > 5
            ratios = (maps[:, 0][inside] / maps[:, 1][inside] for maps in (images, flow))
            np.testing.assert_allclose(*ratios, rtol=1e-3)


def test_the_oracle_is_above_the_threshold_and_absent_without_a_truth(broken, flow_arrays, small, tmp_path):
    metrics = experiment.run_baselines("perfusion", small, flow_arrays, tmp_path / "baselines")
    assert metrics["oracle"]["dice"] > metrics["threshold"]["dice"] + 0.03 > 0.6
    table = results.read([tmp_path / "baselines" / "oracle" / "fold0-seed0" / "evaluation" / "cases.csv"])
    assert set(table["case"]) == set(load(flow_arrays).folds[0]["val"])
    shutil.rmtree(broken / "truth")
    prepare(broken, tmp_path / "user", small.perfusion)
    assert list(experiment.run_baselines("perfusion", small, tmp_path / "user", tmp_path / "others")) == ["threshold"]
    for name in ("images.npy", "masks.npy", "truth.npy"):
        assert (tmp_path / "user" / name).read_bytes() == (flow_arrays / name).read_bytes()
