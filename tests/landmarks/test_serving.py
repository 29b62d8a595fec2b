"""A landmarks run in MLflow: loaded by its address, served, and registered under a name."""

import io
import json
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from quintet import experiment, tracking
from quintet.cli import app
from quintet.errors import InputError
from quintet.imaging.pictures import read_grey
from quintet.landmarks.data.prepare import prepare, preprocess
from quintet.landmarks.data.prepared import POINT_COLUMNS
from quintet.serving.model import write_model
from quintet.serving.promote import configuration_of, doubt
from quintet.study import load_study
from tests.landmarks.test_study import SMALL
from tests.served import ask, post, served

run = CliRunner().invoke


@pytest.fixture(scope="module")
def phantoms(raw):
    return sorted((raw / "images").glob("*/*.png"))[:3]


@pytest.fixture
def trained(checkout, raw, make_params):
    params = make_params(SMALL)
    prepare(raw, checkout / "data", params.landmarks)
    experiment.train_selected("landmarks", params, checkout / "data", checkout / "runs" / "x")
    experiment.evaluate_selected("landmarks", params, checkout / "data", checkout / "runs" / "x", checkout / "scores.json")
    return checkout / "runs" / "x"


def expected_points(trained, phantoms, place):
    (place / "in").mkdir()
    for path in phantoms:
        (place / "in" / path.name).write_bytes(path.read_bytes())
    experiment.predict_folder("landmarks", [trained], place / "in", place / "p.csv", overlays=None, device="cpu", skip=False)
    table = pd.read_csv(place / "p.csv", header=None, names=["row", *POINT_COLUMNS, "stem"]).set_index("stem")
    return table.loc[[path.stem for path in phantoms], POINT_COLUMNS].to_numpy()


def test_an_uploaded_run_is_a_model_of_mlflow(trained, phantoms, tmp_path):
    """`runs:/ID/model` answers what `quintet predict` writes; the code that it runs lies beside the weights."""
    run_id = tracking.run_id_of(trained, write_model)
    mlflow.set_tracking_uri(tracking.tracking_uri())
    model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    assert [column.name for column in model.metadata.get_input_schema()] == ["image"]
    answer = model.predict(pd.DataFrame({"image": [path.read_bytes() for path in phantoms]}))
    assert np.allclose(answer[POINT_COLUMNS], expected_points(trained, phantoms, tmp_path))
    assert answer.filter(like="expected_error_px_").shape == (3, 15)
    files = {file.path for file in tracking.store.create_client(tracking.tracking_uri()).list_artifacts(run_id, "model")}
    assert {"model/MLmodel", "model/model.pt", "model/quintet.zip", "model/input_example.json"} <= files


def test_a_run_that_was_uploaded_without_its_model_gets_it(trained):
    run_id = tracking.upload(trained)
    client = tracking.store.create_client(tracking.tracking_uri())
    next((trained.parents[1] / "mlartifacts").rglob(f"{run_id}/**/MLmodel")).unlink()
    assert "model/MLmodel" not in {file.path for file in client.list_artifacts(run_id, "model")}
    assert tracking.run_id_of(trained, write_model) == run_id
    assert "model/MLmodel" in {file.path for file in client.list_artifacts(run_id, "model")}


def test_pictures_over_rest_and_requests_that_make_no_sense(trained, phantoms, tmp_path):
    png = phantoms[0].read_bytes()
    jpeg = io.BytesIO()
    Image.open(phantoms[0]).save(jpeg, "JPEG", quality=95)
    with served(trained, tmp_path) as address:
        found = ask(address, [{"image": png}, {"image": jpeg.getvalue()}])
        bad = [post(address, rows) for rows in ([{"image": b"x"}], [{"picture": png}], [{"image": ""}])]
        assert np.allclose(ask(address, [{"image": png}])[POINT_COLUMNS], found.head(1)[POINT_COLUMNS])
    assert np.allclose(found[POINT_COLUMNS].head(1), expected_points(trained, phantoms[:1], tmp_path))
    assert np.abs(np.diff(found[POINT_COLUMNS], axis=0)).max() < 8
    assert [response.status_code for response in bad] == [400, 400, 400]
    assert "row-0000000.png cannot be read" in bad[0].json()["message"]
    assert "image" in bad[1].json()["message"]
    assert "row-0000000: image is missing" in bad[2].json()["message"]


def table_of(groups):
    return pd.DataFrame({"config": list(groups), "group": list(groups.values()), "mean": np.linspace(5, 8, len(groups))})


class Verdict:
    label, floor, verdict = "error", "ridge", "The verdict."

    def __init__(self, groups, better=()):
        self.table = table_of(groups)
        questions = [f"Is {config} better than ridge?" for config in better]
        self.answers = pd.DataFrame({"question": questions, "significant": True, "gain": 1.0})


@pytest.mark.parametrize(
    ("groups", "config", "says"),
    [
        ({"heatmap": "a", "baseline": "b", "ridge": "c"}, "heatmap", ""),
        ({"heatmap": "a", "baseline": "ab", "ridge": "c"}, "baseline", ""),
        ({"heatmap": "a", "baseline": "b", "ridge": "c"}, "baseline", "heatmap is significantly better"),
        ({"heatmap": "a", "baseline": "a2", "ridge": "c"}, "baseline", "heatmap is significantly better"),
        ({"heatmap": "a", "baseline": "ab", "ridge": "b"}, "baseline", "not significantly better than ridge"),
        ({"heatmap": "a", "ridge": "b"}, "complete", "not in the ranking"),
    ],
)
def test_what_the_verdict_says_against_a_choice(groups, config, says):
    assert says in doubt(config, Verdict(groups))
    assert bool(says) == bool(doubt(config, Verdict(groups)))


def test_a_planned_comparison_with_the_trivial_method_counts():
    groups = {"heatmap": "a", "baseline": "a", "ridge": "a"}
    assert "not significantly better than ridge" in doubt("heatmap", Verdict(groups))
    assert not doubt("heatmap", Verdict(groups, better=["heatmap"]))
    assert doubt("baseline", Verdict(groups, better=["heatmap"]))


def test_promote_registers_a_run_that_the_verdict_supports(trained, checkout, monkeypatch, make_params):
    record, config = experiment.Record.load(trained), "heatmap"
    ranked = {config: [trained]}
    assert configuration_of(record, ranked) == config
    for other in (
        replace(record, inputs={"data": "of another hospital"}),
        replace(record, inputs=record.inputs | {"start": "a run that it continues"}),
        replace(record, params=record.params | {"epochs": 99}),
    ):
        assert configuration_of(other, ranked) == ""
    verdict = Verdict({"other": "a", config: "b", "ridge": "c"})
    monkeypatch.setattr("quintet.experiment.rank_finished", lambda *_: verdict)
    monkeypatch.setattr("quintet.experiment.run_folders", lambda *_: ranked)
    refused = run(app, ["promote", "runs/x"])
    assert isinstance(refused.exception, InputError)
    assert "other is significantly better" in str(refused.exception)
    client = tracking.store.create_client(tracking.tracking_uri())
    assert not client.search_registered_models()
    assert "but other is significantly better" in run(app, ["promote", "runs/x", "--anyway"]).output
    verdict.table = table_of({config: "a", "other": "b", "ridge": "c"})
    done = run(app, ["promote", "runs/x", "--name", "chest"])
    assert done.output.strip().endswith("registered: models:/chest/1, also models:/chest@champion")
    assert run(app, ["promote", "runs/x", "--name", "chest"]).output == done.output  # one run is one version
    assert client.get_model_version_by_alias("chest", "champion").description == "The verdict."
    # by its id: the same run is registered, and what replaces it later leaves it there
    named = client.get_model_version_by_alias("chest", "champion").run_id
    assert "models:/chest/1" in run(app, ["promote", named, "--name", "chest"]).output
    assert client.get_model_version_by_alias("chest", "champion").run_id == named
    (Path("runs/x") / "evaluation" / "notes.txt").write_text("evaluated again")
    run(app, ["promote", "runs/x", "--name", "other"])
    assert client.get_model_version_by_alias("other", "champion").run_id != named
    assert client.get_run(named).info.lifecycle_stage == "active"
    mlflow.set_tracking_uri(tracking.tracking_uri())
    assert mlflow.pyfunc.load_model("models:/chest@champion").metadata.get_input_schema()


def test_an_exported_network_locates_the_same_points(trained, phantoms, tmp_path):
    done = run(app, ["export", "runs/x", "--output", str(tmp_path / "net.onnx")])
    assert "onnxruntime differs from PyTorch by" in done.output, done.exception
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["quintet"])
    images = np.stack([preprocess(read_grey(p), size=about["size"], clahe=about["clahe"]) for p in phantoms])
    points, _ = session.run(None, {"images": images[:, None].astype(np.float32) / 255})
    (model,) = load_study("landmarks").load_models([trained], "cpu")
    with torch.inference_mode():
        expected = model.net(torch.from_numpy(images)[:, None].float() / 255).points
    assert np.abs(points - expected.numpy()).max() < 1e-4
