"""MLflow mirrors run folders completely, never appends to a run and never stops a training run."""

import ctypes
import json
import multiprocessing
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quintet import tracking
from quintet.errors import InputError
from quintet.runs import Record, new_record
from quintet.tracking import store
from quintet.training.models import weight_files

DEAD = "http://127.0.0.1:9"
HISTORY = "epoch,train/loss,val/recall@5\n0,1.5,\n1,1.0,0.25\n2,0.5,0.75\n"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables: its migration takes 3 s once instead of in every test."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    store.create_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository without a database, as the working directory; its name must be quoted in URIs."""
    root = tmp_path / "my repo ü"
    root.mkdir()
    (root / "dvc.yaml").touch()
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(root)
    monkeypatch.setattr(tracking, "reported_stores", set())
    monkeypatch.setattr(store, "cooldown_until", {})
    return root


@pytest.fixture
def repo(bare: Path, migrated: Path) -> Path:
    shutil.copy(migrated, bare / "mlflow.db")
    return bare


def make_record(**changes: Any) -> Record:
    params = {"lr": 0.001, "loss": {"dice": 1.0, "names": ["a", "b"]}, "long": "x" * 9000}
    fields = {"study": "toy", "stage": "train", "config": "base", "seed": 0, "params": params, "inputs": {"arrays": "d41d8"}}
    return Record(**(fields | {"tags": {"git_commit": "abc", "dvc_exp_name": ""}} | changes))


def make_run(folder: Path, record: Record, weights: str = "weights") -> Path:
    for name, text in {
        "model/model.pt": weights,
        "model/history.csv": HISTORY,
        "evaluation/metrics.json": '{"dice": 0.8, "recall@5": 1, "note": "text", "none": null}',
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    record.save(folder)
    return folder


def test_changed_weights_under_one_name_make_another_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"

    def record(weights: str) -> Record:
        return new_record("toy", "train", "base", seed=0, params={"weights": weights}, inputs=weight_files(weights))

    assert record("none").inputs == record(str(path)).inputs == {}
    keys = set()
    for content in ("one", "two", "one"):
        path.write_text(content)
        keys.add(record(str(path)).key)
    assert len(keys) == 2


def runs(study: str = "toy") -> list[Any]:
    client = store.create_client(tracking.tracking_uri())
    return list(client.search_runs([client.get_experiment_by_name(study).experiment_id]))


def states() -> list[str]:
    return sorted(run.data.tags["quintet.state"] for run in runs())


def contact(barrier: Any, results: Any) -> None:
    barrier.wait()
    live = tracking.LiveRun(make_record(seed=os.getpid()))
    live.log({"loss": 1.0}, step=0)
    live.close()
    results.put(len(tracking.reported_stores))


def test_four_processes_open_a_fresh_database(bare: Path, migrated: Path) -> None:
    """`migrated` imports mlflow before the fork, once instead of four times."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=contact, args=(barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [0, 0, 0, 0]
    for process in processes:
        process.join()
    assert len(runs()) == 4


def test_memory_per_epoch_and_files_under_a_second_name(repo: Path) -> None:
    checkpoint = "checkpoints/microf1_20260101_epoch=002_metric=0.7500.pt"
    artifacts = {checkpoint: "model/model.pt", "figures": "evaluation"}
    record = make_record(epochs=[{"peak_memory_mb": 10.0}, {"peak_memory_mb": 30.0}], artifacts=artifacts)
    run_id = tracking.upload(make_run(repo / "runs/toy/selected", record, weights="these"))
    client = store.create_client(tracking.tracking_uri())
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "peak_memory_mb")] == [(0, 10.0), (1, 30.0)]
    assert Path(client.download_artifacts(run_id, checkpoint)).read_text() == "these"
    assert [a.path for a in client.list_artifacts(run_id, "figures")] == ["figures/metrics.json"]
    assert [a.path for a in client.list_artifacts(run_id, "model")] == ["model/history.csv", "model/model.pt"]


def test_a_finished_run_is_mirrored_completely(repo: Path) -> None:
    (repo / "reports/toy").mkdir(parents=True)
    (repo / "reports/toy/ranking.csv").write_text("rank\n1\n")
    (repo / "reports/note.md").write_text("note")
    artifacts = {"reports/toy": "reports/toy", "notes/summary.md": "reports/note.md", "absent": "reports/absent"}
    record = make_record(metrics={"peak_memory_mb": 12.0}, artifacts=artifacts)
    run_id = tracking.upload(make_run(repo / "runs/toy/selected", record))
    (run,) = runs()
    assert run.info.run_id == run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "base fold 0 seed 0")
    tags = {"study": "toy", "config": "base", "fold": "0", "seed": "0", "stage": "train", "key": record.key}
    tags |= {"md5.arrays": "d41d8", "git_commit": "abc", "dvc_exp_name": "", "quintet.state": "complete"}
    assert tags.items() <= run.data.tags.items()
    assert run.data.params == {"lr": "0.001", "loss.dice": "1.0", "loss.names": "['a', 'b']", "long": "x" * 6000}
    final = {"final/dice": 0.8, "final/recall_at_5": 1.0, "final/peak_memory_mb": 12.0}
    assert run.data.metrics == final | {"train/loss": 0.5, "val/recall_at_5": 0.75}
    files = repo / "mlartifacts/toy" / str(run_id) / "artifacts"
    assert sorted(p.relative_to(files).as_posix() for p in files.rglob("*") if p.is_file()) == [
        "evaluation/metrics.json",
        "model/history.csv",
        "model/model.pt",
        "notes/summary.md",
        "record.json",
        "reports/toy/ranking.csv",
    ]
    assert sorted(p.name for p in repo.iterdir() if p.name not in ("dvc.yaml", "runs", "reports")) == [
        ".mlflow.lock",
        "mlartifacts",
        "mlflow.db",
    ]


def test_history_becomes_steps_with_increasing_times(repo: Path) -> None:
    run_id = tracking.upload(make_run(repo / "runs/toy/selected", make_record()))
    client = store.create_client(tracking.tracking_uri())
    loss = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in loss] == [(0, 1.5), (1, 1.0), (2, 0.5)]
    assert loss[0].timestamp < loss[1].timestamp < loss[2].timestamp
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "val/recall_at_5")] == [(1, 0.25), (2, 0.75)]


def test_many_parameters_and_epochs_go_in_batches(repo: Path) -> None:
    folder = make_run(repo / "runs/toy/selected", make_record(params={f"p{i}": i for i in range(250)}))
    (folder / "model/history.csv").write_text("epoch,loss\n" + "".join(f"{i},{i}\n" for i in range(2500)))
    run_id = tracking.upload(folder)
    assert len(runs()[0].data.params) == 250
    assert len(store.create_client(tracking.tracking_uri()).get_metric_history(run_id, "loss")) == 2500


def test_the_same_key_replaces_its_run_and_the_same_content_is_not_uploaded_again(repo: Path) -> None:
    folder = make_run(repo / "runs/toy/selected", make_record())
    first = tracking.upload(folder)
    assert tracking.upload(folder) == first
    make_run(folder, make_record(metrics={"train_seconds": 90.0}), weights="trained again, for longer")
    second = tracking.upload(folder)
    assert second != first
    (run,) = runs()
    assert run.info.run_id == second
    assert 90 <= (run.info.end_time - run.info.start_time) / 1000 < 150  # what the UI shows as its duration


def test_changed_parameters_make_another_run(repo: Path) -> None:
    tracking.upload(make_run(repo / "runs/toy/selected", make_record()))
    tracking.upload(make_run(repo / "runs/toy/selected", make_record(params={"lr": 0.01})))
    assert sorted(run.data.params["lr"] for run in runs()) == ["0.001", "0.01"]


def test_a_live_run_shows_epochs_and_is_replaced_by_the_complete_one(repo: Path) -> None:
    killed = tracking.LiveRun(make_record())
    killed.log({"train/loss": 9.0}, step=0)
    live = tracking.LiveRun(make_record())
    for epoch in range(3):
        live.log({"train/loss": 1.0 / (epoch + 1), "val/recall@5": 0.5}, step=epoch)
    (shown,) = runs()  # the killed one is deleted
    assert shown.info.status == "RUNNING"
    assert shown.data.tags["quintet.state"] == "live"
    assert shown.data.metrics == pytest.approx({"train/loss": 1 / 3, "val/recall_at_5": 0.5})
    live.close()
    tracking.upload(make_run(repo / "runs/toy/selected", make_record()))
    assert states() == ["complete"]


def test_sync_deletes_the_live_runs_of_killed_processes(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing with the same key is trained again."""
    with monkeypatch.context() as context:
        context.setattr(os, "getpid", lambda: 2**30)  # no process has this number
        tracking.LiveRun(make_record(seed=1))
    tracking.LiveRun(make_record(seed=2))  # of this process
    make_run(repo / "runs/toy/selected", make_record())
    tracking.sync(repo)
    assert states() == ["complete", "live"]


def test_a_new_live_run_keeps_the_complete_one(repo: Path) -> None:
    tracking.upload(make_run(repo / "runs/toy/selected", make_record()))
    tracking.LiveRun(make_record()).close(failed=True)
    assert states() == ["complete", "live"]
    assert {run.info.status for run in runs()} == {"FINISHED", "FAILED"}


def test_deleting_a_live_run_stops_only_its_mirroring(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = tracking.LiveRun(make_record())
    store.create_client(tracking.tracking_uri()).delete_run(runs()[0].info.run_id)
    for epoch in range(3):
        live.log({"loss": 1.0}, step=epoch)
    assert capsys.readouterr().err.count("quintet sync") == 1
    assert tracking.upload(make_run(repo / "runs/toy/selected", make_record()))


def test_an_unreachable_server_is_tried_once_and_reported_in_one_line(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    hosts: list[Any] = []

    def refuse(address: Any, *_: Any, **__: Any) -> None:
        hosts.append(address)
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr("urllib3.util.connection.create_connection", refuse)
    live = tracking.LiveRun(make_record())
    for epoch in range(50):
        live.log({"loss": 1.0}, step=epoch)
    live.close()
    assert tracking.upload(make_run(bare / "runs/toy/selected", make_record())) is None
    assert hosts == [("127.0.0.1", 9)] * 2  # one request, and MLFLOW_HTTP_REQUEST_MAX_RETRIES is 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "quintet sync" in line
    assert "refused" in line
    assert "secret" not in line


def test_sync_reports_an_unreachable_server(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    assert tracking.sync(bare) == (0, 0, 0)  # nothing to upload, so the server is not contacted
    make_run(bare / "runs/toy/selected", make_record())
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9.*refused.*MLFLOW_TRACKING_URI"):
        tracking.sync(bare)


def test_sync_fills_an_empty_store_once(repo: Path) -> None:
    for seed in (0, 1):
        make_run(repo / f"runs/toy/sweep/base-{seed}", make_record(seed=seed))
    make_run(repo / "runs/other/selected", make_record(study="other"))
    make_run(repo / "runs/toy/.selected.77.part", make_record(seed=7))
    make_run(repo / "runs/toy/half.part", make_record(seed=8))
    assert tracking.sync(repo) == (3, 0, 0)
    assert tracking.sync(repo) == (0, 3, 0)
    assert len(runs()) == 2
    assert runs()[0].data.metrics["final/dice"] == 0.8
    make_run(repo / "runs/toy/sweep/base-1", make_record(seed=1), weights="trained again")
    assert tracking.sync(repo) == (1, 2, 0)
    assert len(runs()) == 2


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Call `act` once, between the start of an upload and the upload of its files, as another process could."""
    original = store.Store.log_files

    def log_files(*args: Any) -> None:
        monkeypatch.setattr(store.Store, "log_files", original)
        act()
        original(*args)

    monkeypatch.setattr(store.Store, "log_files", log_files)


def test_of_two_concurrent_uploads_the_later_remains(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(repo / "runs/toy/selected", make_record())
    again = make_run(repo / "elsewhere", make_record(), weights="trained again")
    later: list[str | None] = []
    meanwhile(monkeypatch, lambda: later.append(tracking.upload(again)))
    assert tracking.sync(repo) == (1, 0, 0)
    assert [run.info.run_id for run in runs()] == later
    assert states() == ["complete"]


def test_a_folder_that_a_stage_replaces_during_sync(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(repo / "runs/toy/selected", make_record())
    (repo / "runs/toy/gone").mkdir()
    (repo / "runs/toy/gone/record.json").symlink_to("nowhere")  # found, but missing when it is read
    meanwhile(monkeypatch, lambda: shutil.rmtree(folder))
    with pytest.raises(InputError, match=r"runs/toy/selected.*a stage is replacing it. Run `quintet sync` again"):
        tracking.sync(repo)
    assert runs() == []
    make_run(folder, make_record())
    (folder / ".evaluation.77.part").mkdir()
    (folder / ".evaluation.77.part/cases.csv").touch()  # of a killed stage
    assert tracking.sync(repo) == (1, 0, 0)
    assert states() == ["complete"]
    files = store.create_client(tracking.tracking_uri()).list_artifacts(runs()[0].info.run_id)
    assert sorted(file.path for file in files) == ["evaluation", "model", "record.json"]
    shutil.rmtree(folder / ".evaluation.77.part")
    assert tracking.sync(repo) == (0, 1, 0)


def test_a_copied_folder_is_one_run(repo: Path) -> None:
    make_run(repo / "runs/toy/a", make_record(), weights="old")
    make_run(repo / "runs/toy/b", make_record(), weights="new")
    assert tracking.sync(repo) == (1, 0, 0)
    assert tracking.sync(repo) == (0, 1, 0)


def test_a_broken_file_is_named(repo: Path) -> None:
    (make_run(repo / "runs/toy/selected", make_record()) / "record.json").write_text("{}")
    with pytest.raises(InputError, match=r"toy/selected/record\.json"):
        tracking.sync(repo)
    settings = make_run(repo / "runs/toy/selected", make_record()) / "evaluation/settings.json"
    for text in ("{", "[]"):
        settings.write_text(text)
        with pytest.raises(InputError, match=r"evaluation/settings\.json cannot be read"):
            tracking.sync(repo)
    settings.unlink()
    (make_run(repo / "runs/toy/selected", make_record()) / "model/history.csv").write_text("epoch,loss\n0,low\n")
    with pytest.raises(InputError, match=r"toy/selected: model/history\.csv"):
        tracking.sync(repo)


def test_an_experiment_deleted_by_the_user_is_restored_without_replaced_runs(repo: Path) -> None:
    folder = make_run(repo / "runs/toy/selected", make_record(), weights="old")
    tracking.upload(folder)
    make_run(folder, make_record(), weights="new")
    second = tracking.upload(folder)
    client = store.create_client(tracking.tracking_uri())
    client.delete_experiment(client.get_experiment_by_name("toy").experiment_id)
    assert tracking.sync(repo) == (0, 1, 0)
    assert [run.info.run_id for run in runs()] == [second]


def test_a_moved_checkout_is_an_error_with_a_remedy(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking.upload(make_run(repo / "runs/toy/selected", make_record()))
    shutil.copytree(repo, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    with pytest.raises(InputError, match="moved or copied"):
        tracking.sync(Path())


def test_resolve_run_accepts_a_folder_or_an_id(repo: Path) -> None:
    folder = make_run(repo / "runs/toy/selected", make_record())
    run_id = tracking.upload(folder)
    assert tracking.resolve_run(str(folder)) == folder
    by_id = tracking.resolve_run(str(run_id))
    assert (by_id / "model/model.pt").read_text() == "weights"
    assert Record.load(by_id) == make_record()


@pytest.mark.parametrize("name", ["runs/absent", "0" * 32])
def test_resolve_run_names_both_possibilities(repo: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: no run folder .* nor an MLflow run id"):
        tracking.resolve_run(name)


def test_a_live_run_cannot_be_resolved(repo: Path) -> None:
    tracking.LiveRun(make_record())
    with pytest.raises(InputError, match="complete"):
        tracking.resolve_run(runs()[0].info.run_id)


def test_dvc_root_and_the_environment_determine_the_store(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = bare / "stages"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert tracking.tracking_uri() == f"sqlite:///{bare.as_posix()}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "real"))
    assert tracking.tracking_uri() == f"sqlite:///{(tmp_path / 'real').as_posix()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    assert tracking.tracking_uri() == DEAD


def test_outside_a_repository_nothing_is_mirrored(tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    live = tracking.LiveRun(make_record())
    live.log({"loss": 1.0}, step=0)
    assert tracking.upload(make_run(tmp_path / "run", make_record())) is None


def test_a_locked_database_is_tried_again(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    answers: list[Callable[[], str]] = [locked, locked, lambda: "written"]
    assert store.retry_if_locked(lambda: answers.pop(0)()) == "written"


def locked() -> str:
    raise sqlite3.OperationalError("database is locked")


def test_importing_the_package_does_not_import_mlflow() -> None:
    code = "import sys, quintet.tracking; sys.exit('mlflow' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


def test_a_run_that_the_user_deleted_stays_deleted(repo: Path) -> None:
    first = tracking.upload(make_run(repo / "runs/toy/a", make_record(seed=1)))
    make_run(repo / "runs/toy/b", make_record(seed=2))
    client = store.create_client(tracking.tracking_uri())
    client.delete_run(first)
    assert tracking.sync(repo) == (1, 0, 1)
    assert tracking.sync(repo) == (0, 1, 1)
    assert len(runs()) == 1
    assert tracking.sync(repo, restore=True) == (1, 1, 0)
    assert len(runs()) == 2


def test_a_run_id_of_a_copied_checkout_is_refused(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files would be those of the other checkout, which may be trained anew."""
    run = tracking.upload(make_run(repo / "runs/toy/selected", make_record()))
    assert tracking.resolve_run(run).is_relative_to(repo.resolve())
    shutil.copytree(repo, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    with pytest.raises(InputError, match="moved or copied"):
        tracking.resolve_run(run)


def _set_version(database: Path, version: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(f"update alembic_version set version_num = '{version}'")


def _outdate(database: Path) -> None:
    _set_version(database, "7f2a7d5fae7d")


@pytest.mark.parametrize(
    ("damage", "remedy"),
    [
        (_outdate, r"mlflow db upgrade 'sqlite:///.+/mlflow\.db'"),
        (lambda path: _set_version(path, "0000c0ffee00"), r"newer|other version|mlflow db upgrade"),
        (lambda path: path.write_text("no database"), "The file is damaged: move it and mlartifacts away"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "The file is damaged: move it and mlartifacts away"),
    ],
)
def test_a_store_that_cannot_be_used_gets_the_remedy_that_fits(repo: Path, damage: Callable[[Path], Any], remedy: str) -> None:
    tracking.upload(make_run(repo / "runs/toy/selected", make_record()))
    damage(repo / "mlflow.db")
    sync = [sys.executable, "-c", "from quintet.cli import main; main()", "sync"]  # MLflow checks a store once in a process
    done = subprocess.run(sync, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(remedy, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("place", ["./mlruns", "file:mlruns"])
def test_a_folder_is_no_store(repo: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    make_run(repo / "runs/toy/selected", make_record())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    with pytest.raises(InputError, match="unset MLFLOW_TRACKING_URI, or set it to sqlite"):
        tracking.sync(repo)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x/y.db")
    assert "chmod u+w x/y.db" in tracking._remedy(OSError("attempt to write a readonly database"))


def _obey_permissions() -> None:
    """Root without CAP_DAC_OVERRIDE: a file's mode counts as for everybody."""
    ctypes.CDLL(None).prctl(24, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("protected", ["mlflow.db", "."])
def test_a_store_that_is_only_read_gets_its_remedy(repo: Path, protected: str) -> None:
    tracking.upload(make_run(repo / "runs/toy/selected", make_record()))
    make_run(repo / "runs/toy/later", make_record(config="later"))
    mode = (repo / protected).stat().st_mode
    (repo / protected).chmod(0o555)
    sync = [sys.executable, "-c", "from quintet.cli import main; main()", "sync"]
    try:
        done = subprocess.run(sync, capture_output=True, text=True, check=False, preexec_fn=_obey_permissions)
    finally:
        (repo / protected).chmod(mode)
    assert done.returncode == 2
    assert "chmod u+w" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_saved_view_shows_the_scores_of_complete_runs_best_first(repo: Path) -> None:
    address = tracking.save_view("perfusion", ["dice", "train_seconds"], lower_is_better=False)
    client = store.create_client(tracking.tracking_uri())
    experiment = client.get_experiment_by_name("perfusion")
    assert address == f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=quintet"
    view = json.loads(experiment.tags["mlflow.sharedViewState.quintet"])
    assert view["selectedColumns"] == ["metrics.`final/dice`", "metrics.`final/train_seconds`"]
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`final/dice`", False)
    make_run(repo / "runs/perfusion/selected", make_record(study="perfusion"))
    tracking.sync(repo)
    found = client.search_runs([experiment.experiment_id], view["searchFilter"], order_by=[f"{view['orderByKey']} DESC"])
    assert [run.data.tags["quintet.state"] for run in found] == ["complete"]
