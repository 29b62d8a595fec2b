"""Write what makes a run folder's model one of MLflow: signature, input example, code, and the values that prediction needs."""

import logging
import re
import shutil
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

from quintet.runs import Record

CODE = "quintet.zip"


def requirements(record: Record) -> list[str]:
    """The packages of the code inside, with the versions that trained the run, and for the others those that are installed."""
    declared = [line for line in metadata.requires("quintet") or [] if "extra ==" not in line]
    names = [found[0] for line in declared if (found := re.match(r"[\w.-]+", line))]
    versions = {name: record.tags.get(f"version.{name}") or metadata.version(name) for name in names}
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]  # 2.13.0+cpu is in no package index


def write_model(run: Path, out: Path) -> None:
    """Write the files that MLflow needs beside the run's model.pt to the new folder `out`. Raises InputError if the run has no
    model, or was not evaluated where its study sets values in the evaluation that prediction needs."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    from quintet.serving.requests import REQUESTS
    from quintet.study import load_study

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it reports that it looks at the example
    record = Record.load(run)
    requests = REQUESTS[record.study]
    models = load_study(record.study).load_models([run], "cpu")
    columns: list[Any] = [ColSpec(kind, name, required=required) for name, kind, required in requests.columns(models)]
    mlflow.pyfunc.save_model(
        str(out),
        loader_module="quintet.serving.loader",
        signature=ModelSignature(inputs=Schema(columns)),
        input_example=requests.example(models),
        pip_requirements=requirements(record),
    )
    model = Model.load(str(out))
    model.flavors["python_function"] |= {"data": ".", "code": CODE}  # a run has its weights there already
    model.save(str(out / "MLmodel"))
    with zipfile.ZipFile(out / CODE, "w", zipfile.ZIP_DEFLATED) as archive:
        package = Path(__file__).parents[1]
        for path in sorted(package.rglob("*.py")):
            archive.write(path, path.relative_to(package.parent))
    shutil.copy(run / "record.json", out)
    (out / "evaluation").mkdir()
    for path in sorted((run / "evaluation").glob("*.json")):
        shutil.copy(path, out / "evaluation")
