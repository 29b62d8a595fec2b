"""Benchmarks that need a GPU run at a tiny scale without one."""

import subprocess
import sys

import pandas as pd
import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_gpu_runs_one_epoch_of_every_study_at_the_smoke_scale(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--scale", "smoke", "--out", str(tmp_path / "gpu.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "gpu.csv").set_index("study")
    assert set(table.index) == {"landmarks", "perfusion", "breakhis", "ct", "fusion"}
    assert (table["iterations"] >= 1).all()
    assert (table["ms per iteration"] > 0).all()


@pytest.mark.slow
def test_gpu_refuses_the_published_scale_without_a_gpu(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "gpu.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no GPU here" in done.stderr
