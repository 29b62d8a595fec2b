"""The study end to end, shrunk to seconds: train, evaluate, rank, predict, resume, repeat, and real images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from quintet import results
from quintet.breakhis import study
from quintet.breakhis.comparison import compare
from quintet.breakhis.data.prepared import load, prepare
from quintet.breakhis.data.tree import MAGNIFICATIONS, TYPES
from quintet.breakhis.evaluation.inference import Model, predict_prepared
from quintet.breakhis.model.module import MagnificationModule, class_weights
from quintet.breakhis.model.networks import MagnificationNet
from quintet.breakhis.prediction import evaluate_folder, predict_folder
from quintet.errors import InputError
from quintet.params import parse
from tests.breakhis.conftest import SMALL
from tests.conftest import assert_killed_equals_alone, equal, state_of, with_changes


def train(params, data, run, *, config=None, fold=0, seed=0):
    p = params.breakhis
    return study.train_run(
        run, data, config or p, p, params.compute, stage="breakhis_train", config="selected", fold=fold, seed=seed
    )


@pytest.fixture(scope="session")
def trained(slide_arrays, tmp_path_factory, values):
    """MMNet after a few epochs, evaluated on fold 0."""
    import os

    params = parse(with_changes(values, SMALL))
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        record = train(params, slide_arrays, folder / "run")
        metrics = study.evaluate_run(folder / "run", slide_arrays, params.compute, pictures=True)
    finally:
        os.chdir(before)
    return folder / "run", metrics, record


def test_a_run_folder_has_everything(trained, slide_arrays):
    run, metrics, record = trained
    history = pd.read_csv(run / "model" / "history.csv")
    assert {"train_loss", "valid_loss", "valid_balanced_accuracy", "valid_auc", "utilisation", "coverage"} <= set(history)
    assert history["coverage"].is_monotonic_increasing
    assert not history.isna().any().any()
    assert record.tags["batch_size"] == "16"
    tested = load(slide_arrays).patients(0, "test")
    cases = results.read([run / "evaluation" / "cases.csv"])
    assert sorted(set(cases["group"])) == tested
    assert cases["metric"].str.startswith("correct/").sum() == 15 * len(tested)
    assert metrics["patients"] == len(tested)
    assert {f"patient_recognition_rate/{m}" for m in MAGNIFICATIONS} <= set(metrics)
    images = pd.read_csv(run / "evaluation" / "images.csv", dtype={"patient": str})
    assert len(images) == load(slide_arrays).index["patient"].isin(tested).sum()  # all of them
    figures = {p.stem for p in (run / "evaluation" / "figures").iterdir()}
    assert figures == {"diagnostics", "attention", "learning_curves", "grad_cam"}


def test_threshold_comes_from_the_validation_patients(trained, slide_arrays):
    run, metrics, _ = trained
    from quintet.breakhis.evaluation.metrics import lock_threshold

    data = load(slide_arrays)
    held_out, _, _ = predict_prepared(Model.load(run, "cpu"), data, data.patients(0, "valid"))
    assert metrics["threshold"] == lock_threshold(data.classes(held_out.patients), held_out.whole)


def test_a_patients_score_is_the_mean_over_quadruples_of_all_images(trained, slide_arrays):
    from quintet.breakhis.model.networks import normalise

    data = load(slide_arrays)
    model = Model.load(trained[0], "cpu")
    name = data.patients(0, "test")[0]
    predicted, _, _ = predict_prepared(model, data, [name])
    rows = data.rows([name], MAGNIFICATIONS).rows[0]
    count = max(len(r) for r in rows)
    with torch.inference_mode():
        for subset, columns in (("40X+100X+200X+400X", [0, 1, 2, 3]), ("100X+400X", [1, 3])):
            present = torch.tensor([[m in columns for m in range(4)]])
            scores = []
            for i in range(count):
                images = [
                    normalise(torch.from_numpy(np.array(data.images[m][r[i % len(r)]])[None]))
                    for m, r in zip(MAGNIFICATIONS, rows, strict=True)
                ]
                scores.append(model.net(images, present).classes.softmax(-1)[0, 1].item())
            assert predicted.probability[subset][0] == pytest.approx(np.mean(scores), abs=1e-5)


def test_same_seed_same_numbers_another_seed_others(small, slide_arrays, trained):
    train(small, slide_arrays, Path("again"))
    assert equal(state_of(Path("again")), state_of(trained[0]))
    train(small, slide_arrays, Path("other"), seed=1)
    assert not equal(state_of(Path("other")), state_of(trained[0]))


def test_killed_and_run_again_equals_left_alone(slide_arrays, values, tmp_path):
    """With the plateau schedule and early stopping, whose states must survive too."""
    params = with_changes(
        values,
        SMALL
        | {
            "breakhis.epochs": 4,
            "breakhis.schedule": "plateau",
            "breakhis.plateau_patience": 0,
            "breakhis.patience": 4,
            "breakhis.batch_size": "auto",
        },
    )
    assert_killed_equals_alone("breakhis_train.py", slide_arrays, params, tmp_path, kill_after="2")


def test_plateau_lowers_the_rate(make_params, slide_arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"breakhis.epochs": 4, "breakhis.schedule": "plateau", "breakhis.plateau_patience": 0, "breakhis.rate": 0.3}
    train(make_params(SMALL | changes), slide_arrays, tmp_path / "run")
    rates = pd.read_csv(tmp_path / "run" / "model" / "history.csv")["lr"]
    assert rates.iloc[-1] < rates.iloc[0]
    assert set((rates / 0.3).round(4)) <= {1.0, 0.5, 0.25, 0.125}


def test_validation_dropout_is_a_choice(make_params):
    net = MagnificationNet(
        magnifications=["40X"],
        attention=[],
        trains="all",
        backbone="small",
        size=32,
        units=[16, 8],
        stochastic_depth=0.0,
        dropout=0.5,
    )
    weights = (class_weights(np.eye(2)), class_weights(np.eye(8)))
    for on in (False, True):
        shared = make_params(SMALL | {"breakhis.validation_dropout": on}).breakhis
        module = MagnificationModule(net.eval(), shared, steps=1, weights=weights, labels=np.array([0, 1]), used=([], []))
        module.on_validation_epoch_start()
        dropouts = [m.training for m in net.modules() if isinstance(m, torch.nn.Dropout)]
        assert dropouts == [on] * 4


def test_class_weights():
    assert class_weights(np.eye(2)[[0, 1, 1, 1]]).tolist() == pytest.approx([4 / 2 / 1, 4 / 2 / 3])
    assert class_weights(np.eye(3)[[0, 1]]).tolist() == pytest.approx([1, 1, 0])


def test_sweep_and_ranking(small, slide_arrays):
    p = small.breakhis
    for config in p.sweep.configs:
        for fold in p.sweep.folds:
            study.sweep_cell(
                Path(f"runs/breakhis/sweep/{config}/fold{fold}-seed0"), slide_arrays, config, fold, 0, p, small.compute
            )
    (Path("runs/breakhis/sweep") / "removed/fold0-seed0").mkdir(parents=True)
    verdict = compare(small, Path("runs/breakhis/sweep"), Path("runs/breakhis/rank"), Path("reports/ranking"))
    assert not Path("runs/breakhis/sweep/removed").exists()
    assert "20 patients" in verdict
    table = pd.read_csv("reports/ranking/ranking.csv").set_index("config")
    assert table.loc["mmnet", "published"] == pytest.approx(0.892)
    cases = results.read(Path("runs/breakhis/sweep").glob("mmnet/*/evaluation/cases.csv"))
    wide = cases.pivot(index="group", columns="metric", values="value")
    assert table.loc["mmnet", "mean"] == pytest.approx(wide.groupby("malignant")["correct"].mean().mean(), abs=1e-5)
    page = Path("reports/ranking/ranking.html").read_text()
    for heading in ("By patient", "By fold", "Which magnifications are needed", "Each image by itself", "Cost"):
        assert f"<h2>{heading}" in page
    assert {p.name for p in Path("reports/ranking").glob("curves_*.png")} == {"curves_mmnet.png", "curves_single-400X.png"}
    text = Path("reports/ranking/ranking.md").read_text()
    assert "one benign patient 6.2" in text  # points of balanced accuracy
    assert "0.892 +- 0.049" in text
    assert json.loads(Path("runs/breakhis/rank/record.json").read_text())["stage"] == "rank"
    assert not list(Path(".checkpoints").glob("*"))


def test_probe_trains_one_layer(small, slide_arrays):
    train(small, slide_arrays, Path("run"), config=small.breakhis.configs["probe"])
    train(small, slide_arrays, Path("again"), config=small.breakhis.configs["probe"], fold=1)
    state, other = state_of(Path("run")), state_of(Path("again"))
    frozen = [n for n in state if n.startswith("backbones") and n.endswith("weight")]
    assert all(torch.equal(state[n], other[n]) for n in frozen)  # other patients, same frozen weights
    assert not torch.equal(state["classes.1.weight"], other["classes.1.weight"])
    assert {n for n in state if n.startswith(("classes", "types")) and n.endswith("weight")} == {
        "classes.1.weight",
        "types.1.weight",
    }


def test_predict_any_magnifications(trained, slides, tmp_path):
    source = tmp_path / "new"
    patients = sorted((slides / "malignant/SOB/lobular_carcinoma").iterdir())[:2]
    for patient in patients:
        shutil.copytree(patient, source / patient.name)
    shutil.rmtree(source / patients[1].name / "40X")
    shutil.rmtree(source / patients[1].name / "200X")
    count = predict_folder([trained[0]], source, tmp_path / "out.csv", overlays=tmp_path / "cams", device="cpu", skip=False)
    table = pd.read_csv(tmp_path / "out.csv")
    assert count == len(table) == 2
    assert table["probability_malignant"].between(0, 1).all()
    assert set(table["class"]) <= {"benign", "malignant"}
    np.testing.assert_allclose(table[[f"type_{t}" for t in TYPES]].sum(axis=1), 1, atol=1e-3)
    assert table["magnifications"].tolist() == ["40X+100X+200X+400X", "100X+400X"]
    weights = table[[f"importance_{m}" for m in MAGNIFICATIONS]]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-3)
    assert weights.loc[1, ["importance_40X", "importance_200X"]].tolist() == [0, 0]
    assert len(list((tmp_path / "cams").glob("*.png"))) == 2
    # the folder of one patient, and two models
    assert (
        predict_folder([trained[0]] * 2, source / patients[0].name, tmp_path / "one.csv", overlays=None, device="cpu", skip=False)
        == 1
    )
    assert pd.read_csv(tmp_path / "one.csv")["probability_malignant"][0] == table["probability_malignant"][0]


def test_predict_lists_unreadable_images_or_skips_them(trained, slides, tmp_path):
    patient = sorted((slides / "benign/SOB/fibroadenoma").iterdir())[0]
    shutil.copytree(patient, tmp_path / "new" / "p1")
    bad = sorted((tmp_path / "new/p1/100X").iterdir())[0]
    bad.write_bytes(b"not a picture")
    with pytest.raises(InputError, match="corrupt"):
        predict_folder([trained[0]], tmp_path / "new", tmp_path / "out.csv", overlays=None, device="cpu", skip=False)
    assert not (tmp_path / "out.csv").exists()
    assert predict_folder([trained[0]], tmp_path / "new", tmp_path / "out.csv", overlays=None, device="cpu", skip=True) == 1
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(InputError, match="no picture below it in a folder named 40X"):
        predict_folder([trained[0]], tmp_path, tmp_path / "x.csv", overlays=None, device="cpu", skip=False)


def test_evaluate_folder_repeats_the_runs_own_figures(trained, slides, slide_arrays, small, tmp_path):
    run, metrics, _ = trained
    tested = set(load(slide_arrays).patients(0, "test"))
    raw = tmp_path / "raw"
    for patient in slides.glob("*/SOB/*/*"):
        if patient.name.rpartition("_")[2] in tested:
            shutil.copytree(patient, raw / patient.relative_to(slides))
    again = evaluate_folder([run], raw, tmp_path / "out", device="cpu", params=small.breakhis)
    for name in ("balanced_accuracy", "auc", "brier", "patient_recognition_rate/400X", "balanced_accuracy/40X+100X"):
        assert again[name] == pytest.approx(metrics[name], abs=1e-5), name


def test_a_fold_that_the_data_lack_is_refused(small, slide_arrays):
    with pytest.raises(InputError, match="has 2 folds"):
        train(small, slide_arrays, Path("run"), fold=4)


def test_a_run_of_another_study_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    torch.save({"state_dict": {}, "build": {"arch": "unet"}}, tmp_path / "model" / "model.pt")
    with pytest.raises(InputError, match="another study"):
        Model.load(tmp_path, "cpu")


def test_real_patients_are_predicted(trained, real_slides, tmp_path):
    count = predict_folder([trained[0]], real_slides, tmp_path / "out.csv", overlays=None, device="cpu", skip=False)
    table = pd.read_csv(tmp_path / "out.csv")
    assert count == len(table) >= 30  # a person under two types has two folders
    assert table["probability_malignant"].between(0, 1).all()
    assert (table["magnifications"] == "40X+100X+200X+400X").sum() == 1


def test_what_cannot_be_trained_or_evaluated_is_said(make_params, slides, trained, small, slide_arrays, tmp_path):
    p = small.breakhis
    with pytest.raises(InputError, match="--config nope: no such configuration; there are mmnet"):
        study.sweep_cell(Path("cell"), slide_arrays, "nope", 0, 0, p, small.compute)
    diverging = make_params(SMALL | {"breakhis.rate": 1.0e30, "breakhis.clip_norm": 0.0})
    with pytest.raises(InputError, match=r"diverged|step"):
        train(diverging, slide_arrays, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    larger = prepare(slides, tmp_path / "larger", make_params(SMALL | {"breakhis.size": 64}).breakhis)[0]
    with pytest.raises(InputError, match=r"trained on images of 32 pixels, .* has 64"):
        study.evaluate_run(trained[0], tmp_path / "larger", small.compute, pictures=False)
    lost = larger.index.assign(patient=larger.index["patient"].where(larger.index["magnification"] != "40X", "nobody"))
    with pytest.raises(InputError, match="no training patient has an image at 40X"):
        train_on = Path("without")
        shutil.copytree(tmp_path / "larger", train_on)
        lost.to_csv(train_on / "index.csv", index=False)
        train(make_params(SMALL | {"breakhis.size": 64}), train_on, tmp_path / "run")
