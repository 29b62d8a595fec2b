"""The fusion study as the driver sees it (quintet/study.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintet.files import csv_file
from quintet.pages import Section
from quintet.params import Compute, Fusion, FusionConfig, Params
from quintet.ranking import Ranking
from quintet.runs import Record
from quintet.study import Baseline, Metrics, Runs

if TYPE_CHECKING:
    from quintet.fusion.data.prepared import Prepared
    from quintet.fusion.evaluation.inference import Model
    from quintet.training.models import TrainedModel

TITLE = "Multimodal fusion"
UNIT = "0 to 1"
FIGURE, FIGURE_CAPTION = "patterns.png", "Score by the modalities that are used."
PREDICTS_FOLDER = False
RUN_SCORES, LOWER_IS_BETTER = ["brier", "auc_mean_of_subsets", "concordance_mean_of_subsets", "train_seconds"], True


def check(raw: Path, params: Fusion) -> list[str]:
    from quintet.fusion.data.prepare import check

    return check(raw, params)


def analyze(raw: Path, page: Path, params: Fusion) -> None:
    from quintet.fusion.analysis import analyze

    analyze(raw, page, params)


def load_data(folder: Path) -> "Prepared":
    from quintet.fusion.data.prepared import load

    return load(folder)


def training_inputs(config: FusionConfig, params: Fusion, seed: int) -> dict[str, Path]:
    start = config.start(seed)
    return {"encoders": start / "model" / "model.pt"} if start else {}


def train(data: "Prepared", config: FusionConfig, params: Fusion, compute: Compute, record: Record) -> "TrainedModel":
    from quintet.fusion.model.module import train

    return train(data, config, params.training, compute, record=record)


def evaluate(
    run: Path, data: "Prepared", out: Path, params: Fusion, compute: Compute, record: Record, *, detailed: bool
) -> Metrics:
    from quintet.fusion.evaluation.run import evaluate_run

    return evaluate_run(run, data, out, params.evaluation, compute, record=record, detailed=detailed)


def baselines(data: "Prepared", params: Fusion) -> dict[str, Baseline]:
    from quintet.fusion.baselines import baselines

    return baselines(data, params)


def load_models(runs: Sequence[Path], device: str) -> "list[Model]":
    from quintet.fusion.evaluation.inference import load_models

    return load_models(runs, device)


def prediction_files(output: Path) -> list[Path]:
    return [csv_file(output)]


def predict(
    models: "list[Model]", source: Path, outputs: list[Path], problems: list[str], *, overlays: Path | None, **options: Any
) -> int:
    from quintet.fusion.prediction import predict_folder

    return predict_folder(models, source, outputs[0], problems, overlays=overlays, **options)


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, params: Fusion, device: str) -> Metrics:
    from quintet.fusion.prediction import evaluate_folder

    return evaluate_folder(runs, raw, out, params, device)


def rank(params: Params, runs: Runs) -> Ranking:
    from quintet.fusion.comparison import rank

    return rank(params, runs)


def report_sections(params: Params, ranking: Ranking, runs: Runs, folder: Path) -> list[Section]:
    from quintet.fusion.sections import report_sections

    return report_sections(params.fusion, ranking, runs)
