"""The ranking's decision rule on simulated studies with known truth: false claims and power.

    python benchmarks/ranking.py [--studies 400]

The first table has one row per cause of variation: of studies in which no configuration is better, the share in which any two are
significantly different, for 14 and 4 configurations and 12 and 30 patients. The second shows from how many of its rivals a
configuration that is 3 points better is significantly different. The third compares pairs that share weights: the standard error
that the rule gives, divided by the true one, run by run and as if the runs were independent.
Exits with code 1 if a requirement is missed: false claims in at most 8 % of the studies of each setting (10 % with 2 seeds), and
a standard error within 10 % of the truth for pairs that share weights. Expected: 2 min.

Scores are in percent Dice. Patients differ with an SD of 5 that all configurations share, two configurations differ from patient
to patient with an SD of 2.8, every training run has an effect of its own, and the noise of patient and run has an SD of 1.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.ranking import decide

SIZES = ((14, 30), (14, 12), (4, 30), (4, 12))  # configurations, patients
COMMON_SD = 5.0  # between patients, shared by all configurations
PAIR_SD = 2.8  # between patients, of the difference between two configurations
NOISE_SD = 1.0
GAIN = 3.0  # points
LIMITS = {2: 0.10}  # seeds -> largest share of false claims; any other number: 0.08
LIMIT = 0.08
MAX_SE_ERROR = 0.10
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """A study design and its variation; SDs are one number, or the first and last of equally spaced ones, or one that differs."""

    name: str
    folds: int
    seeds: int
    run_sd: tuple[float, ...] = (0.8,)
    training_sd: float = 0.0
    noisy: float | None = None  # the run SD of one configuration

    def run_sds(self, configs: int) -> Floats:
        sds = np.linspace(self.run_sd[0], self.run_sd[-1], configs)
        if self.noisy is not None:
            sds[-1] = self.noisy
        return sds


CELLS = [
    *(Cell("equal runs, SD 0.8", folds, seeds) for folds, seeds in ((1, 2), (1, 3), (1, 5), (5, 1), (5, 2), (5, 3))),
    *(Cell("equal runs, SD 1.5", folds, seeds, (1.5,)) for folds, seeds in ((1, 3), (5, 3))),
    *(
        Cell("one noisy configuration, SD 3 among 0.3", f, s, (0.3,), noisy=3.0)
        for f, s in ((1, 2), (1, 3), (1, 5), (5, 1), (5, 2))
    ),
    *(Cell("run SDs from 0.3 to 1.8", folds, seeds, (0.3, 1.8)) for folds, seeds in ((1, 2), (1, 3), (1, 5), (5, 2))),
    *(Cell("training set x configuration, SD 0.8", 5, seeds, (0.3,), 0.8) for seeds in (1, 3)),
    Cell("deterministic training", 1, 1, (0.0,)),
]
POWER = [Cell("", folds, seeds) for folds, seeds in ((1, 2), (1, 3), (1, 5), (1, 10), (5, 1), (5, 2), (5, 3))]


def simulate(cell: Cell, configs: int, patients: int, count: int, gain: float = 0.0) -> Iterator[Floats]:
    """Scores [configs, folds * seeds, patients] of `count` studies; NaN where a run belongs to another fold than the patient."""
    rng = np.random.default_rng([configs, patients, cell.folds, cell.seeds])
    runs = cell.folds * cell.seeds
    run_fold, patient_fold = np.repeat(np.arange(cell.folds), cell.seeds), np.arange(patients) % cell.folds
    for _ in range(count):
        scores = rng.normal(60, COMMON_SD, patients) + rng.normal(0, PAIR_SD / np.sqrt(2), (configs, 1, patients))
        scores = scores + rng.normal(0, 1, (configs, runs, 1)) * cell.run_sds(configs)[:, None, None]
        scores = scores + rng.normal(0, cell.training_sd, (configs, cell.folds))[:, run_fold, None]
        scores = scores + rng.normal(0, NOISE_SD, scores.shape)
        scores[0] += gain
        yield np.where(run_fold[:, None] == patient_fold, scores, np.nan)


def false_claims(cell: Cell, configs: int, patients: int, count: int) -> float:
    fixed = np.full(configs, cell.run_sd == (0.0,))
    studies = simulate(cell, configs, patients, count)
    return float(np.mean([decide(scores, deterministic=fixed).significant.any() for scores in studies]))


def power(cell: Cell, count: int) -> float:
    """Share of (study, rival) in which the better configuration is significantly different from the rival."""
    return float(np.mean([decide(s).significant[0, 1:].mean() for s in simulate(cell, *SIZES[0], count, GAIN)]))


def shared_weights(seeds: int, own_sd: float, count: int) -> dict[str, float]:
    """A pair with the same weights, whose second member adds an effect for each patient and, with `own_sd`, for each run:
    standard errors divided by the true one, and how often p < 0.05."""
    rng = np.random.default_rng([seeds, round(10 * own_sd)])
    paired, apart, difference, significant, df = [], [], [], [], []
    for scores in simulate(Cell("", 1, seeds), 4, 30, count):
        scores[1] = scores[0] + rng.normal(0, 0.5, (1, 30)) + rng.normal(0, own_sd, (seeds, 1))
        decision = decide(scores, related=[0, 0, 1, 2])
        difference.append(decision.difference[0, 1])
        significant.append(decision.p[0, 1] < 0.05)
        df.append(decision.df[0, 1])
        paired.append(decision.se[0, 1] ** 2)
        apart.append(decide(scores).se[0, 1] ** 2)
    true = float(np.std(difference))
    return {
        "run by run": float(np.sqrt(np.mean(paired))) / true,
        "as if independent": float(np.sqrt(np.mean(apart))) / true,
        "df (median)": float(np.median(df)),
        "p < 0.05, %": 100 * float(np.mean(significant)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--studies", type=int, default=400, help="simulated studies per setting; few can miss a requirement by chance"
    )
    count = parser.parse_args().studies
    missed = []
    rows = []
    for cell in CELLS:
        row: dict[str, object] = {"cause": cell.name, "folds x seeds": f"{cell.folds} x {cell.seeds}"}
        for configs, patients in SIZES:
            share = false_claims(cell, configs, patients, count)
            row[f"{configs} configs, {patients} patients"] = round(100 * share, 1)
            limit = LIMITS.get(cell.seeds, LIMIT)
            if share > limit:
                missed.append(
                    f"{row['cause']}, {row['folds x seeds']}, {configs} configurations, {patients} patients: {share:.3f}"
                )
        rows.append(row)
    print(f"Studies without a difference in which one is claimed, % of {count}\n\n{pd.DataFrame(rows).to_string(index=False)}\n")
    found = {f"{cell.folds} x {cell.seeds}": round(100 * power(cell, count // 4)) for cell in POWER}
    print(f"A configuration is {GAIN:g} points better (run SD 0.8): significantly different rivals, %\n")
    print(pd.DataFrame([found]).to_string(index=False))
    shared = []
    for own_sd in (0.0, 0.8):
        for seeds in (1, 3, 5):
            if own_sd and seeds == 1:
                continue  # one run cannot show how much runs differ
            errors = shared_weights(seeds, own_sd, 5 * count)
            shared.append({"own run SD": own_sd, "seeds": seeds} | errors)
            if abs(errors["run by run"] - 1) > MAX_SE_ERROR:
                missed.append(
                    f"shared weights, {seeds} seeds, own run SD {own_sd}: standard error {errors['run by run']:.2f} of the truth"
                )
    print("\nTwo configurations that share weights: standard error / the true one\n")
    print(pd.DataFrame(shared).round(2).to_string(index=False))
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
