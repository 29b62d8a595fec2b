"""A trained run applied to slices, to a folder of new cases, and to a labelled folder."""

import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from quintet import experiment
from quintet.errors import InputError, InputProblemsError
from quintet.imaging.volumes import Grid
from quintet.perfusion.data.prepared import load
from quintet.perfusion.evaluation.inference import Model, load_models
from quintet.perfusion.prediction import predict_images
from tests.damage import become_folder, link_to_nowhere


def test_a_mirrored_case_gives_the_mirrored_prediction(trained):
    """With mirror averaging, exchanging sides and channels of a case exchanges the prediction."""
    model = Model.load(trained[0], "cpu", mirror_average=True)
    x = np.random.default_rng(0).normal(size=(3, 2, 70, 50)).astype(np.float32)
    p, mirrored = model(x), model(x[:, ::-1, :, ::-1])
    np.testing.assert_allclose(mirrored, p[:, ::-1, :, ::-1], atol=1e-5)
    assert np.abs(p - Model.load(trained[0], "cpu", mirror_average=False)(x)).max() > 1e-3


def test_slices_without_any_flow_have_no_territory(trained):
    images, grid = np.zeros((2, 20, 24, 8), np.float32), Grid((20, 24, 8), np.diag([4.0, 4.0, 7.0, 1.0]))
    images[:, 4:16, 4:20, [1, 2, 3, 6]] = np.random.default_rng(0).uniform(20, 60, (2, 12, 16, 4))
    p = predict_images(load_models([trained[0]], "cpu"), images, grid)
    assert (p[..., [0, 4, 5, 7]] == 0).all()
    assert (p[:, 4:16, 4:20, [1, 2, 3, 6]] > 0).all()


def test_a_slice_larger_than_the_patch_is_predicted_in_windows(trained):
    p = Model.load(trained[0], "cpu")(np.random.default_rng(0).normal(size=(2, 2, 130, 90)).astype(np.float32))
    assert p.shape == (2, 2, 130, 90)
    assert ((p >= 0) & (p <= 1)).all()


@pytest.fixture
def new_cases(flow_maps, tmp_path):
    """The images of four cases."""
    source = tmp_path / "in"
    source.mkdir()
    for image in sorted((flow_maps / "imagesTr").iterdir())[:8]:
        shutil.copy(image, source)
    return source


def test_predictions_are_on_the_file_s_own_grid(trained, flow_maps, new_cases, tmp_path):
    """Masks agree with the cases' labels on the file's own grid, whatever its orientation."""
    run, out = trained[0], tmp_path / "out"
    figures = tmp_path / "figures"
    count = experiment.predict_folder("perfusion", [run, run], new_cases, out, overlays=figures, device="cpu", skip=False)
    labels = sorted((flow_maps / "labelsTr").iterdir())[:4]
    assert count == len(labels) == len(list(figures.glob("*.png")))
    volumes = pd.read_csv(out / "volumes.csv").set_index("case")
    for path in labels:
        name = path.name.removesuffix(".nii.gz")
        label, mask, maps = (nib.load(p) for p in (path, out / path.name, out / f"{name}_probabilities.nii.gz"))
        np.testing.assert_allclose(mask.affine, label.affine, atol=1e-4)
        np.testing.assert_allclose(maps.affine, label.affine, atol=1e-4)
        assert maps.shape == (*label.shape, 2)
        ours, true, p = np.asarray(mask.dataobj), np.asarray(label.dataobj), maps.get_fdata()
        np.testing.assert_array_equal(ours, (p[..., 0] >= 0.5) + 2 * (p[..., 1] >= 0.5))
        for bit in (1, 2):
            a, b = (ours & bit) > 0, (true & bit) > 0
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.6, name
        left_ml = ((ours & 1) > 0).sum() * np.prod(label.header.get_zooms()) / 1000
        assert volumes.loc[name, "left_ml"] == pytest.approx(left_ml, rel=1e-3)


def test_an_unreadable_case_stops_prediction_or_is_skipped(trained, new_cases, tmp_path):
    first = next(new_cases.glob("*_0001*"))
    first.write_bytes(first.read_bytes()[:-50])

    def predict(*, skip):
        return experiment.predict_folder(
            "perfusion", [trained[0]], new_cases, tmp_path / "out", overlays=None, device="cpu", skip=skip
        )

    with pytest.raises(InputError, match=first.name):
        predict(skip=False)
    assert not (tmp_path / "out").exists()
    assert predict(skip=True) == 3
    assert len(pd.read_csv(tmp_path / "out" / "volumes.csv")) == 3


def test_every_broken_case_is_listed_with_its_cause(trained, new_cases, tmp_path):
    broken = {
        link_to_nowhere: "which does not exist",
        become_folder: "a folder, expected",
        lambda p: p.write_bytes(b""): "0 bytes",
    }
    files = sorted(new_cases.glob("*_0001*"))[:3]
    for path, damage in zip(files, broken, strict=True):
        damage(path)
    with pytest.raises(InputProblemsError) as caught:
        experiment.predict_folder("perfusion", [trained[0]], new_cases, tmp_path / "o", overlays=None, device="cpu", skip=False)
    assert len(caught.value.problems) == 3
    for path, cause in zip(files, broken.values(), strict=True):
        assert [p for p in caught.value.problems if str(path) in p and cause in p]
    assert not (tmp_path / "o").exists()


DOUBTS = {
    "not masked": (lambda a: np.where(a == 0, np.random.default_rng(0).normal(0, 3, a.shape), a), "mask them"),
    "a background": (lambda a: np.where(a == 0, -1000, a), "mask them"),
    "stray voxels": (
        lambda a: np.where(np.arange(a.size).reshape(a.shape) == a.argmax(), 1e5, a),
        "voxel(s) of channel 0 reach 1e+05",
    ),
    "negated": (lambda a: -a, "was the map negated?"),
}


@pytest.mark.parametrize("kind", DOUBTS)
def test_doubts_are_printed_in_prediction(trained, new_cases, tmp_path, capsys, kind):
    """With the case's name; sound cases raise none."""
    change, message = DOUBTS[kind]
    name = sorted(new_cases.glob("*_0000*"))[1].name.removesuffix("_0000.nii.gz")
    for path in new_cases.glob(f"{name}_*"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj, np.float32)).astype(np.float32), image.affine), path)
    experiment.predict_folder("perfusion", [trained[0]], new_cases, tmp_path / "o", overlays=None, device="cpu", skip=False)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert warnings
    assert all(line.startswith(f"warning: {name}") for line in warnings)
    assert any(message in line for line in warnings), warnings


def test_evaluating_a_folder_gives_the_scores_of_the_stage(trained, flow_maps, flow_arrays, tmp_path, small):
    """A raw folder with only the held-out cases: the same scores as those of the run's own evaluation."""
    run, metrics = trained
    held_out, raw = load(flow_arrays).folds[0]["val"], tmp_path / "raw"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
        for file in (flow_maps / part).iterdir():
            if file.name.split(".")[0].split("_")[0] in held_out:
                shutil.copy(file, raw / part)
    shutil.copy(flow_maps / "dataset.json", raw)
    again = experiment.evaluate_folder("perfusion", [run], raw, tmp_path / "out", small, device="cpu")
    assert again["dice"] == pytest.approx(metrics["dice"], abs=1e-6)
    assert again["cases"] == len(held_out)


def test_evaluation_lists_every_broken_case_at_once(trained, flow_maps, tmp_path, small):
    raw = shutil.copytree(flow_maps, tmp_path / "raw")
    first, second, third = (sorted((raw / "imagesTr").glob(f"PerfTerr00{n}*"))[0] for n in (1, 2, 3))
    first.write_bytes(first.read_bytes()[:-200])
    second.write_bytes(b"")
    label = raw / "labelsTr" / third.name.replace("_0000", "")
    label.write_bytes(b"no image")
    with pytest.raises(InputProblemsError) as caught:
        experiment.evaluate_folder("perfusion", [trained[0]], raw, tmp_path / "out", small, device="cpu")
    assert len(caught.value.problems) == 3
    for path, problem in zip((first, second, label), caught.value.problems, strict=True):
        assert str(path) in problem
    assert not (tmp_path / "out").exists()
