"""Faults of real machines (kills, full disks, read-only folders, locks, damaged caches): the message, and what is left behind."""

import contextlib
import csv
import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.slow.conftest import ENVIRONMENT, can, complete_runs, ran, results, sh

pytestmark = pytest.mark.slow

# root may write everywhere; without these two capabilities, owner and mode apply to it as to everyone
UNPRIVILEGED = "setpriv --bounding-set=-dac_override,-dac_read_search --" if os.geteuid() == 0 else ""


# --- kill -9 ---

OUTPUTS = {
    "fusion_synthesize": ["data/synthetic/fusion"],
    "fusion_segment": ["data/segmented/fusion"],
    "fusion_prepare": ["data/processed/fusion"],
    "landmarks_train": ["runs/landmarks/selected/model"],
    "fusion_evaluate": ["runs/fusion/selected/evaluation", "reports/fusion/selected.json"],
    "ct_baselines": ["runs/ct/baselines"],
    "breakhis_sweep@mmnet": ["runs/breakhis/sweep/mmnet"],
    "perfusion_rank": ["reports/perfusion/ranking"],
    "report": ["reports"],
}


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_killed_stage_gives_the_same_result_when_run_again(stage, copy):
    run_alone(stage, copy)
    before = results(copy, *OUTPUTS[stage])
    assert before
    kill_halfway(stage, copy)
    run_alone(stage, copy)
    assert results(copy, *OUTPUTS[stage]) == before
    assert leftovers(copy) == []


def run_alone(stage: str, root: Path) -> None:
    assert ran(sh(" ".join(forced(stage)), root)) == [stage]


def forced(stage: str) -> list[str]:
    return ["dvc", "repro", "--no-run-cache", "--force", "--single-item", stage]


def kill_halfway(stage: str, root: Path) -> None:
    """Start a stage and kill -9 its process after its imports and before its end."""
    with (root / "logs" / "stages.csv").open(newline="") as file:
        start_up, total = [(float(row[2]), float(row[3])) for row in csv.reader(file) if row[0] == stage][-1]
    for share in (0.5, 0.25, 0.1, 0.02):  # of the work; a smaller one if the stage was faster than last time
        with (root / "killed.log").open("w") as log:  # not a pipe: joblib's workers hold it open for minutes after the kill
            process = subprocess.Popen(forced(stage), cwd=root, env=ENVIRONMENT, stdout=log, stderr=log)
        victim = worker(root, f"stages/{stage.partition('@')[0]}.py", process)
        time.sleep(max(0.0, victim.create_time() + start_up + share * (total - start_up) - time.time()))
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
        if process.wait():
            assert f"failed to reproduce '{stage}'" in (root / "killed.log").read_text()
            return
    raise AssertionError(f"{stage} always ended before it was killed")


def worker(root: Path, script: str, dvc: "subprocess.Popen[Any]") -> psutil.Process:
    """The process of a stage."""
    while dvc.poll() is None:
        for process in psutil.process_iter(["cmdline", "cwd"]):
            line = process.info["cmdline"] or []
            if process.info["cwd"] == str(root) and script in line:
                return process
        time.sleep(0.02)
    raise AssertionError("the stage did not start")


def leftovers(root: Path) -> list[str]:
    folders = ("data", "runs", "reports", ".checkpoints")
    found = [path for folder in folders for path in (root / folder).rglob("*")]
    return [str(path) for path in found if ".part" in path.name or path.suffix == ".ckpt"]


def test_a_stage_that_outlives_a_killed_dvc_is_waited_for(copy):
    run_alone("perfusion_train", copy)
    before = results(copy, "runs/perfusion/selected/model")
    command = forced("perfusion_train")
    process = subprocess.Popen(command, cwd=copy, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    orphan = worker(copy, "stages/perfusion_train.py", process)
    while not list((copy / ".checkpoints").glob("perfusion_train*.lock")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    orphan.suspend()  # keeps it alive for as long as the test needs
    again = subprocess.Popen(command, cwd=copy, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert again.stdout
    lines = []
    for line in again.stdout:
        lines.append(line)
        if "another process trains the same run" in line:
            orphan.resume()
    assert again.wait() == 0, "".join(lines)
    assert any("waiting for it to end" in line for line in lines)
    assert results(copy, "runs/perfusion/selected/model") == before


# --- storage ---


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """An empty tmpfs over a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sh(f"mount -t tmpfs -o {options} none '{folder}'", folder.parent)
    try:
        yield
    finally:
        sh(f"umount -l '{folder}'", folder.parent)


def command_of(stage: str, root: Path) -> str:
    """The command of a stage, whose outputs are deleted as DVC deletes them: a finished training would be used again."""
    if stage.endswith("_train"):
        shutil.rmtree(root / "runs" / stage.partition("_")[0] / "selected")
    return re.findall("^> (.*)$", sh(f"dvc repro --dry --force --single-item {stage}", root), re.M)[0]


def can_mount() -> bool:
    return can("d=$(mktemp -d) && mount -t tmpfs -o size=64k none $d && umount $d && rmdir $d")


MOUNTS = {
    "landmarks_synthesize": "data/synthetic",
    "perfusion_synthesize": "data/synthetic",
    "fusion_segment": "data/segmented",
    "breakhis_prepare": "data/processed",
    "ct_prepare": "data/processed",
    "ct_train": "runs/ct/selected",
    "landmarks_sweep@frozen": "runs/landmarks/sweep",
    "landmarks_baselines": "runs/landmarks",
    "perfusion_rank": "reports/perfusion",
    "perfusion_train": ".checkpoints",
}


@pytest.mark.skipif(not can_mount(), reason="this kernel or user may not mount a tmpfs")
@pytest.mark.parametrize("stage", MOUNTS)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(stage, copy):
    folder = copy / MOUNTS[stage]
    command = command_of(stage, copy)
    with mounted(folder, "size=48k"):
        text = sh(command, copy, status=2, DVC_STAGE=stage)
        assert text.count("the disk is full; make room, then run the same command again") == 1
        assert "Traceback" not in text
        # checkpoints are complete, too
        assert [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".ckpt")] == []
        sh(f"mount -o remount,size=64m '{folder}'", copy)
        sh(command, copy, DVC_STAGE=stage)


@pytest.mark.skipif(not can_mount(), reason="this kernel or user may not mount a tmpfs")
@pytest.mark.parametrize("stage", ["landmarks_synthesize", "ct_prepare", "ct_train", "perfusion_rank"])
def test_a_read_only_file_system_is_one_line(stage, copy):
    command = command_of(stage, copy)
    with mounted(copy / MOUNTS[stage], "ro"):
        text = sh(command, copy, status=2, DVC_STAGE=stage)
    assert "Traceback" not in text
    assert "read-only" in text.splitlines()[-1].lower()


@pytest.mark.skipif(not can(f"{UNPRIVILEGED} true"), reason="this kernel does not let root drop capabilities")
@pytest.mark.parametrize(
    ("stage", "path", "mode"),
    [
        ("landmarks_prepare", "data/processed", 0o500),
        ("perfusion_train", ".checkpoints", 0o500),
        ("fusion_prepare", "data/synthetic/fusion/clinical_data.csv", 0o000),
        ("ct_train", "data/processed/ct/volumes.npy", 0o000),
        ("landmarks_train", "params.yaml", 0o000),
    ],
)
def test_wrong_permissions_name_the_file_and_the_remedy(stage, path, mode, copy):
    command = command_of(stage, copy)
    (copy / path).chmod(mode)
    text = sh(f"{UNPRIVILEGED} {command}", copy, status=2, DVC_STAGE=stage)
    assert "Traceback" not in text
    assert path in text.splitlines()[-1]
    assert "permission" in text.splitlines()[-1].lower()


def test_a_locked_mlflow_does_not_fail_the_stage(copy):
    sh("quintet sync", copy)
    keys = complete_runs(copy)
    with contextlib.closing(sqlite3.connect(copy / "mlflow.db", isolation_level=None)) as database:
        database.execute("begin exclusive")
        text = sh("dvc repro -f -s landmarks_train", copy)
        database.execute("rollback")
    assert text.count("not mirrored in MLflow") == 1
    assert "database is locked" in text
    sh("dvc repro landmarks_evaluate && quintet sync", copy)
    assert complete_runs(copy) == keys


# --- DVC ---


def damage(root: Path, output: str) -> None:
    """Flip one byte of an output's object in DVC's cache."""
    digest = hashlib.md5((root / output).read_bytes()).hexdigest()
    cached = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 0xFF
    cached.chmod(0o644)
    cached.write_bytes(content)
    cached.chmod(0o444)  # as after a disk fault


@pytest.mark.parametrize("command", ["dvc repro", "quintet repro --jobs 2"])
def test_a_damaged_cache_object_is_found_and_restored(command, copy):
    before = results(copy, "data/processed/landmarks", "runs/landmarks")
    damage(copy, "data/processed/landmarks/images.npy")
    assert sh("quintet doctor --cache", copy, status=2).count(" is damaged; ") == 1
    remedy = re.search(r"`(rm -rf [^`]*)`", sh("quintet doctor --cache", copy, status=2)).group(1)
    assert remedy.endswith(f" {copy}/data/processed/landmarks")
    sh(remedy, copy)
    text = sh(f"{command} landmarks_rank", copy)
    assert "landmarks_prepare" in text
    assert "0 damaged" in sh("quintet doctor --cache", copy)
    assert results(copy, "data/processed/landmarks", "runs/landmarks") == before


@pytest.mark.parametrize(
    ("command", "started"),
    [
        ("dvc repro perfusion_train", "Running stage 'perfusion_train'"),
        ("quintet repro perfusion_train", "perfusion_train: started"),
    ],
)
def test_of_two_concurrent_runs_one_works_and_the_other_reports_that_it_is_busy(command, started, copy):
    values = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(values.replace("deep_supervision: true", "deep_supervision: false"))
    first = subprocess.Popen(
        command.split(), cwd=copy, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = next(line for line in first.stdout if started in line)
    second = sh(command, copy, status=None)
    output += first.communicate()[0]
    assert first.returncode == 0, output
    assert "is busy" in second, second
    assert "Traceback" not in second
    assert sh("dvc status perfusion_train", copy).strip().endswith("Data and pipelines are up to date.")
