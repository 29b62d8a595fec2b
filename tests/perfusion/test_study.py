"""The study end to end, shrunk to seconds: train, evaluate, rank, predict, resume, repeat, and with real maps."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from quintet import results
from quintet.errors import InputError
from quintet.perfusion import data, study
from quintet.perfusion.inference import Model
from quintet.perfusion.module import PatchBatches, TerritoryModule
from quintet.perfusion.prediction import evaluate_folder, predict_folder
from tests.conftest import REAL, assert_killed_equals_alone, equal, state_of, with_changes
from tests.perfusion.conftest import SMALL

HERE = SMALL | {"compute.device": "cpu", "compute.threads": 1}


@pytest.fixture
def small(make_params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # checkpoints go here; without a dvc.yaml nothing is mirrored
    return make_params(HERE)


def train(params, prepared, run: Path, *, config=None, fold=0, seed=0):
    p = params.perfusion
    return study.train_run(
        run, prepared, config or p, p, params.compute, stage="perfusion_train", config="selected", fold=fold, seed=seed
    )


@pytest.fixture(scope="session")
def trained(flow_arrays, tmp_path_factory, values):
    """A small network trained long enough to find the territories (10 s), evaluated on fold 0."""
    import os

    from quintet.params import parse

    longer = {"perfusion.features": 8, "perfusion.epochs": 4, "perfusion.iterations": 15, "perfusion.batch_size": 12}
    params = parse(with_changes(values, HERE | longer | {"perfusion.rate": 0.03}))
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        train(params, flow_arrays, folder / "run")
        metrics = study.evaluate_run(folder / "run", flow_arrays, params.perfusion, params.compute)
    finally:
        os.chdir(before)
    return folder / "run", metrics


def test_training_finds_the_territories_of_unseen_people(trained, flow_arrays):
    run, metrics = trained
    assert metrics["dice"] > 0.75
    cases = results.read([run / "evaluation" / "cases.csv"])
    prepared = data.load(flow_arrays)
    assert set(cases["case"]) == set(prepared.folds[0]["val"])
    assert not set(cases["group"]) & {c.split("-")[0] for c in prepared.folds[0]["train"]}
    assert (run / "evaluation" / "figures" / "overlays.png").is_file()


@pytest.mark.parametrize("arch", ["shared", "separate", "crossattention"])
@pytest.mark.parametrize("losses", [[], ["spatial", "complementary"], ["multiscale"], ["adaptive"]])
def test_every_architecture_trains_with_every_loss(small, flow_arrays, tmp_path, arch, losses):
    config = small.perfusion.configs["shared"].model_copy(update={"arch": arch, "losses": losses})
    p = small.perfusion.model_copy(update={"epochs": 1, "iterations": 2})
    record = train(small.model_copy(update={"perfusion": p}), flow_arrays, tmp_path / "run", config=config)
    history = pd.read_csv(tmp_path / "run" / "model" / "history.csv")
    assert np.isfinite(history[["train_loss", "valid_loss", "valid_dice"]]).all().all()
    assert record.params["losses"] == losses


def test_same_seed_same_weights_other_seed_others(small, flow_arrays, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train(small, flow_arrays, tmp_path / name, seed=seed)
    assert equal(state_of(tmp_path / "one"), state_of(tmp_path / "two"))
    assert not equal(state_of(tmp_path / "one"), state_of(tmp_path / "three"))


def test_last_weights_are_kept_not_the_best_on_the_reported_cases(small, flow_arrays, tmp_path, monkeypatch):
    """The folds' held-out cases are those that are reported: choosing an epoch on them would flatter."""
    from quintet.training import fit

    goals = []
    original = fit._summary
    monkeypatch.setattr(fit, "_summary", lambda table, goal: goals.append(goal) or original(table, goal))
    record = train(small, flow_arrays, tmp_path / "run")
    last = torch.load(next((tmp_path / ".checkpoints").glob("*/last.ckpt")), weights_only=True)["state_dict"]
    assert equal(state_of(tmp_path / "run"), {n.removeprefix("net."): v for n, v in last.items()})
    assert goals[0].keep == "last"
    history = pd.read_csv(tmp_path / "run/model/history.csv")
    assert record.metrics["last_valid_dice"] == pytest.approx(history["valid_dice"].iloc[-1])


def test_killed_training_resumes_to_the_same_result(flow_arrays, values, tmp_path):
    params = with_changes(values, HERE | {"perfusion.epochs": 4})
    assert_killed_equals_alone("perfusion_train.py", flow_arrays, params, tmp_path, kill_after="2/4")


def test_batches_are_a_function_of_seed_and_epoch_and_hold_the_foreground(flow_arrays):
    prepared = data.load(flow_arrays)
    cases = prepared.part(0, "train")
    sampler = PatchBatches(prepared, cases, 12, 5, oversample=0.33, seed=1)
    first = [rows.tolist() for rows, _ in sampler]
    assert [rows.tolist() for rows, _ in sampler] == first
    sampler.set_epoch(1)
    assert [rows.tolist() for rows, _ in sampler] != first
    allowed = {row for c in cases for row in range(prepared.slices(c).start, prepared.slices(c).stop)}
    filled = np.asarray(prepared.masks).any(axis=(1, 2, 3))
    for rows, foreground in sampler:
        assert set(rows.tolist()) <= allowed
        assert foreground.sum() == 4
        assert filled[rows[foreground]].all()


def test_deep_supervision_weighs_the_base_and_only_the_base(flow_arrays, small):
    prepared = data.load(flow_arrays)
    config = small.perfusion.configs["shared-spatial"]
    module = TerritoryModule(prepared, config, small.perfusion, steps=10)
    masks = (torch.rand(2, 2, 16, 16) > 0.5).float()
    full, half = torch.randn(2, 2, 16, 16), torch.randn(2, 2, 8, 8)
    from quintet.perfusion.losses import base, spatial

    small_masks = torch.nn.functional.interpolate(masks, size=(8, 8), mode="nearest")
    expected = 2 / 3 * base(full, masks).mean() + 1 / 3 * base(half, small_masks).mean()
    expected = expected + 0.1 * spatial(full.sigmoid(), masks).mean()
    torch.testing.assert_close(module.loss([full, half], masks, 0.0), expected)


def test_mirrored_case_gives_the_mirrored_prediction(trained):
    """With mirror averaging, exchanging sides and channels of a case exchanges the prediction, exactly."""
    model = Model.load(trained[0], "cpu", mirror_average=True)
    x = np.random.default_rng(0).normal(size=(3, 2, 70, 50)).astype(np.float32)
    one, other = model(x), model(x[:, ::-1, :, ::-1])
    np.testing.assert_allclose(other, one[:, ::-1, :, ::-1], atol=1e-5)
    assert np.abs(model(x) - Model.load(trained[0], "cpu", mirror_average=False)(x)).max() > 1e-3


def test_a_slice_larger_than_the_patch_is_seen_in_windows(trained):
    p = Model.load(trained[0], "cpu")(np.random.default_rng(0).normal(size=(2, 2, 130, 90)).astype(np.float32))
    assert p.shape == (2, 2, 130, 90)
    assert ((p >= 0) & (p <= 1)).all()


def test_prediction_lies_on_the_case_s_own_grid(trained, flow_maps, tmp_path):
    """Masks of training-like cases agree with their labels on the file's own grid, whatever its orientation."""
    run, _ = trained
    source = tmp_path / "in"
    source.mkdir()
    for image in sorted((flow_maps / "imagesTr").iterdir())[:8]:
        shutil.copy(image, source)
    count = predict_folder([run, run], source, tmp_path / "out", overlays=tmp_path / "pictures", device="cpu", skip=False)
    labels = sorted((flow_maps / "labelsTr").iterdir())[:4]
    assert count == len(labels) == len(list((tmp_path / "pictures").glob("*.png")))
    volumes = pd.read_csv(tmp_path / "out" / "volumes.csv").set_index("case")
    for path in labels:
        name = path.name.removesuffix(".nii.gz")
        label, mask, maps = (
            nib.load(p) for p in (path, tmp_path / "out" / path.name, tmp_path / "out" / f"{name}_probabilities.nii.gz")
        )
        np.testing.assert_allclose(mask.affine, label.affine, atol=1e-4)
        np.testing.assert_allclose(maps.affine, label.affine, atol=1e-4)
        assert maps.shape == (*label.shape, 2)
        ours, true, p = np.asarray(mask.dataobj), np.asarray(label.dataobj), maps.get_fdata()
        np.testing.assert_array_equal(ours, (p[..., 0] >= 0.5) + 2 * (p[..., 1] >= 0.5))
        for bit in (1, 2):
            a, b = (ours & bit) > 0, (true & bit) > 0
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.6, name
        assert volumes.loc[name, "left_ml"] == pytest.approx(
            ((ours & 1) > 0).sum() * np.prod(label.header.get_zooms()) / 1000, rel=1e-3
        )
    first = next(source.glob("*_0001*"))
    first.write_bytes(first.read_bytes()[:-50])
    with pytest.raises(InputError, match=first.name):
        predict_folder([run], source, tmp_path / "again", overlays=None, device="cpu", skip=False)
    assert not (tmp_path / "again").exists()
    assert predict_folder([run], source, tmp_path / "again", overlays=None, device="cpu", skip=True) == count - 1


def test_evaluating_a_folder_gives_what_the_stage_gave(trained, flow_maps, flow_arrays, tmp_path, small):
    """Only the held-out cases in a raw folder: the same scores as those of the run's own evaluation."""
    run, metrics = trained
    held_out = data.load(flow_arrays).folds[0]["val"]
    raw = tmp_path / "raw"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
        for file in (flow_maps / part).iterdir():
            if file.name.split(".")[0].split("_")[0] in held_out:
                shutil.copy(file, raw / part)
    shutil.copy(flow_maps / "dataset.json", raw)
    again = evaluate_folder([run], raw, tmp_path / "out", device="cpu", params=small.perfusion)
    assert again["dice"] == pytest.approx(metrics["dice"], abs=1e-6)


def test_sweep_and_ranking(small, flow_arrays, tmp_path):
    """Two configurations, one fold; a removed configuration's cell disappears; every table is there."""
    from quintet.comparison import sweep_runs
    from quintet.perfusion.comparison import compare

    p = small.perfusion
    for config in p.sweep.configs:
        study.sweep_cell(Path(f"runs/perfusion/sweep/{config}/fold0-seed0"), flow_arrays, config, 0, 0, p, small.compute)
    for leftover in ("removed/fold0-seed0", "shared/fold1-seed0", "shared/.fold0-seed3.part"):
        (Path("runs/perfusion/sweep") / leftover).mkdir(parents=True)
    verdict = compare(small, Path("runs/perfusion/sweep"), Path("runs/perfusion/rank"), Path("reports/ranking"))
    kept = {p.relative_to("runs/perfusion/sweep").as_posix() for p in Path("runs/perfusion/sweep").glob("*/*")}
    assert kept == {"shared/fold0-seed0", "separate/fold0-seed0"}
    assert all(
        (run / "evaluation/cases.csv").is_file()
        for group in sweep_runs(p.sweep, Path("runs/perfusion/sweep")).values()
        for run in group
    )
    table = pd.read_csv("reports/ranking/ranking.csv")
    assert list(table.columns[:6]) == ["rank", "config", "mean", "low", "high", "group"]
    assert set(table["published"].round(4)) == {0.9057, 0.9076}
    page = Path("reports/ranking/ranking.html").read_text()
    for heading in (
        "Published beside ours",
        "Loss terms by architecture",
        "Range per architecture",
        "Left and right",
        "open questions",
    ):
        assert heading in page
    assert "nothing can be decided" in verdict  # two people
    assert json.loads(Path("runs/perfusion/rank/record.json").read_text())["stage"] == "rank"
    assert not list(Path(".checkpoints").glob("*"))


def test_a_fold_that_the_data_lack_is_refused(small, flow_arrays, tmp_path):
    with pytest.raises(InputError, match="has 3 folds"):
        train(small, flow_arrays, tmp_path / "run", fold=4)


def test_a_patch_that_cannot_be_halved_is_refused_with_one_that_can(make_params, flow_arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"perfusion.patch: 70 .* use \[72, 56\]"):
        train(make_params(HERE | {"perfusion.patch": [70, 56]}), flow_arrays, tmp_path / "run")


def test_loss_that_is_not_finite_stops_with_step_and_cases(make_params, flow_arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = make_params(HERE | {"perfusion.rate": 1.0e30, "perfusion.clip_norm": 0.0})
    with pytest.raises(InputError, match=r"step \d+ .*cases: .*PerfTerr"):
        train(params, flow_arrays, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_real_maps_and_territories(small, tmp_path):
    """Semi-synthetic cases: real group-mean CBF maps weighted by softened atlas territories (so the label leaks into the
    input; this
    tests reading, grids and the path to a probability map, not accuracy)."""
    if not (REAL / "perfusion").is_dir():
        pytest.skip("../shared/real is not here")
    from scipy.ndimage import gaussian_filter

    atlas = nib.load(REAL / "perfusion" / "Tatu_ICA_L_ICA_R_PCA.nii.gz")
    values = np.asarray(atlas.dataobj)[:, :, 20:110:12]
    affine = atlas.affine.copy()
    affine[:3, 3] = (atlas.affine @ [0, 0, 20, 1])[:3]
    affine[:3, 2] *= 12
    raw = tmp_path / "raw"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    x_mm = affine[0, 0] * np.arange(values.shape[0]) + affine[0, 3]
    sides = [v for v in (1, 2)]
    if x_mm[np.argwhere(values == 1)[:, 0]].mean() > 0:
        sides.reverse()  # 1 is the left one where its voxels have negative x
    label = (values == sides[0]) + 2 * (values == sides[1])
    for number in range(6):
        source = "GE_3Dspiral_Product_CBF" if number % 2 else "Philips_2DEPI_noBsup_CBF"
        flow = np.nan_to_num(nib.load(REAL / "perfusion" / f"{source}.nii.gz").get_fdata())[:, :, 20:110:12]
        for channel, value in enumerate(sides):
            noise = np.random.default_rng([number, channel]).normal(0, 3, flow.shape) * (flow > 0)
            array = flow * gaussian_filter((values == value).astype(float), (2 + number / 3, 2, 0)) + noise
            nib.save(
                nib.Nifti1Image(array.astype(np.float32), affine),
                raw / "imagesTr" / f"Real{number // 2}-v{number % 2}_{channel:04d}.nii.gz",
            )
        nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), raw / "labelsTr" / f"Real{number // 2}-v{number % 2}.nii.gz")
    described = {"channel_names": {"0": "LICA", "1": "RICA"}, "labels": {"background": 0, "left": [1, 3], "right": [2, 3]}}
    (raw / "dataset.json").write_text(json.dumps(described))
    prepared = data.prepare(raw, tmp_path / "data", small.perfusion)
    assert prepared.cases["left_ml"].between(50, 1000).all()
    train(small, tmp_path / "data", tmp_path / "run")
    metrics = study.evaluate_run(tmp_path / "run", tmp_path / "data", small.perfusion, small.compute)
    assert 0 <= metrics["dice"] <= 1
    predict_folder([tmp_path / "run"], raw / "imagesTr", tmp_path / "out", overlays=None, device="cpu", skip=False)
    maps = nib.load(tmp_path / "out" / "Real0-v0_probabilities.nii.gz")
    np.testing.assert_allclose(maps.affine, affine, atol=1e-4)
    assert maps.shape == (*values.shape, 2)


def test_a_run_of_another_study_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    torch.save({"state_dict": {}, "build": {"arch": "adaptive"}}, tmp_path / "model" / "model.pt")
    with pytest.raises(InputError, match="another study"):
        Model.load(tmp_path, "cpu")
