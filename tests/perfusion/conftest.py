"""Phantoms, the study's parameters shrunk to seconds, a trained run, and score tables with a known truth."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quintet import experiment, results
from quintet.params import parse
from quintet.perfusion.published import PUBLISHED
from quintet.runs import Record
from tests.conftest import with_changes

SMALL = {
    "perfusion.data.folds": 3,
    "perfusion.training.epochs": 2,
    "perfusion.training.iterations": 3,
    "perfusion.training.batch_size": 6,
    "perfusion.training.features": 4,
    "perfusion.training.attention_tokens": 16,
    "perfusion.sweep": {
        "configs": ["shared", "separate"],
        "folds": [0],
        "seeds": [0],
        "ensembles": {"pair": ["shared", "separate"]},
    },
    "ranking.bootstrap": 100,
    "compute.device": "cpu",
    "compute.threads": 1,
}


@pytest.fixture(scope="session")
def flow_maps(tmp_path_factory) -> Path:
    """6 people in nnU-Net's raw layout."""
    from quintet.perfusion.synthetic import synthesize

    folder = tmp_path_factory.mktemp("raw") / "perfusion"
    synthesize(folder, subjects=6, seed=3)
    return folder


@pytest.fixture
def broken(flow_maps, tmp_path) -> Path:
    """A copy of the phantoms that a test may damage."""
    return shutil.copytree(flow_maps, tmp_path / "raw")


@pytest.fixture
def small(make_params, tmp_path, monkeypatch):
    """Small parameters; checkpoints and runs go to `tmp_path`, and without a dvc.yaml there nothing is uploaded."""
    monkeypatch.chdir(tmp_path)
    return make_params(SMALL)


@pytest.fixture(scope="session")
def flow_arrays(flow_maps, tmp_path_factory, values) -> Path:
    """The phantoms, prepared."""
    from quintet.perfusion.data.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared") / "perfusion"
    prepare(flow_maps, folder, parse(with_changes(values, SMALL)).perfusion)
    return folder


@pytest.fixture(scope="session")
def trained(flow_arrays, tmp_path_factory, values) -> tuple[Path, dict[str, float]]:
    """A small network trained long enough to find the territories (10 s), and its metrics on fold 0."""
    longer = {"features": 8, "epochs": 4, "iterations": 15, "batch_size": 12, "rate": 0.3}
    changes = SMALL | {f"perfusion.training.{name}": value for name, value in longer.items()}
    params, folder = parse(with_changes(values, changes)), tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment.train_selected("perfusion", params, flow_arrays, folder / "run")
        metrics = experiment.evaluate_selected("perfusion", params, flow_arrays, folder / "run", folder / "scores.json")
    return folder / "run", metrics


@pytest.fixture
def simulated(make_params, tmp_path, monkeypatch):
    """`simulated(better, ...)` -> parameters, run folders and ranking of a sweep over the 14 configurations.

    Mean Dice is 0.9, plus the value that `better` has for a configuration. `run_sd` may differ between configurations.
    """
    monkeypatch.chdir(tmp_path)

    def make(better, *, configs=tuple(PUBLISHED), folds=(0,), seeds=(0,), run_sd=0.0, people=30, visits=2):
        sweep = {"configs": list(configs), "folds": list(folds), "seeds": list(seeds), "ensembles": {}}
        params = make_params(SMALL | {"perfusion.data.folds": 5, "perfusion.sweep": sweep})
        runs = experiment.run_folders(params.perfusion, Path("runs/perfusion/sweep"))
        rng = np.random.default_rng(0)
        common = rng.normal(0, 0.04, people)
        fold_of = np.arange(people) % len(folds)
        for name, folders in runs.items():
            own = rng.normal(0, 0.01, people)
            sd = run_sd[name] if isinstance(run_sd, dict) else run_sd
            for run in folders:
                fold, seed = (int(part.lstrip("foldse")) for part in run.name.split("-"))
                chosen = np.repeat(np.flatnonzero(fold_of == list(folds).index(fold)), visits)
                dice = 0.9 + better.get(name, 0) + common[chosen] + own[chosen] + rng.normal(0, sd)
                table = pd.DataFrame({"dice": dice, "dice_left": dice + 0.006, "dice_right": dice - 0.006, "gap": 0.012})
                cases, groups = [f"p{c}-v{i % visits}" for i, c in enumerate(chosen)], [f"p{c}" for c in chosen]
                tidy = results.to_tidy(table, "perfusion", name, fold=fold, seed=seed, cases=cases, groups=groups)
                results.write(tidy, run / "evaluation" / "cases.csv")
                metrics = {"dice": dice.mean(), "evaluation_seconds_per_case": 0.1}
                (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
                costs = {"train_seconds": 10.0 + seed, "parameters": 100.0, "peak_memory_mb": 500.0}
                Record("perfusion", "perfusion_sweep", name, seed, {}, {}, fold=fold, metrics=costs).save(run)
        return params, runs, experiment.rank_finished("perfusion", params, Path("runs"))

    return make
