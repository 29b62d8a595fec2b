"""One study's experiment in the MLflow store: connect to it, upload complete runs and replace older ones."""

import errno
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import psutil

from quintet.errors import InputError
from quintet.files import is_temporary, repository_root
from quintet.params import StudyName
from quintet.runs import Record, content_md5, extra_artifacts, final_metrics, flatten
from quintet.tracking.entries import MetricValue, batches, epoch_metrics, now_ms, read_history, tags_of, valid_name

T = TypeVar("T")
ModelWriter = Callable[[Path, Path], None]  # (run folder, new folder)
STATE, CONTENT, PROCESS = "quintet.state", "quintet.content", "quintet.process"
PAGE_SIZE = 1000  # runs per search request
COOLDOWN_S = 600.0  # how long an unreachable store is not tried again
LOCK_TIMEOUT_S = 60.0  # how long to wait for another process that creates the database
TRANSFER_TIMEOUT_S = 120  # for uploads and downloads of models; quintet/__init__.py sets 5 s for small requests

cooldown_until: dict[str, float] = {}  # store -> monotonic time before which training runs do not try it again


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the database in the root of the main checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(checkout() / 'mlflow.db').as_posix()}"


class Store:
    """One study's experiment. Raises any exception of MLflow, and ConnectionError if the store failed within the last COOLDOWN_S
    (unless `ignore_cooldown`)."""

    def __init__(self, study: str, *, ignore_cooldown: bool = False) -> None:
        uri = tracking_uri()
        if not ignore_cooldown and time.monotonic() < cooldown_until.get(uri, 0.0):
            raise ConnectionError("it could not be reached a moment ago")
        try:
            with connection_lock(uri):
                self.client = create_client(uri)
                self.experiment = _find_or_create_experiment(self.client, uri, study)
        except Exception:
            cooldown_until[uri] = time.monotonic() + COOLDOWN_S
            raise

    def upload(self, record: Record, folder: Path, root: Path, write_model: ModelWriter | None = None) -> str:
        """Upload a run folder unless the store has it already; returns the run id. `write_model` makes the `model` folder of a
        trained run a model of MLflow.

        Raises InputError if its metrics cannot be read and FileNotFoundError if the folder is replaced meanwhile.
        """
        content = content_md5(record, folder, root)
        if existing := self.complete_runs(f" AND tags.key = '{record.key}'").get((record.key, content)):
            return existing
        try:
            final = [(f"final/{name}", value, now_ms(), 0) for name, value in final_metrics(record, folder).items()]
            values = read_history(folder / "model" / "history.csv") + final + epoch_metrics(record.epochs)
        except ValueError as error:
            raise InputError(f"{folder}: model/history.csv or evaluation/metrics.json cannot be read ({error})") from error
        run = self.create(record, "uploading", seconds=record.metrics.get("train_seconds", 0.0))
        try:
            self.log_metrics(run, values)
            self.log_files(run, folder, extra_artifacts(record, folder, root))
            if write_model and (folder / "model" / "model.pt").is_file():
                self.log_model(run, folder, write_model)
            if content_md5(record, folder, root) != content:  # MLflow uploads whatever it finds, even nothing
                raise FileNotFoundError(errno.ENOENT, "replaced", str(folder))
            self.finish(run, content)
            self.delete_older(record.key, run)
        except FileNotFoundError:
            self.discard(run)
            raise
        except Exception:
            if self.call("get_run", run).data.tags.get(STATE) != "replaced":
                raise
            return run  # another process uploaded the same key meanwhile, and its newer run remains
        if trained_key := record.tags.get("trained_key"):  # the live run of the training
            self.delete_live(trained_key)
        return run

    def complete_runs(self, condition: str = "", *, deleted: bool = False) -> dict[tuple[str, str], str]:
        """(key, MD5 of the content) -> run id, for all complete runs, or those that the user deleted; `condition` narrows the
        search."""
        runs = self.search(f"tags.`{STATE}` = 'complete'{condition}", deleted=deleted)
        return {(run.data.tags.get("key", ""), run.data.tags.get(CONTENT, "")): run.info.run_id for run in runs}

    def create(self, record: Record, state: str, *, seconds: float = 0.0) -> str:
        """Create a run, begun `seconds` ago, with its tags and parameters; returns its id."""
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

        begun = now_ms() - round(1000 * seconds)  # the UI's "Duration" is the time of training
        process = {PROCESS: f"{platform.node()} {os.getpid()}"} if state == "live" else {}
        created = self.call("create_run", self.experiment, begun, tags_of(record) | {STATE: state} | process, record.name)
        params = [Param(valid_name(key), str(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in flatten(record.params).items()]
        for batch in batches(params, MAX_PARAMS_TAGS_PER_BATCH):
            self.call("log_batch", created.info.run_id, params=batch)
        return str(created.info.run_id)

    def log_metrics(self, run: str, values: list[MetricValue]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.validation import MAX_METRICS_PER_BATCH

        metrics = [Metric(valid_name(name), float(value), time_ms, step) for name, value, time_ms, step in values]
        for batch in batches(metrics, MAX_METRICS_PER_BATCH):
            self.call("log_batch", run, metrics=batch)

    def log_files(self, run: str, folder: Path, artifacts: dict[str, Path]) -> None:
        """Upload what a run folder contains, and `artifacts`: name in MLflow -> file or folder."""
        own = {path.name: path for path in sorted(folder.iterdir()) if not is_temporary(path.name)}
        with transfer_timeout():
            for name, path in (own | artifacts).items():
                if path.is_dir():
                    self.call("log_artifacts", run, str(path), name)
                else:
                    self._log_file(run, path, name)

    def log_model(self, run: str, folder: Path, write_model: ModelWriter) -> None:
        with tempfile.TemporaryDirectory() as place, transfer_timeout():
            write_model(folder, Path(place) / "model")
            self.call("log_artifacts", run, str(Path(place) / "model"), "model")

    def _log_file(self, run: str, path: Path, name: str) -> None:
        artifact_folder, _, file_name = name.rpartition("/")
        with tempfile.TemporaryDirectory() as links:
            if path.name != file_name:  # MLflow takes the artifact's name from the file
                link = Path(links) / file_name
                link.symlink_to(path.resolve())
                path = link
            self.call("log_artifact", run, str(path), artifact_folder or None)

    def finish(self, run: str, content: str) -> None:
        """Mark a run as complete. The tags are set last and in one call, so that an interrupted upload is never complete."""
        from mlflow.entities import RunTag

        self.call("set_terminated", run, "FINISHED")
        self.call("log_batch", run, tags=[RunTag(CONTENT, content), RunTag(STATE, "complete")])

    def delete_older(self, key: str, run: str, *, only_live: bool = False) -> None:
        """Delete a key's runs that are older than `run`, and its live runs; with `only_live`, its older live runs.

        Newer runs are kept, so that one run remains when two processes upload the same key at once.
        """
        others = {other.info.run_id: other for other in self.search(f"tags.key = '{key}'")}
        age = {run_id: (other.info.end_time or other.info.start_time, run_id) for run_id, other in others.items()}
        del others[run]
        for run_id, other in others.items():
            live = other.data.tags.get(STATE) == "live"
            older = age[run_id] < age[run]
            if (older and live) if only_live else (older or live):
                self.discard(run_id)

    def delete_live(self, key: str) -> None:
        for other in self.search(f"tags.key = '{key}' AND tags.`{STATE}` = 'live'"):
            self.discard(other.info.run_id)

    def delete_abandoned(self) -> None:
        """Delete the live runs of this machine's processes that have ended: they were killed, perhaps with another key."""
        for run in self.search(f"tags.`{STATE}` = 'live'"):
            machine, _, process = run.data.tags.get(PROCESS, "").rpartition(" ")
            if machine == platform.node() and not psutil.pid_exists(int(process)):
                self.discard(run.info.run_id)

    def discard(self, run: str) -> None:
        """Delete a run; one that a registered model refers to stays, because `mlflow gc` would delete the model with it."""
        self.call("set_tag", run, STATE, "replaced")  # distinguishes it from runs that the user deleted, see _restore
        if not self.call("search_model_versions", f"run_id = '{run}'"):
            self.call("delete_run", run)

    def search(self, condition: str, *, deleted: bool = False) -> list[Any]:
        from mlflow.entities import ViewType

        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        found: list[Any] = []
        token: str | None = ""
        while token is not None:
            page = self.call(
                "search_runs", [self.experiment], condition, run_view_type=view, max_results=PAGE_SIZE, page_token=token or None
            )
            found += page
            token = page.token or None
        return found

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the MLflow client, again if the database is locked."""
        return retry_if_locked(lambda: getattr(self.client, method)(*args, **options))


# --- connecting ---


def checkout() -> Path:
    """The root of the main checkout. Raises InputError outside a repository."""
    root = repository_root()
    if not os.environ.get("DVC_ROOT") and not (root / "dvc.yaml").is_file():
        raise InputError(f"{root}: no dvc.yaml in it or its parents; change to the repository or set MLFLOW_TRACKING_URI")
    return root.resolve()


def _database_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve() if uri.startswith("sqlite:///") else None


def _artifact_location(uri: str, study: str) -> str | None:
    """The folder of a study's artifacts, next to a local database; None for a server, which has its own."""
    database = _database_path(uri)
    return (database.parent / "mlartifacts" / study).as_uri() if database else None


def connection_lock(uri: str) -> AbstractContextManager[Any]:
    """A lock for opening a database: several processes that open a new SQLite database at once crash in its migration."""
    from filelock import FileLock

    if not (database := _database_path(uri)):
        return nullcontext()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  takes 1-2 s, so before the lock

    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(database.parent / ".mlflow.lock", timeout=LOCK_TIMEOUT_S)


def create_client(uri: str) -> Any:
    """An MlflowClient, with the libraries' messages about retries and locked databases turned off."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name in ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def _find_or_create_experiment(client: Any, uri: str, study: str) -> str:
    """The id of a study's experiment, which is restored if it was deleted and created if it does not exist.

    A new store gets the experiments of all studies in a fixed order, so that their ids, which are part of the report's links, are
    the same everywhere.
    """
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        for name in StudyName if study in list(StudyName) else [study]:
            _create(client, uri, name)
        experiment = client.get_experiment_by_name(study)
    if experiment.lifecycle_stage == "deleted":
        _restore(client, experiment.experiment_id)
    reject_moved(uri, experiment.artifact_location)
    return str(experiment.experiment_id)


def reject_moved(uri: str, location: str) -> None:
    """Raise InputError if a local database keeps its files (`location`) beside another database: the checkout was copied."""
    database = _database_path(uri)
    folder, found, _ = location.partition("/mlartifacts")
    if database and found and folder != database.parent.as_uri() and folder != str(database.parent):
        raise InputError(
            f"this mlflow.db keeps its files in {folder}/mlartifacts, not beside it: the checkout was moved or copied. Move it "
            "back; or move mlflow.db and mlartifacts away, and `quintet sync` fills new ones with the runs under runs/ (not with "
            "runs of other parameters, and without registered models)"
        )


def _create(client: Any, uri: str, study: str) -> None:
    try:
        retry_if_locked(lambda: client.create_experiment(study, artifact_location=_artifact_location(uri, study)))
    except Exception:
        if client.get_experiment_by_name(study) is None:  # otherwise it exists, perhaps created by another process meanwhile
            raise


def _restore(client: Any, experiment: str) -> None:
    """Restore a deleted experiment. MLflow restores all its runs, so those that had been replaced are deleted again."""
    client.restore_experiment(experiment)
    for run in client.search_runs([experiment], f"tags.`{STATE}` = 'replaced'", max_results=50 * PAGE_SIZE):
        client.delete_run(run.info.run_id)


def retry_if_locked(action: Callable[[], T]) -> T:
    """Call `action`, again if other writers lock the SQLite database; MLflow itself waits up to 20 s in each attempt."""
    for wait_s in (0.5, 2.0):
        try:
            return action()
        except Exception as error:
            if "database is locked" not in str(error):
                raise
        time.sleep(wait_s)
    return action()


@contextmanager
def transfer_timeout() -> Iterator[None]:
    """Raise MLflow's request timeout to TRANSFER_TIMEOUT_S within the block."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = str(max(int(before or 0), TRANSFER_TIMEOUT_S))
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
