"""Mirror run folders in MLflow: live after every epoch (LiveRun), complete at the end (upload), or afterwards (sync).

The run folders are the source of truth, so a failure here never stops a training run: it is reported once on stderr, and
`quintet sync` uploads the run later. An MLflow run is never appended to: uploading the same key again creates a new run, then
deletes the old one. The tag quintet.state of a run is live, uploading, complete, or replaced (and deleted).

This is the only package that imports mlflow, and only inside functions, because the import takes 3 s.
"""

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from quintet.errors import InputError
from quintet.files import atomic_folder, repository_root
from quintet.runs import Record, content_md5, finished_runs, load_evaluated
from quintet.tracking.entries import now_ms
from quintet.tracking.store import (
    STATE,
    ModelWriter,
    Store,
    checkout,
    connection_lock,
    create_client,
    reject_moved,
    tracking_uri,
    transfer_timeout,
)

__all__ = ["LiveRun", "resolve_run", "run_id_of", "run_url", "save_view", "sync", "tracking_uri", "upload", "without_credentials"]

VIEW = "quintet"  # of the runs of a study
reported_stores: set[str] = set()  # stores whose failure was reported already


class LiveRun:
    """The MLflow run of a training run in progress. The first failure disables it, so an unreachable server costs time once."""

    def __init__(self, record: Record) -> None:
        self._store: Store | None = None
        with _failures_reported(self._disable):
            self._store = Store(record.study)
            self._run = self._store.create(record, "live")
            self._store.delete_older(record.key, self._run, only_live=True)  # left by a killed process

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self._store:
            with _failures_reported(self._disable):
                self._store.log_metrics(self._run, [(name, value, now_ms(), step) for name, value in metrics.items()])

    def close(self, failed: bool = False) -> None:
        """End the run. Its state stays `live` until the upload of the finished folder replaces it."""
        if self._store:
            with _failures_reported(self._disable):
                self._store.call("set_terminated", self._run, "FAILED" if failed else "FINISHED")
        self._disable()

    def _disable(self) -> None:
        self._store = None


def upload(folder: Path, write_model: ModelWriter | None = None) -> str | None:
    """Upload a finished run folder unless the store has it already; returns the MLflow run id, or None if that failed.
    `write_model`: see Store.upload."""
    with _failures_reported():
        record = load_evaluated(Path(folder))
        return Store(record.study).upload(record, Path(folder), Path.cwd(), write_model)
    return None


def sync(root: Path, write_model: ModelWriter | None = None, *, restore: bool = False) -> tuple[int, int, int]:
    """Upload the run folders under root/runs that the store lacks; returns how many were uploaded, how many it had already, and
    how many were left out because the user deleted them in MLflow, unless they are to be restored.

    Raises InputError if the store cannot be used or a run folder is replaced meanwhile.
    """
    folders = finished_runs(Path(root))
    stores: dict[str, tuple[Store, dict[tuple[str, str], str], dict[tuple[str, str], str]]] = {}
    uploaded = left_out = 0
    try:
        for record, folder in folders:
            if record.study not in stores:
                store = Store(record.study, ignore_cooldown=True)
                store.delete_abandoned()
                stores[record.study] = (store, store.complete_runs(), {} if restore else store.complete_runs(deleted=True))
            store, complete, deleted = stores[record.study]
            run = (record.key, content_md5(record, folder, Path(root)))
            if run not in complete and run in deleted:
                left_out += 1
            elif run not in complete:
                store.upload(record, folder, Path(root), write_model)
                uploaded += 1
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename} disappeared while it was read: a stage is replacing it. Run `quintet sync` again when it is done"
        ) from error
    except Exception as error:
        raise InputError(
            f"the MLflow store {without_credentials(tracking_uri())} cannot be used: {_root_cause(error)}. {_remedy(error)}, "
            "then run `quintet sync` again"
        ) from error
    return uploaded, len(folders) - uploaded - left_out, left_out


def _ui() -> str:
    """The address of the MLflow UI: that of the server, or of `make ui`."""
    uri = tracking_uri()
    return without_credentials(uri) if uri.startswith("http") else "http://127.0.0.1:5000"


def run_url(record: Record) -> str | None:
    """The address of a record's run in the MLflow UI (`make ui` or the server), or None if the store cannot be reached.

    It searches for the key, so that it stays valid when the run is uploaded again.
    """
    with _failures_reported():
        search = quote(f"tags.key = '{record.key}' AND tags.`{STATE}` = 'complete'")
        return f"{_ui()}/#/experiments/{Store(record.study).experiment}/runs?searchFilter={search}"
    return None


def save_view(study: str, scores: Sequence[str], *, lower_is_better: bool) -> str | None:
    """Save a view of a study's complete runs in MLflow, with these final metrics, best first; returns its address, or None if the
    store cannot be reached. The Share button of MLflow saves views in the same way, as JSON in a tag of the
    experiment."""
    columns = [f"metrics.`final/{name}`" for name in scores]
    view = {
        "selectedColumns": columns,
        "orderByKey": columns[0],
        "orderByAsc": lower_is_better,
        "searchFilter": f"tags.`{STATE}` = 'complete'",
    }
    with _failures_reported():
        store = Store(study)
        store.call("set_experiment_tag", store.experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))
        return f"{_ui()}/#/experiments/{store.experiment}/runs?viewStateShareKey={VIEW}"
    return None


def run_id_of(folder: Path, write_model: ModelWriter, *, known: str | None = None) -> str:
    """The id of a finished run folder's complete run in MLflow, which is uploaded if it is missing. `known`: the run that the
    folder was downloaded from. Raises InputError if the store cannot be used."""
    record = load_evaluated(folder)
    try:
        store = Store(record.study, ignore_cooldown=True)
        run = known or store.upload(record, folder, Path.cwd(), write_model)
        if not any(file.path == "model/MLmodel" for file in store.call("list_artifacts", run, "model")):
            store.log_model(run, folder, write_model)  # it was uploaded by a version that did not
        return run
    except InputError:
        raise
    except Exception as error:
        where = without_credentials(tracking_uri())
        raise InputError(f"the MLflow store {where} cannot be used: {_root_cause(error)}. {_remedy(error)}") from error


def resolve_run(run: str) -> Path:
    """The run folder for a path or an MLflow run id. Raises InputError if it is neither."""
    if (Path(run) / "record.json").is_file():
        return Path(run)
    reason = "no record.json in it" if Path(run).is_dir() else "no such folder below the current one"
    problem = (
        f"{run}: no run folder ({reason}; `dvc repro` makes runs/STUDY/selected and runs/STUDY/sweep/...) nor an MLflow run id"
    )
    if not re.fullmatch(r"[0-9a-f]{32}", run):
        raise InputError(f"{problem} (32 characters 0-9, a-f)")
    try:
        return _download(run)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{problem} in {without_credentials(tracking_uri())}: {_root_cause(error)}") from error


def _download(run: str) -> Path:
    """The folder with a run's files: the artifact folder of a local store, or a download to the git-ignored .mlflow-runs."""
    try:
        cached = checkout() / ".mlflow-runs" / run
    except InputError:  # outside a repository
        cached = Path(tempfile.mkdtemp(prefix="quintet-")) / run
    if (cached / "record.json").is_file():
        return cached
    uri = tracking_uri()
    with connection_lock(uri):
        client = create_client(uri)
    mlflow_run = client.get_run(run)
    if mlflow_run.data.tags.get(STATE) in ("live", "uploading"):
        raise InputError(f"{run}: this MLflow run has no files yet; choose one with the tag {STATE} = complete")
    reject_moved(uri, mlflow_run.info.artifact_uri)
    if mlflow_run.info.artifact_uri.startswith(("file:", "/")):
        return Path(client.download_artifacts(run, ""))  # a local store returns its own folder without copying
    with transfer_timeout(), atomic_folder(cached) as temporary:
        client.download_artifacts(run, "", str(temporary))
    return cached


# --- failures ---


@contextmanager
def _failures_reported(on_failure: Callable[[], None] | None = None) -> Iterator[None]:
    """Suppress any exception and report it in one line on stderr, once per store: MLflow must not stop the work it mirrors."""
    try:
        yield
    except Exception as error:
        if on_failure:
            on_failure()
        _report(error)


def _remedy(error: Exception) -> str:
    """What the user can do about a store that cannot be used."""
    cause, uri = _root_cause(error).lower(), tracking_uri()
    if "schema" in cause or "can't locate revision" in cause:
        return f"Run `mlflow db upgrade {shlex.quote(without_credentials(uri))}`, or install the MLflow version that wrote it"
    if "://" not in uri or uri.startswith("file:"):
        return "Folders are no longer a store of MLflow: unset MLFLOW_TRACKING_URI, or set it to sqlite:///PATH.db"
    if not uri.startswith("sqlite:"):
        return "Start its server or set MLFLOW_TRACKING_URI"
    if "not a database" in cause or "malformed" in cause:
        return "The file is damaged: move it and mlartifacts away; `quintet sync` fills new ones with the runs under runs/"
    if "readonly" in cause or "read-only" in cause or "permission" in cause or "unable to open" in cause:
        place = shlex.quote(uri.removeprefix("sqlite:///"))
        return f"It cannot be written: the disk is read-only, or permission is missing (chmod u+w {place} and its folder)"
    return "Set MLFLOW_TRACKING_URI to another store, which `quintet sync` fills with the runs under runs/"


def _report(error: Exception) -> None:
    try:
        store = tracking_uri()
    except InputError:
        store = "(none)"
    if store not in reported_stores:
        reported_stores.add(store)
        print(
            f"quintet: not mirrored in MLflow ({without_credentials(store)}): {_root_cause(error)}; run `quintet sync` later"
            + (" (this experiment runs in a copy: after `dvc exp apply`)" if Path.cwd() != repository_root().resolve() else ""),
            file=sys.stderr,
        )


def without_credentials(uri: str) -> str:
    """The address without user and password (which may contain @)."""
    return re.sub(r"//[^/]*@", "//", uri)


def _root_cause(error: BaseException) -> str:
    """The first line of the innermost error: `Connection refused` rather than the five layers around it."""
    if isinstance(error, InputError):
        return str(error)
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]
