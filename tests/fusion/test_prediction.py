"""Trained runs applied to a user's folder."""

import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from quintet.cli import app
from quintet.errors import InputError, InputProblemsError
from quintet.experiment import evaluate_folder, evaluate_selected, predict_folder, train_selected
from quintet.fusion.data.prepare import prepare
from quintet.fusion.data.prepared import load
from quintet.fusion.data.segmentation import segment
from quintet.fusion.evaluation.patterns import RECORDED
from tests.fusion.conftest import ELSEWHERE, HERE


def predict(runs, source, output, *, overlays=None, skip=False, **options):
    return predict_folder("fusion", runs, source, output, overlays=overlays, device="cpu", skip=skip, **options)


@pytest.fixture
def raw(heads, tmp_path):
    """Four patients without labels; the first one without PET."""
    names = sorted(p.name for p in heads.iterdir() if p.is_dir())[:4]
    for name in names:
        shutil.copytree(heads / name, tmp_path / "new" / name)
    for path in (tmp_path / "new" / names[0]).glob("*pet*"):
        path.unlink()
    return tmp_path / "new", names


def test_predict_without_labels_with_missing_modalities(trained, raw, tmp_path, small):
    source, names = raw
    assert predict([trained[0]], source, tmp_path / "p.csv", overlays=tmp_path / "cubes") == 4
    table = pd.read_csv(tmp_path / "p.csv").set_index("patient")
    assert "pet" not in table.loc[names[0], "modalities"]
    assert not table["modalities"].str.contains("clinical").any()
    assert np.allclose(table.filter(like="probability_").sum(axis=1), 1)
    assert (table["spread"] > 0).all()
    assert len(list((tmp_path / "cubes").iterdir())) == 4


def test_predict_with_test_time_training(trained, raw, tmp_path, small, prepared):
    source, _ = raw
    predict([trained[0], trained[0]], source, tmp_path / "p.csv", ttt=True)
    assert pd.read_csv(tmp_path / "p.csv")["adapted"].any()
    late = small.model_copy(update={"fusion": small.fusion.model_copy(update={"method": "late"})})
    train_selected("fusion", late, prepared, tmp_path / "late")
    shutil.copytree(trained[0] / "evaluation", tmp_path / "late" / "evaluation")
    with pytest.raises(InputError, match="late has no losses for test-time training; give runs of attention or diffusion"):
        predict([tmp_path / "late"], source, tmp_path / "q.csv", ttt=True)


def test_runs_of_another_split_are_not_averaged(trained, heads, raw, tmp_path, small):
    """Their clinical features are encoded by other training patients."""
    data = small.fusion.data.model_copy(update={"split_seed": 7})
    other = small.model_copy(update={"fusion": small.fusion.model_copy(update={"data": data})})
    segment(heads, tmp_path / "masks", other.fusion)
    prepare(heads, tmp_path / "masks", tmp_path / "data", other.fusion)
    train_selected("fusion", other, tmp_path / "data", tmp_path / "other")
    evaluate_selected("fusion", other, tmp_path / "data", tmp_path / "other", tmp_path / "scores.json")
    with pytest.raises(InputError, match="or split differently"):
        predict([trained[0], tmp_path / "other"], raw[0], tmp_path / "p.csv")


def test_a_patient_without_any_modality_is_named_or_skipped(trained, raw, tmp_path, small):
    source, names = raw
    (source / "nothing").mkdir()
    shutil.copy(next((source / names[1]).iterdir()), source / "nothing" / "unheard_of.nii.gz")
    with pytest.raises(InputProblemsError, match="patient nothing: no modality"):
        predict([trained[0]], source, tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()
    assert predict([trained[0]], source, tmp_path / "p.csv", skip=True) == 4


def test_a_run_that_was_not_evaluated_cannot_predict(trained, raw, tmp_path, small):
    shutil.copytree(trained[0] / "model", tmp_path / "run" / "model")
    with pytest.raises(InputError, match="trained but not evaluated, so samples and ttt are not set"):
        predict([tmp_path / "run"], raw[0], tmp_path / "p.csv")


def test_evaluate_a_folder_equals_the_stage(trained, heads, prepared, tmp_path, small):
    data = load(prepared)
    raw = tmp_path / "raw"
    tested = set(data.table["patient"][data.rows("test")])
    for name in tested:
        shutil.copytree(heads / name, raw / name)
    shutil.copy(heads / "clinical_data.csv", raw)
    metrics = evaluate_folder("fusion", [trained[0]], raw, tmp_path / "out", small, device="cpu")
    assert metrics[f"auc/{RECORDED}"] == pytest.approx(trained[1][f"auc/{RECORDED}"], abs=1e-6)
    assert metrics["patients"] == len(tested)
    table = pd.read_csv(raw / "clinical_data.csv", dtype=str, keep_default_na=False)
    table.loc[table["patient"] == min(tested), "outcome"] = ""
    table.to_csv(raw / "clinical_data.csv", index=False)
    waiting = evaluate_folder("fusion", [trained[0]], raw, tmp_path / "waiting", small, device="cpu")
    assert waiting["patients"] == len(tested) - 1
    (raw / "unlabelled").mkdir()
    shutil.copy(next((raw / min(tested)).iterdir()), raw / "unlabelled" / "pet.nii.gz")
    with pytest.raises(InputProblemsError, match=r"patient unlabelled: no outcome in clinical_data\.csv"):
        evaluate_folder("fusion", [trained[0]], raw, tmp_path / "out", small, device="cpu")


def test_command_line(checkout, heads, trained):
    run = CliRunner().invoke
    assert "no problem found" in run(app, ["check", "fusion", "--data", str(heads)]).output
    done = run(app, ["predict", "fusion", "--model", str(trained[0]), "--input", str(heads), "--output", "p.csv", "--ttt"])
    assert f"{HERE + ELSEWHERE} cases predicted" in done.output, done.exception
    assert "no test-time training" in str(
        run(app, ["predict", "ct", "--model", "x", "--input", "x", "--output", "y.npz", "--ttt"]).exception
    )


def test_real_patients_are_prepared_and_predicted(trained, real_fusion, tmp_path, small):
    """Three naming schemes, other grids, missing modalities, no clinical table."""
    assert predict([trained[0]], real_fusion, tmp_path / "p.csv", overlays=tmp_path / "cubes") == 4
    table = pd.read_csv(tmp_path / "p.csv")
    assert set(table["modalities"]) == {"mri_t1ce+mri_flair"}
    assert (table["spread"] > 0).all()
