"""Training: every objective and selector, resuming, and data loading."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from quintet.ct.data.prepared import load
from quintet.ct.model.module import Volumes
from quintet.errors import InputError
from tests.conftest import state_of
from tests.ct.conftest import SMALL, train

KINDS = {"micro-f1": ["random"], "semi-hard": ["random", "disjoint"], "graded": ["random", "overlapping"]}
KINDS |= {name: ["disjoint"] for name in ("all", "hardest", "random-hard")}


@pytest.mark.parametrize(("config", "batches"), [(f"adaptive-{name}", kind) for name, kinds in KINDS.items() for kind in kinds])
def test_every_objective_and_selector_trains(config, batches, make_params, cubes, tmp_path, monkeypatch):
    """In every kind of batch; without added cross-entropy, only micro-F1 has a classification head."""
    monkeypatch.chdir(tmp_path)
    kinds = dict.fromkeys(("triplet", "graded_contrast"), batches)
    weights = dict.fromkeys(("micro_f1", "triplet", "graded_contrast"), float(batches == "random"))
    params = make_params(SMALL | {"ct.training.batches": kinds, "ct.training.cross_entropy": weights})
    record = train(params, cubes, tmp_path / "run", config=params.ct.configs[config])
    has_head = config == "adaptive-micro-f1" or batches == "random"
    assert ("head.weight" in state_of(tmp_path / "run")) == has_head
    assert np.isfinite(record.metrics["last_valid_choice"])


def test_a_checkpoint_is_chosen_by_the_ranked_metric_unless_the_objective_is_micro_f1(small, cubes):
    for config in ("adaptive-micro-f1", "adaptive-graded"):
        train(small, cubes, Path(config), config=small.ct.configs[config])
        history = pd.read_csv(Path(config) / "model" / "history.csv")
        expected = history["valid_ndcg_at_10"]
        if config == "adaptive-micro-f1":
            expected = history["valid_micro_f1"] + 1e-4 * expected
        assert history["valid_choice"].tolist() == pytest.approx(expected.tolist())


def test_history_curves_and_checkpoint_name(trained):
    run, _, record = trained
    assert {p.name for p in (run / "model").iterdir()} == {"model.pt", "final.pt", "history.csv", "pr_curves.csv"}
    history = pd.read_csv(run / "model" / "history.csv")
    assert {"train_loss", "valid_loss", "valid_ndcg_at_10", "valid_map_at_5", "valid_micro_f1", "train_eval_ndcg_at_10"} <= set(
        history
    )
    assert not history.isna().any().any()
    curves = pd.read_csv(run / "model" / "pr_curves.csv")
    assert set(curves["epoch"]) == {0, 1}
    assert len(curves) == 2 * 3 * 21
    best = int(record.metrics["best_epoch"])
    ((name, path),) = record.artifacts.items()
    assert name.startswith("checkpoints/microf1_20")
    assert name.endswith(f"_epoch={best:03d}_metric={history['valid_micro_f1'][best]:.4f}.pt")
    assert path == "model/model.pt"


def test_weights_that_diverge_in_the_last_step_of_an_epoch_are_reported(make_params, cubes, tmp_path, monkeypatch):
    """One step per epoch: the loss of the step is finite, the embeddings after it are not."""
    monkeypatch.chdir(tmp_path)
    changes = {"ct.training.batch_size": 40, "ct.training.rate": 1.0e30, "ct.training.clip_norm": 0.0}
    with pytest.raises(InputError, match=r"diverged in epoch 1; lower ct\.training\.rate"):
        train(make_params(SMALL | changes), cubes, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_loader_processes_started_by_spawn_read_the_file_themselves(cubes):
    """As on Windows: only a path and the labels are sent to them."""
    volumes = Volumes(load(cubes))
    batch = volumes[[3, 5]]
    assert len(pickle.dumps(volumes)) < 20_000 < volumes.volumes.nbytes
    loader = DataLoader(volumes, sampler=[[3, 5]], batch_size=None, num_workers=1, multiprocessing_context="spawn")
    (loaded,) = list(loader)
    assert torch.equal(loaded["volumes"], batch["volumes"])
    assert loaded["case"] == batch["case"]
