"""The evaluation of a trained run on its fold: temperature, threshold, scores and figures."""

import time
from pathlib import Path

import pandas as pd

from quintet.breakhis.data.prepared import Prepared
from quintet.breakhis.evaluation.cam import plot_grad_cam
from quintet.breakhis.evaluation.inference import Model, read_patients
from quintet.breakhis.evaluation.scores import evaluate
from quintet.errors import InputError
from quintet.files import write_json
from quintet.params import Compute
from quintet.runs import Record


def evaluate_run(run: Path, data: Prepared, out: Path, compute: Compute, *, record: Record, detailed: bool) -> dict[str, float]:
    """Set temperature and threshold on the fold's validation patients and score its test patients into the folder `out`; returns
    the metrics.

    `detailed`: with attention weights, learning curves and Grad-CAM.
    """
    model = Model.load(run, compute.device, evaluated=False)
    if model.size != data.image_size:
        raise InputError(
            f"{run} was trained on images of {model.size} pixels, the prepared ones have {data.image_size}; train it again"
        )
    images, patients = read_patients(model, data, data.patients("valid", record.fold))
    model = model.calibrate(images, patients, data.classes(patients.names))
    started = time.monotonic()
    images, patients = read_patients(model, data, data.patients("test", record.fold))
    predicted = model(images, patients)
    seconds = time.monotonic() - started
    labels = data.classes(predicted.patients)
    metrics = evaluate(
        predicted,
        labels,
        data.types(predicted.patients),
        threshold=model.threshold,
        record=record,
        out=out,
        history=pd.read_csv(run / "model" / "history.csv") if detailed else None,
    )
    write_json(out / "inference.json", {"temperature": model.temperature, "threshold": model.threshold})
    if detailed:
        plot_grad_cam(out / "figures" / "grad_cam.png", model, predicted, images, patients, labels)
    return metrics | {"temperature": model.temperature, "evaluation_seconds_per_image": seconds / len(predicted.images)}
