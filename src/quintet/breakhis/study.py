"""The BreakHis study as the driver sees it (quintet/study.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintet.files import csv_file
from quintet.pages import Section
from quintet.params import BreakHis, BreakHisConfig, Compute, Params
from quintet.ranking import Ranking
from quintet.runs import Record
from quintet.study import Baseline, Metrics, Runs

if TYPE_CHECKING:
    from quintet.breakhis.data.prepared import Prepared
    from quintet.breakhis.evaluation.inference import Model
    from quintet.training.models import TrainedModel

TITLE = "BreakHis"
UNIT = "0 to 1"
FIGURE, FIGURE_CAPTION = "grad_cam.png", "Which parts of the images are evidence of malignancy (Grad-CAM of MMNet)."
PREDICTS_FOLDER = False
RUN_SCORES, LOWER_IS_BETTER = ["brier", "auc", "balanced_accuracy", "train_seconds"], True


def check(raw: Path, params: BreakHis) -> list[str]:
    from quintet.breakhis.data.prepare import check

    return check(raw, params)


def analyze(raw: Path, page: Path, params: BreakHis) -> None:
    from quintet.breakhis.analysis import analyze

    analyze(raw, page, params)


def load_data(folder: Path) -> "Prepared":
    from quintet.breakhis.data.prepared import load

    return load(folder)


def training_inputs(config: BreakHisConfig, params: BreakHis, seed: int) -> dict[str, Path]:
    from quintet.backbones import weights_path
    from quintet.training.models import weight_files

    return weight_files(weights_path(params.training.weights))


def train(data: "Prepared", config: BreakHisConfig, params: BreakHis, compute: Compute, record: Record) -> "TrainedModel":
    from quintet.breakhis.model.module import train

    return train(data, config, params.training, compute, record=record)


def evaluate(
    run: Path, data: "Prepared", out: Path, params: BreakHis, compute: Compute, record: Record, *, detailed: bool
) -> Metrics:
    from quintet.breakhis.evaluation.run import evaluate_run

    return evaluate_run(run, data, out, compute, record=record, detailed=detailed)


def baselines(data: "Prepared", params: BreakHis) -> dict[str, Baseline]:
    from quintet.breakhis.baselines import baselines

    return baselines(data)


def load_models(runs: Sequence[Path], device: str) -> "list[Model]":
    from quintet.breakhis.evaluation.inference import load_models

    return load_models(runs, device)


def prediction_files(output: Path) -> list[Path]:
    return [csv_file(output)]


def predict(
    models: "list[Model]", source: Path, outputs: list[Path], problems: list[str], *, overlays: Path | None, **options: Any
) -> int:
    from quintet.breakhis.prediction import predict_folder

    return predict_folder(models, source, outputs[0], problems, overlays=overlays)


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, params: BreakHis, device: str) -> Metrics:
    from quintet.breakhis.prediction import evaluate_folder

    return evaluate_folder(runs, raw, out, device)


def rank(params: Params, runs: Runs) -> Ranking:
    from quintet.breakhis.comparison import rank

    return rank(params, runs)


def report_sections(params: Params, ranking: Ranking, runs: Runs, folder: Path) -> list[Section]:
    from quintet.breakhis.comparison import report_sections

    return report_sections(params, ranking, runs, folder)
