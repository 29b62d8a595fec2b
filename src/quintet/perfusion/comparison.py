"""The ranking of the configurations, the reference's analysis tables, and its open questions."""

import numpy as np
import pandas as pd
from scipy import stats

from quintet import ranking
from quintet.comparison import Runs, evaluation_metrics, read_all_cases, read_cases, select_columns, training_metrics
from quintet.pages import Section
from quintet.params import Params, Perfusion, PerfusionConfig
from quintet.params.perfusion import BASELINES
from quintet.perfusion.open_questions import difference, open_questions, recommendations
from quintet.perfusion.published import PUBLISHED
from quintet.ranking import Question, Ranking, is_better

METRIC = "dice"
FLOOR, CEILING = BASELINES
DETAILS = {
    "dice": "Dice (mean over cases)",
    "dice_of_subjects": "Dice (mean over people)",
    "hd95_mm_left": "HD95 left, mm",
    "hd95_mm_right": "HD95 right, mm",
    "assd_mm_left": "ASSD left, mm",
    "assd_mm_right": "ASSD right, mm",
    "volume_error_left": "relative volume error left (signed)",
    "volume_error_right": "relative volume error right (signed)",
    "dice_overlap": "Dice of the overlap zone",
    "asymmetry_error": "asymmetry error",
    "undefined_distances": "undefined distances",
}
COSTS = {
    "train_seconds": "training, s",
    "evaluation_seconds_per_case": "prediction and scoring, s per case",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
}
COLUMNS = {(): "baseline", ("spatial",): "spatial", ("complementary",): "complementary", ("complementary", "spatial"): "combined"}


def rank(params: Params, runs: Runs) -> Ranking:
    return ranking.rank(
        read_all_cases(runs),
        METRIC,
        lower_is_better=False,
        label="Dice",
        bounds=(0, 1),
        **params.ranking.model_dump(),
        published={name: mean / 100 for name, (mean, _, _) in PUBLISHED.items()},
        questions=questions({name: params.perfusion.configs[name] for name in params.perfusion.sweep.configs}),
        deterministic=[FLOOR] if FLOOR in runs else [],
        floor=FLOOR,
        ceiling=CEILING,
    )


def questions(configs: dict[str, PerfusionConfig]) -> list[Question]:
    """Is a network better than a threshold on the flow maps? Does each added loss term help its architecture, and do the terms
    help another architecture more than the shared one?

    The first is asked of the plain `shared` network alone. The last kind averages over the terms that both architectures have."""
    by_arch: dict[str, dict[tuple[str, ...], str]] = {}
    for name, config in configs.items():
        by_arch.setdefault(_arch(config), {})[tuple(sorted(config.losses))] = name
    with_baseline = {arch: terms for arch, terms in by_arch.items() if () in terms}
    asked = [is_better(name, terms[()]) for terms in with_baseline.values() for losses, name in terms.items() if losses]
    shared = with_baseline.get("shared", {})
    if shared:
        asked.insert(0, is_better(shared[()], FLOOR))
    for arch, terms in with_baseline.items():
        common = [losses for losses in terms if losses and losses in shared]
        if arch != "shared" and common:
            weights = {terms[()]: -1.0, shared[()]: 1.0}
            weights |= {terms[losses]: 1 / len(common) for losses in common} | {
                shared[losses]: -1 / len(common) for losses in common
            }
            asked.append(Question(f"Do added loss terms help {arch} more than shared?", weights))
    return asked


def _arch(config: PerfusionConfig) -> str:
    return config.arch + ("@head" if config.separate_at == "head" else "")


def report_sections(params: Perfusion, table: Ranking, runs: Runs) -> list[Section]:
    configs = {name: params.configs[name] for name in table.table["config"] if name in params.configs}
    everything = [name for name in (table.ceiling, *table.table["config"]) if name]
    metrics = evaluation_metrics(runs, everything)
    costs = training_metrics(runs, configs).join(metrics[["evaluation_seconds_per_case"]])
    sides = _sides(runs, everything)
    return [
        _published(table, sides, configs),
        _by_loss(table, configs),
        _by_architecture(table, configs),
        Section("Left and right", LEFT_RIGHT, sides),
        Section("The reference's open questions", "\n\n".join(open_questions(table, params))),
        Section("Recommendations", "\n\n".join(recommendations(table, costs, params))),
        Section("Details", DETAILS_TEXT, select_columns(metrics, DETAILS)),
        Section("Cost", "Training time includes validation.", select_columns(costs, COSTS)),
    ]


DETAILS_TEXT = """Means over the cases where a score is defined. relative volume error: (predicted - true) / true, so that
errors of different signs cancel. overlap zone: the voxels of both territories. asymmetry error: of (left - right) / (left +
right) of the two volumes. undefined distances: territories of which the prediction or the truth is empty."""
LEFT_RIGHT = """Dice of the left and of the right territory, means over people, and the gap left - right with its 95 %
interval.

The reference states that Dice is higher on the left by 1.2 +- 0.7 points on average, in every configuration. Its own table
gives 1.6 +- 0.9, and a higher Dice on the right in shared-multiscale."""


def _sides(runs: Runs, names: list[str]) -> pd.DataFrame:
    rows = []
    for name in names:
        table = read_cases(runs[name])
        people = table[table["metric"].isin(["dice_left", "dice_right", "gap"])]
        people = people.groupby(["metric", "group"])["value"].mean().unstack(0)
        gap = people["gap"]
        half = stats.t.ppf(0.975, len(gap) - 1) * gap.std() / np.sqrt(len(gap)) if len(gap) > 1 else np.nan
        published = PUBLISHED.get(name)
        rows.append(
            {
                "config": name,
                "left": people["dice_left"].mean(),
                "right": people["dice_right"].mean(),
                "gap": gap.mean(),
                "low": gap.mean() - half,
                "high": gap.mean() + half,
                "published gap": (published[1] - published[2]) / 100 if published else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _published(table: Ranking, sides: pd.DataFrame, configs: dict[str, PerfusionConfig]) -> Section:
    rows = []
    ranked, by_side = table.table.set_index("config"), sides.set_index("config")
    for name in configs:
        row, side = ranked.loc[name], by_side.loc[name]
        mean, left, right = (v / 100 for v in PUBLISHED.get(name, (np.nan,) * 3))
        place = list(PUBLISHED).index(name) + 1 if name in PUBLISHED else None
        ours = (row["rank"], row["mean"], side["left"], side["right"])
        rows.append((name, configs[name].separate_at, *ours, place, mean, left, right))
    columns = [
        "config",
        "separate at",
        "rank",
        "mean",
        "left",
        "right",
        "published rank",
        "published mean",
        "published left",
        "published right",
    ]
    text = (
        "Ours (means over people) and the reference's (means over 6 cases of 2 people, one run each). separate at decoder: "
        "one decoder per hemisphere; head: the reference's published sketch, two heads on one decoder, which is the same "
        "function as shared."
    )
    return Section(
        "Published results and ours",
        text,
        pd.DataFrame(rows, columns=columns).assign(**{"published rank": [_whole(r[6]) for r in rows]}),
    )


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _by_loss(table: Ranking, configs: dict[str, PerfusionConfig]) -> Section:
    """Architecture x loss terms: mean, and the difference from the same architecture without added terms."""
    mean = table.table.set_index("config")["mean"]
    rows: dict[str, dict[str, str]] = {}
    for name, config in configs.items():
        arch = _arch(config)
        column = COLUMNS.get(tuple(sorted(config.losses)), " + ".join(config.losses))
        baseline = next(
            (n for n, c in configs.items() if (c.arch, c.separate_at, c.losses) == (config.arch, config.separate_at, [])), None
        )
        text = f"{mean[name]:.4f}"
        if baseline and baseline != name:
            change, half_width, significant = difference(table, name, baseline)
            text += f" ({change:+.4f} [{change - half_width:+.4f}, {change + half_width:+.4f}]{', significant' * significant})"
        rows.setdefault(arch, {})[column] = text
    order = [*COLUMNS.values(), *sorted({c for row in rows.values() for c in row} - set(COLUMNS.values()))]
    wide = pd.DataFrame(rows).T.reindex(columns=[c for c in order if any(c in row for row in rows.values())]).fillna("")
    text = (
        "Mean Dice; in brackets the difference from the same architecture without added terms, its interval "
        f"({100 * (1 - table.alpha):g} %, for this pair alone), and the word significant where the decision rule (Holm, all "
        "pairs) finds it so."
    )
    return Section("Loss terms by architecture", text, wide.rename_axis("architecture").reset_index())


def _by_architecture(table: Ranking, configs: dict[str, PerfusionConfig]) -> Section:
    rows = table.table[table.table["config"].isin(configs)]
    rows = rows.assign(arch=[_arch(configs[name]) for name in rows["config"]])
    rows = rows.assign(best=rows["config"])
    grouped = rows.groupby("arch", sort=False)
    spread = grouped["mean"].agg(["count", "mean", "min", "max", "std"]).assign(range=lambda t: t["max"] - t["min"])
    spread = spread.join(grouped["best"].first()).rename_axis("architecture").reset_index()
    text = "Means over the configurations of an architecture; best: its highest-ranked configuration (a rank, not a verdict)."
    return Section("Range per architecture", text, spread.rename(columns={"count": "configurations", "std": "SD"}))
