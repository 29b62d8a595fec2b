"""One study's experiment in the MLflow store: finding it, writing a run whole, replacing an older one."""

import errno
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from quintet.errors import InputError
from quintet.files import is_temporary, repository_root
from quintet.params import StudyName
from quintet.runs import Record, content_md5, extra_artifacts, final_metrics, flatten
from quintet.tracking.entries import Value, accepted, batches, epochs, history, now_ms, tags_of

T = TypeVar("T")
STATE, CONTENT = "quintet.state", "quintet.content"
PAGE = 1000  # runs per answer to a search
QUIET_S = 600.0  # a store that did not answer is left alone for so long
LOCK_S = 60.0  # patience with another process that creates the database
TRANSFER_TIMEOUT_S = 120  # the 5 s of quintet/__init__.py are for small requests, not for a model on its way to a server

silent: dict[str, float] = {}  # store -> monotonic time before which no training tries it again


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the database at the root of the main checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(checkout() / 'mlflow.db').as_posix()}"


class Store:
    """One study's experiment."""

    def __init__(self, study: str, *, insist: bool = False) -> None:
        uri = tracking_uri()
        if not insist and time.monotonic() < silent.get(uri, 0.0):
            raise ConnectionError("it did not answer a moment ago")
        try:
            with first_contact(uri):
                self.client = client_of(uri)
                self.experiment = _experiment(self.client, uri, study)
        except Exception:
            silent[uri] = time.monotonic() + QUIET_S
            raise

    def upload(self, record: Record, folder: Path, root: Path) -> str:
        content = content_md5(record, folder, root)
        if there := self.complete(f" AND tags.key = '{record.key}'").get((record.key, content)):
            return there
        try:
            final = [(f"final/{name}", value, now_ms(), 0) for name, value in final_metrics(record, folder).items()]
            values = history(folder / "model" / "history.csv") + final
            values += epochs(record.epochs)
        except ValueError as error:
            raise InputError(f"{folder}: model/history.csv or evaluation/metrics.json cannot be read ({error})") from error
        run = self.create(record, "uploading")
        try:
            self.log_metrics(run, values)
            self.log_files(run, folder, extra_artifacts(record, root), record.copies)
            if content_md5(record, folder, root) != content:  # MLflow uploads what it finds, be it nothing
                raise FileNotFoundError(errno.ENOENT, "replaced", str(folder))
            self.finish(run, content)
            self.delete_older(record.key, run)
        except FileNotFoundError:
            self.discard(run)
            raise
        except Exception:
            if self.call("get_run", run).data.tags.get(STATE) != "replaced":
                raise
            return run  # another process wrote this key at the same time, and later: its run stands
        if trained := record.tags.get("trained_key"):  # the training's own mirror
            self.delete_live(trained)
        return run

    def complete(self, more: str = "") -> dict[tuple[str, str], str]:
        """(key, content) -> run id."""
        runs = self.search(f"tags.`{STATE}` = 'complete'{more}")
        return {(run.data.tags.get("key", ""), run.data.tags.get(CONTENT, "")): run.info.run_id for run in runs}

    def create(self, record: Record, state: str) -> str:
        """A run with its tags and parameters."""
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

        made = self.call("create_run", self.experiment, now_ms(), tags_of(record) | {STATE: state}, record.name)
        params = [Param(accepted(key), str(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in flatten(record.params).items()]
        for batch in batches(params, MAX_PARAMS_TAGS_PER_BATCH):
            self.call("log_batch", made.info.run_id, params=batch)
        return str(made.info.run_id)

    def log_metrics(self, run: str, values: list[Value]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.validation import MAX_METRICS_PER_BATCH

        metrics = [Metric(accepted(name), float(value), at, step) for name, value, at, step in values]
        for batch in batches(metrics, MAX_METRICS_PER_BATCH):
            self.call("log_batch", run, metrics=batch)

    def log_files(self, run: str, folder: Path, extra: dict[str, Path], copies: dict[str, str]) -> None:
        with transfer():
            for source, name in copies.items():
                with tempfile.TemporaryDirectory() as beside:  # MLflow takes the name from the file
                    link = Path(beside) / Path(name).name
                    link.symlink_to((folder / source).resolve())
                    self.call("log_artifact", run, str(link), name.rpartition("/")[0] or None)
            own = {path.name: path for path in sorted(folder.iterdir()) if not is_temporary(path.name)}
            for name, path in (own | extra).items():
                if path.is_dir():
                    self.call("log_artifacts", run, str(path), name)
                else:
                    self.call("log_artifact", run, str(path), name.rpartition("/")[0] or None)

    def finish(self, run: str, content: str) -> None:
        """The state comes last, in one call: a run is complete or it is not."""
        from mlflow.entities import RunTag

        self.call("set_terminated", run, "FINISHED")
        self.call("log_batch", run, tags=[RunTag(CONTENT, content), RunTag(STATE, "complete")])

    def delete_older(self, key: str, run: str, *, only_live: bool = False) -> None:
        """Older, not other: of two processes that write the same key at once, one must survive."""
        found = {other.info.run_id: other for other in self.search(f"tags.key = '{key}'")}
        mine = found.pop(run).info.start_time
        for name, other in found.items():
            live = other.data.tags.get(STATE) == "live"
            older = (other.info.start_time, name) < (mine, run)
            if (older and live) if only_live else (older or live):
                self.discard(name)

    def delete_live(self, key: str) -> None:
        for other in self.search(f"tags.key = '{key}' AND tags.`{STATE}` = 'live'"):
            self.discard(other.info.run_id)

    def discard(self, run: str) -> None:
        self.call("set_tag", run, STATE, "replaced")  # so that _restore can tell it from the user's deletions
        self.call("delete_run", run)

    def search(self, condition: str) -> list[Any]:
        found: list[Any] = []
        token: str | None = ""
        while token is not None:
            page = self.call("search_runs", [self.experiment], condition, max_results=PAGE, page_token=token or None)
            found += page
            token = page.token or None
        return found

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        return unlocked(lambda: getattr(self.client, method)(*args, **options))


# --- reaching it ---


def checkout() -> Path:
    root = repository_root()
    if not os.environ.get("DVC_ROOT") and not (root / "dvc.yaml").is_file():
        raise InputError(f"{root}: no dvc.yaml here or above it; change to the repository or set MLFLOW_TRACKING_URI")
    return root.resolve()


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve() if uri.startswith("sqlite:///") else None


def _location(uri: str, study: str) -> str | None:
    """Where the study's artifacts go: beside a local database; a server decides itself."""
    database = _database(uri)
    return (database.parent / "mlartifacts" / study).as_uri() if database else None


def first_contact(uri: str) -> AbstractContextManager[Any]:
    """Several processes that open a fresh sqlite database at once crash in its migration: one after the other."""
    from filelock import FileLock

    if not (database := _database(uri)):
        return nullcontext()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  1-2 s that the others need not wait for

    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(database.parent / ".mlflow.lock", timeout=LOCK_S)


def client_of(uri: str) -> Any:
    """An MlflowClient; the libraries' own chatter (tracebacks of locks that are tried again, retries) is switched off."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name in ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def _experiment(client: Any, uri: str, study: str) -> str:
    """The experiment's id: found, restored where somebody deleted it, or created. A new store gets all studies' experiments, in
    one order, so that their ids, which the report's links name, are the same everywhere."""
    found = client.get_experiment_by_name(study)
    if found is None:
        for name in StudyName if study in list(StudyName) else [study]:
            _create(client, uri, name)
        found = client.get_experiment_by_name(study)
    if found.lifecycle_stage == "deleted":
        _restore(client, found.experiment_id)
    location = _location(uri, study)
    ours = location and found.artifact_location.endswith(f"/mlartifacts/{study}")
    if ours and found.artifact_location != location:
        raise InputError(
            f"this mlflow.db keeps its files in {found.artifact_location}, not in {location}: the checkout was moved or copied. "
            "Delete mlflow.db and mlartifacts here; `quintet sync` fills them again from runs/"
        )
    return str(found.experiment_id)


def _create(client: Any, uri: str, study: str) -> None:
    try:
        unlocked(lambda: client.create_experiment(study, artifact_location=_location(uri, study)))
    except Exception:
        if client.get_experiment_by_name(study) is None:  # not there already, and no other process was faster
            raise


def _restore(client: Any, experiment: str) -> None:
    """Restoring an experiment brings all its runs back, those that others had replaced as well."""
    client.restore_experiment(experiment)
    for run in client.search_runs([experiment], f"tags.`{STATE}` = 'replaced'", max_results=50 * PAGE):
        client.delete_run(run.info.run_id)


def unlocked(action: Callable[[], T]) -> T:
    """Again where other writers keep sqlite locked; each attempt waits up to 20 s of MLflow's own."""
    for wait_s in (0.5, 2.0):
        try:
            return action()
        except Exception as error:
            if "database is locked" not in str(error):
                raise
        time.sleep(wait_s)
    return action()


@contextmanager
def transfer() -> Iterator[None]:
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = str(max(int(before or 0), TRANSFER_TIMEOUT_S))
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
