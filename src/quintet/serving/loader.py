"""How MLflow loads a served run: `mlflow.pyfunc.load_model("runs:/RUN/model")` or `mlflow models serve -m runs:/RUN/model`.

The folder `model` of an MLflow run holds model.pt and what prediction needs of the run folder (record.json, evaluation/*.json),
the package itself as quintet.zip, and MLmodel, which names this module. Weights are read as plain tensors (`weights_only`).
"""

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from quintet.errors import InputError, InputProblemsError, sentences
from quintet.runs import Record
from quintet.serving.requests import REQUESTS
from quintet.study import load_study


class Served:
    """The models of one run, behind MLflow's interface."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self.name = Record.load(folder).study
        self.study, self.requests = load_study(self.name), REQUESTS[self.name]
        with tempfile.TemporaryDirectory() as place:  # a run folder, as the study's loader expects it
            run = Path(place)
            (run / "model").symlink_to(folder.resolve())
            (run / "evaluation").symlink_to((folder / "evaluation").resolve())
            self.models: list[Any] = self.requests.adapt(self.study.load_models([run], device))

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The answer to a request, one row per image, scan or patient. Raises MlflowException, which a server answers with status
        400 and its sentence, for a request that cannot be read; nothing of a request remains on the disk."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

        with tempfile.TemporaryDirectory() as place:
            try:
                return self._predict(model_input, Path(place))
            except InputError as error:
                text = "; ".join(sentences(error)).replace(f"{place}/request/", "").replace(place, "request")
                raise MlflowException(text, error_code=INVALID_PARAMETER_VALUE) from None

    def _predict(self, table: pd.DataFrame, place: Path) -> pd.DataFrame:
        source, problems = place / "request", list[str]()
        source.mkdir()
        options = self.requests.write(table, source, self.models)
        outputs = self.study.prediction_files(place / ("answer" if self.study.PREDICTS_FOLDER else "answer.csv"))
        if self.study.PREDICTS_FOLDER:
            outputs[0].mkdir()
        count = self.study.predict(self.models, source, outputs, problems, overlays=None, **options)
        if problems or not count:
            raise InputProblemsError("the request", problems or ["no case in it"])
        return self.requests.read(outputs)


def _load_pyfunc(path: str) -> Served:
    """MLflow's entry point."""
    return Served(Path(path))
