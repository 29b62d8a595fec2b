"""The perfusion study as the driver sees it (quintet/study.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintet.pages import Section
from quintet.params import Compute, Params, Perfusion, PerfusionConfig
from quintet.ranking import Ranking
from quintet.runs import Record
from quintet.study import Baseline, Metrics, Runs

if TYPE_CHECKING:
    from quintet.perfusion.data.prepared import Prepared
    from quintet.perfusion.evaluation.inference import Model
    from quintet.training.models import TrainedModel

TITLE = "Perfusion territories"
UNIT = "0 to 1"
FIGURE, FIGURE_CAPTION = "overlays.png", "Held-out people: annotated and predicted territories."
PREDICTS_FOLDER = True
RUN_SCORES, LOWER_IS_BETTER = ["dice_of_subjects", "dice_left", "dice_right", "train_seconds"], False


def check(raw: Path, params: Perfusion) -> list[str]:
    from quintet.perfusion.data.prepare import check

    return check(raw, params)


def analyze(raw: Path, page: Path, params: Perfusion) -> None:
    from quintet.perfusion.analysis import analyze

    analyze(raw, page, params)


def load_data(folder: Path) -> "Prepared":
    from quintet.perfusion.data.prepared import load

    return load(folder)


def training_inputs(config: PerfusionConfig, params: Perfusion, seed: int) -> dict[str, Path]:
    return {}


def train(data: "Prepared", config: PerfusionConfig, params: Perfusion, compute: Compute, record: Record) -> "TrainedModel":
    from quintet.perfusion.model.module import train

    return train(data, config, params.training, compute, record=record)


def evaluate(
    run: Path, data: "Prepared", out: Path, params: Perfusion, compute: Compute, record: Record, *, detailed: bool
) -> Metrics:
    from quintet.perfusion.evaluation.inference import evaluate_run

    return evaluate_run(run, data, out, params.evaluation, compute, record=record)


def baselines(data: "Prepared", params: Perfusion) -> dict[str, Baseline]:
    from quintet.perfusion.baselines import baselines

    return baselines(data, params.baselines)


def evaluate_ensemble(
    runs: Sequence[Path], data: "Prepared", out: Path, params: Perfusion, compute: Compute, record: Record
) -> Metrics:
    from quintet.perfusion.evaluation.inference import evaluate_ensemble

    return evaluate_ensemble(runs, data, out, params.evaluation, compute, record=record)


def load_models(runs: Sequence[Path], device: str) -> "list[Model]":
    from quintet.perfusion.evaluation.inference import load_models

    return load_models(runs, device)


def prediction_files(output: Path) -> list[Path]:
    return [output]


def predict(
    models: "list[Model]", source: Path, outputs: list[Path], problems: list[str], *, overlays: Path | None, **options: Any
) -> int:
    from quintet.perfusion.prediction import predict_folder

    return predict_folder(models, source, outputs[0], problems, overlays=overlays)


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, params: Perfusion, device: str) -> Metrics:
    from quintet.perfusion.prediction import evaluate_folder

    return evaluate_folder(runs, raw, out, params, device)


def rank(params: Params, runs: Runs) -> Ranking:
    from quintet.perfusion.comparison import rank

    return rank(params, runs)


def report_sections(params: Params, ranking: Ranking, runs: Runs, folder: Path) -> list[Section]:
    from quintet.perfusion.comparison import report_sections

    return report_sections(params.perfusion, ranking, runs)
