"""The landmarks study as the driver sees it (quintet/study.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintet.files import csv_file
from quintet.pages import Section
from quintet.params import Compute, Landmarks, LandmarksConfig, Params
from quintet.params.landmarks import UNIT as UNIT
from quintet.ranking import Ranking
from quintet.runs import Record
from quintet.study import Baseline, Metrics, Runs

if TYPE_CHECKING:
    from quintet.landmarks.data.prepared import Prepared
    from quintet.landmarks.evaluation.inference import Model
    from quintet.training.models import TrainedModel

TITLE = "Chest X-ray landmarks"
FIGURE, FIGURE_CAPTION = "overlays.png", "Test images: true and predicted landmarks."
PREDICTS_FOLDER = False
RUN_SCORES, LOWER_IS_BETTER = ["error_px", "error_px_median", "error_px_p95", "train_seconds"], True


def check(raw: Path, params: Landmarks) -> list[str]:
    from quintet.landmarks.data.prepare import check

    return check(raw, params)


def analyze(raw: Path, page: Path, params: Landmarks) -> None:
    from quintet.landmarks.analysis import analyze

    analyze(raw, page, params)


def load_data(folder: Path) -> "Prepared":
    from quintet.landmarks.data.prepared import load

    return load(folder)


def training_inputs(config: LandmarksConfig, params: Landmarks, seed: int) -> dict[str, Path]:
    from quintet.training.models import weight_files

    start = config.start(seed)
    return weight_files(params.training.weights) | ({"start": start / "model" / "model.pt"} if start else {})


def train(data: "Prepared", config: LandmarksConfig, params: Landmarks, compute: Compute, record: Record) -> "TrainedModel":
    from quintet.landmarks.model.module import train

    return train(data, config, params, compute, record=record)


def evaluate(
    run: Path, data: "Prepared", out: Path, params: Landmarks, compute: Compute, record: Record, *, detailed: bool
) -> Metrics:
    from quintet.landmarks.evaluation.inference import evaluate_runs

    every_image = detailed and params.figures == "all"
    return evaluate_runs([run], data, out, params.evaluation, compute, record=record, every_image=every_image)


def evaluate_ensemble(
    runs: Sequence[Path], data: "Prepared", out: Path, params: Landmarks, compute: Compute, record: Record
) -> Metrics:
    from quintet.landmarks.evaluation.inference import evaluate_runs

    return evaluate_runs(runs, data, out, params.evaluation, compute, record=record)


def baselines(data: "Prepared", params: Landmarks) -> dict[str, Baseline]:
    from quintet.landmarks.baselines import baselines

    return baselines(data, params.baselines)


def load_models(runs: Sequence[Path], device: str) -> "list[Model]":
    from quintet.landmarks.evaluation.inference import Model

    return [Model.load(run, device) for run in runs]


def prediction_files(output: Path) -> list[Path]:
    return [csv_file(output), Path(f"{output}.uncertainty.csv")]


def predict(
    models: "list[Model]", source: Path, outputs: list[Path], problems: list[str], *, overlays: Path | None, **options: Any
) -> int:
    from quintet.landmarks.prediction import predict_folder

    return predict_folder(models, source, outputs, problems, overlays=overlays)


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, params: Landmarks, device: str) -> Metrics:
    from quintet.landmarks.prediction import evaluate_folder

    return evaluate_folder(runs, raw, out, device)


def rank(params: Params, runs: Runs) -> Ranking:
    from quintet.landmarks.comparison import rank

    return rank(params, runs)


def report_sections(params: Params, ranking: Ranking, runs: Runs, folder: Path) -> list[Section]:
    from quintet.landmarks.comparison import report_sections

    return report_sections(params.landmarks, ranking, runs, folder)
