"""The ranking's decision rule on simulated studies whose truth is known: false separations, and power.

    python benchmarks/ranking.py [--studies 200]

Two tables: in how many studies of equal configurations any two are separated, beside the usual habit (paired t tests over
patients, Holm, one seed, runs ignored); and how many of its rivals one configuration that is 3 points better is separated from.
Exit code 1 where a requirement is missed: false separations in at most 8 % of a cell's studies, and 80 % power with 10 seeds at a
run-to-run SD of 0.8. Expected: 10 s; at most 13 false separations in 200 studies (the habit: 196 at run SD 0.8), power 86 %.

A study: 14 configurations, 30 patients, scores in percent Dice. Patients differ by an SD of 5 shared by all configurations, two
configurations differ from patient to patient by an SD of 2.8, and every (configuration, run) has an effect of its own.
"""

import argparse
import sys

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.ranking import decide

CONFIGS, PATIENTS = 14, 30
COMMON_SD, PAIR_SD = 5.0, 2.8  # between patients, shared by all configurations; of a patient's difference of two of them
RUN_SDS = (0.0, 0.8, 1.5)
GAIN = 3.0  # points
EQUAL = {"2 seeds": (1, 2), "3 seeds": (1, 3), "5 seeds": (1, 5), "5 folds x 3 seeds": (5, 3)}  # folds, seeds
ONE_BETTER = EQUAL | {"10 seeds": (1, 10)}
MOST_FALSE, LEAST_POWER, JUDGED = 0.08, 0.8, ("10 seeds", 0.8)


def studies(count: int, folds: int, seeds: int, run_sd: float, gain: float = 0.0) -> NDArray[np.float64]:
    """Scores [count, configs, folds * seeds, patients]; NaN where a run belongs to another fold than the patient."""
    rng = np.random.default_rng([seeds, folds, round(10 * run_sd), round(10 * gain)])
    common = rng.normal(60, COMMON_SD, (count, 1, 1, PATIENTS))
    own = rng.normal(0, PAIR_SD / np.sqrt(2), (count, CONFIGS, 1, PATIENTS))
    scores = common + own + rng.normal(0, run_sd, (count, CONFIGS, folds * seeds, 1))
    scores[:, 0] += gain
    of_run, of_patient = np.repeat(np.arange(folds), seeds), np.arange(PATIENTS) % folds
    return np.where(of_run[:, None] == of_patient, scores, np.nan)


def false_separations(count: int, folds: int, seeds: int, run_sd: float) -> int:
    return sum(bool(decide(one).separated.any()) for one in studies(count, folds, seeds, run_sd))


def power(count: int, folds: int, seeds: int, run_sd: float) -> float:
    """Share of (study, rival) in which the better configuration is separated: the chance for an average rival."""
    return float(np.mean([decide(one).separated[0, 1:].mean() for one in studies(count, folds, seeds, run_sd, GAIN)]))


def grid(cells: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(cells, orient="index", columns=pd.Index(RUN_SDS, name="run SD"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="simulated studies in each cell")
    count = parser.parse_args().studies
    limit = int(MOST_FALSE * count)
    false = grid({name: [false_separations(count, *runs, sd) for sd in RUN_SDS] for name, runs in EQUAL.items()})
    habit = grid({"1 seed, paired t": [false_separations(count, 1, 1, sd) for sd in RUN_SDS]})  # what `decide` is for one run
    found = grid({name: [power(count, *runs, sd) for sd in RUN_SDS] for name, runs in ONE_BETTER.items()})

    print(f"{CONFIGS} equal configurations, {PATIENTS} patients: studies of {count} with a false separation (at most {limit})\n")
    print(false.to_string(), f"The habit, runs ignored:\n\n{habit.to_string()}", sep="\n\n")
    print(f"\nOne configuration {GAIN:g} points better: share of its rivals separated, %\n")
    print((100 * found).to_string(float_format="%.0f"))
    most, reached = false.to_numpy().max(), found.loc[JUDGED]
    print(
        f"\nmost false separations: {most} of {count} (at most {limit}); power with {JUDGED[0]} at run SD {JUDGED[1]}: "
        f"{100 * reached:.1f} % (at least {100 * LEAST_POWER:.0f} %)"
    )
    if most > limit or reached < LEAST_POWER:
        sys.exit("a requirement is missed")


if __name__ == "__main__":
    main()
