"""The fusion study: few sampling steps against all of them, and memory over the number of patients.

    python benchmarks/fusion.py [--part sampling|memory] [--run runs/fusion/selected] [--data data/processed/fusion]

sampling: a trained diffusion run predicts the test patients from everything recorded, by DDIM in 20 steps and by DDPM in all
1000; AUC (or concordance) of both, the paired difference with its 95 % interval (patients drawn again), and how many times as
fast. memory: peak of prepare (one worker) and of two epochs of training over 60 and 240 phantoms of the shipped scale, above
that after the imports, each in a process of its own. Expected: about 3 minutes."""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from turns import take_turns

from quintet.params import Params, load
from quintet.training.hardware import peak_memory_mb

STEPS, ALL = 20, 1000


def sampling(run: Path, data: Path) -> None:
    import pandas as pd

    from quintet.fusion.data.prepared import load as load_data
    from quintet.fusion.evaluation.inference import Model, of_prepared
    from quintet.fusion.evaluation.scores import headline, pairs_of
    from quintet.fusion.model.networks import noise_for
    from quintet.resampling import bootstrap_concordance, bootstrap_weights, percentile_interval

    model, prepared = Model.load(run, "auto"), load_data(data)
    rows = prepared.rows("test")
    patients, target = of_prepared(model, prepared, rows), prepared.target[rows].astype(float)
    weights = bootstrap_weights(np.arange(len(rows)), target[:, 0] if prepared.classes else target[:, 1])
    found: list[dict[str, float]] = []
    draws = []
    for sampler, steps in (("ddim", STEPS), ("ddpm", ALL)):
        torch.manual_seed(0)  # DDPM adds noise at each step
        start = noise_for(patients.names, model.samples, patients.tokens.shape[2])
        many = (
            patients.tokens.repeat(model.samples, 1, 1),
            patients.present.repeat(model.samples, 1),
            start.transpose(0, 1).flatten(0, 1),
        )
        with torch.inference_mode():
            model.net.fuse.sample(*many, steps=2, sampler=sampler)  # warm
            started = time.perf_counter()
            fused = model.net.fuse.sample(*many, steps=steps, sampler=sampler)
            seconds = time.perf_counter() - started
            said = model.net.scores(fused).unflatten(0, (model.samples, len(rows)))
        values = (said.softmax(-1).mean(0).log() if prepared.classes else said.mean(0)).double().numpy()
        draws.append(np.mean([bootstrap_concordance(score, pairs, weights) for score, pairs in pairs_of(values, target)], 0))
        found.append({"steps": float(steps), "score": headline(values, target), "seconds": seconds})
    print(pd.DataFrame(found).to_string(index=False))
    low, high = percentile_interval(100 * (draws[0] - draws[1]))
    gap = 100 * (found[0]["score"] - found[1]["score"])
    faster = found[1]["seconds"] / found[0]["seconds"]
    print(f"difference {gap:+.2f} points [{low:+.2f}, {high:+.2f}], {len(rows)} patients; {faster:.1f} times as fast")


def memory(patients: int, folder: Path) -> dict[str, float]:
    """Draw, segment, prepare, train; peaks above the imports. Prepare first: the peak only grows."""
    import monai.networks.nets  # noqa: F401

    from quintet.fusion import analysis, inference, module  # noqa: F401
    from quintet.fusion.data.prepared import load as load_data
    from quintet.fusion.data.prepared import prepare
    from quintet.fusion.data.segmentation import segment
    from quintet.fusion.study import train_run
    from quintet.fusion.synthetic import synthesize

    params: Params = load("params.yaml")
    p = params.fusion.model_copy(update={"epochs": 2})
    os.chdir(folder)
    synthesize(Path("raw"), patients=patients, seed=1, workers=1)
    segment(Path("raw"), Path("masks"), p)
    before = peak_memory_mb()
    prepare(Path("raw"), Path("masks"), Path("data"), p)
    prepared = peak_memory_mb()
    train_run(Path("run"), Path("data"), p, p, params.compute, stage="fusion_train", config="selected", seed=0)
    volumes = load_data(Path("data")).volumes.nbytes / 2**20
    return {
        "patients": patients,
        "volumes_mib": volumes,
        "prepare_above_mib": prepared - before,
        "training_above_mib": peak_memory_mb() - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["sampling", "memory"])
    parser.add_argument("--run", type=Path, default=Path("runs/fusion/selected"))
    parser.add_argument("--data", type=Path, default=Path("data/processed/fusion"))
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(memory(int(options.variant), Path(folder))))
        return
    if options.part != "memory":
        sampling(options.run, options.data)
    if options.part != "sampling":
        for row in take_turns(__file__, ["60", "240"], {}, rounds=1).values():
            print("  ".join(f"{name} {value:.0f}" for name, value in row.items()))


if __name__ == "__main__":
    main()
