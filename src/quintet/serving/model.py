"""Write what makes a run folder's model one of MLflow: signature, input example, code, and the values that prediction needs."""

import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

from quintet.runs import Record

CODE = "quintet.zip"
NEEDED = ("numpy", "pandas", "torch", "lightning", "monai", "kornia", "mlflow", "nibabel", "pydicom", "scikit-image", "scipy")


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
        pip_requirements=[f"{name}=={record.tags[f'version.{name}']}" for name in NEEDED if f"version.{name}" in record.tags],
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
