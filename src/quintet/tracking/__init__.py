"""MLflow, the mirror of the run folders: live once per epoch (Live), whole at the end (upload), filled up later (sync).

The files are the truth, so nothing here may stop a training: what fails is said once on stderr, and `quintet sync`
uploads it later. A run is written once and never appended to; the same key again makes a new run, then deletes the old.
The tag quintet.state says what a run is: live, uploading, complete, or replaced (and deleted).

The only folder that imports mlflow, and inside functions: the import costs 3 s.
"""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from quintet.errors import InputError
from quintet.files import atomic_folder
from quintet.runs import Record, content_md5, finished_runs
from quintet.tracking.entries import now_ms
from quintet.tracking.store import STATE, Store, checkout, client_of, first_contact, tracking_uri, transfer

__all__ = ["LiveRun", "resolve_run", "run_url", "sync", "tracking_uri", "upload"]

_said: set[str] = set()  # stores whose failure was reported


class LiveRun:
    """The mirror of a running training. After its first failure nothing more is tried: a dead server costs once."""

    def __init__(self, record: Record) -> None:
        self._store: Store | None = None
        with _guard(self._off):
            self._store = Store(record.study)
            self._run = self._store.create(record, "live")
            self._store.delete_older(record.key, self._run, only_live=True)  # left behind by a killed process

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self._store:
            with _guard(self._off):
                self._store.log_metrics(self._run, [(name, value, now_ms(), step) for name, value in metrics.items()])

    def close(self, failed: bool = False) -> None:
        """The run stays `live` until the upload of the finished folder replaces it."""
        if self._store:
            with _guard(self._off):
                self._store.call("set_terminated", self._run, "FAILED" if failed else "FINISHED")
        self._off()

    def _off(self) -> None:
        self._store = None


def upload(folder: Path) -> str | None:
    """The run id of a finished run folder, uploaded unless the store holds it already; None where the store fails."""
    with _guard():
        record = Record.load(Path(folder))
        return Store(record.study).upload(record, Path(folder), Path.cwd())
    return None


def sync(root: Path) -> tuple[int, int]:
    """Upload what the store lacks of the run folders under root/runs: (uploaded, already there)."""
    folders = finished_runs(Path(root))
    stores: dict[str, tuple[Store, dict[tuple[str, str], str]]] = {}
    uploaded = 0
    try:
        for record, folder in folders:
            if record.study not in stores:
                store = Store(record.study, insist=True)
                stores[record.study] = (store, store.complete())
            store, known = stores[record.study]
            if (record.key, content_md5(record, folder, Path(root))) not in known:
                store.upload(record, folder, Path(root))
                uploaded += 1
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename}: gone while it was read: a stage replaces it just now; run `quintet sync` again when it has ended"
        ) from error
    except Exception as error:
        raise InputError(
            f"the MLflow store {_shown(tracking_uri())} cannot be used: {_reason(error)}. "
            "Start its server or set MLFLOW_TRACKING_URI, then run `quintet sync` again"
        ) from error
    return uploaded, len(folders) - uploaded


def run_url(record: Record) -> str | None:
    """The address of a record's run in the UI (`make ui`, or the server); by its key, which an upload anew does not change. None
    where the store cannot be asked."""
    uri = tracking_uri()
    base = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    with _guard():
        search = quote(f"tags.key = '{record.key}' AND tags.`{STATE}` = 'complete'")
        return f"{_shown(base)}/#/experiments/{Store(record.study).experiment}/runs?searchFilter={search}"
    return None


def resolve_run(run: str) -> Path:
    """The run folder that a path or an MLflow run id names."""
    if (Path(run) / "record.json").is_file():
        return Path(run)
    neither = f"{run}: neither a run folder (with a record.json, such as runs/landmarks/selected) nor an MLflow run id"
    if not re.fullmatch(r"[0-9a-f]{32}", run):
        raise InputError(f"{neither} (32 characters 0-9, a-f)")
    try:
        return _artifacts(run)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{neither} that {_shown(tracking_uri())} can give: {_reason(error)}") from error


def _artifacts(run: str) -> Path:
    """A run's files: where a local store keeps them, or downloaded once to the ignored folder .mlflow-runs."""
    try:
        cached = checkout() / ".mlflow-runs" / run
    except InputError:  # outside a repository
        cached = Path(tempfile.mkdtemp(prefix="quintet-")) / run
    if (cached / "record.json").is_file():
        return cached
    uri = tracking_uri()
    with first_contact(uri):
        client = client_of(uri)
    found = client.get_run(run)
    if found.data.tags.get(STATE) in ("live", "uploading"):
        raise InputError(f"{run}: this MLflow run has no files yet; choose one with the tag {STATE} = complete")
    if found.info.artifact_uri.startswith(("file:", "/")):
        return Path(client.download_artifacts(run, ""))  # a local store names its own folder, nothing is copied
    with transfer(), atomic_folder(cached) as beside:
        client.download_artifacts(run, "", str(beside))
    return cached


# --- failures ---


@contextmanager
def _guard(off: Callable[[], None] | None = None) -> Iterator[None]:
    """The mirror must not stop what it mirrors: any failure is one line on stderr, once per store."""
    try:
        yield
    except Exception as error:
        if off:
            off()
        _say(error)


def _say(error: Exception) -> None:
    try:
        store = tracking_uri()
    except InputError:
        store = "(none)"
    if store not in _said:
        _said.add(store)
        print(
            f"quintet: not mirrored in MLflow ({_shown(store)}): {_reason(error)}; `quintet sync` uploads later",
            file=sys.stderr,
        )


def _shown(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)  # no password in a log


def _reason(error: BaseException) -> str:
    """The innermost error's first line: `Connection refused` rather than the five layers around it."""
    if isinstance(error, InputError):
        return str(error)
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
