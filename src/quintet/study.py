"""The interface that a study implements, and the registry of the five studies.

A study is a package whose module `study.py` has the functions below; experiment.py (the driver) uses nothing else.
The functions import what they need when they are called: torch alone costs seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quintet.pages import Section
from quintet.params import Compute, Params, StudyName
from quintet.ranking import Ranking
from quintet.runs import Record

if TYPE_CHECKING:
    from quintet.training.models import TrainedModel

Metrics = dict[str, float]
Runs = Mapping[str, list[Path]]  # configuration -> its run folders


@dataclass(frozen=True)
class Baseline:
    """A method without seeds: what identifies it, and how it is evaluated into a folder, on the fold of the record."""

    params: dict[str, Any]
    inputs: dict[str, Path]  # files other than the prepared data
    evaluate: Callable[[Path, Record], Metrics]


class Study(Protocol):
    """`params` is the study's own section (`Perfusion`, ...), `config` one of its configurations, `data` what `load_data`
    returns; `data.fold_count` is the number of folds (1 for a single split)."""

    TITLE: str
    UNIT: str  # of the ranking's score
    FIGURE: str  # the figure of the selected run's evaluation that the report page shows
    FIGURE_CAPTION: str
    PREDICTS_FOLDER: bool  # predictions are a folder of files, not one file
    RUN_SCORES: list[str]  # metrics of a run that MLflow's table of runs shows; the first one sorts it
    LOWER_IS_BETTER: bool  # of the first one

    def check(self, raw: Path, params: Any) -> list[str]:
        """One sentence per problem of a raw folder, each with the file's name and the remedy."""

    def analyze(self, raw: Path, page: Path, params: Any) -> None:
        """Describe a raw folder as an HTML page."""

    def load_data(self, folder: Path) -> Any:
        """Read what the prepare stage wrote."""

    def training_inputs(self, config: Any, params: Any, seed: int) -> dict[str, Path]:
        """Files other than the prepared data that training reads, by name: pretrained weights, an earlier phase. Their hashes are
        part of the run's identity."""

    def train(self, data: Any, config: Any, params: Any, compute: Compute, record: Record) -> "TrainedModel":
        """Train with the fold and seed of `record`, which gets the final metrics and further tags."""

    def evaluate(
        self, run: Path, data: Any, out: Path, params: Any, compute: Compute, record: Record, *, detailed: bool
    ) -> Metrics:
        """Evaluate a trained run on the test part (or its fold) into the folder `out`. `detailed`: with the figures that take
        longer to draw than the scores take to compute."""

    def baselines(self, data: Any, params: Any) -> dict[str, Baseline]:
        """The study's baselines. Those that need the truth behind synthetic data are left out where the data lack it."""

    def load_models(self, runs: Sequence[Path], device: str) -> list[Any]:
        """Trained networks whose predictions can be averaged."""

    def prediction_files(self, output: Path) -> list[Path]:
        """The files (or the folder) that `predict` writes, for the output that a user names."""

    def predict(
        self, models: Any, source: Path, outputs: list[Path], problems: list[str], *, overlays: Path | None, **options: Any
    ) -> int:
        """Predict every case below `source` into `outputs` (as many as `prediction_files`) and one picture per case into
        `overlays`; adds a sentence to `problems` for each case that cannot be read. Returns the number of predicted cases."""

    def evaluate_folder(self, runs: Sequence[Path], raw: Path, out: Path, params: Any, device: str) -> Metrics:
        """Evaluate the mean prediction of runs on a labelled raw folder, into the folder `out`."""

    def rank(self, params: Params, runs: Runs) -> Ranking: ...

    def report_sections(self, params: Params, ranking: Ranking, runs: Runs, folder: Path) -> list[Section]:
        """The study's own part of the ranking's report; figures go into `folder`."""


class EnsembleStudy(Study, Protocol):
    """A study whose sweep has ensembles (params: `sweep.ensembles`)."""

    def evaluate_ensemble(
        self, runs: Sequence[Path], data: Any, out: Path, params: Any, compute: Compute, record: Record
    ) -> Metrics:
        """Evaluate the mean prediction of trained runs on the test part (or the fold of `record`) into the folder `out`."""


def load_ensemble_study(name: str) -> EnsembleStudy:
    """Import the package of a study whose sweep has ensembles."""
    match StudyName(name):
        case StudyName.landmarks:
            from quintet.landmarks import study as landmarks

            return landmarks
        case StudyName.perfusion:
            from quintet.perfusion import study as perfusion

            return perfusion
    raise ValueError(f"{name}: its sweep has no ensembles")


def load_study(name: str) -> Study:
    """Import one study's package. mypy checks each module against the protocol."""
    match StudyName(name):
        case StudyName.landmarks:
            from quintet.landmarks import study as landmarks

            return landmarks
        case StudyName.perfusion:
            from quintet.perfusion import study as perfusion

            return perfusion
        case StudyName.breakhis:
            from quintet.breakhis import study as breakhis

            return breakhis
        case StudyName.ct:
            from quintet.ct import study as ct

            return ct
        case StudyName.fusion:
            from quintet.fusion import study as fusion

            return fusion
