import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from quintet.ranking import compact_letters, decide, patients_needed
from quintet.ranking.decision import holm

from .tables import draw


def test_one_run_is_the_paired_t_test() -> None:
    scores = draw(np.random.default_rng(0), seeds=1)
    decision = decide(scores)
    assert decision.run_variance is None
    checked = 0
    for a, b in itertools.permutations(range(4), 2):
        expected = stats.ttest_rel(scores[a, 0], scores[b, 0])
        assert decision.matrix(decision.pairs.p)[a, b] == pytest.approx(expected.pvalue, rel=1e-10)
        assert decision.matrix(decision.pairs.df)[a, b] == expected.df
        checked += 1
    assert checked == 12
    low, high = stats.ttest_1samp(scores[1, 0], 0).confidence_interval(0.95)
    assert decision.mean[1] - decision.half_width[1] == pytest.approx(low)
    assert decision.mean[1] + decision.half_width[1] == pytest.approx(high)


def anova(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two-way ANOVA of each configuration [C, S, n] without folds: between-run mean squares, and these minus the interaction."""
    between, corrected = [], []
    for one in scores:
        runs, n = one.shape
        run_means = one.mean(1)
        residual = one - one.mean(0) - run_means[:, None] + one.mean()
        between.append(run_means.var(ddof=1))
        corrected.append(between[-1] - (residual**2).sum() / ((runs - 1) * (n - 1)) / n)
    return np.array(between), np.array(corrected)


def test_the_larger_of_own_and_pooled_run_variance_enters_se_and_df() -> None:
    scores = draw(np.random.default_rng(1), seeds=4, noise_sd=2)
    scores[2] += np.random.default_rng(2).normal(0, 4, (4, 1))  # runs of configuration 2 vary more
    decision = decide(scores)
    between, variance = anova(scores)
    assert decision.run_variance == pytest.approx(variance.mean())
    assert decision.run_df == pytest.approx(4 * 3)
    assert variance[2] > variance.mean() > max(variance[0], variance[1])
    for other, own in ((2, True), (1, False)):
        d = scores[0].mean(0) - scores[other].mean(0)
        patient, pooled = d.var(ddof=1) / 20, variance.mean() / 4
        run = pooled + (variance[2] / 4 if own else pooled)
        assert decision.matrix(decision.pairs.se)[0, other] == pytest.approx(np.sqrt(patient + run))
        squares = between.mean() / 4
        error = (squares**2 / 12 + (between[2] / 4) ** 2 / 3) if own else (2 * squares) ** 2 / 12
        assert decision.matrix(decision.pairs.df)[0, other] == pytest.approx((patient + run) ** 2 / (patient**2 / 19 + error))
        assert decision.matrix(decision.pairs.patient_variance)[0, other] == pytest.approx(d.var(ddof=1))


def between_folds(by_patient: np.ndarray, folds: np.ndarray) -> float:
    """The pooled variance component of the folds, by loops over configurations, folds and patients."""
    configs, n = by_patient.shape
    count = folds.max() + 1
    size = (n - sum((folds == f).sum() ** 2 for f in range(count)) / n) / (count - 1)
    total = 0.0
    for c in range(configs):
        z = np.array([by_patient[c, i] - by_patient[:, i].mean() for i in range(n)])
        between = sum((folds == f).sum() * (z[folds == f].mean() - z.mean()) ** 2 for f in range(count)) / (count - 1)
        within = sum(((z[folds == f] - z[folds == f].mean()) ** 2).sum() for f in range(count)) / (n - count)
        total += (between - within) / size
    return total / (configs - 1)


@pytest.mark.parametrize("training_sd", [0.0, 2.5])
def test_folds_against_naive_loops(training_sd: float) -> None:
    """No configuration varies significantly more between folds than the others, so the pooled estimate counts."""
    rng = np.random.default_rng(4)
    scores = draw(rng, seeds=2, folds=3, patients=14)
    scores += np.repeat(rng.normal(0, training_sd, (4, 3)), 2, axis=1)[:, :, None]
    decision = decide(scores)
    product, size = np.zeros(4), 0
    for f in range(3):
        for i, j in itertools.permutations(range(len(range(f, 14, 3))), 2):
            size += 1
            for c in range(4):
                block = scores[c, 2 * f : 2 * f + 2, f::3]
                e = block - block.mean(0)
                product[c] += float(e[:, i] @ e[:, j])
    assert decision.run_variance == pytest.approx(product.mean() / size)
    assert decision.folds == 3
    means = np.array([[np.nanmean(scores[c, :, i]) for i in range(14)] for c in range(4)])
    shared = [max(product.mean(), own) / size / 2 for own in product]  # of two seeds
    shared = np.maximum(shared, between_folds(means, np.arange(14) % 3))
    same = sum(i % 3 == j % 3 for i, j in itertools.permutations(range(14), 2)) / (14 * 13)
    d = means[1] - means[3]
    expected = d.var(ddof=1) / 14 + same * (shared[1] + shared[3])
    assert decision.matrix(decision.pairs.se)[1, 3] ** 2 == pytest.approx(expected)
    within = sum(((d[f::3] - d[f::3].mean()) ** 2).sum() for f in range(3)) / 11
    assert decision.matrix(decision.pairs.patient_variance)[1, 3] == pytest.approx(within)
    assert (between_folds(means, np.arange(14) % 3) > max(product) / size) == bool(training_sd)


def test_se_is_not_too_small_with_folds_seeds_and_noise() -> None:
    """The largest of several estimates is too large on average, which costs power and no false claim."""
    rng = np.random.default_rng(3)
    for folds in (1, 5):
        decisions = [decide(draw(rng, configs=10, folds=folds, seeds=2, run_sd=1.5, noise_sd=3)) for _ in range(150)]
        true = np.mean([2 * d.mean.var(ddof=1) for d in decisions])
        estimated = np.mean([(d.matrix(d.pairs.se)[np.triu_indices(10, 1)] ** 2).mean() for d in decisions])
        assert 1 <= estimated / true <= 1.6


@pytest.mark.parametrize(("folds", "seeds"), [(1, 3), (5, 2)])
def test_one_configuration_whose_runs_vary_more_is_rarely_a_false_positive(folds: int, seeds: int) -> None:
    rng = np.random.default_rng(10)
    false_positives = 0
    for _ in range(100):
        scores = draw(rng, configs=14, patients=30, seeds=seeds, folds=folds, run_sd=0.3)
        scores[5] += rng.normal(0, 3, (folds * seeds, 1))
        false_positives += decide(scores).significant.any()
    assert false_positives <= 9


def test_an_effect_of_the_training_set_is_rarely_a_false_positive() -> None:
    rng = np.random.default_rng(11)
    false_positives = 0
    for _ in range(100):
        scores = draw(rng, configs=14, patients=30, seeds=3, folds=5, run_sd=0.3)
        scores += np.repeat(rng.normal(0, 0.8, (14, 5)), 3, axis=1)[:, :, None]
        false_positives += decide(scores).significant.any()
    assert false_positives <= 9


@pytest.mark.parametrize("configs", [2, 3])
def test_two_folds_rarely_claim_a_difference(configs: int) -> None:
    """By chance they often look alike: without a limit on the degrees of freedom, one in eight such studies claimed one."""
    rng = np.random.default_rng(14)
    found = sum(decide(draw(rng, configs=configs, folds=2, seeds=1, patients=200)).significant.any() for _ in range(200))
    assert found <= 16


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_means_cover_what_all_configurations_have_in_common(seeds: int) -> None:
    """An easy or a hard training set is so for all of them."""
    rng, covered = np.random.default_rng(15), []
    for _ in range(200):
        scores = draw(rng, configs=4, folds=5, seeds=seeds, patients=100, run_sd=0.4)
        scores += np.repeat(rng.normal(0, 1.5, 5), seeds)[:, None]
        decision = decide(scores)
        covered.append(np.abs(decision.mean - 60) <= decision.half_width)
    assert np.mean(covered) > 0.93


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_configurations_that_share_weights_are_compared_run_by_run(seeds: int) -> None:
    """The run effects of the pair are the same, so they cancel: the standard error is that of the patients alone. But that they
    are the same, three runs show with two degrees of freedom only."""
    rng, df = np.random.default_rng(12), {1: 19, 3: 2, 6: 19}[seeds]
    decisions = []
    for _ in range(300):
        scores = draw(rng, seeds=seeds, run_sd=3)
        scores[1] = scores[0] + rng.normal(0, 1, (1, 20))
        decisions.append(decide(scores, related=[0, 0, 1, 2]))
        t = stats.ttest_rel(scores[0].mean(0), scores[1].mean(0)).statistic
        assert decisions[-1].matrix(decisions[-1].pairs.p)[0, 1] == pytest.approx(2 * stats.t.sf(abs(t), df))
    true = np.std([d.matrix(d.pairs.difference)[0, 1] for d in decisions])
    assert np.sqrt(np.mean([d.matrix(d.pairs.se)[0, 1] ** 2 for d in decisions])) == pytest.approx(true, rel=0.1)
    assert [d.matrix(d.pairs.df)[0, 1] for d in decisions] == pytest.approx([df] * 300)
    if seeds > 1:
        assert all(d.matrix(d.pairs.se)[0, 1] < d.matrix(d.pairs.se)[0, 2] for d in decisions)


def test_a_phase_that_continues_another_is_compared_run_by_run() -> None:
    """It inherits its parent's run effect and adds its own: only the own part counts, estimated from the differences of runs."""
    rng = np.random.default_rng(13)
    decisions = []
    for _ in range(300):
        scores = draw(rng, seeds=5, run_sd=3)
        scores[1] = scores[0] + rng.normal(0, 0.5, (1, 20)) + rng.normal(0, 0.8, (5, 1))
        decisions.append(decide(scores, related=[0, 0, 1, 2]))
    true = np.std([d.matrix(d.pairs.difference)[0, 1] for d in decisions])
    assert np.sqrt(np.mean([d.matrix(d.pairs.se)[0, 1] ** 2 for d in decisions])) == pytest.approx(true, rel=0.1)
    assert np.mean([d.matrix(d.pairs.p)[0, 1] < 0.05 for d in decisions]) <= 0.08


@pytest.mark.parametrize("folds", [1, 5])
def test_equal_configurations_are_rarely_significantly_different(folds: int) -> None:
    rng = np.random.default_rng(4)
    false_positives = sum(decide(draw(rng, configs=14, patients=30, seeds=2, folds=folds)).significant.any() for _ in range(200))
    assert false_positives <= 16


def test_a_better_configuration_is_found() -> None:
    rng = np.random.default_rng(5)
    power = [decide(draw(rng, configs=14, patients=30, seeds=10, shift=3)).significant[0, 1:].mean() for _ in range(60)]
    assert np.mean(power) >= 0.8


def test_a_single_run_adds_the_whole_run_variance_and_a_deterministic_one_adds_none() -> None:
    scores = draw(np.random.default_rng(6), seeds=3)
    scores[3, 1:] = np.nan
    single, deterministic = decide(scores), decide(scores, deterministic=np.array([False, False, False, True]))
    assert single.run_variance is not None
    assert single.run_variance == deterministic.run_variance == pytest.approx(decide(scores[:3]).run_variance)
    d = scores[0].mean(0) - scores[3, 0]
    larger = max(single.run_variance, single.config_run_variance[0])
    assert single.matrix(single.pairs.se)[0, 3] ** 2 == pytest.approx(d.var(ddof=1) / 20 + larger / 3 + single.run_variance)
    assert deterministic.matrix(deterministic.pairs.se)[0, 3] ** 2 == pytest.approx(d.var(ddof=1) / 20 + larger / 3)


def test_a_run_that_lacks_patients_is_used_for_the_others() -> None:
    scores = draw(np.random.default_rng(7), seeds=3)
    scores[1, 2, :5] = np.nan
    decision = decide(scores)
    assert np.isfinite(decision.pairs.se).all()
    assert decision.mean[1] == pytest.approx(np.nanmean(scores[1], axis=0).mean())
    assert 7 < decision.run_df <= 8


@pytest.mark.filterwarnings("error")
def test_degenerate_inputs_give_no_nan() -> None:
    same = np.repeat(draw(np.random.default_rng(8), configs=1, seeds=2), 3, axis=0)
    tied = decide(same)
    assert (tied.pairs.p == 1).all()
    assert not tied.significant.any()
    constant = decide(same + np.array([0, 0, 1.0])[:, None, None])
    assert constant.significant[0].tolist() == [
        False,
        False,
        False,
    ]  # the run SD of a single pair of seeds is large compared with 1
    flat = decide(np.ones((3, 1, 12)) * np.array([1, 1, 2.0])[:, None, None])
    assert flat.significant.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    one_patient = decide(np.ones((2, 3, 1)))
    assert (one_patient.pairs.p == 1).all()
    for decision in (tied, constant, flat, one_patient, decide(same[:1])):
        for values in (
            decision.mean,
            decision.half_width,
            decision.pairs.se,
            decision.pairs.df,
            decision.pairs.p,
            decision.pairs.p_holm,
        ):
            assert not np.isnan(values).any()


def test_too_few_patients_establish_no_difference() -> None:
    scores = np.arange(4.0)[:, None, None] * 100 + np.zeros((4, 1, 6))
    assert patients_needed(6) == 8
    assert not decide(scores).significant.any()
    assert decide(np.repeat(scores, 2, axis=2)[:, :, :8]).significant[0, 3]


@pytest.mark.parametrize(("pairs", "needed"), [(0, 6), (1, 6), (3, 7), (10, 9), (91, 12)])
def test_patients_needed(pairs: int, needed: int) -> None:
    assert patients_needed(pairs) == needed
    assert 2 / 2**needed <= 0.05 / max(pairs, 1)


def test_patients_needed_at_equality() -> None:
    assert patients_needed(1, alpha=2 / 2**9) == 9


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([])).size == 0


def test_compact_letters_by_hand() -> None:
    significant = np.zeros((4, 4), bool)
    assert compact_letters(significant) == ["a", "a", "a", "a"]
    for i, j in [(0, 2), (0, 3), (1, 3)]:
        significant[i, j] = significant[j, i] = True
    assert compact_letters(significant) == ["a", "ab", "bc", "c"]
    assert compact_letters(~np.eye(3, dtype=bool)) == ["a", "b", "c"]


def test_two_share_a_letter_exactly_if_not_significantly_different() -> None:
    rng = np.random.default_rng(9)
    checked = 0
    for _ in range(60):
        size = int(rng.integers(1, 12))
        significant = np.triu(rng.random((size, size)) < rng.random(), 1)
        significant |= significant.T
        letters = compact_letters(significant)
        for i, j in itertools.combinations(range(size), 2):
            assert bool(set(letters[i]) & set(letters[j])) == (not significant[i, j])
            checked += 1
        assert all(letters)
    assert checked > 500


def test_planned_comparisons_are_a_family_of_their_own() -> None:
    scores = draw(np.random.default_rng(3), seeds=2, patients=20)
    weights = np.array([[1.0, 0, 0, -1], [0.5, 0.5, -0.5, -0.5]])
    decision = decide(scores, planned=weights)
    pair, interaction = 2, 1  # (0, 3) is the third of all pairs
    for name in ("difference", "se", "df", "p", "patient_variance"):
        assert getattr(decision.planned, name)[0] == pytest.approx(getattr(decision.pairs, name)[pair])
    assert decision.planned.p_holm == pytest.approx(holm(decision.planned.p))
    assert decision.planned.p_holm[0] <= decision.pairs.p_holm[pair]
    assert decision.planned.patients_needed == patients_needed(2)
    means = scores.mean(1)
    d = weights[1] @ means
    between, variance = anova(scores)
    runs = np.maximum(variance, variance.mean()) / 2
    assert decision.planned.difference[interaction] == pytest.approx(d.mean())
    assert decision.planned.se[interaction] ** 2 == pytest.approx(d.var(ddof=1) / 20 + runs.sum() / 4)
    own = variance > variance.mean()
    pooled = (between.mean() / 2 * (~own).sum() / 4) ** 2 / 4
    error = pooled + ((between[own] / 2 / 4) ** 2 / 1).sum() + (d.var(ddof=1) / 20) ** 2 / 19
    satterthwaite = decision.planned.se[interaction] ** 4 / error
    assert satterthwaite > 4
    assert decision.planned.df[interaction] == 4  # two seeds of four configurations


def test_a_planned_comparison_of_related_configurations_is_made_run_by_run() -> None:
    scores = draw(np.random.default_rng(5), seeds=6, patients=20)
    scores[1] = scores[0] + np.random.default_rng(6).normal(0.3, 0.1, (1, 20))  # the same weights
    decision = decide(scores, related=[0, 0, 1, 2], planned=np.array([[1.0, -1, 0, 0]]))
    assert decision.planned.p[0] == pytest.approx(stats.ttest_rel(scores[0].mean(0), scores[1].mean(0)).pvalue)
    assert decide(scores, planned=np.array([[1.0, -1, 0, 0]])).planned.se[0] > 5 * decision.planned.se[0]


def test_the_patients_sd_of_a_pair_is_not_lost_in_the_variation_between_folds() -> None:
    """The variance between folds is often estimated too large; taken from the total variance, it left 0 for the patients."""
    rng = np.random.default_rng(7)
    for _ in range(20):
        decision = decide(draw(rng, seeds=1, folds=5, patients=20, run_sd=4, patient_sd=1))
        assert (decision.pairs.patient_variance > 0.3).all()  # true: 2.5


def claims(scores_of: Callable[[np.random.Generator], np.ndarray], studies: int = 200, **options: Any) -> float:
    """The share of simulated studies without any difference in which one is claimed."""
    rng = np.random.default_rng(0)
    return float(np.mean([decide(scores_of(rng), **options).pairs.significant.any() for _ in range(studies)]))


@pytest.mark.parametrize("repeated", [2, 3])
def test_one_repeated_configuration_among_single_runs_is_rarely_a_false_positive(repeated: int) -> None:
    def study(rng: np.random.Generator) -> np.ndarray:
        scores = draw(rng, seeds=repeated, patients=200, run_sd=0.4)
        scores[1:, 1:] = np.nan
        return scores

    assert claims(study) <= 0.08


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_phases_that_continue_each_other_are_rarely_a_false_positive(seeds: int) -> None:
    """Seven configurations on top of each other: 21 pairs, compared run by run."""

    def study(rng: np.random.Generator) -> np.ndarray:
        scores = draw(rng, configs=7, seeds=seeds, patients=144, run_sd=0)
        return scores + rng.normal(0, 0.5, (7, seeds, 1)).cumsum(0)

    assert claims(study, related=[0] * 7) <= 0.08


@pytest.mark.parametrize("sizes", [(50, 4), (60, 6), (40, 10), (200, 20, 20, 10)])
def test_unequal_folds_rarely_claim_a_difference(sizes: tuple[int, ...]) -> None:
    fold = np.repeat(np.arange(len(sizes)), sizes)

    def study(rng: np.random.Generator) -> np.ndarray:
        scores = draw(rng, seeds=len(sizes), patients=len(fold), run_sd=0.9)
        return np.where(np.arange(len(sizes))[:, None] == fold, scores, np.nan)

    assert claims(study) <= 0.08
