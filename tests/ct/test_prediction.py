"""Trained runs applied to a folder of scans, by the driver."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quintet import experiment
from quintet.errors import InputError
from tests.ct.conftest import train


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
