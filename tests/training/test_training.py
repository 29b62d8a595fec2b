"""Batches, schedule, precision and warnings of the shared training code."""

import copy
import math

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

from quintet.errors import InputError
from quintet.runs import Record
from quintet.training import batches as batching
from quintet.training import hardware
from quintet.training.batches import EpochBatchSampler
from quintet.training.fit import Monitor, adam_optimizer, cosine_with_warmup, delete_resume_checkpoints, fit, summarize
from quintet.training.hardware import resolve_device


def epoch_of(batches: EpochBatchSampler, epoch: int) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


def test_order_is_a_function_of_seed_and_epoch():
    rows = np.arange(100, 203)
    one, other = (EpochBatchSampler(rows, 10, seed=1) for _ in range(2))
    assert epoch_of(one, 4) == epoch_of(other, 4)  # whatever was drawn before
    assert epoch_of(one, 4) != epoch_of(one, 5)
    assert epoch_of(EpochBatchSampler(rows, 10, seed=2), 4) != epoch_of(one, 4)
    assert sorted(sum(epoch_of(one, 0), [])) == rows.tolist()
    assert len(one) == len(epoch_of(one, 0)) == 11


def test_ranks_share_an_epoch_without_overlap(monkeypatch):
    seen = []
    for rank in range(4):
        monkeypatch.setattr(batching, "rank_and_world_size", lambda rank=rank: (rank, 4))
        part = EpochBatchSampler(np.arange(100), 8, seed=0)
        assert len(list(part)) == len(part) == 4
        seen += sum(part, [])
    assert sorted(seen) == list(range(100))


def test_cosine_rises_falls_and_ends_at_the_floor(make_params):
    training = make_params({"landmarks.training.warmup": 0.1, "landmarks.training.rate_floor": 1e-5}).landmarks.training
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = adam_optimizer([{"params": [weight], "lr": 1e-2}], training)
    schedule = cosine_with_warmup(optimizer, training, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert np.argmax(rates) in (9, 10)
    assert max(rates) == pytest.approx(1e-2)
    assert rates[55] == pytest.approx(1e-5 + (1e-2 - 1e-5) * (1 + math.cos(math.pi * 45 / 90)) / 2, rel=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize("warmup", [0, 0.001])  # of 100 steps: none
def test_without_a_warm_up_the_first_step_has_the_whole_rate(make_params, warmup):
    training = make_params({"landmarks.training.warmup": warmup}).landmarks.training
    schedule = cosine_with_warmup(
        adam_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-2}], training), training, 100
    )
    rates = [schedule.lr_lambdas[0](step) for step in range(100)]
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("precision", "device", "hardware_bf16", "resolved"),
    [
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, 32),
        (32, "cpu", True, 32),
        ("bf16", "cpu", False, "bf16"),
        (16, "cuda", True, 16),
        ("auto", "mps", True, 32),
    ],
)
def test_precision(monkeypatch, precision, device, hardware_bf16, resolved):
    monkeypatch.setattr(hardware, "cpu_computes_bf16", lambda: hardware_bf16)
    assert hardware.resolve_precision(precision, device) == resolved


@pytest.mark.parametrize("precision", [32, "bf16"])
def test_clipping_goes_with_every_precision_of_a_cpu(make_params, precision):
    """Lightning refuses to clip for an optimiser that says it unscales gradients itself, as fused ones do."""
    training = make_params({"landmarks.training.clip_norm": 1e-3}).landmarks.training

    class Steep(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).square().sum() * 1e3

        def on_before_optimizer_step(self, optimizer):  # before clipping
            self.steep = torch.nn.utils.get_total_norm([p.grad for p in self.parameters()])

        def configure_optimizers(self):
            return adam_optimizer([{"params": list(self.parameters()), "lr": 1e-3}], training)

    module = Steep()
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        precision=hardware.LIGHTNING_PRECISION[str(precision)],
        gradient_clip_val=training.clip_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(8, 4)))
    assert module.steep > 1
    assert torch.nn.utils.get_total_norm([p.grad for p in module.parameters()]) == pytest.approx(1e-3, rel=1e-2)


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="needs a GPU"):
        hardware.resolve_precision(16, "cpu")


def test_compiling_keeps_the_state_dict_and_needs_a_compiler(make_params, monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3))
    names = list(net.state_dict())
    compiled = make_params({"compute.compile": "default", "compute.device": "cpu"}).compute
    monkeypatch.setattr(hardware.shutil, "which", lambda _: None)
    hardware.compile_network(net, make_params().compute)
    with pytest.raises(InputError, match=r"compute\.compile=default needs a C\+\+ compiler"):
        hardware.compile_network(net, compiled)
    assert net._compiled_call_impl is None
    monkeypatch.setattr(hardware.shutil, "which", lambda _: "/usr/bin/g++")
    hardware.compile_network(net, compiled)
    assert net._compiled_call_impl is not None
    assert list(net.state_dict()) == names


def test_rows_of_arrays_on_a_device():
    images, labels = torch.arange(12).view(4, 3), torch.arange(4)
    arrays = batching.DeviceArrays(images, labels)
    arrays.move_to(torch.device("cpu"))
    rows = torch.tensor([2, 0, 2])
    found = arrays[rows]
    assert torch.equal(found[0], images[rows])
    assert torch.equal(found[1], labels[rows])
    assert copy.deepcopy(arrays).arrays[0] is images  # as a moving average of a module copies it


def history(train: list[float], valid: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"epoch": range(len(train)), "train_loss": train, "valid_loss": valid, "score": valid})


@pytest.mark.parametrize(
    ("train", "valid", "drift", "perfect"),
    [
        ([9, 8, 7, 6, 5, 4], [9, 8.5, 8, 8.2, 8.6, 9], True, False),
        ([9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4.5], False, False),
        ([9, 8, 7, 6, 5, 4], [9, 8, 7, 3, 2, 0.4], False, True),
        ([9, 8], [9, 10], False, False),  # too short to tell
        ([9, 8, 7], [0.4, 8, 7], False, True),
    ],
)
@pytest.mark.parametrize("lower", [True, False])
def test_warnings_of_overfitting_and_of_too_good_a_validation(capsys, train, valid, drift, perfect, lower):
    table = history(train, valid)
    table["score"] *= 1 if lower else -1
    found = summarize(table, Monitor("score", lower, perfect=0.5 if lower else -0.5, keep="best"))
    assert found["warning_drift"] == drift
    assert found["warning_perfect_validation"] == perfect
    assert abs(found["best_score"]) == min(valid)
    assert abs(found["last_score"]) == valid[-1]
    printed = capsys.readouterr().out
    assert ("overfitting" in printed) == drift
    assert ("look for a leak" in printed) == perfect
    last = summarize(table, Monitor("score", lower, perfect=0.5 if lower else -0.5, keep="last"))
    assert last["warning_perfect_validation"] == (valid[-1] <= 0.5)  # the epoch that is kept


@pytest.mark.parametrize("device", ["cuda:7", "mps", "tpu"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(InputError, match=r"use auto or cpu|choose auto"):
        resolve_device(device)


class Worsening(L.LightningModule):
    """Its validation score falls after each of the first epochs and would be best in the sixth."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log_dict({"score": 9.0 if self.current_epoch == 5 else -float(self.current_epoch), "valid_loss": 1.0})

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.1)


def test_a_run_that_stopped_early_and_was_killed_stays_stopped(make_params, tmp_path, monkeypatch):
    """Killed between its last epoch and the end of its stage; its checkpoints are still there, and never were on another disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))
    params = make_params({"compute.device": "cpu"})
    loader = torch.utils.data.DataLoader(torch.ones(8, 4))
    found = []
    for _ in range(2):
        record = Record("toy", "train", "base", 0, {}, {})
        monitor = Monitor("score", lower_is_better=False, perfect=math.inf, keep="best", patience=3)
        found.append(
            fit(
                Worsening(),
                loader,
                loader,
                epochs=20,
                seed=0,
                training=params.landmarks.training,
                compute=params.compute,
                record=record,
                monitor=monitor,
            )
        )
    alone, again = found
    assert len(alone.history) == 4
    pd.testing.assert_frame_equal(alone.history, again.history)
    assert all(torch.equal(alone.state[name], again.state[name]) for name in ("weight", "bias"))
    assert again.metrics["train_seconds"] > 0.9 * alone.metrics["train_seconds"]  # with the time of the first process


class Epochs(EpochBatchSampler):
    """Batches that consist of the epoch's number."""

    def __iter__(self):
        yield from ([self.epoch] for _ in range(3))


class Listening(Worsening):
    """Remembers the epochs that its batches came from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, int(batch[0])))
        return super().training_step(torch.ones(1, 4), batch_idx)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_has_the_batches_of_its_epoch(make_params, tmp_path, monkeypatch, workers):
    """Processes that load data ahead have begun before Lightning tells the sampler the epoch."""
    monkeypatch.chdir(tmp_path)
    params = make_params({"compute.device": "cpu"})
    sampler = Epochs(np.arange(3), 1, seed=0)
    train = torch.utils.data.DataLoader(torch.arange(9), sampler=sampler, batch_size=None, num_workers=workers)
    valid = torch.utils.data.DataLoader(torch.ones(2, 4))
    for epochs in (2, 4):
        module = Listening()
        fit(
            module,
            train,
            valid,
            epochs=epochs,
            seed=0,
            training=params.landmarks.training,
            compute=params.compute,
            record=Record("toy", "train", "base", 0, {}, {}),
            monitor=Monitor("score", lower_is_better=False, perfect=math.inf, keep="last"),
        )
        assert all(epoch == own for epoch, own in module.seen)
    assert [epoch for epoch, _ in module.seen] == [2, 2, 2, 3, 3, 3]


def test_a_checkpoint_of_other_code_is_not_resumed(make_params, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    params, loader = make_params({"compute.device": "cpu"}), torch.utils.data.DataLoader(torch.ones(2, 4))
    for code, resumes in (("a", False), ("a", True), ("b", False)):
        record = Record("toy", "train", "base", 0, {}, {}, tags={"code_md5": code})
        fit(
            Listening(),
            torch.utils.data.DataLoader(torch.arange(9), sampler=Epochs(np.arange(3), 1, seed=0), batch_size=None),
            loader,
            epochs=2,
            seed=0,
            training=params.landmarks.training,
            compute=params.compute,
            record=record,
            monitor=Monitor("score", lower_is_better=False, perfect=math.inf, keep="last"),
        )
        assert ("resuming" in capsys.readouterr().out) == resumes
    delete_resume_checkpoints(record)
    assert [path.name for path in (tmp_path / ".checkpoints").iterdir()] == []


class Counting(L.LightningModule):
    """Its only weight equals the number of finished steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.net.weight)

    def training_step(self, batch, batch_idx):
        loss = -self.net.weight.sum()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log_dict({"score": self.net.weight.sum(), "valid_loss": 1.0})

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 1.0)


def test_the_moving_average_is_what_is_validated_and_returned(make_params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = make_params({"compute.device": "cpu", "landmarks.training.clip_norm": 0.0})
    loader = torch.utils.data.DataLoader(torch.ones(30, 1))
    fitted = fit(
        Counting(),
        loader,
        loader,
        epochs=2,
        seed=0,
        training=params.landmarks.training,
        compute=params.compute,
        record=Record("toy", "train", "base", 0, {}, {}),
        monitor=Monitor("score", lower_is_better=False, perfect=math.inf, keep="best"),
        weight_averaging=0.8,
    )
    average, after = 1.0, []
    for step in range(1, 60):  # the first step starts the average
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * (step + 1)
        after.append(average)
    assert fitted.history["score"].tolist() == pytest.approx([after[28], after[58]])
    assert fitted.state["weight"].item() == fitted.last["weight"].item() == pytest.approx(after[58])
