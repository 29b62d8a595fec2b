"""A run's model behind MLflow's own REST server, in a thread of the test."""

import base64
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import requests
import uvicorn
from mlflow.pyfunc import scoring_server

from quintet.serving.model import write_model


def model_folder(run: Path, place: Path) -> Path:
    """The `model` folder of an MLflow run."""
    write_model(run, place / "model")
    shutil.copy(run / "model" / "model.pt", place / "model")
    return place / "model"


@contextmanager
def served(run: Path, place: Path) -> Iterator[str]:
    """The address of a server for the model of `run`."""
    model = mlflow.pyfunc.load_model(str(model_folder(run, place)))
    server = uvicorn.Server(uvicorn.Config(scoring_server.init(model), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def ask(address: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The answer to a request of these rows; bytes are sent as base64."""
    return pd.DataFrame(post(address, rows).json()["predictions"])


def post(address: str, rows: list[dict[str, Any]]) -> requests.Response:
    encoded = [
        {name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in row.items()}
        for row in rows
    ]
    return requests.post(f"{address}/invocations", json={"dataframe_records": encoded}, timeout=120)
