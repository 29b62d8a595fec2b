"""From raw patients to cubes: alignment, missing modalities, bad input, nothing half-written, a kill while preparing."""

import gzip
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from quintet import experiment
from quintet.errors import InputError, InputProblemsError
from quintet.fusion.analysis import analyze, write_data_page
from quintet.fusion.data.prepare import check, prepare
from quintet.fusion.data.prepared import load
from quintet.fusion.data.segmentation import segment
from tests.conftest import ROOT, with_changes
from tests.fusion.conftest import ELSEWHERE, HERE, PATIENTS, SMALL


def run(raw, small, *, survival_loss="cox", **changes):
    """Segment and prepare with some values of `fusion.data` changed."""
    fusion = small.fusion
    data = fusion.data.model_copy(update=changes)
    training = fusion.training.model_copy(update={"survival_loss": survival_loss})
    params = fusion.model_copy(update={"data": data, "training": training})
    segment(raw, Path("masks"), params)
    return prepare(raw, Path("masks"), Path("prepared"), params)


def first_with(raw, modality):
    return (
        sorted([*raw.glob(f"*/*{modality}.nii.gz"), *raw.glob("*/*-t2f.nii.gz")])[0]
        if modality == "flair"
        else sorted(raw.glob(f"*/*{modality}.nii.gz"))[0]
    )


def test_present_and_missing_modalities(prepared, heads):
    data = load(prepared)
    assert data.volumes.dtype == np.float16
    assert isinstance(data.volumes, np.memmap)
    assert data.volumes.shape == (HERE + ELSEWHERE, 3, 12, 12, 12)
    assert data.modalities == ["mri_t1ce", "mri_flair", "pet", "clinical"]
    assert (data.volumes.reshape(HERE + ELSEWHERE, 3, -1).any(2) == data.present[:, :3]).all()
    files = {p: len(list((heads / p).iterdir())) for p in data.table["patient"]}
    assert data.present[:, :3].sum(1).tolist() == list(files.values())
    assert set(data.table["split"]) == {"train", "valid", "test", "unlabelled", "external"}
    assert ((data.table["split"] == "unlabelled") == np.isnan(data.target[:, 0])).all()
    assert data.classes == ["progression", "stable"]
    clinical = pd.read_csv(heads / "clinical_data.csv").set_index("patient").loc[data.table["patient"]]
    features = clinical[["age", "performance", "marker", "sex", "kidney_function"]]
    assert (data.present[:, 3] == features.notna().any(axis=1)).all()
    train = data.rows("train")
    ages = clinical["age"].to_numpy()[train]
    assert data.clinical[train, 0][~np.isnan(ages)] == pytest.approx(
        (ages - np.nanmean(ages))[~np.isnan(ages)] / np.nanstd(ages), abs=1e-4
    )


def test_a_patients_images_share_one_cube(prepared):
    """The lesion is at the same place in all of a patient's modalities, whatever their grids."""
    data = load(prepared)
    complete = np.flatnonzero(data.present[:, :3].all(1))
    distance = []
    for row in complete:
        peaks = [np.array(np.unravel_index(np.argmax(data.volumes[row, k]), (12,) * 3)) for k in (1, 2)]
        distance.append(np.abs(peaks[0] - peaks[1]).max())
    assert np.mean(np.array(distance) <= 3) > 0.8


def test_patients_of_other_hospitals_are_only_tested(raw, small, capsys):
    """They change nothing of what is fitted, and the hospital is no feature; those without an outcome are left out."""
    path = raw / "clinical_data.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[:3, "hospital"], table.loc[4:5, "hospital"] = "B", "C"
    table.loc[3, "outcome"] = ""
    table.to_csv(path, index=False)
    data, _ = run(raw, small, external=["B", "C"])
    own = table["patient"][:6].drop(3)
    assert sorted(data.table["patient"][data.table["split"] == "external"]) == sorted(own)
    assert table["patient"][3] not in set(data.table["patient"])
    printed = capsys.readouterr().out
    assert "1 patients of B, C (fusion.data.external) have no outcome yet" in printed
    assert "5 patients of B, C (fusion.data.external) are only tested" in printed
    assert "hospital" not in [column.name for column in data.encoder.columns]
    before = data.encoder
    table.loc[:5, "age"] = "17"
    table.to_csv(path, index=False)
    assert run(raw, small, external=["B", "C"])[0].encoder == before
    assert set(run(raw, small, external=[])[0].table["split"]) == {"train", "valid", "test", "unlabelled"}


def test_a_class_of_other_hospitals_alone_is_refused(raw, small):
    path = raw / "clinical_data.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[0, ["hospital", "outcome"]] = "B", "cured"
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match=r"'cured' occurs only in fusion\.data\.external"):
        run(raw, small)


def test_a_spacing_keeps_absolute_size(raw, small):
    """A head of twice the size fills the same share of a cube that is fitted to it, and eight times as many voxels of one with a
    spacing; what does not fit is cropped."""
    share = {}
    for enlarged in (False, True):
        if enlarged:
            for path in raw.glob("*/*.nii.gz"):
                image = nib.load(path)
                nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([2.0, 2, 2, 1]) @ image.affine), path)
        for size, spacing in ((24, 0.0), (24, 20.0), (12, 8.0)):
            data, _ = run(raw, small, size=size, spacing_mm=spacing)
            rows = np.flatnonzero(data.present[:, 1])
            share[enlarged, size, spacing] = float((data.volumes[rows, 1] > 0.15).mean())
    assert share[True, 24, 0.0] == pytest.approx(share[False, 24, 0.0], rel=0.05)
    assert share[True, 24, 20.0] / share[False, 24, 20.0] == pytest.approx(8, rel=0.35)
    assert share[False, 12, 8.0] > 2 * share[False, 24, 0.0]


def test_a_modality_may_have_several_channels(raw, make_params, monkeypatch, tmp_path):
    """A cube for each channel, with intensities of its own, through training and prediction."""
    monkeypatch.chdir(tmp_path)
    changes = {"fusion.data.modalities": ["mri_flair", "pet"], "fusion.method": "attention", "fusion.training.epochs": 1}
    one, two = make_params(SMALL | changes), make_params(SMALL | changes | {"fusion.data.channels": {"mri_flair": 2}})
    alone, _ = run(raw, one)
    single, has = np.array(alone.volumes[:, 0]), alone.present[:, 0]
    for path in [*raw.glob("*/*flair.nii.gz"), *raw.glob("*/*-t2f.nii.gz")]:
        change(lambda array: np.stack([array, 1000 - array], -1))(path)
    assert all("2 volumes in one file, expected 1" in problem for problem in check(raw, one.fusion))
    assert check(raw, two.fusion) == []
    data, _ = run(raw, two)
    assert data.volumes.shape == (PATIENTS, 3, 12, 12, 12)
    assert np.array_equal(data.present, alone.present)
    assert np.array_equal(data.volumes[:, 0], single)
    assert np.array_equal(data.volumes[:, 2], alone.volumes[:, 1])
    inside = (single > 0) & (single < 1)
    assert inside[has].mean() > 0.2
    assert data.volumes[:, 1][inside] == pytest.approx(1 - single[inside], abs=2e-3)
    experiment.train_selected("fusion", two, Path("prepared"), Path("run"))
    experiment.evaluate_selected("fusion", two, Path("prepared"), Path("run"), Path("scores.json"))
    predict = {"device": "cpu", "skip": False}
    experiment.predict_folder("fusion", [Path("run")], raw, Path("out.csv"), overlays=Path("pictures"), **predict)
    assert len(pd.read_csv("out.csv")) == len(list(Path("pictures").iterdir())) == PATIENTS
    path = next(raw.glob("*/*flair.nii.gz"))
    change(lambda array: array[..., 0])(path)
    with pytest.raises(InputProblemsError, match=r"1 volumes in one file, expected 2"):
        experiment.predict_folder("fusion", [Path("run")], raw, Path("out2.csv"), overlays=None, **predict)


def test_a_split_file_is_used(raw, small, tmp_path):
    names = sorted(p.name for p in raw.iterdir() if p.is_dir())
    parts = ["train"] * 20 + ["valid"] * 5 + ["test"] * 5
    pd.DataFrame({"patient": names, "split": parts}).to_csv("mine.csv", index=False)
    data, _ = run(raw, small, split="mine.csv")
    assert dict(zip(data.table["patient"], data.table["split"], strict=True)) == dict(zip(names, parts, strict=True))


def nan(path):
    image = nib.load(path)
    array = np.asarray(image.dataobj).astype(np.float32)
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), path)


def change(function):
    def damage(path):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(function(np.asarray(image.dataobj)), image.affine), path)

    return damage


DAMAGES = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:500]), "corrupt or truncated"),
    "no gzip": (lambda p: p.write_bytes(b"hello"), "corrupt or truncated"),
    "four axes": (change(lambda a: np.stack([a, a], -1)), "2 volumes in one file"),
    "zero": (change(lambda a: a * 0), "every voxel is 0"),
    "NaN": (nan, "NaN or infinite"),
    "flat": (change(lambda a: a[:, :, 0]), "expected a volume of 3 axes"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_image_is_named_and_does_not_affect_the_others(raw, small, kind):
    path = first_with(raw, "pet")
    damage, message = DAMAGES[kind]
    damage(path)
    assert any(str(path) in text and message in text for text in check(raw, small.fusion))
    with pytest.raises(InputProblemsError) as caught:
        run(raw, small)
    assert message in str(caught.value)
    assert path.name in str(caught.value)
    assert not Path("prepared").exists()
    data, problems = run(raw, small, on_error="skip")
    assert any(message in text for text in problems)
    row = int(np.flatnonzero(data.table["patient"] == path.parent.name)[0])
    assert not data.present[row, 2]
    assert len(data.table) == PATIENTS


def edit(raw, function):
    path = raw / "clinical_data.csv"
    function(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def without_label(table):
    table.loc[3, "outcome"] = ""
    return table


TABLES = {
    "label missing": (without_label, "no outcome in clinical_data.csv"),
    "row missing": (lambda t: t.drop(index=3), "no outcome in clinical_data.csv"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_patient_without_a_label_is_named(raw, small, kind):
    function, message = TABLES[kind]
    edit(raw, function)
    refusing = small.fusion.model_copy(update={"data": small.fusion.data.model_copy(update={"unlabelled": "refuse"})})
    assert any(message in text for text in check(raw, refusing))
    with pytest.raises(InputProblemsError, match="patient_003"):
        run(raw, small, unlabelled="refuse")
    data, problems = run(raw, small, on_error="skip", unlabelled="refuse")
    assert len(data.table) == PATIENTS - 1
    assert len(problems) == 1


@pytest.mark.parametrize("task", ["classification", "survival"])
def test_patients_without_a_target_are_kept_in_a_part_of_their_own(raw, small, task):
    """An empty outcome is one that is not known yet; a patient who is not in the table may be a mistake."""
    edit(
        raw,
        lambda t: t.assign(outcome=t["outcome"].where(t.index != 3, ""), survival_days=t["survival_days"].where(t.index != 3)),
    )
    data, problems = run(raw, small, task=task)
    assert not problems
    assert data.table.loc[data.table["split"] == "unlabelled", "patient"].tolist() == ["patient_003"]
    assert np.isnan(data.target[data.rows("unlabelled"), 0]).all()
    assert np.isfinite(data.target[data.table["split"] != "unlabelled"]).all()
    write_data_page(Path("page.html"), data, [], small.fusion, masks=Path("masks"))
    assert "unlabelled" in Path("page.html").read_text()
    edit(raw, lambda t: t.drop(index=3))
    with pytest.raises(InputProblemsError, match="patient_003"):
        run(raw, small, task=task)


def test_a_patient_without_any_modality(raw, small):
    folder = raw / "patient_003"
    for path in folder.iterdir():
        path.rename(folder / f"other_{path.name.replace('.nii', 'x.nii')}")
    edit(
        raw,
        lambda t: t.assign(
            **{
                c: t[c].where(t["patient"] != "patient_003", "")
                for c in ("age", "performance", "marker", "sex", "kidney_function")
            }
        ),
    )
    with pytest.raises(InputProblemsError, match="patient patient_003: no modality"):
        run(raw, small)
    assert len(run(raw, small, on_error="skip")[0].table) == PATIENTS - 1


@pytest.mark.parametrize(
    ("column", "given"),
    [("final_outcome", lambda t: t["age"]), ("code", lambda t: t["outcome"].map({"stable": "7", "progression": "8"}))],
    ids=["name", "values"],
)
def test_a_column_that_reveals_the_label_is_refused_until_it_is_dropped(raw, small, column, given):
    edit(raw, lambda t: t.assign(**{column: given(t)}))
    with pytest.raises(InputError, match=rf"'{column}'.*fusion.data.drop="):
        run(raw, small)
    assert any(column in text for text in check(raw, small.fusion))
    data, _ = run(raw, small, drop=[column])  # an experiment's -S fusion.data.drop
    assert column not in [own.name for own in data.encoder.columns]


def test_mse_of_censored_times_is_refused(raw, small):
    with pytest.raises(InputError, match="patients are censored; use survival_loss: cox"):
        run(raw, small, task="survival", survival_loss="mse")
    data, _ = run(raw, small, task="survival")
    assert data.classes == []
    assert data.target[:, 1].min() == 0


def test_a_single_class_is_refused(raw, small):
    edit(raw, lambda t: t.assign(outcome="stable"))
    with pytest.raises(InputError, match="needs two classes"):
        run(raw, small)


def test_a_killed_prepare_leaves_nothing_and_can_be_repeated(raw, small, values, tmp_path):
    segment(raw, Path("masks"), small.fusion)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(with_changes(values, SMALL | {"compute.threads": 1})))
    command = [
        sys.executable,
        str(ROOT / "stages" / "fusion_prepare.py"),
        "--raw",
        "raw",
        "--masks",
        "masks",
        "--out",
        "out",
        "--page",
        "p.html",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".out.*.part/volumes.npy")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    alone, _ = prepare(raw, Path("masks"), Path("alone"), small.fusion)
    assert np.array_equal(load(Path("out")).volumes, alone.volumes)
    assert (tmp_path / "out/patients.csv").read_bytes() == Path("alone/patients.csv").read_bytes()
    assert "Missing modalities and clinical features" in Path("p.html").read_text()


def test_analyze_describes_the_readable_patients(raw, small):
    path = first_with(raw, "pet")
    path.write_bytes(gzip.compress(b"nothing"))
    analyze(raw, Path("page.html"), small.fusion)
    page = Path("page.html").read_text()
    assert "1 skipped" in page
    assert f"{PATIENTS} patients, 3 imaging modalities" in page
