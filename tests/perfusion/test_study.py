"""The study end to end, shrunk to seconds: train, evaluate and rank; and with real maps."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from quintet import experiment, results
from quintet.perfusion.data.prepare import prepare
from quintet.perfusion.data.prepared import load
from tests.conftest import REAL


def test_training_finds_the_territories_of_held_out_people(trained, flow_arrays):
    run, metrics = trained
    assert metrics["dice"] > 0.75
    cases = results.read([run / "evaluation" / "cases.csv"])
    fold = load(flow_arrays).folds[0]
    assert set(cases["case"]) == set(fold["val"])
    assert not set(cases["group"]) & {case.split("-")[0] for case in fold["train"]}
    assert (run / "evaluation" / "figures" / "overlays.png").is_file()


def test_sweep_and_ranking(small, flow_arrays):
    """Two configurations, one fold, with baselines and an ensemble: every table is there, and run folders that params do not name
    are removed."""
    sweep = Path("runs/perfusion/sweep")
    for config in small.perfusion.sweep.configs:
        experiment.run_sweep_entry("perfusion", small, flow_arrays, sweep / config / "fold0-seed0", config, fold=0, seed=0)
    for leftover in ("removed/fold0-seed0", "shared/fold1-seed0", "shared/.fold0-seed3.part"):
        (sweep / leftover).mkdir(parents=True)
    baselines, ensembles = Path("runs/perfusion/baselines"), Path("runs/perfusion/ensembles")
    out, report = Path("runs/perfusion/rank"), Path("reports/ranking")
    experiment.run_baselines("perfusion", small, flow_arrays, baselines)
    experiment.run_ensembles("perfusion", small, flow_arrays, sweep, ensembles)
    ranking = experiment.rank_runs("perfusion", small, sweep, baselines, out, report, ensembles=ensembles)
    kept = {path.relative_to(sweep).as_posix() for path in sweep.glob("*/*")}
    assert kept == {"shared/fold0-seed0", "separate/fold0-seed0"}
    assert all((sweep / run / "evaluation" / "cases.csv").is_file() for run in kept)
    table = pd.read_csv(report / "ranking.csv")
    assert list(table.columns[:6]) == ["rank", "config", "mean", "low", "high", "group"]
    assert set(table["config"]) == {"shared", "separate", "pair", "threshold", "oracle"}
    assert (ranking.floor, ranking.ceiling) == ("threshold", "oracle")
    assert "Is shared better than threshold?" in set(ranking.answers["question"])
    assert set(table["published"].dropna().round(4)) == {0.9057, 0.9076}
    page = (report / "ranking.html").read_text()
    for heading in (
        "Published results and ours",
        "Loss terms by architecture",
        "Range per architecture",
        "Left and right",
        "open questions",
    ):
        assert heading in page
    assert "no difference was established" in ranking.verdict  # two people
    assert json.loads((out / "record.json").read_text())["stage"] == "rank"
    assert not list(Path(".checkpoints").glob("*"))


def test_an_ensemble_of_one_run_is_that_run_and_of_two_the_mean(trained, small, flow_arrays, tmp_path):
    from quintet.perfusion.data.prepared import load
    from quintet.perfusion.evaluation.inference import Model, evaluate_ensemble, predict_prepared
    from quintet.runs import Record

    run, metrics = trained
    data, evaluation = load(flow_arrays), small.perfusion.evaluation
    record = Record("perfusion", "perfusion_ensembles", "pair", 0, {}, {})
    alone = evaluate_ensemble([run], data, tmp_path, evaluation, small.compute, record=record)
    assert alone["dice"] == pytest.approx(metrics["dice"])
    models = [Model.load(run, "cpu", mirror_average=mirrored) for mirrored in (True, False)]
    rows = data.rows("val", 0)[:1]
    each = [next(predict_prepared([model], data, rows)).probability for model in models]
    assert np.abs(each[0] - each[1]).max() > 0.01
    both = next(predict_prepared(models, data, rows)).probability
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-6)


@pytest.fixture
def real_cases(tmp_path) -> Path:
    """6 semi-synthetic cases: real group-mean CBF maps weighted by softened atlas territories.

    The label leaks into the input: they test reading, grids and the way to a probability map, not accuracy.
    """
    if not (REAL / "perfusion").is_dir():
        pytest.skip("../shared/real is not here")
    chosen = slice(20, 110, 12)  # of the slices
    atlas = nib.load(REAL / "perfusion" / "Tatu_ICA_L_ICA_R_PCA.nii.gz")
    values = np.asarray(atlas.dataobj)[:, :, chosen]
    affine = atlas.affine.copy()
    affine[:3, 3] = (atlas.affine @ [0, 0, chosen.start, 1])[:3]
    affine[:3, 2] *= chosen.step
    raw = tmp_path / "raw"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    x_mm = affine[0, 0] * np.arange(values.shape[0]) + affine[0, 3]
    sides = [1, 2]
    if x_mm[np.argwhere(values == 1)[:, 0]].mean() > 0:
        sides.reverse()  # left is the value whose voxels have negative x
    label = (values == sides[0]) + 2 * (values == sides[1])
    for number in range(6):
        source, case = ("Philips_2DEPI_noBsup_CBF", "GE_3Dspiral_Product_CBF")[number % 2], f"Real{number // 2}-v{number % 2}"
        flow = np.nan_to_num(nib.load(REAL / "perfusion" / f"{source}.nii.gz").get_fdata())[:, :, chosen]
        for channel, value in enumerate(sides):
            noise = np.random.default_rng([number, channel]).normal(0, 3, flow.shape) * (flow > 0)
            array = flow * gaussian_filter((values == value).astype(float), (2 + number / 3, 2, 0)) + noise
            nib.save(nib.Nifti1Image(array.astype(np.float32), affine), raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), raw / "labelsTr" / f"{case}.nii.gz")
    description = {"channel_names": {"0": "LICA", "1": "RICA"}, "labels": {"background": 0, "left": [1, 3], "right": [2, 3]}}
    (raw / "dataset.json").write_text(json.dumps(description))
    return raw


def test_real_maps_and_territories(small, real_cases, tmp_path):
    prepared, _ = prepare(real_cases, tmp_path / "data", small.perfusion)
    assert prepared.table["left_ml"].between(50, 1000).all()
    run, out = tmp_path / "run", tmp_path / "out"
    experiment.train_selected("perfusion", small, tmp_path / "data", run)
    metrics = experiment.evaluate_selected("perfusion", small, tmp_path / "data", run, tmp_path / "scores.json")
    assert metrics["cases"] == len(prepared.folds[0]["val"])
    assert 0 < metrics["dice"] < 1
    experiment.predict_folder("perfusion", [run], real_cases / "imagesTr", out, overlays=None, device="cpu", skip=False)
    maps, source = (nib.load(path) for path in (out / "Real0-v0_probabilities.nii.gz", real_cases / "labelsTr/Real0-v0.nii.gz"))
    np.testing.assert_allclose(maps.affine, source.affine, atol=1e-4)
    assert maps.shape == (*source.shape, 2)
