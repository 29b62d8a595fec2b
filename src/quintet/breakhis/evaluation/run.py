"""The evaluation of a trained run on its fold: threshold, scores and figures."""

import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from quintet.breakhis.data.prepared import Prepared
from quintet.breakhis.evaluation.cam import plot_grad_cam
from quintet.breakhis.evaluation.inference import Model, predict_prepared
from quintet.breakhis.evaluation.metrics import choose_threshold
from quintet.breakhis.evaluation.scores import evaluate
from quintet.errors import InputError
from quintet.files import write_json
from quintet.params import Compute
from quintet.runs import Record


def evaluate_run(run: Path, data: Prepared, out: Path, compute: Compute, *, record: Record, detailed: bool) -> dict[str, float]:
    """Set the threshold on the fold's validation patients and score its test patients into the folder `out`; returns the metrics.

    `detailed`: with attention weights, learning curves and Grad-CAM.
    """
    model = Model.load(run, compute.device, evaluated=False)
    if model.size != data.image_size:
        raise InputError(
            f"{run} was trained on images of {model.size} pixels, the prepared ones have {data.image_size}; train it again"
        )
    held_out, _, _ = predict_prepared(model, data, data.patients("valid", record.fold))
    model = replace(model, threshold=choose_threshold(data.classes(held_out.patients), held_out.malignant))
    started = time.monotonic()
    predicted, images, patients = predict_prepared(model, data, data.patients("test", record.fold))
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
    write_json(out / "inference.json", {"threshold": model.threshold})
    if detailed:
        plot_grad_cam(out / "figures" / "grad_cam.png", model, predicted, images, patients, labels)
    return metrics | {"evaluation_seconds_per_image": seconds / len(predicted.images)}
