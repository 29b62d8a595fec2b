"""The study end to end with a configuration that takes seconds: train, evaluate, rank, predict."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from PIL import Image, ImageOps

from quintet import experiment, results
from quintet.errors import InputError
from quintet.landmarks.data.anatomy import mirror
from quintet.landmarks.data.prepare import prepare
from quintet.landmarks.data.prepared import load
from quintet.landmarks.evaluation.figures import overlays
from quintet.landmarks.evaluation.inference import Model
from quintet.landmarks.evaluation.scores import Calibration, Predicted, calibration_error, pixel_errors, risk_coverage
from quintet.landmarks.model.networks import LandmarkNet
from quintet.landmarks.model.weights import initialize
from quintet.runs import Record
from tests.conftest import equal, state_of
from tests.landmarks.test_data import write_dicom

SMALL = {
    "landmarks.data.size": 32,
    "landmarks.training.width": 8,
    "landmarks.epochs": 3,
    "landmarks.data.clahe": 0.0,
    "landmarks.data.near_duplicate_distance": 0,
    "compute.device": "cpu",
    "compute.threads": 1,
}


@pytest.fixture
def small(make_params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # checkpoints go here; without a dvc.yaml nothing is logged to MLflow
    return make_params(SMALL)


@pytest.fixture
def prepared(raw, small, tmp_path):
    prepare(raw, tmp_path / "data", small.landmarks)
    return tmp_path / "data"


def train(params, prepared, run: Path):
    return experiment.train_selected("landmarks", params, prepared, run)


def evaluate(params, prepared, run: Path):
    return experiment.evaluate_selected("landmarks", params, prepared, run, run.parent / "selected.json")


def predict(runs, source, output, *, overlays=None, skip=False):
    return experiment.predict_folder("landmarks", runs, source, output, overlays=overlays, device="cpu", skip=skip)


@pytest.mark.parametrize("changes", [{}, {"landmarks.head": "heatmap"}, {"landmarks.arch": "unet", "landmarks.head": "heatmap"}])
def test_train_evaluate_predict(changes, make_params, prepared, raw, tmp_path):
    params = make_params(SMALL | {"landmarks.figures": "all"} | changes)
    run = tmp_path / "run"
    record = train(params, prepared, run)
    metrics = evaluate(params, prepared, run)
    history = pd.read_csv(run / "model" / "history.csv")
    assert list(history["epoch"]) == [0, 1, 2]
    assert record.metrics["best_valid_error_px"] == history["valid_error_px"].min()
    table = results.read([run / "evaluation" / "cases.csv"])
    assert table.query("metric == 'error_px'")["value"].mean() == pytest.approx(metrics["error_px"])
    figures = {path.name for path in (run / "evaluation" / "figures").iterdir()}
    assert {
        "overlays.png",
        "overlays_01.png",
        "error_per_landmark.png",
        "sdr.png",
        "uncertainty.png",
        "learning_curves.png",
    } <= figures
    # `quintet predict` on the raw images gives the predictions that were evaluated
    count = predict([run], raw / "images", tmp_path / "p.csv")
    assert count == 40
    predicted = pd.read_csv(tmp_path / "p.csv", header=None)
    evaluated = pd.read_csv(run / "evaluation" / "predictions.csv", header=None)
    both = evaluated.merge(predicted, on=31, suffixes=("", "_new"))
    assert len(both) == len(evaluated) > 0
    assert predicted.shape == (40, 32)
    for k in range(1, 31):
        np.testing.assert_allclose(both[f"{k}_new"], both[f"{k}"], atol=0.02)
    assert len(pd.read_csv(tmp_path / "p.csv.uncertainty.csv")) == 40


def test_a_phase_continues_from_the_previous_one(small, prepared, tmp_path, make_params):
    first = make_params(SMALL | {"landmarks.trains": "head", "landmarks.epochs": 1})
    train(first, prepared, tmp_path / "first")
    untrained = [name for name in state_of(tmp_path / "first") if "backbone" in name and name.endswith("conv1.weight")]
    start = {"landmarks.start_from": str(tmp_path / "first")}
    second = make_params(SMALL | start | {"landmarks.attention": True, "landmarks.epochs": 1})
    record = train(second, prepared, tmp_path / "second")
    assert untrained
    assert record.tags["weights"] == str(tmp_path / "first")
    assert "start" in record.inputs
    other = make_params(SMALL | start | {"landmarks.training.width": 16})
    with pytest.raises(InputError, match="does not fit the network"):
        train(other, prepared, tmp_path / "third")


def test_training_the_head_leaves_the_backbone_unchanged(prepared, tmp_path, make_params):
    runs = {}
    for epochs in (1, 3):
        params = make_params(SMALL | {"landmarks.trains": "head", "landmarks.epochs": epochs})
        train(params, prepared, tmp_path / str(epochs))
        runs[epochs] = state_of(tmp_path / str(epochs))
    weights = [n for n in runs[1] if n.startswith("backbone") and n.endswith("weight") and "conv" in n]
    assert len(weights) >= 17
    assert all(torch.equal(runs[1][n], runs[3][n]) for n in weights)
    assert not torch.equal(runs[1]["head.layers.1.weight"], runs[3]["head.layers.1.weight"])


def test_local_weights_are_loaded_and_recorded_and_wrong_ones_refused(prepared, tmp_path, make_params):
    torch.manual_seed(5)
    net = LandmarkNet(arch="resnet18", head="regression", attention=False, width=64, dropout=0.1)
    state = net.backbone.net.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "resnet18.pt")
    changes = SMALL | {"landmarks.training.width": 64, "landmarks.trains": "head", "landmarks.epochs": 1}
    params = make_params(changes | {"landmarks.training.weights": str(tmp_path / "resnet18.pt")})
    record = train(params, prepared, tmp_path / "run")
    assert "md5" in record.tags["weights"]
    assert torch.equal(state_of(tmp_path / "run")["backbone.net.conv1.weight"], state["conv1.weight"])
    unet = {"landmarks.arch": "unet", "landmarks.head": "heatmap", "landmarks.training.weights": str(tmp_path / "resnet18.pt")}
    assert train(make_params(changes | unet), prepared, tmp_path / "unet").tags["weights"] == "random"
    torch.save({"other": torch.zeros(1)}, tmp_path / "wrong.pt")
    with pytest.raises(InputError, match="do not fit the network"):
        train(make_params(changes | {"landmarks.training.weights": str(tmp_path / "wrong.pt")}), prepared, tmp_path / "run2")
    with pytest.raises(InputError, match="no such file"):
        train(make_params(changes | {"landmarks.training.weights": "nowhere.pt"}), prepared, tmp_path / "run3")


def test_imagenet_without_internet_explains_how_to_use_a_file(prepared, tmp_path, make_params, monkeypatch):
    def offline(*_args, **_options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    params = make_params(SMALL | {"landmarks.training.width": 64, "landmarks.training.weights": "imagenet"})
    with pytest.raises(InputError, match="give a local file instead"):
        train(params, prepared, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_training_and_names_step_and_cases(prepared, tmp_path, make_params):
    params = make_params(
        SMALL | {"landmarks.rate_head": 1.0e30, "landmarks.rate_backbone": 1.0e30, "landmarks.training.clip_norm": 0.0}
    )
    with pytest.raises(InputError, match=r"step \d+ .*cases: .*(COVID|Normal|Viral)"):
        train(params, prepared, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def assert_mean_of_members(sweep: Path, ensemble: Path) -> None:
    def points(run: Path) -> np.ndarray:
        return pd.read_csv(run / "evaluation" / "predictions.csv", header=None)[list(range(1, 31))].to_numpy()

    members = [points(sweep / config / f"seed{seed}") for config in ("frozen", "finetune") for seed in (0, 1)]
    np.testing.assert_allclose(points(ensemble), np.mean(members, axis=0), atol=0.02)  # written with two decimals
    assert not np.allclose(members[0], members[3], atol=0.1)


def test_the_oracle_has_the_error_of_the_labels_and_needs_the_drawn_truth(small, raw, prepared, tmp_path):
    metrics = experiment.run_baselines("landmarks", small, prepared, tmp_path / "baselines")
    noise_px = np.hypot(0.5 / 299, 1 / np.sqrt(12) / 96) * 224  # per coordinate: noise, and rounding to pixels of 96 x 96
    assert metrics["oracle"]["error_px"] == pytest.approx(noise_px * np.sqrt(np.pi / 2), rel=0.15)
    assert metrics["oracle"]["error_px"] < metrics["ridge"]["error_px"] < metrics["mean_shape"]["error_px"]
    real = tmp_path / "real"
    shutil.copytree(raw, real, ignore=shutil.ignore_patterns("truth.csv"))
    prepare(real, tmp_path / "data of a user", small.landmarks)
    found = experiment.run_baselines("landmarks", small, tmp_path / "data of a user", tmp_path / "baselines of a user")
    assert list(found) == ["mean_shape", "ridge"]
    for name in found:
        assert found[name] == metrics[name]  # nothing else sees the truth


def test_a_truth_that_lacks_an_image_is_refused(small, raw, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(raw, broken)
    lines = (broken / "truth.csv").read_text().splitlines()
    (broken / "truth.csv").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(InputError, match=rf"truth.csv: no row for {lines[0].split(',')[-1]}; .*delete it"):
        prepare(broken, tmp_path / "data", small.landmarks)
    assert not (tmp_path / "data").exists()


PREFIXES = [("", "head."), ("backbone.", "head."), ("module.backbone.", "module.head."), ("backbone.", "backbone.fc.")]


def reference_layout(net, backbone: str, head: str) -> dict[str, torch.Tensor]:
    """The weights of our network under the reference's names: torchvision's, and numbered layers of the head."""
    state = {f"{backbone}{name}": value for name, value in net.backbone.net.state_dict().items()}
    return state | {f"{head}{name}": value for name, value in net.head.layers.state_dict().items()}


@pytest.mark.parametrize(("backbone", "head"), PREFIXES)
def test_a_checkpoint_of_the_reference_gives_the_same_predictions(backbone, head, make_params, tmp_path):
    torch.manual_seed(5)
    shape = {"arch": "resnet18", "attention": False, "width": 64, "dropout": 0.5}
    theirs, ours, located = (LandmarkNet(**shape, head=h).eval() for h in ("regression", "regression", "heatmap"))
    path = tmp_path / "best.pt"
    torch.save({"epoch": 40, "model_state_dict": reference_layout(theirs, backbone, head), "val_error": 8.1}, path)
    config = make_params().landmarks
    origin = initialize(ours, config, str(path), 0)
    assert str(path) in origin
    assert "md5" in origin
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(ours(images).points, theirs(images).points, rtol=0, atol=0)
    initialize(located, config.model_copy(update={"head": "heatmap"}), str(path), 0)  # takes the backbone alone
    assert equal(located.backbone.state_dict(), theirs.backbone.state_dict())


def test_a_checkpoint_of_another_layout_is_refused_with_the_names(make_params, tmp_path):
    net = LandmarkNet(arch="resnet18", head="regression", attention=False, width=64, dropout=0.5)
    state = reference_layout(net, "backbone.", "head.")
    del state["head.7.bias"]
    path = tmp_path / "best.pt"
    torch.save({"model_state_dict": state | {"neck.gamma": torch.zeros(3)}}, path)
    with pytest.raises(InputError, match=r"missing \['head.layers.7.bias'\], unexpected \['neck.gamma'\]"):
        initialize(net, make_params().landmarks, str(path), 0)
    torch.save({"model_state_dict": state | {"head.7.bias": torch.zeros(28)}}, path)
    with pytest.raises(InputError, match=r"(?s)does not fit .*head.layers.7.bias"):
        initialize(net, make_params().landmarks, str(path), 0)
    torch.save({"model_state_dict": state, "config": Path("x")}, path)  # an object that loads only by running code
    with pytest.raises(InputError, match="save only its weights"):
        initialize(net, make_params().landmarks, str(path), 0)


def test_sweep_and_ranking(prepared, tmp_path, make_params, values):
    """Two chained phases with two seeds and the baselines, ranked; the runs of a removed configuration disappear."""
    configs = values["landmarks"]["configs"]
    chain = {
        "frozen": configs["frozen"] | {"epochs": 1, "after": str(prepared)},
        "finetune": configs["finetune"] | {"epochs": 2},
    }
    swept = {"seeds": [0, 1], "ensembles": {"both": ["frozen", "finetune"]}}
    params = make_params(SMALL | {"landmarks.configs": chain, "landmarks.sweep": swept, "ranking.bootstrap": 100})
    sweep, base, ensembles = (Path("runs/landmarks") / name for name in ("sweep", "baselines", "ensembles"))
    for config in chain:
        metrics = experiment.run_sweep_config("landmarks", params, prepared, sweep / config, config)
        assert len(metrics) == 2
    record = Record.load(sweep / "finetune" / "seed1")
    assert record.tags["weights"] == "runs/landmarks/sweep/frozen/seed1"  # each seed continues from the same seed
    experiment.run_baselines("landmarks", params, prepared, base)
    experiment.run_ensembles("landmarks", params, prepared, sweep, ensembles)
    assert_mean_of_members(sweep, ensembles / "both" / "seed0")
    (sweep / "removed").mkdir()
    report = Path("runs/landmarks/rank"), Path("reports/ranking")
    ranking = experiment.rank_runs("landmarks", params, sweep, base, *report, ensembles=ensembles)
    assert not (sweep / "removed").exists()
    table = pd.read_csv("reports/ranking/ranking.csv")
    assert list(table.columns[:6]) == ["rank", "config", "mean", "low", "high", "group"]
    assert set(table["config"]) == {"frozen", "finetune", "both", "ridge", "mean_shape", "oracle"}
    assert table["config"].iloc[-1] == "oracle"
    assert table.set_index("config")["covered"]["mean_shape"] == 0
    assert ranking.verdict in Path("reports/ranking/ranking.html").read_text().replace("&#39;", "'").replace("&amp;", "&")
    record = json.loads(Path("runs/landmarks/rank/record.json").read_text())
    assert record["stage"] == "rank"
    assert (sweep / "finetune" / "seed1" / "evaluation" / "metrics.json").is_file()
    assert not list(Path(".checkpoints").glob("*"))


def test_mirrored_image_gives_mirrored_landmarks(small, prepared, tmp_path):
    """With mirror averaging, the prediction is exactly equivariant under a flip that exchanges the pairs."""
    train(small, prepared, tmp_path / "run")
    model = Model.load(tmp_path / "run", "cpu", mirror_average=True, template=False)
    images = load(prepared).images[:6]
    sizes = np.full((6, 2), 96)
    one, other = model(images, sizes), model(images[..., ::-1], sizes)
    np.testing.assert_allclose(other.points, mirror(one.points), atol=1e-5)


def test_predict_warns_of_an_inverted_picture(small, prepared, raw, tmp_path, capsys):
    run, source = tmp_path / "run", tmp_path / "in"
    train(small, prepared, run)
    evaluate(small, prepared, run)
    source.mkdir()
    original = Image.open(next((raw / "images").rglob("*.png"))).convert("L")
    original.save(source / "a.png")
    ImageOps.invert(original).save(source / "b.png")
    predict([run], source, tmp_path / "p.csv")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "is the picture inverted" in line]
    assert [line.split(": ")[1] for line in warnings] == [str(source / "b.png")]


def test_predict_a_folder_with_several_formats(small, prepared, tmp_path, capsys):
    run = tmp_path / "run"
    train(small, prepared, run)
    with pytest.raises(InputError, match="not evaluated"):
        Model.load(run, "cpu")
    evaluate(small, prepared, run)
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 60)).astype(np.uint8)
    Image.fromarray(pixels).save(source / "a.png")
    Image.fromarray(np.stack([pixels] * 3, -1)).save(source / "b.jpg")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(source / "sub" / "a.png")
    write_dicom(source / "d.dcm", pixels.astype(np.uint16), "MONOCHROME1")
    Image.fromarray(pixels).save(source / "sub_a.png")
    Image.fromarray(pixels).save(source / "fall $1\\foo$.png")  # no formula
    predict([run], source, tmp_path / "p.csv", overlays=tmp_path / "o")
    table = pd.read_csv(tmp_path / "p.csv", header=None)
    assert set(table[31]) == {"a.png", "b", "sub/a.png", "d", "sub_a", "fall $1\\foo$"}
    assert len(list((tmp_path / "o").glob("*.png"))) == 6
    assert table[list(range(1, 31, 2))].to_numpy().max() <= 60
    assert "MARKED" not in (tmp_path / "p.csv").read_text() + capsys.readouterr().out
    (source / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        predict([run], source, tmp_path / "q.csv")
    assert not list(tmp_path.glob("q.csv*"))
    assert predict([run], source, tmp_path / "q.csv", skip=True) == 6


def test_calibration_fits_its_own_data():
    rng = np.random.default_rng(0)
    true = rng.random((200, 15, 2))
    features = rng.uniform(1, 10, (200, 3))  # the error follows the second feature only, and landmark 0 is twice as hard
    scale = features[:, 1, None, None] / 224 * np.r_[2, np.ones(14)][None, :, None]
    predicted = Predicted(true + rng.normal(0, 1, true.shape) * scale, features)
    calibration = Calibration.fit(predicted, true)
    expected = calibration(features)
    error = pixel_errors(predicted.points, true)
    assert np.argmax(calibration.weights) == 2
    assert calibration.share[0] == pytest.approx(2 * 15 / 16, rel=0.1)
    assert expected.mean() == pytest.approx(error.mean(), rel=0.02)
    assert calibration_error(expected.ravel(), error.ravel()) < 0.1 * error.mean()
    coverage, risk = risk_coverage(expected.mean(1), error.mean(1))
    assert risk[-1] == pytest.approx(error.mean())
    assert risk[int(0.5 * len(risk))] < risk[-1]
    assert coverage[-1] == 1


def test_real_images_are_prepared_trained_on_and_evaluated(real_landmarks, tmp_path, make_params, monkeypatch):
    """Every 13th real X-ray, from the raw folder to metrics."""
    import shutil

    monkeypatch.chdir(tmp_path)
    rows = (real_landmarks / "annotations.csv").read_text().splitlines()[::13]
    raw = tmp_path / "raw"
    for row in rows:
        image = next((real_landmarks / "images").glob(f"*/{row.rpartition(',')[2]}.*"))
        (raw / "images" / image.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, raw / "images" / image.parent.name)
    (raw / "annotations.csv").write_text("\n".join(rows))
    params = make_params(SMALL | {"landmarks.data.split": "grouped", "landmarks.data.near_duplicate_distance": 6})
    prepare(raw, tmp_path / "data", params.landmarks)
    train(params, tmp_path / "data", tmp_path / "run")
    metrics = evaluate(params, tmp_path / "data", tmp_path / "run")
    assert 0 < metrics["error_px"] < 60


def test_overlays_of_a_single_image(tmp_path):
    image, points = np.zeros((1, 32, 32), np.uint8), np.full((1, 15, 2), 0.5)
    overlays(tmp_path / "one.png", image, points, points, ["a"], "one")
    assert imread(tmp_path / "one.png").std() > 0.1  # the image is black, the page white
