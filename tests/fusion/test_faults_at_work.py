"""Awkward input of trained runs (`predict`, `evaluate`): refused with the cause, or left out and counted; nothing is written."""

import errno

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from quintet import experiment
from quintet.errors import InputError, InputProblemsError
from quintet.fusion.data.prepare import check
from tests.fusion.test_faults import FILES, predict, rename, tables, write


def evaluate(trained, raw, small, out):
    return experiment.evaluate_folder("fusion", [trained[0]], raw, out, small, device="cpu")


@pytest.mark.parametrize("kind", FILES)
def test_prediction_names_the_cause_of_an_unreadable_image(raw, trained, tmp_path, capsys, kind):
    """Of every image at once; with --skip, the patients are left out."""
    damage, message = FILES[kind]
    paths = sorted(raw.glob("*/*.nii.gz"))[2:30:9]
    for path in paths:
        damage(path)
    with pytest.raises(InputProblemsError) as caught:
        predict(trained, raw, tmp_path / "p.csv")
    found = [p for p in caught.value.problems if message.split(",")[0] in p]
    assert all(any(str(path) in problem for problem in found) for path in paths)
    assert not (tmp_path / "p.csv").exists()
    experiment.predict_folder("fusion", [trained[0]], raw, tmp_path / "p.csv", device="cpu", overlays=None, skip=True)
    used = pd.read_csv(tmp_path / "p.csv").set_index("patient")["modalities"]
    assert set(used.index) == {p.name for p in raw.iterdir() if p.is_dir()}
    for path in paths:  # the patient's other images are used
        assert len(used[path.parent.name].split("+")) == len(list(path.parent.iterdir()))
    assert capsys.readouterr().out.count("skipped: ") == len(paths)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied; check the disk"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError("Unable to allocate 40 GiB"), "memory"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
    ],
)
def test_what_the_system_refuses_is_a_problem_of_its_file(raw, trained, tmp_path, monkeypatch, error, message):
    path = sorted(raw.glob("*/*.nii.gz"))[4]
    load = nib.load

    def fail(name, *arguments, **options):
        if str(name) == str(path):
            raise error
        return load(name, *arguments, **options)

    monkeypatch.setattr(nib, "load", fail)
    with pytest.raises(InputProblemsError) as caught:
        predict(trained, raw, tmp_path / "p.csv")
    assert [p for p in caught.value.problems if str(path) in p and message in p and "corrupt" not in p]


def test_other_formats_beside_the_images_are_counted(raw, small, table, trained, tmp_path, capsys):
    names = ("flair.hdr", "flair.img", "t1c.nrrd", "IM0001", "pet.tif", "notes.docx")
    for patient in table["patient"][:4]:
        for name in names:
            (raw / patient / name).write_bytes(b"x" * 400)
    for run in (lambda: check(raw, small.fusion), lambda: predict(trained, raw, tmp_path / "p.csv")):
        capsys.readouterr()
        assert run() in ([], len(table))
        printed = capsys.readouterr().out
        assert f"{len(table)} patients: mri_t1ce " in printed
        assert f"{4 * len(names)} passed over: " in printed
        assert "flair.hdr (4)" in printed


@pytest.mark.parametrize("kind", ["lost zeros", "patient column", "encoder column"])
def test_evaluation_joins_the_table_as_training_does(raw, small, table, trained, tmp_path, kind):
    if kind == "lost zeros":
        for number, name in enumerate(table["patient"]):
            rename(raw, name, f"{number + 1:03d}")
        write(raw, table.assign(patient=[str(n + 1) for n in range(len(table))]))
    elif kind == "patient column":  # the second column would be taken for the patient
        write(raw, table[["hospital", *table.columns.drop("hospital")]].rename(columns={"patient": "Patient ID"}))
    else:
        write(raw, table.rename(columns={"kidney_function": "kidney function"}))
    named = {"lost zeros": "is '001' the row '1'", "patient column": "hospital", "encoder column": "is it 'kidney function'"}[
        kind
    ]
    with pytest.raises(InputError) as caught:
        evaluate(trained, raw, small, tmp_path / "scores")
    assert named in str(caught.value)
    assert "clinical_data.csv" in str(caught.value)
    with pytest.raises(InputError, match=r"clinical_data\.csv"):
        predict(trained, raw, tmp_path / "p.csv")
    assert not (tmp_path / "scores").exists()


def test_evaluation_lists_every_broken_image_and_missing_outcome(raw, small, table, trained, tmp_path):
    paths = sorted(raw.glob("*/*.nii.gz"))[3:40:12]
    for path, kind in zip(paths, FILES, strict=False):
        FILES[kind][0](path)
    with pytest.raises(InputProblemsError) as caught:
        evaluate(trained, raw, small, tmp_path / "scores")
    assert all(any(str(path) in problem for problem in caught.value.problems) for path in paths)
    without = table["patient"][table.index[-1]]
    write(raw, table.iloc[:-1])
    with pytest.raises(InputProblemsError) as caught:
        evaluate(trained, raw, small, tmp_path / "scores")
    assert all(any(named in problem for problem in caught.value.problems) for named in (*map(str, paths), without))
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("turn", ["identity", "half", "mirrored origin"])
def test_a_header_that_places_an_image_elsewhere(raw, small, trained, tmp_path, turn):
    patient = next(p for p in sorted(raw.iterdir()) if p.is_dir() and len(list(p.glob("*.nii.gz"))) == 3)
    path = next(p for p in patient.iterdir() if any(word in p.name.lower() for word in ("t2f", "fla")))
    image = nib.load(path)
    affine = np.eye(4) if turn == "identity" else image.affine.copy()
    if turn == "half":
        affine[2, 3] += 0.8 * image.shape[2] * np.abs(affine[:3, 2]).max()
    elif turn == "mirrored origin":
        affine[:3, 3] *= -1
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    assert [p for p in check(raw, small.fusion) if patient.name in p and ("%" in p or "identity" in p)]
    with pytest.raises(InputProblemsError, match=patient.name):
        predict(trained, raw, tmp_path / "p.csv")


def test_a_constant_column_has_no_weight_for_a_new_value(raw, small, table, tmp_path):
    """Constants such as 1/3 have a standard deviation of about 1e-17 in floating point."""
    for value in ("12.5", "0.1", str(1 / 3), "98.6"):
        write(raw, table.assign(dose=value))
        found, problems = tables(raw, small)
        assert not problems
        features, _, _ = found.encoder(table.assign(dose="77").set_index("patient"))
        assert np.abs(features).max() < 10
