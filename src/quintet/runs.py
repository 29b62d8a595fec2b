"""A run folder: what one trained (or fitted) configuration leaves behind, and the record that identifies it.

    RUN/record.json          study, stage, config, fold, seed, key, parameters, input hashes, environment
    RUN/model/               model.pt (weights + everything that rebuilds the model), history.csv (metrics per epoch)
    RUN/evaluation/          cases.csv (tidy table), metrics.json (flat, final), settings.json (evaluation parameters),
                             inference.json (what was set on validation and prediction needs), predictions, figures/*.png

A ranking's folder holds record.json alone, with `artifacts` naming the report folders. The files are the truth;
MLflow mirrors them (tracking.py).
"""

import hashlib
import json
import os
import platform
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from quintet.errors import InputError
from quintet.files import atomic_file, is_temporary, md5

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
    artifacts: list[str] = field(default_factory=list)  # further files and folders, relative to the repository
    copies: dict[str, str] = field(default_factory=dict)  # a file of the run folder -> the name MLflow gets it under as well
    epochs: list[dict[str, float]] = field(default_factory=list)  # what differs from run to run, so not in history.csv: memory

    def __post_init__(self) -> None:
        if not self.key:
            cell = [self.study, self.stage, self.config, self.fold, self.seed, self.params, self.inputs]
            self.key = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The name people see: `heatmap fold 0 seed 0`, `selected fold 0 seed 0 (moody-crib)`, `ranking`."""
        if self.stage == "rank":
            return self.config
        experiment = self.tags.get("dvc_exp_name")
        return f"{self.config} fold {self.fold} seed {self.seed}" + (f" ({experiment})" if experiment else "")

    def save(self, folder: Path) -> None:
        with atomic_file(Path(folder) / "record.json") as beside:
            beside.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> "Record":
        try:
            return Record._read(Path(folder))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder}: no record.json there; give a run folder such as runs/landmarks/selected") from None

    @staticmethod
    def _read(folder: Path) -> "Record":
        path = folder / "record.json"
        try:
            record = Record(**json.loads(path.read_text(encoding="utf-8")))
            path = folder / "evaluation" / "settings.json"
            return record.evaluated_with(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else record
        except (TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); delete the folder or run `dvc checkout` on it") from None

    def evaluated_with(self, settings: dict[str, Any]) -> "Record":
        """The same trained run under evaluation parameters: another key, so that two evaluations of one model are two runs."""
        key = hashlib.sha256(json.dumps([self.key, settings], sort_keys=True).encode()).hexdigest()[:16]
        return replace(self, params=self.params | settings, key=key, tags=self.tags | {"trained_key": self.key})


def new_record(
    study: str, stage: str, config: str, *, seed: int, params: dict[str, Any], inputs: dict[str, Path], fold: int = 0
) -> Record:
    """A record of what is about to run: hashes the inputs, notes commit, experiment name and versions.

    A file of pretrained weights, `params["weights"]`, is an input: changed under the same name it makes another run.
    """
    weights = Path(params.get("weights", ""))
    hashes = {name: md5(path) for name, path in (inputs | ({"weights": weights} if weights.is_file() else {})).items()}
    versions = {f"version.{name}": metadata.version(name) for name in PACKAGES}
    tags = versions | {
        "version.python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": _git_commit(),
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    return Record(study, stage, config, seed, params, hashes, fold=fold, tags=tags)


def _git_commit() -> str:
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or no commit yet
        return "none"


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
    """One folder a key: of two copies of a run, the one written last. A folder that a stage replaces just now is left out."""
    found = []
    for name, folders, files in os.walk(root / "runs"):  # unlike rglob it bears folders that vanish
        folders[:] = [child for child in folders if not is_temporary(child)]
        if "record.json" in files:
            folder = Path(name)
            with suppress(FileNotFoundError):
                found.append(((folder / "record.json").stat().st_mtime, folder, Record._read(folder)))
    newest = {record.key: (record, folder) for _, folder, record in sorted(found, key=lambda entry: entry[:2])}
    return sorted(newest.values(), key=lambda pair: pair[1])


def extra_artifacts(record: Record, root: Path) -> dict[str, Path]:
    return {Path(name).as_posix(): root / name for name in record.artifacts if (root / name).exists()}


def content_md5(record: Record, folder: Path, root: Path) -> str:
    parts = [md5(folder)] + [f"{name} {md5(path)}" for name, path in extra_artifacts(record, root).items()]
    return parts[0] if len(parts) == 1 else hashlib.md5("\n".join(parts).encode(), usedforsecurity=False).hexdigest()


def final_metrics(record: Record, folder: Path) -> dict[str, float]:
    """Every number of evaluation/metrics.json and of the record."""
    path = folder / "evaluation" / "metrics.json"
    found = flatten(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    return {
        name: float(v) for name, v in (found | record.metrics).items() if isinstance(v, int | float) and not isinstance(v, bool)
    }
