"""The study end to end, shrunk to seconds: train, evaluate, rank, predict, and real images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from quintet import experiment, results
from quintet.breakhis.data.classes import MAGNIFICATIONS, TYPES
from quintet.breakhis.data.prepare import prepare
from quintet.breakhis.data.prepared import load
from quintet.breakhis.evaluation.inference import Model, read_patients
from quintet.breakhis.model.module import MagnificationModule, inverse_frequency
from quintet.breakhis.model.networks import MagnificationNet
from quintet.errors import InputError, InputProblemsError
from quintet.imaging.folders import files_below, with_suffix
from quintet.imaging.pictures import PICTURES
from quintet.params import parse
from tests.breakhis.conftest import SMALL
from tests.conftest import state_of, with_changes


def train(params, data, run):
    return experiment.train_selected("breakhis", params, data, run)


def evaluate(params, data, run):
    return experiment.evaluate_selected("breakhis", params, data, run, run.parent / "selected.json")


def predict(runs, source, output, *, overlays=None, skip=False):
    return experiment.predict_folder("breakhis", runs, source, output, overlays=overlays, device="cpu", skip=skip)


@pytest.fixture(scope="session")
def trained(slide_arrays, tmp_path_factory, values):
    """MMNet after a few epochs, evaluated on fold 0."""
    params = parse(with_changes(values, SMALL))
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        record = train(params, slide_arrays, folder / "run")
        metrics = evaluate(params, slide_arrays, folder / "run")
    return folder / "run", metrics, record


def test_a_run_folder_has_everything(trained, slide_arrays):
    run, metrics, record = trained
    history = pd.read_csv(run / "model" / "history.csv")
    assert {"train_loss", "valid_loss", "valid_balanced_accuracy", "valid_auc", "utilisation", "coverage"} <= set(history)
    assert history["coverage"].is_monotonic_increasing
    assert not history.isna().any().any()
    assert record.tags["batch_size"] == "32"
    tested = load(slide_arrays).patients("test", 0)
    cases = results.read([run / "evaluation" / "cases.csv"])
    assert sorted(set(cases["group"])) == tested
    assert cases["metric"].str.startswith("correct/").sum() == 15 * len(tested)
    assert metrics["patients"] == len(tested)
    assert {f"patient_recognition_rate/{m}" for m in MAGNIFICATIONS} <= set(metrics)
    images = pd.read_csv(run / "evaluation" / "images.csv", dtype={"patient": str})
    assert len(images) == load(slide_arrays).table["patient"].isin(tested).sum()  # all of them
    figures = {p.stem for p in (run / "evaluation" / "figures").iterdir()}
    assert figures == {"diagnostics", "attention", "learning_curves", "grad_cam"}


def test_threshold_and_temperature_come_from_the_validation_patients(trained, slide_arrays):
    run, metrics, _ = trained
    from quintet.breakhis.evaluation.metrics import choose_threshold

    data = load(slide_arrays)
    model = Model.load(run, "cpu")
    held_out = model(*read_patients(model, data, data.patients("valid", 0)))
    assert metrics["threshold"] == choose_threshold(data.classes(held_out.patients), held_out.malignant)
    assert metrics["temperature"] == model.temperature != 1.0


def test_a_patients_score_is_the_mean_over_quadruples_of_all_images(trained, slide_arrays):
    data = load(slide_arrays)
    model = Model.load(trained[0], "cpu")
    name = data.patients("test", 0)[0]
    predicted = model(*read_patients(model, data, [name]))
    rows = data.image_rows([name], MAGNIFICATIONS).rows[0]
    count = max(len(r) for r in rows)
    with torch.inference_mode():
        for subset, columns in (("40X+100X+200X+400X", [0, 1, 2, 3]), ("100X+400X", [1, 3])):
            present = torch.tensor([[m in columns for m in range(4)]])
            scores = []
            for i in range(count):
                images = [
                    model.net.normalise(torch.from_numpy(np.array(data.images[m][r[i % len(r)]])[None]))
                    for m, r in zip(MAGNIFICATIONS, rows, strict=True)
                ]
                scores.append((model.net(images, present).classes / model.temperature).softmax(-1)[0, 1].item())
            assert predicted.probability[subset][0] == pytest.approx(np.mean(scores), abs=1e-5)


def test_plateau_lowers_the_rate(make_params, slide_arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {
        "breakhis.training.epochs": 6,
        "breakhis.training.batch_size": 8,
        "breakhis.training.schedule": "plateau",
        "breakhis.training.plateau_patience": 0,
        "breakhis.training.rate": 0.3,
    }
    train(make_params(SMALL | changes), slide_arrays, tmp_path / "run")
    rates = pd.read_csv(tmp_path / "run" / "model" / "history.csv")["lr"]
    assert rates.iloc[-1] < rates.iloc[0]
    assert set((rates / 0.3).round(4)) <= {round(0.5**k, 4) for k in range(6)}


def test_validation_dropout_is_optional(make_params):
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
    for on in (False, True):
        training = make_params(SMALL | {"breakhis.training.validation_dropout": on}).breakhis.training
        module = MagnificationModule(
            net.eval(),
            training,
            class_weights=inverse_frequency(np.eye(2)),
            type_weights=inverse_frequency(np.eye(8)),
            labels=np.array([0, 1]),
            usage=([], []),
        )
        module.on_validation_epoch_start()
        dropouts = [m.training for m in net.modules() if isinstance(m, torch.nn.Dropout)]
        assert dropouts == [on] * 4


def test_class_weights():
    assert inverse_frequency(np.eye(2)[[0, 1, 1, 1]]).tolist() == pytest.approx([4 / 2 / 1, 4 / 2 / 3])
    assert inverse_frequency(np.eye(3)[[0, 1]]).tolist() == pytest.approx([1, 1, 0])


def test_sweep_and_ranking(small, slide_arrays):
    sweep = Path("runs/breakhis/sweep")
    for config in small.breakhis.sweep.configs:
        assert len(experiment.run_sweep_config("breakhis", small, slide_arrays, sweep / config, config)) == 2
    (sweep / "removed/fold0-seed0").mkdir(parents=True)
    baselines, out, report = (Path(name) for name in ("runs/breakhis/baselines", "runs/breakhis/rank", "reports/ranking"))
    assert set(experiment.run_baselines("breakhis", small, slide_arrays, baselines)) == {"prior", "stain", "oracle"}
    verdict = experiment.rank_runs("breakhis", small, sweep, baselines, out, report).verdict
    assert not Path("runs/breakhis/sweep/removed").exists()
    assert "20 patients" in verdict
    table = pd.read_csv("reports/ranking/ranking.csv").set_index("config")
    assert set(table.index) == {"mmnet", "single-400X", "prior", "stain", "oracle"}
    assert table.loc["prior", "covered"] == 0
    assert np.isnan(table.loc["oracle", "rank"])
    cases = results.read(Path("runs/breakhis/sweep").glob("mmnet/*/evaluation/cases.csv"))
    wide = cases.pivot(index="group", columns="metric", values="value")
    assert table.loc["mmnet", "mean"] == pytest.approx(wide["brier"].mean(), abs=1e-5)
    page = Path("reports/ranking/ranking.html").read_text()
    for heading in (
        "By patient",
        "Ranked by balanced accuracy",
        "By fold",
        "Which magnifications are needed",
        "Each image by itself",
        "Cost",
    ):
        assert f"<h2>{heading}" in page
    assert {p.name for p in Path("reports/ranking").glob("curves_*.png")} == {"curves_mmnet.png", "curves_single-400X.png"}
    text = Path("reports/ranking/ranking.md").read_text()
    assert "one benign patient is worth 6.2" in text  # points of balanced accuracy
    assert "0.892 +- 0.049" in text
    assert json.loads(Path("runs/breakhis/rank/record.json").read_text())["stage"] == "rank"
    assert not list(Path(".checkpoints").glob("*"))


def test_probe_trains_one_layer(small, slide_arrays):
    for fold, run in enumerate(("run", "again")):
        experiment.run_sweep_entry("breakhis", small, slide_arrays, Path(run), "probe", fold=fold, seed=0)
    state, other = state_of(Path("run")), state_of(Path("again"))
    frozen = [n for n in state if n.startswith("backbones") and n.endswith("weight")]
    assert all(torch.equal(state[n], other[n]) for n in frozen)  # other patients, same frozen weights
    assert not torch.equal(state["classes.weight"], other["classes.weight"])
    assert {n for n in state if n.startswith(("classes", "types")) and n.endswith("weight")} == {
        "classes.weight",
        "types.weight",
    }


def test_predict_any_magnifications(trained, slides, tmp_path):
    source = tmp_path / "new"
    patients = sorted((slides / "malignant/SOB/lobular_carcinoma").iterdir())[:2]
    for patient in patients:
        shutil.copytree(patient, source / patient.name)
    shutil.rmtree(source / patients[1].name / "40X")
    shutil.rmtree(source / patients[1].name / "200X")
    count = predict([trained[0]], source, tmp_path / "out.csv", overlays=tmp_path / "cams")
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
    predict([trained[0]], source, tmp_path / "plain.csv")  # pictures change no prediction
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "plain.csv"), table, rtol=0, atol=3e-4)
    # the folder of one patient, and two models
    assert predict([trained[0]] * 2, source / patients[0].name, tmp_path / "one.csv") == 1
    assert pd.read_csv(tmp_path / "one.csv")["probability_malignant"][0] == table["probability_malignant"][0]


def test_predict_lists_unreadable_images_or_skips_them(trained, slides, tmp_path):
    patient = sorted((slides / "benign/SOB/fibroadenoma").iterdir())[0]
    shutil.copytree(patient, tmp_path / "new" / "p1")
    bad = sorted((tmp_path / "new/p1/100X").iterdir())[0]
    bad.write_bytes(b"not a picture")
    with pytest.raises(InputError, match="corrupt"):
        predict([trained[0]], tmp_path / "new", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert predict([trained[0]], tmp_path / "new", tmp_path / "out.csv", skip=True) == 1
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(InputError, match="no picture below it in a folder named 40X"):
        predict([trained[0]], tmp_path, tmp_path / "x.csv")


def test_evaluate_folder_repeats_the_runs_own_metrics(trained, slides, slide_arrays, small, tmp_path):
    run, metrics, _ = trained
    tested = set(load(slide_arrays).patients("test", 0))
    raw = tmp_path / "raw"
    for patient in slides.glob("*/SOB/*/*"):
        if patient.name.rpartition("_")[2] in tested:
            shutil.copytree(patient, raw / patient.relative_to(slides))
    again = experiment.evaluate_folder("breakhis", [run], raw, tmp_path / "out", small, device="cpu")
    for name in ("balanced_accuracy", "auc", "brier", "patient_recognition_rate/400X", "balanced_accuracy/40X+100X"):
        assert again[name] == pytest.approx(metrics[name], abs=1e-5), name


def test_evaluation_lists_every_broken_picture_at_once(trained, slides, small, tmp_path):
    raw = shutil.copytree(slides, tmp_path / "raw")
    pictures = with_suffix(files_below(raw), PICTURES)[0]
    broken = [pictures[0], pictures[-1]]  # of two patients
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputProblemsError) as caught:
        experiment.evaluate_folder("breakhis", [trained[0]], raw, tmp_path / "out", small, device="cpu")
    assert len(caught.value.problems) == 2
    assert all(any(str(path) in problem for problem in caught.value.problems) for path in broken)


def test_real_patients_are_predicted(trained, real_slides, tmp_path):
    count = predict([trained[0]], real_slides, tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert count == len(table) >= 30  # a person under two types has two folders
    assert table["probability_malignant"].between(0, 1).all()
    assert (table["magnifications"] == "40X+100X+200X+400X").sum() == 1


def test_what_cannot_be_trained_or_evaluated_is_reported(make_params, slides, trained, small, slide_arrays, tmp_path):
    diverging = make_params(SMALL | {"breakhis.training.rate": 1.0e30, "breakhis.training.clip_norm": 0.0})
    with pytest.raises(InputError, match=r"diverged|step"):
        train(diverging, slide_arrays, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    larger = prepare(slides, tmp_path / "larger", make_params(SMALL | {"breakhis.data.size": 64}).breakhis)[0]
    with pytest.raises(InputError, match=r"trained on images of 32 pixels, the prepared ones have 64"):
        evaluate(small, tmp_path / "larger", trained[0])
    lost = larger.table.assign(patient=larger.table["patient"].where(larger.table["magnification"] != "40X", "nobody"))
    with pytest.raises(InputError, match="no training patient has an image at 40X"):
        train_on = Path("without")
        shutil.copytree(tmp_path / "larger", train_on)
        lost.to_csv(train_on / "index.csv", index=False)
        train(make_params(SMALL | {"breakhis.data.size": 64}), train_on, tmp_path / "run")
