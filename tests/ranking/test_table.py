import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from quintet.errors import InputError
from quintet.ranking import Ranking, rank

from .tables import draw, tidy


def rank_scores(scores: np.ndarray, *, seeds: int | None = None, lower: bool = False) -> Ranking:
    return rank(tidy(scores, seeds=seeds), "dice", lower_is_better=lower, bootstrap=200)


def test_table_by_hand() -> None:
    """Patient p000 has two cases in A: patient means 2 and 6, so the mean is 4 and the mean over cases 10 / 3."""
    a = [("p000", "x", 1.0), ("p000", "y", 3.0), ("p001", "z", 6.0)]
    rows = [("s", "A", 0, 0, g, c, "dice", v) for g, c, v in a]
    rows += [("s", "B", 0, 0, g, c, "dice", v + 1) for g, c, v in a] + [("s", "B", 0, 0, "p002", "w", "dice", 99.0)]
    ranking = rank(pd.DataFrame(rows, columns=tidy(np.zeros((1, 1, 1))).columns), "dice", lower_is_better=True)
    assert list(ranking.table.columns[:6]) == ["rank", "config", "mean", "low", "high", "group"]
    assert ranking.table[["rank", "config", "mean", "group"]].to_numpy().tolist() == [[1, "A", 4.0, "a"], [2, "B", 5.0, "a"]]
    assert ranking.table["mean_over_cases"].tolist() == pytest.approx([10 / 3, 13 / 3])
    assert (ranking.patients, ranking.patients_excluded, ranking.cases, ranking.folds) == (2, 1, 3, 1)
    assert "Excluded: 1 patient not" in ranking.verdict
    assert "that takes 6 patients or more" in ranking.verdict


@pytest.mark.parametrize("lower", [False, True])
def test_order_pairs_and_verdict(lower: bool) -> None:
    scores = draw(np.random.default_rng(0), seeds=5, shift=-12 if lower else 12)
    ranking = rank_scores(scores, lower=lower)
    assert ranking.table["config"][0] == "A"
    assert ranking.table["mean"].is_monotonic_increasing == lower
    assert ranking.table["group"][0] == "a"
    assert not any("a" in group for group in ranking.table["group"][1:])
    assert "A is first" in ranking.verdict
    assert "significantly different from every other" in ranking.verdict
    assert "these trained models" not in ranking.verdict
    assert len(ranking.pairs) == 6
    by_name = dict(zip(ranking.table["config"], ranking.table["mean"], strict=True))
    for row in ranking.pairs.itertuples():
        assert row.difference == pytest.approx(by_name[row.first] - by_name[row.second])
    assert ranking.table["first_share"].sum() == pytest.approx(1)
    assert ranking.table["first_share"][0] == 1
    assert ranking.table[["rank_low", "rank_high"]].iloc[0].tolist() == [1, 1]
    assert (ranking.table["rank_low"][1:] >= 2).all()
    assert (ranking.table["rank_low"] <= ranking.table["rank_high"]).all()


def test_the_verdict_uses_the_label_of_the_metric() -> None:
    table = tidy(draw(np.random.default_rng(0)), metric="error_px")
    assert "Ranked by error px (lower is better)" in rank(table, "error_px", lower_is_better=True).verdict
    ranking = rank(table, "error_px", label="mean error", lower_is_better=True)
    assert (ranking.metric, ranking.label) == ("error_px", "mean error")
    assert "Ranked by mean error (lower is better)" in ranking.verdict


def test_duplicating_the_cases_of_a_patient_changes_nothing() -> None:
    table = tidy(draw(np.random.default_rng(1)), cases=2)
    again = table[table["group"] == "p003"].assign(case=lambda t: t["case"] + "-copy")
    once, twice = (rank(t, "dice", lower_is_better=False) for t in (table, pd.concat([table, again])))
    pd.testing.assert_frame_equal(once.table.drop(columns="mean_over_cases"), twice.table.drop(columns="mean_over_cases"))
    pd.testing.assert_frame_equal(once.pairs, twice.pairs)
    assert twice.cases == once.cases + 2


def test_row_order_has_no_effect_and_the_bootstrap_seed_has_one() -> None:
    table = tidy(draw(np.random.default_rng(2), folds=2), seeds=3)
    one = rank(table, "dice", lower_is_better=False)
    two = rank(table.sample(frac=1, random_state=0), "dice", lower_is_better=False)
    pd.testing.assert_frame_equal(one.table, two.table)
    other = rank(table, "dice", lower_is_better=False, seed=1)
    assert not np.array_equal(one.table["first_share"], other.table["first_share"])
    assert one.table["first_share"].to_numpy() == pytest.approx(other.table["first_share"].to_numpy(), abs=0.06)


def test_bootstrap_against_a_naive_loop() -> None:
    scores = draw(np.random.default_rng(3), configs=3, seeds=4, patients=9)
    ranking = rank(tidy(scores), "dice", lower_is_better=False, bootstrap=4000)
    rng = np.random.default_rng(0)
    wins = np.zeros(3)
    for _ in range(4000):
        patients = rng.integers(0, 9, 9)
        wins[np.argmax([one[rng.integers(0, 4, 4)][:, patients].mean() for one in scores])] += 1 / 4000
    shares = ranking.table.set_index("config")["first_share"][list("ABC")].to_numpy()
    assert shares == pytest.approx(wins, abs=0.04)


def test_the_verdict_of_one_seed_is_limited_to_these_trained_models_unless_folds_show_how_runs_vary() -> None:
    one = rank_scores(draw(np.random.default_rng(4), seeds=1), seeds=1)
    assert "these trained models" in one.verdict
    assert "trained only once, on this training set" in one.verdict
    ranking = rank_scores(draw(np.random.default_rng(4), seeds=1, folds=5), seeds=1)
    assert "measured together with that between folds" in ranking.verdict
    assert "this training set" not in ranking.verdict
    assert ranking.run_sd is None
    assert ranking.table["run_sd"].isna().all()
    assert ranking.table["runs"].tolist() == [5] * 4
    assert "5 folds" in ranking.verdict


def test_configurations_without_repeated_seeds_are_named_unless_deterministic() -> None:
    table = tidy(draw(np.random.default_rng(5)))
    table = table[(table["config"] != "B") | (table["seed"] == 0)]
    single = rank(table, "dice", lower_is_better=False)
    assert "B has no repeated seed" in single.verdict
    assert "1 to 3 trained models" in single.verdict
    deterministic = rank(table, "dice", lower_is_better=False, deterministic=["B"])
    assert "no repeated seed" not in deterministic.verdict
    assert deterministic.table.set_index("config")["run_sd"]["B"] == 0


def test_published_values_and_kendall() -> None:
    scores = draw(np.random.default_rng(6))
    published = {"A": 70.0, "B": 71.0, "C": 69.0, "absent": 1.0}
    for lower in (False, True):
        ranking = rank(tidy(scores), "dice", lower_is_better=lower, published=published, bootstrap=50)
        both = ranking.table.dropna(subset="published")
        assert len(both) == 3
        assert ranking.kendall_tau == pytest.approx(stats.kendalltau(both["mean"], both["published"]).statistic)
    assert rank_scores(scores).kendall_tau is None


def test_degenerate_tables_give_a_sensible_verdict() -> None:
    one = draw(np.random.default_rng(7), configs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        only, tied, flat, single = (
            rank_scores(s) for s in (one, np.repeat(one, 3, axis=0), np.ones((2, 2, 8)), np.ones((2, 1, 1)))
        )
    assert "nothing to compare" in only.verdict
    assert only.pairs.empty
    assert tied.table["rank"].tolist() == [1, 1, 1]
    assert "A, B and C share first place" in tied.verdict
    assert flat.table["first_share"].tolist() == [0.5, 0.5]
    for ranking in (only, tied, flat):
        assert not ranking.table.drop(columns=["published", "covered"]).isna().any(axis=None)
        assert not ranking.pairs.isna().any(axis=None)
    assert "no difference was established" in single.verdict


def test_wrong_tables_are_refused() -> None:
    table = tidy(draw(np.random.default_rng(8)))
    with pytest.raises(InputError, match=r"'hd95' is not in the table; it has \['dice'\]"):
        rank(table, "hd95", lower_is_better=True)
    missing = table.copy()
    missing.loc[7, "value"] = np.nan
    with pytest.raises(InputError, match="config A, case p007-0"):
        rank(missing, "dice", lower_is_better=False)
    disjoint = table.assign(group=table["group"].where(table["config"] != "C", "q" + table["group"]))
    with pytest.raises(InputError, match="the configurations without C have common patients"):
        rank(disjoint, "dice", lower_is_better=False)
    with pytest.raises(InputError, match="only one study"):
        rank(pd.concat([table, table.assign(study="t")]), "dice", lower_is_better=False)
    with pytest.raises(InputError, match=r"deterministic: \['Z'\]"):
        rank(table, "dice", lower_is_better=False, deterministic=["Z"])


def test_intervals_of_a_bounded_metric_stay_inside() -> None:
    scores = 0.9 + draw(np.random.default_rng(11)) / 1000
    scores[3] = 1
    inside = rank(tidy(scores), "dice", lower_is_better=False, bootstrap=20, bounds=(0, 1)).table
    free = rank(tidy(scores), "dice", lower_is_better=False, bootstrap=20).table
    assert inside.iloc[0][["mean", "low", "high"]].tolist() == [1, 1, 1]
    assert (inside["low"] < inside["mean"])[1:].all()
    assert (inside["mean"] < inside["high"])[1:].all()
    assert (inside["high"] <= 1).all()
    widths = [(table["high"] - table["low"]).to_numpy()[1:] for table in (inside, free)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    few = rank(
        tidy(np.array([[[1.0, 1, 1, 1, 0, 1, 1, 1]], [[0, 1, 1, 0, 0, 1, 1, 1]]])), "dice", lower_is_better=False, bounds=(0, 1)
    )
    assert few.table["high"].between(few.table["mean"], 1, inclusive="neither").all()


def with_oracle(**scores: float) -> pd.DataFrame:
    """A table of A to D and further configurations, each with the same score for every patient."""
    table = tidy(draw(np.random.default_rng(3), seeds=2), seeds=2)
    constant = [table[table["config"] == "A"].assign(config=name, value=value) for name, value in scores.items()]
    return pd.concat([table, *constant], ignore_index=True)


@pytest.mark.parametrize("lower", [False, True])
def test_the_ceiling_is_reported_and_compared_with_nothing(lower: bool) -> None:
    """The floor is an ordinary configuration; the oracle changes no rank, interval or p-value of the others."""
    oracle = 0.0 if lower else 100.0
    table = with_oracle(oracle=oracle)
    plain = rank(table[table["config"] != "oracle"], "dice", lower_is_better=lower)
    both = rank(table, "dice", lower_is_better=lower, deterministic=["oracle"], floor="D", ceiling="oracle")
    pd.testing.assert_frame_equal(plain.table.drop(columns="covered"), both.table.drop(columns="covered"))
    pd.testing.assert_frame_equal(plain.pairs, both.pairs)
    assert (both.verdict, both.methods) == (plain.verdict, plain.methods)
    covered = both.table.set_index("config")["covered"]
    mean = both.table.set_index("config")["mean"]
    assert str(covered["D"]) == "0.0"  # not -0.0
    for name in "ABC":
        assert covered[name] == pytest.approx((mean[name] - mean["D"]) / (oracle - mean["D"]))
    last = both.with_ceiling().iloc[-1]
    assert (last["config"], last["mean"]) == ("oracle", oracle)
    assert last.drop(["config", "mean"]).isna().all()
    assert len(plain.with_ceiling()) == len(plain.table)


def test_a_floor_or_ceiling_that_the_table_lacks_is_ignored() -> None:
    table = with_oracle()
    for names in ({}, {"floor": "threshold", "ceiling": "oracle"}, {"floor": "A", "ceiling": "oracle"}):
        ranking = rank(table, "dice", lower_is_better=False, **names)
        assert ranking.table["covered"].isna().all()
        assert ranking.ceiling is None


def test_a_ceiling_must_know_every_common_patient() -> None:
    table = with_oracle(oracle=1.0)
    table = table[(table["config"] != "oracle") | (table["group"] != "p004")]
    with pytest.raises(InputError, match="dice: oracle was not tested on patient p004"):
        rank(table, "dice", lower_is_better=False, floor="A", ceiling="oracle")
