"""The ranking's decision rule on simulated studies with known truth: false claims and power.

    python benchmarks/ranking.py [--studies 400]

The first table has one row per cause of variation: of studies in which no configuration is better, the share in which any two are
significantly different, for 14 and 4 configurations and 12 and 30 patients. Beside it, for 14 and 30: moderated variances
(empirical Bayes, Smyth 2004) instead of the larger of own and pooled ones. The second table does the same with the studies' own
scores of fixed models, and beside it with each patient's own score as if it did not depend on other patients. The third shows how
often a configuration that is 3 points better is found: from how many rivals it is significantly different among all pairs, and
the answer to the planned comparison with its baseline (the planned comparisons of the perfusion study). The fourth compares pairs
that share weights: the standard error that the rule gives, divided by the true one, run by run and as if the runs were
independent.
Exits with code 1 if a requirement is missed: false claims in at most 8 % of the studies of each setting (10 % with 2 seeds), a
standard error within 10 % of the truth for pairs that share weights, and with several folds 93 % of the intervals of means that
hold the true one. Expected: 24 min.

Scores are in percent Dice. Patients differ with an SD of 5 that all configurations share, two configurations differ from patient
to patient with an SD of 2.8, every training run has an effect of its own, and the noise of patient and run has an SD of 1. The
last table (scores of 0 to 1) is why fusion's rows on the same frozen encoders are not compared run by run.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special, stats

from quintet import params
from quintet.breakhis.comparison import as_balanced_accuracy
from quintet.ct.evaluation.jackknife import patient_pseudo_values
from quintet.ct.metrics import Scans, cosine, retrieve
from quintet.fusion.evaluation.patterns import RECORDED
from quintet.fusion.evaluation.scores import concordance_scores, patient_scores
from quintet.perfusion.comparison import questions
from quintet.ranking import decide
from quintet.ranking.decision import holm
from quintet.ranking.questions import answerable
from quintet.ranking.variance import from_seeds, patient_means
from quintet.results import COLUMNS

SIZES = ((14, 30), (14, 12), (4, 30), (4, 12))  # configurations, patients
MEAN = 60.0
COMMON_SD = 5.0  # between patients, shared by all configurations
PAIR_SD = 2.8  # between patients, of the difference between two configurations
NOISE_SD = 1.0
GAIN = 3.0  # points
LIMITS = {2: 0.10}  # seeds -> largest share of false claims; any other number: 0.08
LIMIT = 0.08
MAX_SE_ERROR = 0.10
MIN_HELD = 0.93
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
    common_sd: float = 0.0  # of what a training set does to all configurations

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
        scores = rng.normal(MEAN, COMMON_SD, patients) + rng.normal(0, PAIR_SD / np.sqrt(2), (configs, 1, patients))
        scores = scores + rng.normal(0, 1, (configs, runs, 1)) * cell.run_sds(configs)[:, None, None]
        scores = scores + rng.normal(0, cell.training_sd, (configs, cell.folds))[:, run_fold, None]
        if cell.common_sd:
            scores = scores + rng.normal(0, cell.common_sd, cell.folds)[run_fold, None]
        scores = scores + rng.normal(0, NOISE_SD, scores.shape)
        scores[0] += gain
        yield np.where(run_fold[:, None] == patient_fold, scores, np.nan)


def false_claims(cell: Cell, configs: int, patients: int, count: int) -> float:
    fixed = np.full(configs, cell.run_sd == (0.0,))
    studies = simulate(cell, configs, patients, count)
    return float(np.mean([decide(scores, deterministic=fixed).pairs.significant.any() for scores in studies]))


def moderated_false_claims(cell: Cell, configs: int, patients: int, count: int) -> float:
    """With run variances shrunk towards a common one, whose prior is fitted to all configurations (Smyth 2004); one fold."""
    first, second = np.triu_indices(configs, 1)
    claimed = []
    for scores in simulate(cell, configs, patients, count):
        by_patient = patient_means(scores)
        variance, df = moderated(from_seeds(scores, by_patient, np.zeros(configs, bool)).own_square, cell.seeds - 1.0)
        difference = by_patient[first] - by_patient[second]
        patient, runs = difference.var(-1, ddof=1) / patients, variance / cell.seeds
        se2 = patient + runs[first] + runs[second]
        error = patient**2 / (patients - 1) + (runs[first] ** 2 + runs[second] ** 2) / df
        p = 2 * stats.t.sf(np.abs(difference.mean(-1)) / np.sqrt(se2), se2**2 / error)
        claimed.append((holm(p) <= 0.05).any())
    return float(np.mean(claimed))


def moderated(square: Floats, df: float) -> tuple[Floats, float]:
    """Mean squares with `df` degrees of freedom, shrunk by empirical Bayes, and their degrees of freedom: method of moments for
    the logarithm (Smyth 2004, doi:10.2202/1544-6115.1027, section 6.2)."""
    e = np.log(square) - special.digamma(df / 2) + np.log(df / 2)
    excess = e.var(ddof=1) - special.polygamma(1, df / 2)
    if excess <= 0:
        return np.full_like(square, square.mean()), df * len(square)
    prior_df = 2 * optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1e-6, 1e6)
    prior = np.exp(e.mean() + special.digamma(prior_df / 2) - np.log(prior_df / 2))
    return (prior_df * prior + df * square) / (prior_df + df), prior_df + df


Draw = Callable[[np.random.Generator, int, int], tuple[Floats, Floats]]


def draw_concordance(rng: np.random.Generator, configs: int, patients: int) -> tuple[Floats, Floats]:
    """Risks of equally good models, scored as the fusion study does: pseudo-values [configs, patients], and each patient's share
    of pairs in the right order."""
    hazard = rng.normal(size=patients)
    time, censored = rng.exponential(np.exp(-hazard)), rng.exponential(2, patients)
    target = np.stack([np.minimum(time, censored), time <= censored], 1).astype(float)
    names = [f"p{i:03d}" for i in range(patients)]
    values, own = [], []
    for _ in range(configs):
        risk = hazard + rng.normal(size=patients)
        columns = {"pattern": "mri", "patient": names, "risk": risk, "target": target[:, 0], "event": target[:, 1]}
        table = pd.DataFrame(columns)
        scores = concordance_scores(pd.concat([table, table.assign(pattern=RECORDED)], ignore_index=True))
        values.append(scores["concordance_over_subsets"])
        own.append(patient_scores(risk[:, None], target, classes=0)["concordance"].fillna(0.5))
    return np.array(values), np.array(own)


def draw_retrieval(metric: str, k: int) -> Draw:
    def draw(rng: np.random.Generator, configs: int, patients: int) -> tuple[Floats, Floats]:
        """Embeddings of equally good networks, scored as the ct study does, with one or two scans per patient."""
        people = np.concatenate([np.arange(patients), rng.permutation(patients)[: patients // 3]])
        names = np.array([f"p{i:03d}" for i in people])
        labels = (rng.random((len(people), 4)) < 0.35).astype(np.float32)
        scans = Scans(np.arange(len(people)).astype(str), names, labels, list("abcd"))
        values, own = [], []
        for _ in range(configs):
            similarity = cosine(labels @ rng.normal(size=(4, 6)) + 1.5 * rng.normal(size=(len(people), 6)))
            found = retrieve(similarity, scans)
            values.append(patient_pseudo_values(similarity, scans, found.metrics, {metric: k})[metric])
            own.append(pd.Series(found.metrics[metric]).groupby(names).mean().fillna(0))
        return np.array(values), np.array(own)

    return draw


def draw_balanced(rng: np.random.Generator, configs: int, patients: int) -> tuple[Floats, Floats]:
    """Right answers of equally good classifiers, as the breakhis study scores them; a third of the patients is benign."""
    names, malignant = [f"p{i:03d}" for i in range(patients)], np.arange(patients) % 3 > 0
    difficulty = rng.normal(size=patients)
    rows, own = [], []
    for c in range(configs):
        right = difficulty + rng.normal(size=patients) < 1
        for metric, values in (("correct", right), ("malignant", malignant)):
            rows += [("s", f"c{c:02d}", 0, 0, name, name, metric, float(v)) for name, v in zip(names, values, strict=True)]
        own.append(right / np.where(malignant, malignant.sum(), (~malignant).sum()) * patients / 2)
    table = as_balanced_accuracy(pd.DataFrame(rows, columns=COLUMNS))
    return table.pivot(index="config", columns="group", values="value").to_numpy(), np.array(own)


OWN_SCORES: dict[str, Draw] = {
    "concordance index": draw_concordance,
    "retrieval, mAP@5": draw_retrieval("ap_at_5", 5),
    "retrieval, NDCG@10": draw_retrieval("ndcg_at_10", 10),
    "balanced accuracy": draw_balanced,
}


def own_score_claims(draw: Draw, configs: int, patients: int, count: int) -> tuple[float, float]:
    """False claims about fixed models with the studies' own scores, and with each patient's own score."""
    rng = np.random.default_rng([configs, patients])
    studies = [draw(rng, configs, patients) for _ in range(count)]
    fixed = np.ones(configs, bool)
    shares = [[decide(s[k][:, None], deterministic=fixed).pairs.significant.any() for s in studies] for k in (0, 1)]
    return float(np.mean(shares[0])), float(np.mean(shares[1]))


def power(cell: Cell, count: int) -> tuple[float, float]:
    """How often the better configuration is found: the share of its rivals among all pairs, and the planned comparison with its
    baseline."""
    configs = params.load(Path(__file__).parents[1] / "params.yaml").perfusion.configs
    order = ["separate-spatial", *(name for name in configs if name != "separate-spatial")]
    asked, weights = answerable(questions(configs), order)
    number = [q.text for q in asked].index("Is separate-spatial better than separate?")
    decisions = [decide(s, planned=weights) for s in simulate(cell, len(order), SIZES[0][1], count, GAIN)]
    pairs = np.mean([d.pairs.significant[: len(order) - 1].mean() for d in decisions])
    return float(pairs), float(np.mean([d.planned.significant[number] for d in decisions]))


def shared_weights(seeds: int, own_sd: float, count: int) -> dict[str, float]:
    """A pair with the same weights, whose second member adds an effect for each patient and, with `own_sd`, for each run:
    standard errors divided by the true one, and how often p < 0.05."""
    rng = np.random.default_rng([seeds, round(10 * own_sd)])
    paired, apart, difference, significant, df = [], [], [], [], []
    for scores in simulate(Cell("", 1, seeds), 4, 30, count):
        scores[1] = scores[0] + rng.normal(0, 0.5, (1, 30)) + rng.normal(0, own_sd, (seeds, 1))
        pairs = decide(scores, related=[0, 0, 1, 2]).pairs  # the first pair: configurations 0 and 1
        difference.append(pairs.difference[0])
        significant.append(pairs.p[0] < 0.05)
        df.append(pairs.df[0])
        paired.append(pairs.se[0] ** 2)
        apart.append(decide(scores).pairs.se[0] ** 2)
    true = float(np.std(difference))
    return {
        "run by run": float(np.sqrt(np.mean(paired))) / true,
        "as if independent": float(np.sqrt(np.mean(apart))) / true,
        "df (median)": float(np.median(df)),
        "p < 0.05, %": 100 * float(np.mean(significant)),
    }


def same_encoders(own_sd: float, count: int) -> dict[str, tuple[float, float]]:
    """False claims in tables of fusion's size, among all pairs and among 14 planned comparisons: 13 of 15 configurations share
    the run effects of their encoders, and each adds one of its own with the SD `own_sd`."""
    rng, configs, seeds, patients, shared = np.random.default_rng(0), 15, 3, 180, 13
    planned = np.zeros((14, configs))
    planned[:12, 0], planned[np.arange(12), np.arange(1, 13)] = 1, -1
    planned[12:, shared] = 1, -1
    planned[12, 14] = -1
    planned[13, 1] = 1
    ways = {"run by run": [0] * shared + [shared, shared + 1], "as if independent": None}
    claims: dict[str, list[tuple[bool, bool]]] = {name: [] for name in ways}
    for _ in range(count):
        scores = rng.normal(0.19, 0.1, patients) + rng.normal(0, 0.016, (configs, 1, patients))
        scores = scores + rng.normal(0, own_sd, (configs, seeds, 1)) + rng.normal(0, 0.01, (configs, seeds, patients))
        scores[:shared] += rng.normal(0, 0.01, (seeds, 1))
        scores[shared:] += rng.normal(0, 0.01, (configs - shared, seeds, 1))
        for name, related in ways.items():
            decision = decide(scores, related=related, planned=planned)
            claims[name].append((bool(decision.pairs.significant.any()), bool(decision.planned.significant.any())))
    shares = {name: np.mean(found, axis=0) for name, found in claims.items()}
    return {name: (float(pairs), float(asked)) for name, (pairs, asked) in shares.items()}


def few_runs(rng: np.random.Generator, setting: str, number: int) -> tuple[Floats, list[int] | None]:
    """Scores without a difference, of 144 or more patients (paired differences: SD 2), and which configurations are related."""
    if setting == "phases":  # seven, each with the run effects of those before it and one of its own; `number` seeds
        effects = rng.normal(0, 0.5, (7, number, 1)).cumsum(0)
        return 60 + effects + rng.normal(0, 2**0.5, (7, 1, 144)) + rng.normal(0, 0.5, (7, number, 144)), [0] * 7
    if setting == "one repeated":  # of four configurations; the others have one run instead of `number`
        scores = (
            60 + rng.normal(0, 0.4, (4, number, 1)) + rng.normal(0, 2**0.5, (4, 1, 200)) + rng.normal(0, 0.5, (4, number, 200))
        )
        scores[1:, 1:] = np.nan
        return scores, None
    fold = np.repeat([0, 1], [50, number])  # two folds, the second of `number` patients
    scores = 60 + rng.normal(0, 0.9, (4, 2, 1)) + rng.normal(0, 2**0.5, (4, 1, len(fold)))
    return np.where(np.arange(2)[:, None] == fold, scores, np.nan), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--studies", type=int, default=400, help="simulated studies per setting; few can miss a requirement by chance"
    )
    count = parser.parse_args().studies
    missed: list[str] = []
    tables = {
        f"Studies without a difference in which one is claimed, % of {count}": claims_table(count, missed),
        "The same with the studies' own scores of fixed models (in brackets: with each patient's own score)": own_table(
            count, missed
        ),
        f"A configuration is {GAIN:g} points better (run SD 0.8): how often it is found, %": power_table(count // 2),
        "Two configurations that share weights: standard error / the true one": shared_table(5 * count, missed),
        "With several folds: studies with a false claim, and intervals that hold the true mean, %": folds_table(count, missed),
        "Few runs, or unequal folds: studies with a false claim, %": few_runs_table(count, missed),
        "Fusion's rows, 13 on the same encoders: studies with a false claim, %": same_encoders_table(count),
    }
    for heading, rows in tables.items():
        print(f"{heading}\n\n{pd.DataFrame(rows).fillna('').to_string(index=False)}\n")
    if missed:
        sys.exit("missed: " + "; ".join(missed))


def claims_table(count: int, missed: list[str]) -> list[dict[str, object]]:
    rows = []
    for cell in CELLS:
        row: dict[str, object] = {"cause": cell.name, "folds x seeds": f"{cell.folds} x {cell.seeds}"}
        for configs, patients in SIZES:
            share = false_claims(cell, configs, patients, count)
            row[f"{configs}, {patients}"] = f"{100 * share:.1f}"
            if share > LIMITS.get(cell.seeds, LIMIT):
                missed.append(f"{cell.name}, {row['folds x seeds']}, {configs}, {patients}: {share:.3f}")
        if cell.folds == 1 and cell.seeds > 1:
            row["moderated"] = f"{100 * moderated_false_claims(cell, *SIZES[0], count):.1f}"
        rows.append(row)
    return rows


def own_table(count: int, missed: list[str]) -> list[dict[str, object]]:
    rows = []
    for name, draw in OWN_SCORES.items():
        row: dict[str, object] = {"score": name}
        for configs, patients in SIZES:
            share, own = own_score_claims(draw, configs, patients, count)
            row[f"{configs}, {patients}"] = f"{100 * share:.1f} ({100 * own:.1f})"
            if share > LIMIT:
                missed.append(f"{name}, {configs}, {patients}: {share:.3f}")
        rows.append(row)
    return rows


def folds_table(count: int, missed: list[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for configs, folds, seeds in ((2, 2, 1), (2, 2, 3), (3, 2, 1), (2, 3, 1), (4, 2, 1), (2, 5, 1), (4, 5, 1), (4, 5, 3)):
        cell = Cell("", folds, seeds, (0.4,), 0.8, common_sd=1.5)
        decisions = [decide(scores) for scores in simulate(cell, configs, 200, count)]
        share = float(np.mean([d.pairs.significant.any() for d in decisions]))
        held = float(np.mean([np.abs(d.mean - MEAN) <= d.half_width for d in decisions]))
        row = {"configurations": configs, "folds x seeds": f"{folds} x {seeds}"}
        rows.append(row | {"false claims": f"{100 * share:.1f}", "intervals": f"{100 * held:.1f}"})
        if share > LIMIT or held < MIN_HELD:
            missed.append(f"{configs} configurations, {folds} x {seeds}: {share:.3f} claims, {held:.3f} of the intervals")
    return rows


def power_table(count: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [{"family": "all pairs"}, {"family": "planned"}]
    for cell in POWER:
        for row, found in zip(rows, power(cell, count), strict=True):
            row[f"{cell.folds} x {cell.seeds}"] = f"{100 * found:.0f}"
    return rows


def few_runs_table(count: int, missed: list[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for setting, numbers in (("phases", (2, 3, 5, 6)), ("one repeated", (2, 3, 5, 6)), ("unequal folds", (4, 10, 25, 50))):
        for number in numbers:
            rng = np.random.default_rng(number)
            studies = (few_runs(rng, setting, number) for _ in range(count))
            share = float(np.mean([decide(scores, related=related).pairs.significant.any() for scores, related in studies]))
            rows.append({"setting": setting, "number": number, "false claims": f"{100 * share:.1f}"})
            if share > LIMIT:
                missed.append(f"{setting}, {number}: {share:.3f}")
    return rows


def same_encoders_table(count: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for own_sd in (0.0, 0.003, 0.01):
        found = same_encoders(own_sd, count)
        rows.append({"own run SD": own_sd} | {n: f"{100 * p:.0f} (planned: {100 * q:.0f})" for n, (p, q) in found.items()})
    return rows


def shared_table(count: int, missed: list[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    # one run cannot show how much runs differ
    for own_sd, seeds in ((0.0, 1), (0.0, 3), (0.0, 5), (0.8, 3), (0.8, 5)):
        errors = shared_weights(seeds, own_sd, count)
        row: dict[str, object] = {"own run SD": own_sd, "seeds": seeds}
        rows.append(row | {name: round(value, 2) for name, value in errors.items()})
        if abs(errors["run by run"] - 1) > MAX_SE_ERROR:
            missed.append(f"shared weights, {seeds} seeds, own run SD {own_sd}: {errors['run by run']:.2f} of the truth")
    return rows


if __name__ == "__main__":
    main()
