"""From raw scans to cubes, labels and split; every kind of bad input; interrupted and run again."""

import os
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from quintet.ct.data.prepare import check, make_split, prepare
from quintet.ct.data.prepared import CubeFormat, load
from quintet.ct.data.raw import read_cube, read_labels
from quintet.errors import InputError, InputProblemsError
from quintet.imaging.cubes import Volume, to_cube
from quintet.imaging.volumes import Grid
from tests.conftest import ROOT, with_changes
from tests.ct.conftest import SMALL


@pytest.fixture
def raw(scans, tmp_path):
    return shutil.copytree(scans, tmp_path / "raw")


def labels_of(raw):
    return pd.read_csv(raw / "labels.csv", dtype=str)


def test_every_scan_is_prepared(scans, cubes):
    data = load(cubes)
    table = labels_of(scans)
    assert data.findings == ["consolidation", "nodules", "cysts"]
    assert list(data.table["study"]) == sorted(table["study"])
    assert data.volumes.shape == (40, 32, 32, 32)
    assert data.volumes.dtype == np.uint8
    own = table.set_index("study").loc[data.table["study"]]
    assert (own[data.findings].astype(float).to_numpy() == data.labels).all()
    assert set(data.table["format"]) == {"DICOM", "NIfTI"}
    for row in (0, 3, 7):
        name = data.table["study"][row]
        path = scans / name if (scans / name).is_dir() else scans / f"{name}.nii.gz"
        assert (read_cube(path, data.cubes)[0] == data.volumes[row]).all()


def test_truth_travels_and_findings_can_be_chosen(raw, small, tmp_path):
    chosen = small.ct.model_copy(update={"data": small.ct.data.model_copy(update={"findings": ["cysts", "nodules"]})})
    data, _ = prepare(raw, tmp_path / "out", chosen)
    assert data.findings == ["cysts", "nodules"]
    truth = pd.read_csv(raw / "truth.csv").set_index("study").loc[data.table["study"], data.findings].to_numpy()
    labels = pd.read_csv(raw / "labels.csv").set_index("study").loc[data.table["study"], data.findings].to_numpy()
    assert (data.truth == truth).all()
    assert (data.labels == labels).all()
    (raw / "truth.csv").write_text("study,cysts,nodules\nstudy-0000,1,0\n")
    with pytest.raises(InputError, match=r"truth\.csv: no row for study-0001"):
        prepare(raw, tmp_path / "other", chosen)
    (raw / "truth.csv").unlink()
    assert prepare(raw, tmp_path / "other", chosen)[0].truth is None
    unknown = small.ct.model_copy(update={"data": small.ct.data.model_copy(update={"findings": ["oedema"]})})
    with pytest.raises(InputError, match=r"labels\.csv: no column for the finding\(s\) oedema; it has consolidation"):
        prepare(raw, tmp_path / "third", unknown)


def test_patients_stay_together_and_every_part_has_patients(cubes):
    data = load(cubes)
    assert (data.table.groupby("patient")["split"].nunique() == 1).all()
    assert (data.table["patient"].value_counts() > 1).any()
    assert set(data.table["split"]) == {"train", "valid", "test"}
    assert set(data.table["split"].iloc[data.train_eval_rows]) == {"train"}
    parts = pd.read_csv(cubes / "split.csv")
    assert list(parts["study"]) == sorted(parts["study"])


def test_a_split_file_is_used_and_a_patient_in_two_parts_is_refused(scans, small, tmp_path):
    table = labels_of(scans)
    table["split"] = np.resize(["train", "train", "valid", "test"], len(table))
    people = table.drop_duplicates("patient").set_index("patient")["split"]
    table["split"] = table["patient"].map(people)
    table[["study", "split"]].to_csv(tmp_path / "mine.csv", index=False)
    params = small.ct.data.model_copy(update={"split": str(tmp_path / "mine.csv")})
    labels = read_labels(scans).table.reset_index()
    assert list(make_split(labels, params)["split"]) == list(table.set_index("study").loc[labels["study"], "split"])
    double = table[table["patient"].duplicated(keep=False)].index[0]
    table.loc[double, "split"] = "test" if table["split"][double] != "test" else "train"
    table[["study", "split"]].to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(InputProblemsError, match=str(table["patient"][double])):
        make_split(labels, params)


def test_without_a_patient_column_every_scan_is_a_patient(raw, small):
    labels_of(raw).drop(columns="patient").to_csv(raw / "labels.csv", index=False)
    found = read_labels(raw).table
    assert (found["patient"] == found.index).all()


def test_rare_label_sets_do_not_stop_the_split(small):
    sets = [(1, 1, 1)] + [(0, 0, 0)] * 10 + [(1, 0, 0)] * 9
    table = pd.DataFrame(sets, columns=list("abc"))
    table.insert(0, "study", [f"s{i}" for i in range(20)])
    table.insert(1, "patient", table["study"])
    assert set(make_split(table, small.ct.data)["split"]) == {"train", "valid", "test"}
    with pytest.raises(InputError, match="needs 6"):
        make_split(table.head(5), small.ct.data)


def test_many_rare_label_sets_do_not_enlarge_the_held_out_parts(small):
    """Each part gets a patient of each stratum, so 100 sets of 3 patients would be a third each."""
    sets = [[int(bit) for bit in f"{n // 3:07b}"] for n in range(300)]
    table = pd.DataFrame(sets, columns=list("abcdefg"))
    table.insert(0, "study", [f"s{i}" for i in range(300)])
    table.insert(1, "patient", table["study"])
    shares = pd.Series(make_split(table, small.ct.data)["split"]).value_counts(normalize=True)
    assert shares["test"] == pytest.approx(small.ct.data.test, abs=0.02)
    assert shares["valid"] == pytest.approx(small.ct.data.validation, abs=0.02)


def test_a_box_of_soft_tissue_needs_no_air():
    """A box around a nodule may hold none, though the scan does."""
    zyx = np.indices((40, 40, 40)) - 20
    values = np.where((np.abs(zyx) < 12).all(0), 40 + zyx[0], -1000).astype(np.float32)
    scan = Volume(values, Grid(values.shape, np.diag([4.0, 4, 4, 1])))
    assert to_cube(scan, 16, (-1000, 400), box_mm=40).min() > 0
    with pytest.raises(InputError, match="no Hounsfield units"):
        to_cube(Volume(np.abs(values) + 5, scan.grid), 16, (-1000, 400))


def _label(raw, change):
    table = labels_of(raw)
    change(table)
    table.to_csv(raw / "labels.csv", index=False)


def _nan(raw):
    path = next(raw.glob("*.nii.gz"))
    image = nib.load(path)
    array = np.asarray(image.dataobj, np.float32)
    array[4, 4, 4] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), path)


def _constant(raw):
    path = next(raw.glob("*.nii.gz"))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.full(image.shape, 40, np.int16), image.affine), path)


def _values(change):
    def damage(raw):
        path = next(raw.glob("*.nii.gz"))
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj, np.float32)), image.affine), path)

    return damage


LABELS = {
    "a value": (lambda t: t.__setitem__("nodules", ["2", *t["nodules"][1:]]), "nodules of study-0000 is '2', expected 0 or 1"),
    "blank": (lambda t: t.__setitem__("cysts", ["", *t["cysts"][1:]]), "row 2: cysts of study-0000 is ''"),
    "twice": (lambda t: t.__setitem__("study", ["study-0001", *t["study"][1:]]), "row 3: study study-0001 is also in row 2"),
    "no study column": (lambda t: t.rename(columns={"study": "scan"}, inplace=True), "there is no column `study`"),
    "no finding": (
        lambda t: t.drop(columns=["consolidation", "nodules", "cysts"], inplace=True),
        "no column of a finding",
    ),
    "no row": (lambda t: t.drop(index=t.index, inplace=True), "there is no row"),
    "capitals": (
        lambda t: t.__setitem__("patient", [t["patient"][0].upper(), *t["patient"][1:]]),
        "look like one person",
    ),
    "no patient": (lambda t: t.__setitem__("patient", ["", *t["patient"][1:]]), "row 2: patient of study-0000 is empty"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_bad_labels(raw, kind):
    change, message = LABELS[kind]
    _label(raw, change)
    with pytest.raises(InputError) as caught:
        read_labels(raw)
    assert message in str(caught.value)
    assert "labels.csv" in str(caught.value)


SCANS = {
    "no folder": (lambda r: shutil.rmtree(r / "study-0000"), "labels.csv: scan study-0000 has neither a folder"),
    "no label": (lambda r: _label(r, lambda t: t.drop(index=0, inplace=True)), "scan study-0000 is not in labels.csv"),
    "missing slice": (lambda r: sorted((r / "study-0000").iterdir())[3].unlink(), "scan study-0000: "),
    "truncated nifti": (lambda r: next(r.glob("*.nii.gz")).write_bytes(b"\x1f\x8b123"), "corrupt or truncated"),
    "NaN": (_nan, "NaN"),
    "constant": (_constant, "every voxel is 40 HU"),
    "fractions": (_values(lambda a: (a.clip(-1000, 400) + 1000) / 1400), "are no Hounsfield units"),
    "a picture's levels": (_values(lambda a: ((a.clip(-1000, 400) + 1000) / 1400 * 255).round()), "are no Hounsfield units"),
    "without the intercept": (_values(lambda a: a + 1024), "are no Hounsfield units"),
    "padding": (_values(lambda a: np.where(a < -900, 63_536, a)), "are no Hounsfield units"),
    "negated": (_values(lambda a: -a), "were its values negated"),
    "the intercept twice": (_values(lambda a: a - 1024), "was the intercept subtracted twice"),
    "an empty slice": (_values(lambda a: np.where(np.arange(a.shape[2]) == a.shape[2] // 2, 0, a)), "is a slice empty"),
    "an intercept": (_values(lambda a: a - 600 * (np.arange(a.shape[2]) == a.shape[2] // 2)), "another intercept"),
    "outside the window": (
        _values(lambda a: np.where(a < -900, -1000, 2000)[:, :, :] - 4000.0 * (a > -900)),
        "outside the window",
    ),
}


@pytest.mark.parametrize("kind", SCANS)
def test_a_bad_scan_is_listed_and_does_not_stop_the_others(raw, small, kind, tmp_path):
    damage, message = SCANS[kind]
    damage(raw)
    assert any(message in problem for problem in check(raw, small.ct))
    with pytest.raises(InputProblemsError, match="1 problem") as caught:
        prepare(raw, tmp_path / "out", small.ct)
    assert message in str(caught.value)
    assert "ct.data.on_error=skip" in str(caught.value)
    assert not (tmp_path / "out").exists()
    skipping = small.ct.data.model_copy(update={"on_error": "skip"})
    data, skipped = prepare(raw, tmp_path / "out", small.ct.model_copy(update={"data": skipping}))
    assert len(data.table) == len(data.volumes) == 39
    assert len(skipped) == 1
    assert data.volumes.reshape(39, -1).max(1).min() > 0  # no empty row
    assert not list((tmp_path / ".checkpoints").glob("*"))


def test_a_missing_or_empty_folder_is_refused(small, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        prepare(tmp_path / "none", tmp_path / "out", small.ct)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="contains no scan"):
        prepare(tmp_path / "empty", tmp_path / "out", small.ct)


def test_finished_scans_are_not_read_again_but_changed_ones_are(raw, small, tmp_path, monkeypatch):
    bad = sorted((raw / "study-0001").iterdir())[0]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    with pytest.raises(InputProblemsError):
        prepare(raw, tmp_path / "out", small.ct)
    bad.write_bytes(whole)
    again = raw / "study-0002"
    for path in again.iterdir():
        os.utime(path, (1, 1))
    seen = []
    from quintet.ct.data import prepare as module

    real = module.read_cube
    monkeypatch.setattr(module, "read_cube", lambda path, *a, **k: (seen.append(path.name), real(path, *a, **k))[1])
    prepare(raw, tmp_path / "out", small.ct)
    assert sorted(seen) == ["study-0001", "study-0002"]


def test_killed_in_the_middle_and_run_again(raw, values, tmp_path, cubes):
    """kill -9 after some scans: the second run continues, and its result is that of an uninterrupted run."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(with_changes(values, SMALL | {"ct.raw": str(raw)})))
    command = [sys.executable, str(ROOT / "stages/ct_prepare.py"), "--raw", str(raw), "--out", "out", "--page", "page.html"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        done = list(tmp_path.glob(".checkpoints/*/done.csv"))
        if done and len(done[0].read_text().splitlines()) >= 5:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    with done[0].open("a") as file:
        file.write("study-0039,half")  # a line that the kill cut short
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "of 40 scans were finished before" in finished.stdout
    for name in ("volumes.npy", "index.csv", "split.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (cubes / name).read_bytes(), name


def test_real_scans(real_scans, small, tmp_path):
    """The DICOM series (8 mm slices) and the NIfTI file, with labels that this test makes up."""
    raw = tmp_path / "real"
    raw.mkdir()
    series = next((real_scans / "dicom").iterdir())
    (raw / "series").symlink_to(series)
    (raw / "example.nii.gz").symlink_to(next((real_scans / "nifti").iterdir()))
    for name in ("series", "example"):
        path = raw / name if name == "series" else raw / "example.nii.gz"
        cube, facts = read_cube(path, CubeFormat(64, (-1000.0, 400.0)))
        assert 0.2 < (cube > 0).mean() < 0.95
        assert facts["format"] == ("DICOM" if name == "series" else "NIfTI")
    cube = read_cube(raw / "series", CubeFormat(64, (-1000.0, 400.0)))[0].astype(float)
    left, right = cube[32, 20:40, 8:24].mean(), cube[32, 20:40, 40:56].mean()
    assert min(left, right) < 100  # a lung on either side


def test_labels_with_more_fields_than_columns(raw):
    (raw / "labels.csv").write_text("study,nodules\nstudy-0000,1,2,3\n")
    with pytest.raises(InputError, match="more fields than the header"):
        read_labels(raw)


def test_one_scan_of_two_patients_is_refused(raw, small):
    """A DICOM folder and a NIfTI file, copied under the name of another patient's scan."""
    table = labels_of(raw)
    patient = dict(zip(table["study"], table["patient"], strict=True))
    folders = sorted(p for p in raw.iterdir() if p.is_dir())
    other = next(p for p in folders[1:] if patient[p.name] != patient[folders[0].name])
    shutil.rmtree(other)
    shutil.copytree(folders[0], other)
    (problem,) = [p for p in check(raw, small.ct) if "the same file as" in p]
    assert other.name in problem
    assert folders[0].name in problem


def test_a_nifti_file_in_a_folder_of_its_own_is_a_scan(raw, small, capsys):
    found = sorted(raw.glob("*.nii.gz"))
    for path in found:
        (folder := raw / path.name.removesuffix(".nii.gz")).mkdir()
        path.rename(folder / "image.nii.gz")
    (raw / "note.mha").write_bytes(b"x")
    assert not check(raw, small.ct)
    assert (
        "1 .mha (such as note.mha); expected a folder with a DICOM series, or a NIfTI file, per scan" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "spelled", [lambda name: name.upper(), lambda name: name.replace("-", "_"), lambda name: name.replace("-00", "-")]
)
def test_studies_that_are_spelled_otherwise(raw, small, spelled):
    """One sentence per scan, which names the row that is meant."""
    table = labels_of(raw)
    table.loc[[3, 7], "study"] = table.loc[[3, 7], "study"].map(spelled)
    table.to_csv(raw / "labels.csv", index=False)
    problems = check(raw, small.ct)
    assert len(problems) == 2
    for name, problem in zip(table.loc[[3, 7], "study"], problems, strict=True):
        assert f"it has {name!r}: write both alike" in problem


@pytest.mark.parametrize("header", ["Study", "STUDY", "study_"])
def test_a_header_that_is_spelled_otherwise(raw, header):
    labels_of(raw).rename(columns={"study": header}).to_csv(raw / "labels.csv", index=False)
    with pytest.raises(InputError, match=f"no column `study` .*; is it '{header}'"):
        read_labels(raw)


@pytest.mark.parametrize("finest_mm", [0.12, 0.2])
def test_an_affine_in_cm(raw, finest_mm):
    path = sorted(raw.glob("*.nii.gz"))[0]
    image = nib.load(path)
    affine = np.diag([finest_mm, finest_mm, finest_mm * 1.2, 1])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    with pytest.raises(InputError, match=r"finer than scanners resolve; is its affine in cm\? Write it in mm"):
        read_cube(path, CubeFormat(32, (-1000.0, 400.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(cysts="0"), "cysts is 0 in every scan; leave it out"),
        (lambda t: t.assign(nodules="1"), "nodules is 1 in every scan; leave it out"),
        (lambda t: t.assign(cysts=t["nodules"]), "nodules and cysts are equal in every scan"),
        (lambda t: t.assign(cysts=1 - t["nodules"].astype(int)), "nodules and cysts are opposite in every scan"),
    ],
)
def test_findings_that_teach_nothing(raw, small, tmp_path, change, message):
    change(labels_of(raw)).to_csv(raw / "labels.csv", index=False)
    assert any(message in problem for problem in check(raw, small.ct))
    (raw / "truth.csv").unlink()
    with pytest.raises(InputProblemsError, match=message):
        prepare(raw, tmp_path / "out", small.ct)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [(["unknown"] * 3, "'unknown' in 3 rows"), (["7", "007", "x"], "7 and 007 look like one person"), (["N/A"] * 2, "'N/A'")],
)
def test_patients_whose_names_are_none(raw, names, message):
    table = labels_of(raw)
    table.loc[: len(names) - 1, "patient"] = names
    table.to_csv(raw / "labels.csv", index=False)
    with pytest.raises(InputError, match=message):
        read_labels(raw)


def test_a_scan_that_was_masked_with_zeros(raw):
    path = sorted(raw.glob("*.nii.gz"))[0]
    image = nib.load(path)
    hu = np.asarray(image.dataobj)
    inside = np.zeros(hu.shape, bool)
    inside[10:-10, 10:-10] = True
    nib.save(nib.Nifti1Image(np.where(inside, hu, 0).astype(np.float32), image.affine), path)
    with pytest.raises(InputError, match="of its voxels are 0 HU, which is water; was it masked"):
        read_cube(path, CubeFormat(32, (-1000.0, 400.0)))


@pytest.mark.parametrize("name", ["PatientID", "patient_id", "Patient", "subject"])
def test_a_column_of_people_is_not_called_a_finding(raw, name):
    labels_of(raw).rename(columns={"patient": name}).to_csv(raw / "labels.csv", index=False)
    with pytest.raises(InputError, match=f"does the column '{name}' name people"):
        read_labels(raw)


@pytest.mark.parametrize("ruined", ["1.23457E+11", "Mar-14", "3-Mar"])
def test_people_whom_a_spreadsheet_made_one(raw, ruined):
    table = labels_of(raw)
    table.loc[:4, "patient"] = ruined
    table.to_csv(raw / "labels.csv", index=False)
    with pytest.raises(InputError, match="what a spreadsheet makes of numbers and dates"):
        read_labels(raw)


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1, 1, 1])])
def test_scans_without_their_affine(raw, small, tmp_path, affine):
    scans = sorted(raw.glob("*.nii.gz"))

    def lose(path):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj, np.float32), affine), path)

    lose(scans[0])
    (problem,) = check(raw, small.ct)
    assert problem.startswith(f"{scans[0]}: its affine")
    skipping = small.ct.data.model_copy(update={"on_error": "skip"})
    prepared, skipped = prepare(raw, tmp_path / "out", small.ct.model_copy(update={"data": skipping}))
    assert skipped == [problem]
    assert scans[0].name[:-7] not in set(prepared.table["study"])
    for path in scans[1:]:
        lose(path)
    for folder in (f for f in raw.iterdir() if f.is_dir()):
        shutil.rmtree(folder)
    assert not [p for p in check(raw, small.ct) if "its affine" in p]  # voxels of 1 mm, perhaps


def test_a_scan_saved_anew_under_another_person(raw, small, tmp_path):
    """Another file with the same voxels."""
    table = labels_of(raw)
    patient = dict(zip(table["study"], table["patient"], strict=True))
    first, *others = sorted(raw.glob("*.nii.gz"))
    other = next(p for p in others if patient[p.name[:-7]] != patient[first.name[:-7]])
    image = nib.load(first)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine), other)
    (problem,) = [p for p in check(raw, small.ct) if "saved anew" in p]
    assert f"{other.name[:-7]}: an image is one of {first.name[:-7]}" in problem
    skipping = small.ct.data.model_copy(update={"on_error": "skip"})
    with pytest.raises(InputProblemsError, match="saved anew"):  # a leak cannot be skipped
        prepare(raw, tmp_path / "out", small.ct.model_copy(update={"data": skipping}))
