"""The fusion study: few sampling steps against all of them, memory by number of patients, and the memory format of the encoders.

    python benchmarks/fusion.py [--part sampling|memory|encoders] [--run runs/fusion/selected] [--data data/processed/fusion]

sampling: a trained and evaluated diffusion run predicts the test patients from all their modalities, by DDIM in 20 steps and by
DDPM in all 1000. Prints the AUC (or concordance index) of both, the paired difference with its 95 % interval (bootstrap over
patients), and the speed-up.
memory: peak memory of the preparation (one worker) and of two epochs of training on 60 and 240 phantoms at the default scale,
minus the memory after the imports, each in its own process.
encoders: median time of a forward and backward pass of an image encoder, channels last (ours) and channels first, in turns on one
thread, at the default scale and for a ResNet-18. Takes about 4 minutes in all.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from turns import take_turns

from quintet.params import Params, load
from quintet.training.hardware import peak_memory_mb

FEW_STEPS, ALL_STEPS = 20, 1000
ENCODERS = [("small", 8, 24, 16), ("resnet18", 32, 64, 4)]  # encoder, width, voxels per side, patients
PASSES = 15  # of each format


def sampling(run: Path, data: Path) -> None:
    import pandas as pd

    from quintet.fusion.data.prepared import load as load_data
    from quintet.fusion.evaluation.inference import Model, encode_prepared
    from quintet.fusion.metrics import auc_or_concordance, comparable_pairs
    from quintet.fusion.model.noise import shared_noise
    from quintet.resampling import bootstrap_concordance, bootstrap_weights, percentile_interval

    model, prepared = Model.load(run, "auto"), load_data(data)
    rows, samples = prepared.rows("test"), model.evaluation.samples
    patients, target = encode_prepared(model, prepared, rows), prepared.target[rows].astype(float)
    weights = bootstrap_weights(np.arange(len(rows)), target[:, 0] if prepared.classes else target[:, 1])
    results: list[dict[str, float]] = []
    draws = []
    for sampler, steps in (("ddim", FEW_STEPS), ("ddpm", ALL_STEPS)):
        torch.manual_seed(0)  # DDPM adds noise in each step
        start = shared_noise(samples, patients.tokens.shape[2]).expand(len(rows), -1, -1)
        inputs = (
            patients.tokens.repeat(samples, 1, 1),
            patients.present.repeat(samples, 1),
            start.transpose(0, 1).flatten(0, 1),
        )
        with torch.inference_mode():
            model.net.fuse.sample(*inputs, steps=2, sampler=sampler)  # warm-up
            started = time.perf_counter()
            fused = model.net.fuse.sample(*inputs, steps=steps, sampler=sampler)
            seconds = time.perf_counter() - started
            scores = model.net.scores(fused).unflatten(0, (samples, len(rows)))
        values = (scores.softmax(-1).mean(0).log() if prepared.classes else scores.mean(0)).double().numpy()
        draws.append(np.mean([bootstrap_concordance(s, pairs, weights) for s, pairs in comparable_pairs(values, target)], 0))
        results.append({"steps": float(steps), "score": auc_or_concordance(values, target), "seconds": seconds})
    print(pd.DataFrame(results).to_string(index=False))
    low, high = percentile_interval(100 * (draws[0] - draws[1]))
    difference = 100 * (results[0]["score"] - results[1]["score"])
    speed_up = results[1]["seconds"] / results[0]["seconds"]
    print(f"difference {difference:+.2f} points [{low:+.2f}, {high:+.2f}], {len(rows)} patients; {speed_up:.1f} times as fast")


def memory(patients: int, folder: Path) -> dict[str, float]:
    """Draw, segment, prepare and train; peaks minus the memory after the imports. The preparation comes first because a peak
    never decreases."""
    import monai.networks.nets  # noqa: F401

    from quintet.experiment import train_selected
    from quintet.fusion import analysis  # noqa: F401
    from quintet.fusion.data.prepare import prepare
    from quintet.fusion.data.prepared import load as load_data
    from quintet.fusion.data.segmentation import segment
    from quintet.fusion.evaluation import run  # noqa: F401
    from quintet.fusion.model import module  # noqa: F401
    from quintet.fusion.synthetic import synthesize

    params: Params = load("params.yaml")
    training = params.fusion.training.model_copy(update={"epochs": 2})
    params = params.model_copy(update={"fusion": params.fusion.model_copy(update={"training": training})})
    os.chdir(folder)
    drawn = params.fusion.synthetic.model_copy(update={"patients": patients, "unlabelled": 0.0})
    synthesize(Path("raw"), drawn, workers=1)
    segment(Path("raw"), Path("masks"), params.fusion)
    before = peak_memory_mb()
    prepare(Path("raw"), Path("masks"), Path("data"), params.fusion)
    prepared = peak_memory_mb()
    train_selected("fusion", params, Path("data"), Path("run"))
    return {
        "patients": patients,
        "volumes_mib": load_data(Path("data")).volumes.nbytes / 2**20,
        "prepare_above_mib": prepared - before,
        "training_above_mib": peak_memory_mb() - before,
    }


def encoders() -> None:
    from quintet.fusion.model.encoders import ImageEncoder

    torch.set_num_threads(1)
    for name, width, side, patients in ENCODERS:
        nets = {"last": ImageEncoder(name, width), "first": ImageEncoder(name, width).to(memory_format=torch.contiguous_format)}  # type: ignore[call-overload]
        volumes, seconds = torch.rand(patients, 1, side, side, side), {label: list[float]() for label in nets}
        for _ in range(PASSES + 1):
            for label, net in nets.items():
                started = time.perf_counter()
                net(volumes).square().mean().backward()
                seconds[label].append(time.perf_counter() - started)
        last, first = (1000 * statistics.median(seconds[label][1:]) for label in ("last", "first"))
        print(f"{name}, width {width}, {patients} x {side}^3: {last:.0f} ms, channels first {first:.0f} ms, {first / last:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["sampling", "memory", "encoders"])
    parser.add_argument("--run", type=Path, default=Path("runs/fusion/selected"))
    parser.add_argument("--data", type=Path, default=Path("data/processed/fusion"))
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(memory(int(options.variant), Path(folder))))
        return
    if options.part in (None, "encoders"):
        encoders()
    if options.part in (None, "sampling"):
        sampling(options.run, options.data)
    if options.part in (None, "memory"):
        for row in take_turns(__file__, ["60", "240"], {}, rounds=1).values():
            print("  ".join(f"{name} {value:.0f}" for name, value in row.items()))


if __name__ == "__main__":
    main()
