"""The ranking of all configurations, and its planned comparisons."""

from quintet import ranking
from quintet.comparison import Runs, read_all_cases
from quintet.fusion.evaluation.scores import CLASSIFICATION, SURVIVAL
from quintet.params import Fusion, Params
from quintet.params.fusion import ADAPTS, BASELINES, LATE, TTT
from quintet.ranking import JACKKNIFE, Ranking, is_better


def ranked_configs(params: Fusion) -> dict[str, str]:
    """Each row of the ranking -> the trained configuration (or baseline) that it comes from."""
    rows = {}
    for name in params.sweep_runs():
        rows[name] = name
        if params.configs[name].method in ADAPTS:
            rows[name + TTT] = name
    return rows


def rank(params: Params, runs: Runs) -> Ranking:
    classification = params.fusion.data.task == "classification"
    return ranking.rank(
        read_all_cases(runs),
        f"{CLASSIFICATION if classification else SURVIVAL}_over_subsets",
        label=f"{'Brier score' if classification else 'concordance index'}, mean over modality subsets",
        lower_is_better=classification,
        bounds=(0, 1),
        **params.ranking.model_dump(),
        deterministic=[name for name in BASELINES if name in runs],
        floor=BASELINES[0],
        ceiling=BASELINES[1],
        # Not the rows on the same frozen encoders: each trains a predictor of its own, and three seeds measure that too badly
        # (docs/ranking.md)
        same_run_as=ranked_configs(params.fusion),
        questions=[is_better(first, second) for first, second in compared_pairs(params.fusion)],
        note="" if classification else JACKKNIFE,
    )


def compared_pairs(params: Fusion) -> list[tuple[str, str]]:
    """The planned comparisons: is the flow better than late fusion and every other method on the same tokens, (a) with modalities
    missing as in training and (b) with sets that training has never seen? Is the published diffusion better than
    attention, without and with adaptation?"""
    configs = {name: params.configs[name] for name in params.sweep_runs()}
    pairs = []
    for first, flow in configs.items():
        if flow.method == "flow":
            rivals = [n for n, c in configs.items() if c.patients == flow.patients and c.encoders == "frozen" and n != first]
            pairs += [(first, other) for other in [LATE, *rivals]]
    published = {c.method: n for n, c in configs.items() if c.method in ADAPTS}
    if len(published) == len(ADAPTS):
        pairs += [(published["diffusion"] + end, published["attention"] + end) for end in ("", TTT)]
    return pairs
