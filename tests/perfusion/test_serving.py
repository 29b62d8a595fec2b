"""A perfusion run outside the laboratory: as MLflow serves it, and as an ONNX file."""

import base64
import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from quintet.cli import app
from quintet.errors import InputError
from quintet.experiment import predict_folder
from quintet.perfusion.model.networks import build_net
from quintet.serving.export import export
from quintet.training.models import load_model, save_model
from tests.served import ask, post, served


def test_a_pair_of_volumes_gets_the_territories_that_predict_writes(trained, flow_maps, tmp_path):
    files = sorted((flow_maps / "imagesTr").iterdir())[:4]
    rows = [{f"channel_{k:04d}": files[2 * case + k].read_bytes() for k in (0, 1)} for case in (0, 1)]
    source = tmp_path / "in"
    source.mkdir()
    for path in files:
        (source / path.name).write_bytes(path.read_bytes())
    predict_folder("perfusion", [trained[0]], source, tmp_path / "out", overlays=None, device="cpu", skip=False)
    expected = pd.read_csv(tmp_path / "out" / "volumes.csv")
    with served(trained[0], tmp_path) as address:
        found = ask(address, rows)
        refused = post(address, [rows[0] | {"channel_0001": b"no image"}])
        again = ask(address, rows[:1])
    assert np.allclose(found[["left_ml", "right_ml", "both_ml"]], expected[["left_ml", "right_ml", "both_ml"]])
    for case, territories in zip(expected["case"], found["territories"], strict=True):
        mask = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(territories)))
        assert (np.asarray(mask.dataobj) == np.asarray(nib.load(tmp_path / "out" / f"{case}.nii.gz").dataobj)).all()
    assert refused.status_code == 400
    assert "row-0000000_0001.nii" in refused.json()["message"]
    assert "cannot be read" in refused.json()["message"]
    assert "/tmp" not in refused.json()["message"]
    assert again["left_ml"][0] == found["left_ml"][0]


@pytest.mark.parametrize("arch", ["shared", "separate", "crossattention"])
def test_an_exported_network_gives_the_same_probabilities(trained, tmp_path, arch):
    """Also for another batch size than that of the export; the file names what a program must do before and after."""
    state, build = load_model(trained[0] / "model" / "model.pt")
    build |= {"arch": arch}
    net = build_net(build).eval()
    if arch == build["arch"] == "shared":
        net.load_state_dict(state)
    shutil.copytree(trained[0], tmp_path / "run")
    save_model(tmp_path / "run" / "model" / "model.pt", net.state_dict(), build)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--output", str(tmp_path / "net.onnx")])
    assert "onnxruntime differs from PyTorch by" in done.output, done.exception
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["quintet"])
    assert (about["patch"], about["spacing_mm"], about["normalisation"]) == tuple(
        build[k] for k in ("patch", "spacing_mm", "normalisation")
    )
    for batch in (1, 5):
        images = torch.randn(batch, len(build["channels"]), *build["patch"])
        with torch.inference_mode():
            expected = net(images)[0].sigmoid()
        (found,) = session.run(None, {"images": images.numpy()})
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_a_study_without_export_is_refused(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text()) | {"study": "ct"}
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="a run of ct; only landmarks and perfusion can be exported"):
        export(tmp_path / "run", tmp_path / "net.onnx")
    assert not list(tmp_path.glob("*net*"))
