"""The whole pipeline, run by DVC's commands: what runs, what does not, and whether MLflow has every run."""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from quintet.runs import finished_runs
from tests.slow.conftest import ENVIRONMENT, NO_NETWORK, can, complete_runs, ran, sh

pytestmark = pytest.mark.slow


def keys_of(root: Path) -> set[str]:
    return {record.key for record, _ in finished_runs(root)}


@pytest.mark.skipif(not can(f"{NO_NETWORK} true"), reason="this kernel offers no network namespace")
def test_every_stage_runs_without_a_network_and_is_in_mlflow(finished):
    with pytest.raises(AssertionError, match="exit status"):
        sh(f"{NO_NETWORK} python -c \"import socket; socket.create_connection(('127.0.0.1', 9))\"", finished, timeout_s=20)
    stages = sh("dvc stage list --name-only", finished).split()
    assert len(stages) > 45
    assert json.loads(sh("dvc status --json", finished)) == {}
    assert len((finished / "logs" / "stages.csv").read_text().splitlines()) == len(stages)
    assert complete_runs(finished) == keys_of(finished)
    assert (finished / "reports" / "index.html").stat().st_size > 100_000


def test_dvc_repro_finds_nothing_to_do(finished):
    text = sh("dvc repro", finished)
    assert ran(text) == []
    assert "Data and pipelines are up to date." in text


def test_make_repro_says_how_long_it_took_and_make_ui_shows_the_runs(copy):
    text = sh("make -o .venv/.done repro", copy)
    assert "uploaded, 0 already there" in text
    assert "landmarks_sweep@heatmap" in text.split("start-up")[-1]
    process = subprocess.Popen(["make", "-o", ".venv/.done", "ui"], cwd=copy, env=ENVIRONMENT, start_new_session=True)
    try:
        assert answers("http://127.0.0.1:5000/health")
    finally:
        os.killpg(process.pid, signal.SIGTERM)


def answers(address: str) -> bool:
    for _ in range(120):
        time.sleep(0.5)
        with contextlib.suppress(OSError), urllib.request.urlopen(address) as page:
            return page.status == 200
    return False


def test_a_selected_configuration_trains_nothing_of_the_sweep(copy):
    text = sh("dvc exp run -S perfusion.arch=separate", copy)
    assert ran(text) == ["perfusion_train", "perfusion_evaluate", "report"]
    sh("quintet sync", copy)
    assert keys_of(copy) <= complete_runs(copy)


def test_two_workers_process_the_queue(copy):
    before = len(complete_runs(copy)) if (copy / "mlflow.db").exists() else 0
    weights = "perfusion.training.loss_weights.spatial=0.05,0.2"
    sh(f"dvc exp run --queue -S 'perfusion.losses=[spatial]' -S {weights} perfusion_evaluate", copy)
    sh("dvc queue start --jobs 2", copy)
    for _ in range(300):
        status = sh("dvc queue status", copy)
        if status.count("Success") == 2 or "Failed" in status:
            break
        time.sleep(1)
    assert status.count("Success") == 2, status
    assert len(complete_runs(copy)) == before + 2
    sh("dvc queue stop --kill", copy, status=None)


def test_a_temporary_experiment_is_tracked_here(copy):
    text = sh("dvc exp run --temp -S landmarks.epochs=1 landmarks_evaluate", copy)
    assert {"landmarks_train", "landmarks_evaluate"} <= set(ran(text))
    assert len(complete_runs(copy)) == 1


def test_a_second_clone_pulls_and_trains_nothing(copy, tmp_path):
    store, second = tmp_path / "store", tmp_path / "second"
    sh(f"dvc remote add -d store '{store}' && git add -A && git commit -qm remote && dvc push --run-cache", copy)
    sh(f"git clone -q '{copy}' '{second}'", tmp_path)
    sh("dvc pull --run-cache", second)
    text = sh("dvc repro", second)
    assert ran(text) == []
    sh("quintet sync", second)
    assert complete_runs(second) == keys_of(second) == keys_of(copy)
    assert sh("git status --porcelain", second) == ""
    # an undone experiment is in the run cache
    sh("dvc exp run -S fusion.seed=1 fusion_evaluate", copy)
    sh("dvc push --run-cache", copy)
    sh("dvc pull --run-cache", second, status=None)
    text = sh("dvc exp run --pull -S fusion.seed=1 fusion_evaluate", second)
    assert ran(text) == ["fusion_evaluate"]  # its metrics are in git, not in the remote; the training is not repeated
    assert "is cached" in text
