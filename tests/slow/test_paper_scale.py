"""`preset paper fusion`: one training step of each method at the published scale, images of 128^3 voxels through a ResNet-50."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from quintet.fusion.data.clinical import Encoder
from quintet.fusion.data.preparation import Preparation
from quintet.fusion.data.prepared import Prepared
from quintet.fusion.model.datasets import Patients, Tokens
from quintet.fusion.model.methods import METHODS
from quintet.fusion.model.module import FusionModule, network_values
from quintet.fusion.model.networks import FusionNet
from quintet.params import parse
from quintet.params.fusion import IMPUTES
from quintet.presets import apply_preset
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "presets", folder / "presets")
    apply_preset(folder, "paper", "fusion")
    return parse(yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))).fusion


@pytest.fixture(scope="module")
def data(paper):
    """Two patients of different classes: one with everything, one with one image and the clinical features."""
    rng, preparation = np.random.default_rng(0), Preparation.of(paper)
    names, size = [*preparation.modalities, "clinical"], preparation.size
    assert size == 128
    table = pd.DataFrame({"patient": ["a", "b"], "split": "train", "label": ["no", "yes"]})
    table = table.assign(**{f"has/{name}": [1, int(k in (0, 3))] for k, name in enumerate(names)})
    volumes = rng.random((2, 3, size, size, size)).astype(np.float16)
    clinical = rng.normal(size=(2, 9)).astype(np.float32)
    return Prepared(volumes, [clinical], table, names, ["no", "yes"], Encoder([]), {}, preparation)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_one_training_step(method, paper, data):
    torch.manual_seed(0)
    config = next(c for c in paper.configs.values() if c.method == method)
    frozen = config.encoders == "frozen"
    training = paper.training.on_tokens() if frozen else paper.training
    net = FusionNet(**network_values(data, config, training))
    module, patients = FusionModule(net, config, training, data).train(), Patients(data)
    batch = patients[[0, 1]]
    if frozen:
        net.encoders.requires_grad_(False)
        tokens = torch.randn(40, 4, training.tokens.size)
        if method in IMPUTES:
            net.fuse.fit(tokens, torch.rand(40, 4) < 0.8)
            net.fuse.requires_grad_(False)
        batch = Tokens(tokens[:2] * patients.present[..., None], patients)[[0, 1]]
    trainable = [p for p in net.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trainable]
    loss = module.weighted(module.losses(batch, batch["present"]))
    loss.backward()
    torch.optim.AdamW(trainable, lr=training.rate).step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p).all() for p in trainable)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, trainable, strict=True))
    assert moved > 0.9 * len(trainable)
