"""Personal data stays out of every output."""

import shutil

import pandas as pd
import pydicom
import pytest

from quintet import experiment
from quintet.ct.analysis import analyze
from quintet.ct.data.prepare import prepare
from quintet.ct.search import build, search
from quintet.errors import InputProblemsError
from tests.ct.conftest import train


def test_person_tags_never_appear_in_any_output(scans, small, tmp_path):
    """Mark every tag about a person in every slice, then search the output of every stage and command for the marks."""
    raw = shutil.copytree(scans, tmp_path / "raw", ignore=shutil.ignore_patterns("study-00[23]*"))
    labels = pd.read_csv(raw / "labels.csv", dtype=str)
    labels[labels["study"] < "study-002"].to_csv(raw / "labels.csv", index=False)
    marks = {
        "PatientName": "MARK^NAME",
        "PatientID": "MARKID",
        "PatientBirthDate": "19010203",
        "InstitutionName": "MARKHOUSE",
        "ReferringPhysicianName": "MARK^DOCTOR",
        "AccessionNumber": "MARKACC",
        "PatientComments": "MARKCOMMENT",
        "StudyDescription": "MARKSTUDY",
        "PatientAddress": "MARKSTREET",
    }
    for path in raw.glob("*/*.dcm"):
        dataset = pydicom.dcmread(path)
        for tag, value in marks.items():
            setattr(dataset, tag, value)
        dataset.save_as(path)
    out = tmp_path / "out"
    data, _ = prepare(raw, out / "prepared", small.ct)
    analyze(raw, out / "page.html", small.ct)
    train(small, out / "prepared", out / "run")
    experiment.evaluate_selected("ct", small, out / "prepared", out / "run", out / "scores.json")
    build([out / "run"], raw, out / "index", kind="exact", device="cpu", skip=False)
    search(out / "index", "study-0000", 5, picture=out / "m.png", device="cpu")
    experiment.predict_folder("ct", [out / "run"], raw, out / "e.csv", overlays=None, device="cpu", skip=False)
    next((raw / "study-0001").iterdir()).write_bytes(b"")
    with pytest.raises(InputProblemsError) as caught:
        prepare(raw, out / "again", small.ct)
    texts = [str(caught.value).encode()] + [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and raw not in p.parents]
    assert len(texts) > 20
    for mark in (b"MARK", b"19010203"):
        assert not any(mark in text for text in texts), mark
    assert len(data.table) == 20
