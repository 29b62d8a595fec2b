"""The perfusion sweep run concurrently, and on a Ray cluster that loses processes; one training in two processes."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.slow.conftest import ENVIRONMENT, results, sh

pytestmark = pytest.mark.slow

SWEEP = "runs/perfusion/sweep"


@pytest.fixture(scope="module")
def full_sweep(finished, tmp_path_factory) -> Path:
    """The finished clone with all 14 configurations in its sweep and more epochs, so that all are stale."""
    root = tmp_path_factory.mktemp("full_sweep") / "quintet"
    shutil.copytree(finished, root, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".mlflow*"))
    path = root / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["perfusion"]["sweep"]["configs"] = list(values["perfusion"]["configs"])
    values["perfusion"]["training"]["epochs"] = 3
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    sh("git commit -qam 'all 14'", root)
    return root


@pytest.fixture(scope="module")
def serial(full_sweep, tmp_path_factory) -> dict[str, str]:
    """The results of `dvc repro` with one thread per sweep run."""
    root = tmp_path_factory.mktemp("serial") / "quintet"
    shutil.copytree(full_sweep, root, symlinks=True)
    sh("dvc repro perfusion_sweep", root, QUINTET_THREADS="1")
    files = results(root, SWEEP)
    assert sum(name.endswith("model.pt") for name in files) == 14
    return files


def test_concurrent_runs_give_the_results_of_dvc_repro(full_sweep, serial, tmp_path):
    root = tmp_path / "quintet"
    shutil.copytree(full_sweep, root, symlinks=True)
    text = sh("quintet repro --jobs 2 --threads 1 perfusion_sweep", root)
    assert text.splitlines()[-1].startswith("14 run, 0 restored")
    assert results(root, SWEEP) == serial
    assert sh("dvc status perfusion_sweep", root).strip().endswith("Data and pipelines are up to date.")


class Cluster:
    """Ray nodes of one CPU each on this machine; their folder tells them from those of other clusters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"

    def processes(self, name: str) -> list[psutil.Process]:
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(self.folder) in (line := " ".join(process.info["cmdline"] or [])) and name in line
        ]

    def add(self) -> set[int]:
        """Start one more node; returns the process id of its raylet."""
        before = {process.pid for process in self.processes("raylet/raylet")}
        head = f"--head --port={self.address.rpartition(':')[2]} --temp-dir={self.folder} --include-dashboard=false"
        role = f"--address={self.address}" if before else head
        sh(f"ray start {role} --num-cpus=1 --object-store-memory=100000000 --disable-usage-stats", self.folder)
        return {process.pid for process in self.processes("raylet/raylet")} - before

    def stop(self) -> None:
        for process in self.processes(""):
            process.kill()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # tmp_path is too long for a socket's name
    cluster = Cluster(folder)
    cluster.add()
    yield cluster
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_sweep_survives_the_loss_of_a_process_and_of_a_node(full_sweep, serial, cluster, tmp_path):
    root = tmp_path / "quintet"
    shutil.copytree(full_sweep, root, symlinks=True)
    node = cluster.add()
    assert len(node) == 1
    command = ["quintet", "repro", "--engine", "ray", "--jobs", "2", "--threads", "1", "perfusion_sweep"]
    environment = ENVIRONMENT | {"RAY_ADDRESS": cluster.address, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    lines, killed = [], []
    for line in process.stdout:
        lines.append(line)
        done = sum(": done" in other for other in lines)
        if done == 3 and not killed:
            killed.append(kill_a_stage(root))
        if done == 6 and len(killed) == 1:
            psutil.Process(next(iter(node))).kill()
            killed.append("node")
    text = "".join(lines)
    assert process.wait() == 0, text
    assert "2 Ray nodes with 2 CPUs" in lines[0]
    assert len(killed) == 2
    assert lines[-1].startswith("14 run, 0 restored"), text
    assert results(root, SWEEP) == serial
    assert sh("dvc status perfusion_sweep", root).strip().endswith("Data and pipelines are up to date.")


def test_an_unusable_cluster_is_reported_at_once(full_sweep, cluster, tmp_path):
    root = tmp_path / "quintet"
    shutil.copytree(full_sweep, root, symlinks=True)
    command = "quintet repro --engine ray perfusion_sweep"
    text = sh(f"{command} --threads 2", root, status=2, RAY_ADDRESS=cluster.address)
    assert text.splitlines()[-1].endswith("each stage needs 2 CPUs (--threads), but no node has more than 1")
    text = sh(command, root, status=2, RAY_ADDRESS="127.0.0.1")  # no port
    assert "no Ray cluster answers at 127.0.0.1 (" in text
    assert "Traceback" not in text


def kill_a_stage(root: Path) -> str:
    """kill -9 a sweep run; returns its configuration."""
    for _ in range(200):
        for process in psutil.process_iter(["cmdline", "cwd"]):
            line = process.info["cmdline"] or []
            if process.info["cwd"] == str(root) and "stages/perfusion_sweep.py" in line and "sh" not in Path(line[0]).name:
                process.kill()
                return line[line.index("--config") + 1]
        time.sleep(0.1)
    raise AssertionError("no sweep run is running")


def test_one_training_in_two_processes(copy):
    stage = "stages/perfusion_train.py --data data/processed/perfusion --run runs/perfusion/selected"
    before = results(copy, "runs/perfusion/selected/model")
    shutil.rmtree(copy / "runs/perfusion/selected")  # as DVC does; the same training would be kept
    sh(f"torchrun --nproc-per-node 2 -- {stage}", copy)
    assert results(copy, "runs/perfusion/selected/model").keys() == before.keys()
    assert results(copy, "runs/perfusion/selected/model") != before  # twice as many cases per step
    sh("dvc commit -f perfusion_train", copy)
    assert "perfusion_train" not in sh("dvc repro perfusion_evaluate", copy).split("Running stage")[-1]
    assert sh("dvc status perfusion_evaluate", copy).strip().endswith("Data and pipelines are up to date.")
