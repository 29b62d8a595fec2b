"""Training: batches, the loss of a batch, and what a trained run holds."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from quintet import experiment
from quintet.errors import InputError
from quintet.perfusion.data.prepared import load
from quintet.perfusion.model import module
from quintet.perfusion.model.losses import base, spatial
from quintet.perfusion.model.module import PatchBatchSampler, TerritoryModule
from quintet.perfusion.model.networks import TerritoryNet, plan_stages
from quintet.runs import Record
from tests.conftest import equal
from tests.perfusion.conftest import SMALL


@pytest.mark.parametrize("arch", ["shared", "separate", "crossattention"])
@pytest.mark.parametrize("losses", [[], ["spatial", "complementary"], ["multiscale"], ["adaptive"]])
def test_every_architecture_trains_with_every_loss(small, make_params, flow_arrays, tmp_path, arch, losses):
    shorter = {"perfusion.training.epochs": 1, "perfusion.training.iterations": 2}
    params = make_params(SMALL | shorter | {"perfusion.arch": arch, "perfusion.losses": losses})
    record = experiment.train_selected("perfusion", params, flow_arrays, tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "model" / "history.csv")
    assert np.isfinite(history[["train_loss", "valid_loss", "valid_dice"]]).all().all()
    assert (record.params["arch"], record.params["losses"]) == (arch, losses)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_network_trains_alike(small, make_params, flow_arrays, tmp_path):
    histories = []
    for mode in ("none", "default"):
        params = make_params(SMALL | {"compute.compile": mode})
        experiment.train_selected("perfusion", params, flow_arrays, tmp_path / mode)
        histories.append(pd.read_csv(tmp_path / mode / "model" / "history.csv")[["train_loss", "valid_loss"]])
    np.testing.assert_allclose(*histories, rtol=1e-3)


def test_last_weights_are_kept_not_the_best_on_the_reported_cases(small, flow_arrays, tmp_path, monkeypatch):
    """The held-out cases of a fold are those that are reported: choosing an epoch on them would be optimistic."""

    def worse_with_every_epoch(self):
        self.log("valid_dice", 1 / (1 + self.current_epoch))

    monkeypatch.setattr(TerritoryModule, "on_validation_epoch_end", worse_with_every_epoch)
    params, record = small.perfusion, Record("perfusion", "perfusion_train", "selected", 0, {}, {})
    trained = module.train(load(flow_arrays), params, params.training, small.compute, record=record)
    assert record.metrics["best_epoch"] == 0
    assert record.metrics["last_valid_dice"] == 0.5
    (checkpoint,) = (tmp_path / ".checkpoints").glob("*/*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["epoch"] == params.training.epochs - 1
    assert equal(trained.weights["model"], {name.removeprefix("net."): value for name, value in saved["state_dict"].items()})


def test_batches_are_a_function_of_seed_and_epoch_and_hold_the_foreground(flow_arrays):
    prepared = load(flow_arrays)
    cases = prepared.rows("train", 0)
    sampler = PatchBatchSampler(prepared, cases, 12, 5, oversample=0.33, seed=1)
    first = [rows.tolist() for rows, _ in sampler]
    assert [rows.tolist() for rows, _ in sampler] == first
    sampler.set_epoch(1)
    assert [rows.tolist() for rows, _ in sampler] != first
    allowed = {row for case in cases for row in range(prepared.slices(case).start, prepared.slices(case).stop)}
    filled = np.asarray(prepared.masks).any(axis=(1, 2, 3))
    for rows, foreground in sampler:
        assert set(rows.tolist()) <= allowed
        assert foreground.sum() == 4
        assert filled[rows[foreground]].all()


def small_net(training) -> TerritoryNet:
    plan = plan_stages([32, 32], (2.6, 2.6), training.features)
    return TerritoryNet(2, plan, arch="shared", separate_at="decoder", attention_tokens=16, deep_supervision=True)


def test_deep_supervision_weights_the_base_loss_and_only_that(flow_arrays, small):
    config, training = small.perfusion.configs["shared-spatial"], small.perfusion.training
    territory_module = TerritoryModule(small_net(training), config, training, load(flow_arrays), training.augment)
    masks = (torch.rand(2, 2, 16, 16) > 0.5).float()
    full, half = torch.randn(2, 2, 16, 16), torch.randn(2, 2, 8, 8)
    expected = (
        2 / 3 * base(full, masks).mean() + 1 / 3 * base(half, F.interpolate(masks, size=(8, 8), mode="nearest-exact")).mean()
    )
    expected = expected + 0.1 * spatial(full.sigmoid(), masks).mean()
    torch.testing.assert_close(territory_module.loss([full, half], masks, 0.0), expected)


def test_a_patch_that_cannot_be_halved_is_refused_with_one_that_can(small, make_params, flow_arrays, tmp_path):
    params = make_params(SMALL | {"perfusion.training.patch": [70, 56]})
    with pytest.raises(InputError, match=r"perfusion\.training\.patch: 70 .* use \[72, 56\]"):
        experiment.train_selected("perfusion", params, flow_arrays, tmp_path / "run")


def test_loss_that_is_not_finite_stops_with_step_and_cases(small, make_params, flow_arrays, tmp_path):
    params = make_params(SMALL | {"perfusion.training.rate": 1.0e30, "perfusion.training.clip_norm": 0.0})
    with pytest.raises(InputError, match=r"step \d+ .*cases: .*PerfTerr"):
        experiment.train_selected("perfusion", params, flow_arrays, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
