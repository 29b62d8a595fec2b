"""The chest CT study as the driver sees it (quintet/study.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintet.errors import InputError
from quintet.pages import Section
from quintet.params import Compute, Ct, CtConfig, Params
from quintet.ranking import Ranking
from quintet.runs import Record
from quintet.study import Baseline, Metrics, Runs

if TYPE_CHECKING:
    from quintet.ct.data.prepared import Prepared
    from quintet.ct.evaluation.inference import Model
    from quintet.training.models import TrainedModel

TITLE = "Chest CT retrieval"
UNIT = "0 to 1"
FIGURE, FIGURE_CAPTION = "retrieval.png", "Scores by cut-off, similarity by shared findings, and a map of the test scans."
PREDICTS_FOLDER = False
RUN_SCORES, LOWER_IS_BETTER = ["ndcg_at_10", "map_at_5", "micro_f1", "train_seconds"], False


def check(raw: Path, params: Ct) -> list[str]:
    from quintet.ct.data.prepare import check

    return check(raw, params)


def analyze(raw: Path, page: Path, params: Ct) -> None:
    from quintet.ct.analysis import analyze

    analyze(raw, page, params)


def load_data(folder: Path) -> "Prepared":
    from quintet.ct.data.prepared import load

    return load(folder)


def training_inputs(config: CtConfig, params: Ct, seed: int) -> dict[str, Path]:
    from quintet.training.models import weight_files

    return weight_files(params.training.weights)


def train(data: "Prepared", config: CtConfig, params: Ct, compute: Compute, record: Record) -> "TrainedModel":
    from quintet.ct.model.module import train

    return train(data, config, params.training, compute, neighbours=params.evaluation.neighbours, record=record)


def evaluate(run: Path, data: "Prepared", out: Path, params: Ct, compute: Compute, record: Record, *, detailed: bool) -> Metrics:
    from quintet.ct.evaluation.inference import evaluate_run

    return evaluate_run(run, data, out, params.evaluation, compute, record=record)


def baselines(data: "Prepared", params: Ct) -> dict[str, Baseline]:
    from quintet.ct.baselines import baselines

    return baselines(data, params)


def load_models(runs: Sequence[Path], device: str) -> "list[Model]":
    from quintet.ct.evaluation.inference import load_models

    return load_models(runs, device)


def prediction_files(output: Path) -> list[Path]:
    if output.suffix not in (".npz", ".parquet", ".csv"):
        raise InputError(f"{output}: choose a .npz, .parquet or .csv file")
    return [output]


def predict(
    models: "list[Model]", source: Path, outputs: list[Path], problems: list[str], *, overlays: Path | None, **options: Any
) -> int:
    from quintet.ct.prediction import predict_folder

    return predict_folder(models, source, outputs[0], problems, overlays=overlays)


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, params: Ct, device: str) -> Metrics:
    from quintet.ct.prediction import evaluate_folder

    return evaluate_folder(runs, raw, out, params, device)


def rank(params: Params, runs: Runs) -> Ranking:
    from quintet.ct.comparison import rank

    return rank(params, runs)


def report_sections(params: Params, ranking: Ranking, runs: Runs, folder: Path) -> list[Section]:
    from quintet.ct.comparison import report_sections

    return report_sections(params.ct, ranking, runs)
