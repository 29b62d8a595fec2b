"""An index of embeddings, and searching it."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from quintet.ct.evaluation.inference import load_models
from quintet.ct.search import Index, build, search
from quintet.errors import InputError, InputProblemsError
from tests.ct.conftest import train


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
def test_index_and_search(trained, scans, tmp_path, kind):
    if kind != "exact":
        pytest.importorskip("faiss")
    about = build([trained[0]], scans, tmp_path / "index", kind=kind, device="cpu", skip=False)
    assert about["scans"] == 40
    index = Index.load(tmp_path / "index")
    labels = pd.read_csv(scans / "labels.csv").set_index("study")
    name = labels.index[5]
    found = search(tmp_path / "index", name, 10, picture=tmp_path / "m.png", device="cpu")
    assert (tmp_path / "m.png").stat().st_size > 10_000
    assert found["similarity"].is_monotonic_decreasing
    assert name not in set(found["study"])
    assert (labels.loc[found["study"], "patient"] != labels.loc[name, "patient"]).all()
    expected = ", ".join(f for f in ("consolidation", "nodules", "cysts") if labels.loc[found["study"][0], f]) or "none"
    assert found["findings"][0] == expected
    if kind == "exact":
        row = int(np.flatnonzero(index.scans["study"] == name)[0])
        order = [index.scans["study"][i] for i in np.argsort(-(index.vectors @ index.vectors[row]), kind="stable")]
        assert list(found["study"]) == [s for s in order if labels.loc[s, "patient"] != labels.loc[name, "patient"]][:10]
    else:
        assert 0.3 < about["recall_at_10_against_exact"] <= 1
    # a scan that is not in the index, by its path
    copy = shutil.copytree(scans / name, tmp_path / "new scan")
    again = search(tmp_path / "index", str(copy), 3, picture=None, device="cpu")
    assert again["similarity"][0] == pytest.approx(1, abs=1e-3)
    # the path of one that is: itself and its patient are left out as by its name
    same = search(tmp_path / "index", str(scans / name), 10, picture=None, device="cpu")
    assert same["study"].tolist() == found["study"].tolist()
    assert len(search(tmp_path / "index", str(copy), 30, picture=None, device="cpu")) == 30  # ivf: from as many lists as needed
    with pytest.raises(InputError, match="neither a scan in the index"):
        search(tmp_path / "index", "nobody", 3, picture=None, device="cpu")


def test_runs_of_other_findings_are_not_averaged(trained, tmp_path):
    other = shutil.copytree(trained[0], tmp_path / "other")
    saved = torch.load(other / "model" / "model.pt", weights_only=True)
    saved["build"]["names"].reverse()
    torch.save(saved, other / "model" / "model.pt")
    with pytest.raises(InputError, match="trained on different findings"):
        load_models([trained[0], other], "cpu")


def test_a_query_by_path_has_the_models_in_the_order_of_the_index(trained, scans, small, cubes, tmp_path):
    """Of eleven models, which text would sort as 0, 1, 10, 2."""
    train(small, cubes, tmp_path / "other", seed=1)
    build([*[trained[0]] * 2, *[tmp_path / "other"] * 9], scans, tmp_path / "index", kind="exact", device="cpu", skip=False)
    copy = shutil.copytree(scans / "study-0005", tmp_path / "new scan")
    found = search(tmp_path / "index", str(copy), 3, picture=None, device="cpu")
    assert found["study"][0] == "study-0005"
    assert found["similarity"][0] == pytest.approx(1, abs=1e-3)


def test_an_index_without_labels_and_with_unreadable_scans(trained, scans, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("study-0000", "study-0001", "study-0002"):
        shutil.copytree(scans / name, raw / name)
    next((raw / "study-0001").iterdir()).write_bytes(b"")
    with pytest.raises(InputProblemsError, match="study-0001"):
        build([trained[0]], raw, tmp_path / "index", kind="exact", device="cpu", skip=False)
    assert not (tmp_path / "index").exists()
    build([trained[0]], raw, tmp_path / "index", kind="exact", device="cpu", skip=True)
    found = search(tmp_path / "index", "study-0000", 5, picture=tmp_path / "m.png", device="cpu")
    assert list(found["study"]) == ["study-0002"]
    assert "findings" not in found
    (tmp_path / "index" / "vectors.npy").unlink()
    with pytest.raises(InputError, match="damaged"):
        Index.load(tmp_path / "index")


def test_real_scans(trained, real_scans, tmp_path):
    raw = tmp_path / "real"
    raw.mkdir()
    shutil.copytree(next((real_scans / "dicom").iterdir()), raw / "series")
    shutil.copy(next((real_scans / "nifti").iterdir()), raw / "example.nii.gz")
    build([trained[0]], raw, tmp_path / "index", kind="exact", device="cpu", skip=False)
    found = search(tmp_path / "index", "series", 5, picture=tmp_path / "m.png", device="cpu")
    assert list(found["study"]) == ["example"]
