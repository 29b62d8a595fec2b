"""A run folder: the outputs of one trained (or fitted) configuration, and the record that identifies it.

    RUN/record.json          study, stage, config, fold, seed, key, parameters, input hashes, environment
    RUN/model/               model.pt (weights and everything that rebuilds the model), history.csv (metrics per epoch)
    RUN/evaluation/          cases.csv (tidy table), metrics.json (flat, final), settings.json (evaluation parameters),
                             inference.json (values set on the validation part that prediction needs), predictions, figures/*.png

The folder of a ranking holds only record.json, whose `artifacts` name the report. The files are authoritative;
MLflow mirrors them (tracking/).
"""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from quintet.errors import InputError
from quintet.files import atomic_file, is_temporary, md5

CODE_TAGS = ("code_md5", "version.torch", "version.lightning")  # tags of a record: what trains, apart from parameters and inputs
SOURCES = ("src", "stages", "params.yaml", "dvc.yaml")  # of a result
PACKAGES = ("torch", "lightning", "monai", "kornia", "scikit-learn", "numpy", "mlflow", "dvc")


@dataclass
class Record:
    study: str
    stage: str
    config: str
    seed: int
    params: dict[str, Any]
    inputs: dict[str, str]  # name -> md5
    fold: int = 0
    key: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)  # name in MLflow -> path in the run folder, or in the repository
    epochs: list[dict[str, float]] = field(default_factory=list)  # memory per epoch: not reproducible, so not in history.csv

    def __post_init__(self) -> None:
        if not self.key:
            self.key = _hash([self.study, self.stage, self.config, self.fold, self.seed, self.params, self.inputs])

    @property
    def name(self) -> str:
        """The name shown to readers: `heatmap fold 0 seed 0`, `selected fold 0 seed 0 (moody-crib)`, `ranking`."""
        if self.stage == "rank":
            return self.config
        experiment = self.tags.get("dvc_exp_name")
        return f"{self.config} fold {self.fold} seed {self.seed}" + (f" ({experiment})" if experiment else "")

    def save(self, folder: Path) -> None:
        with atomic_file(Path(folder) / "record.json") as path:
            path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> "Record":
        """Read what `save` wrote."""
        with _missing_run_is_input_error(folder):
            return _read_record(Path(folder))


def load_joint(runs: Sequence[Path]) -> Record:
    """The record under which the mean prediction of runs is scored: a run's own, or the first one's under the name `ensemble`."""
    records = [Record.load(run) for run in runs]
    return records[0] if len(records) == 1 else replace(records[0], config="ensemble")


def load_evaluated(folder: Path) -> Record:
    """The record of a run as it was evaluated: the evaluation's settings join the parameters and change the key, so that two
    evaluations of one model are two runs."""
    with _missing_run_is_input_error(folder):
        return _read_evaluated(Path(folder))


def _read_evaluated(folder: Path) -> Record:
    record = _read_record(folder)
    if not (folder / "evaluation" / "settings.json").is_file():
        return record
    settings = _read_json(folder / "evaluation" / "settings.json")
    key = _hash([record.key, settings])
    return replace(record, params=record.params | settings, key=key, tags=record.tags | {"trained_key": record.key})


def new_record(
    study: str,
    stage: str,
    config: str,
    *,
    seed: int,
    params: dict[str, Any],
    inputs: dict[str, Path],
    fold: int = 0,
    raw: str = "",
) -> Record:
    """Create the record of a run before it starts: hashes of the inputs, commit, experiment name and versions. `raw`: the folder
    that the data came from, by which MLflow can tell runs on different data apart."""
    tags = {f"version.{name}": metadata.version(name) for name in PACKAGES} | {
        "version.python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": git_commit(),
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    tags |= {"raw": raw} if raw else {}
    hashes = {name: md5(path) for name, path in inputs.items()}
    return Record(study, stage, config, seed, params, hashes, fold=fold, tags=tags)


def code_md5() -> str:
    """A hash of this package's source code."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _missing_run_is_input_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: no record.json there; give a run folder such as runs/landmarks/selected") from None


def _read_record(folder: Path) -> Record:
    return _read_json(folder / "record.json", lambda values: Record(**values))


def _read_json(path: Path, make: Callable[[dict[str, Any]], Any] = dict) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):  # dict([]) would pass as empty
            raise TypeError("not an object of names and values")
        return make(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete the folder or run `dvc checkout` on it") from None


def git_commit() -> str:
    """The commit, and whether code or parameters have changed since."""
    try:
        commit, changed = (
            subprocess.run(["git", *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", *SOURCES])
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit yet
        return "none"
    return commit + " and uncommitted changes" * bool(changed)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def finished_runs(root: Path) -> list[tuple[Record, Path]]:
    """One folder per key: of two copies of a run, the one written last. A folder that a stage is replacing is left out."""
    found = []
    for name, folders, files in os.walk(root / "runs"):  # unlike rglob, it copes with folders that vanish
        folders[:] = [child for child in folders if not is_temporary(child)]
        if "record.json" in files:
            folder = Path(name)
            with suppress(FileNotFoundError):
                modified = (folder / "record.json").stat().st_mtime
                found.append((modified, folder, _read_evaluated(folder)))
    newest = {record.key: (record, folder) for _, folder, record in sorted(found, key=lambda entry: entry[:2])}
    return sorted(newest.values(), key=lambda pair: pair[1])


def extra_artifacts(record: Record, folder: Path, root: Path) -> dict[str, Path]:
    """Name in MLflow -> existing file or folder, looked up in the run folder first, then in the repository."""
    places = {name: (folder / path, root / path) for name, path in record.artifacts.items()}
    return {name: next(p for p in paths if p.exists()) for name, paths in places.items() if any(p.exists() for p in paths)}


def content_md5(record: Record, folder: Path, root: Path) -> str:
    """A hash of everything that is uploaded for a run."""
    outside = {n: p for n, p in extra_artifacts(record, folder, root).items() if not p.is_relative_to(folder)}
    parts = [md5(folder)] + [f"{name} {md5(path)}" for name, path in outside.items()]
    return parts[0] if len(parts) == 1 else hashlib.md5("\n".join(parts).encode(), usedforsecurity=False).hexdigest()


def final_metrics(record: Record, folder: Path) -> dict[str, float]:
    """Every number of evaluation/metrics.json and of the record."""
    path = folder / "evaluation" / "metrics.json"
    found = flatten(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    return {
        name: float(v) for name, v in (found | record.metrics).items() if isinstance(v, int | float) and not isinstance(v, bool)
    }
