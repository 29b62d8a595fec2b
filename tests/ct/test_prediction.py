"""Trained runs applied to a folder of scans, by the driver."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quintet import experiment
from quintet.ct.data.prepare import check
from quintet.errors import InputError, InputProblemsError
from tests.ct.conftest import train
from tests.damage import become_folder, link_to_nowhere


def predict(runs, source, output, *, overlays=None, skip=False):
    return experiment.predict_folder("ct", runs, source, output, overlays=overlays, device="cpu", skip=skip)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_evaluate_can_read_what_predict_wrote(trained, scans, small, tmp_path, suffix):
    run, output = trained[0], tmp_path / f"vectors{suffix}"
    assert predict([run], scans, output) == 40
    if suffix == ".csv":
        table = pd.read_csv(output)
        assert {"id", "probability_nodules", "e0", "e7"} <= set(table)
        assert table["probability_nodules"].between(0, 1).all()
        return
    from_run = experiment.evaluate_folder("ct", [run], scans, tmp_path / "run", small, device="cpu")
    from_file = experiment.evaluate_folder("ct", [output], scans, tmp_path / "file", small, device="cpu")
    assert from_run["queries"] == 40
    assert all(from_file[name] == pytest.approx(from_run[name], abs=1e-6) for name in from_file)
    assert (tmp_path / "file" / "cases.csv").is_file()


def test_embeddings_of_several_runs_are_combined(trained, scans, small, cubes, tmp_path):
    train(small, cubes, Path("other"), seed=1)
    vectors = []
    for runs in ([trained[0]], [Path("other")], [trained[0], Path("other")]):
        predict(runs, scans, tmp_path / "vectors.npz")
        vectors.append(np.load(tmp_path / "vectors.npz")["vector"])
    first, second, both = (v @ v.T for v in vectors)
    assert both == pytest.approx((first + second) / 2, abs=1e-5)


def test_overlays_and_other_file_types_are_refused_before_anything_is_written(trained, scans, tmp_path):
    for output, overlays, message in (("v.npz", tmp_path / "pictures", "no overlays"), ("v.txt", None, "v.txt: choose a .npz")):
        with pytest.raises(InputError, match=message):
            predict([trained[0]], scans, tmp_path / output, overlays=overlays)
    assert not list(tmp_path.iterdir())


def test_without_any_readable_scan_the_problems_are_listed_even_with_skip(trained, tmp_path):
    (tmp_path / "raw" / "one").mkdir(parents=True)
    with pytest.raises(InputError, match="scan one: "):
        predict([trained[0]], tmp_path / "raw", tmp_path / "v.npz", skip=True)
    assert not (tmp_path / "v.npz").exists()


def test_labels_without_the_run_s_findings_are_refused_and_further_ones_ignored(trained, scans, small, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in scans.iterdir():
        if path.name != "labels.csv":
            (raw / path.name).symlink_to(path)
    labels = pd.read_csv(scans / "labels.csv", dtype=str)
    labels.drop(columns="cysts").to_csv(raw / "labels.csv", index=False)
    with pytest.raises(InputError, match=r"no column for the finding\(s\) cysts; it has consolidation, nodules"):
        experiment.evaluate_folder("ct", [trained[0]], raw, tmp_path / "out", small, device="cpu")
    labels.assign(oedema="0").to_csv(raw / "labels.csv", index=False)
    assert experiment.evaluate_folder("ct", [trained[0]], raw, tmp_path / "out", small, device="cpu")["queries"] == 40


BROKEN = {  # of NIfTI files
    "a link to nowhere": (link_to_nowhere, "which does not exist"),
    "an empty folder": (become_folder, "has no files"),
    "a pointer": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "corrupt or truncated"),
    "empty": (lambda p: p.write_bytes(b""), "0 bytes"),
}


def test_every_broken_scan_is_listed_with_its_cause(trained, scans, small, tmp_path):
    """In prediction and evaluation; with --skip, the others are predicted."""
    raw = shutil.copytree(scans, tmp_path / "raw")
    files = sorted(raw.glob("*.nii.gz"))
    for path, (damage, _) in zip(files, BROKEN.values(), strict=False):
        damage(path)
    series = next(path for path in sorted(raw.iterdir()) if path.is_dir() and path not in files)
    next(series.iterdir()).write_bytes(b"no DICOM")
    expected = [(path, message) for path, (_, message) in zip(files, BROKEN.values(), strict=False)]
    expected.append((series, "not a DICOM file"))
    for run in (
        lambda: predict([trained[0]], raw, tmp_path / "v.npz"),
        lambda: experiment.evaluate_folder("ct", [trained[0]], raw, tmp_path / "scores", small, device="cpu"),
    ):
        with pytest.raises(InputProblemsError) as caught:
            run()
        assert len(caught.value.problems) == len(expected)
        for path, message in expected:
            assert [p for p in caught.value.problems if str(path) in p and message in p], (path, caught.value.problems)
    assert not (tmp_path / "v.npz").exists()
    assert not (tmp_path / "scores").exists()
    assert predict([trained[0]], raw, tmp_path / "v.npz", skip=True) == 40 - len(expected)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_of_another_file_system(trained, scans, small, tmp_path, form):
    raw = shutil.copytree(scans, tmp_path / "raw")
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    for number, name in enumerate(("Zoë", "Ångström", "José-2")):
        path = next(raw.glob(f"study-000{number}*"))
        path.rename(raw / path.name.replace(f"study-000{number}", unicodedata.normalize(form, name)))
        table = (raw / "labels.csv").read_text(encoding="utf-8")
        (raw / "labels.csv").write_text(table.replace(f"study-000{number}", unicodedata.normalize(other, name)), encoding="utf-8")
    metrics = experiment.evaluate_folder("ct", [trained[0]], raw, tmp_path / "scores", small, device="cpu")
    assert metrics["queries"] == 40
    assert not check(raw, small.ct)


def test_scans_without_any_finding_cannot_be_evaluated(trained, scans, small, tmp_path):
    raw = shutil.copytree(scans, tmp_path / "raw")
    table = pd.read_csv(raw / "labels.csv", dtype=str)
    table.assign(nodules="0", cysts="0", consolidation="0").to_csv(raw / "labels.csv", index=False)
    for source in (trained[0], tmp_path / "v.npz"):
        if source.suffix:
            predict([trained[0]], raw, source)
        with pytest.raises(InputError, match="no scan has any finding, so there is nothing to retrieve"):
            experiment.evaluate_folder("ct", [source], raw, tmp_path / "scores", small, device="cpu")
    assert not (tmp_path / "scores").exists()
