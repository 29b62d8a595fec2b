import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from quintet import cli
from quintet.errors import InputError
from quintet.ranking import Ranking, decide, patients_needed, rank
from quintet.ranking.planning import Plan, Training, patients_for, plan, power_of

from .tables import draw, tidy

ROOT = Path(__file__).parents[2]


def rank_scores(scores: np.ndarray, *, seeds: int | None = None, deterministic: tuple[str, ...] = ()) -> Ranking:
    return rank(tidy(scores, seeds=seeds), "dice", lower_is_better=False, bootstrap=100, deterministic=deterministic)


def numbers(planned: Plan, row: int = 0) -> list[str]:
    return planned.table.filter(like=" seed").iloc[row].tolist()


def test_without_run_variance_it_is_the_power_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    p = stats.ttest_1samp(rng.normal(1, 2, (20000, 25)), 0, axis=1).pvalue
    assert power_of(25, 1, 2, Training(folds=1, seeds=1), 0.01) == pytest.approx((p <= 0.01).mean(), abs=0.02)


@pytest.mark.parametrize(("folds", "seeds", "run_sd"), [(1, 5, 0.6), (5, 2, 1.0), (5, 1, 1.0)])
def test_the_planned_number_has_the_planned_power_in_simulated_studies(folds: int, seeds: int, run_sd: float) -> None:
    configs, pair_sd, gain = 6, 4.0, 3.0
    pairs = configs * (configs - 1) // 2
    training = Training(folds, seeds, run_sd**2, configs, configs)
    n = patients_for(0.8, gain, pair_sd, training, 0.05 / pairs, patients_needed(pairs))
    assert n is not None
    assert n > patients_needed(pairs)
    rng = np.random.default_rng(1)
    decisions = [
        decide(
            draw(
                rng,
                configs=configs,
                folds=folds,
                seeds=seeds,
                patients=n,
                patient_sd=pair_sd / np.sqrt(2),
                run_sd=run_sd,
                noise_sd=0,
                shift=gain,
            )
        )
        for _ in range(600)
    ]
    first_step = np.mean([d.matrix(d.pairs.p)[0, 1:] <= 0.05 / pairs for d in decisions])
    assert first_step == pytest.approx(0.8, abs=0.05)
    assert first_step <= np.mean([d.significant[0, 1:] for d in decisions]) < 0.9


def test_the_smallest_number_and_what_raises_it() -> None:
    def needed(difference: float = 2, pair_sd: float = 4, run_variance: float = 0.1, level: float = 0.001) -> int:
        training = Training(1, 5, run_variance, 10, 10)
        n = patients_for(0.8, difference, pair_sd, training, level, 6)
        assert n is not None
        assert power_of(n, difference, pair_sd, training, level) >= 0.8
        assert n == 6 or power_of(n - 1, difference, pair_sd, training, level) < 0.8
        return n

    usual = needed()
    assert usual < needed(pair_sd=5)
    assert usual < needed(difference=1.8)
    assert usual < needed(run_variance=0.15)
    assert usual < needed(level=0.0001)
    assert needed(difference=100) == 6
    assert needed(pair_sd=0, run_variance=0) == 6


def test_a_tie_and_too_large_a_run_variance_have_no_number() -> None:
    much = Training(folds=1, seeds=2, run_variance=1, configs=10, ranked=10)
    assert patients_for(0.8, 0, 4, Training(folds=1, seeds=5, run_variance=0.1), 0.001, 6) is None
    assert patients_for(0.8, 1, 4, much, 0.001, 6) is None
    assert patients_for(0.8, 1, 0, much, 0.001, 6) is None


def test_plan_of_a_measured_ranking() -> None:
    ranking = rank_scores(draw(np.random.default_rng(2), configs=5, shift=4))
    planned = plan(ranking)
    first, second, *_, last = ranking.table["config"]
    assert planned.table["pair"].tolist() == [f"{first} vs {other}" for other in (second, "the median of the others", last)]
    assert planned.table["difference"][0] == f"{ranking.pairs['difference'][0]:.3g}"
    one, *more = numbers(planned)
    assert one == "not possible"
    counts = [int(n) for n in more if n != "more seeds"]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= ranking.patients_needed
    assert "(measured;" in planned.basis
    assert numbers(plan(ranking, difference=100))[1:] == [str(ranking.patients_needed)] * 4
    assert "available patients are enough with 2 seeds" in plan(ranking, difference=100).verdict
    assert "runs vary too much" in plan(ranking, run_sd=50).verdict
    assert numbers(plan(ranking, run_sd=50))[1:] == ["more seeds"] * 4
    fewer, more_power = (int(numbers(plan(ranking, difference=2, run_sd=0.1, power=p))[-1]) for p in (0.6, 0.95))
    assert fewer < more_power


def test_plan_is_made_for_either_direction_and_with_the_folds_of_the_study() -> None:
    scores = draw(np.random.default_rng(3), folds=5, seeds=2, patients=30, run_sd=1.5)
    higher = rank_scores(scores, seeds=2)
    lower = rank(tidy(-scores, seeds=2), "dice", lower_is_better=True, bootstrap=100)
    assert numbers(plan(higher)) == numbers(plan(lower))
    runs = patients_for(0.8, 2, higher.pairs["patient_sd"][0], Training(5, 2, 0.5**2, 4, 4), 0.05 / 6, 8)
    assert runs is not None
    assert numbers(plan(higher, difference=2, run_sd=0.5))[1] == str(runs)


def test_one_seed_gives_a_lower_bound_unless_a_run_sd_is_given() -> None:
    ranking = rank_scores(draw(np.random.default_rng(4), seeds=1))
    planned = plan(ranking, difference=2)
    assert "unknown" in planned.basis
    assert "lower bounds" in planned.basis
    assert "more if training runs differ" in planned.verdict
    assert numbers(planned)[0] == "not possible"
    assert all(n.startswith(">= ") for n in numbers(planned)[1:])
    given = plan(ranking, difference=2, run_sd=0.3)
    assert "(given)" in given.basis
    assert int(numbers(given)[-1]) > int(numbers(planned)[-1].removeprefix(">= "))


def test_deterministic_configurations_need_no_repeated_seeds() -> None:
    scores = draw(np.random.default_rng(5), configs=3, seeds=1, patient_sd=3)
    scores[0] += 3
    deterministic = plan(rank_scores(scores, deterministic=("A", "B", "C")))
    assert len(set(numbers(deterministic))) == 1
    mixed = rank_scores(scores, deterministic=("A", "B"))
    against = dict(zip(mixed.table["config"][1:], (0, 2), strict=True))
    assert numbers(plan(mixed, run_sd=1), against["B"])[0].isdigit()
    assert numbers(plan(mixed, run_sd=1), against["C"])[0] == "not possible"


def test_ties_and_studies_without_a_comparison() -> None:
    one = draw(np.random.default_rng(6), configs=1)
    tied = plan(rank_scores(np.repeat(one, 2, axis=0)))
    assert len(tied.table) == 1
    assert numbers(tied)[1:] == ["tie"] * 4
    assert "makes a tie significant" in tied.verdict
    with pytest.raises(InputError, match="nothing to plan"):
        plan(rank_scores(one))
    with pytest.raises(InputError, match="at least two patients"):
        plan(rank_scores(np.ones((2, 1, 1))))
    with pytest.raises(InputError, match="power must be between"):
        plan(rank_scores(np.repeat(one, 2, axis=0)), power=1)


def test_the_command_prints_table_basis_and_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranking = rank_scores(draw(np.random.default_rng(7), configs=3))
    (tmp_path / "dvc.yaml").touch()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "deeper").mkdir()
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path / "deeper")
    monkeypatch.setattr("quintet.experiment.rank_finished", lambda study, params, runs: ranking)
    done = CliRunner().invoke(cli.app, ["plan", "landmarks", "--difference", "2", "--run-sd", "0.3", "--power", "0.9"])
    assert done.exit_code == 0, done.output
    planned = plan(ranking, difference=2, run_sd=0.3, power=0.9)
    assert done.output == f"{planned.table.to_string(index=False)}\n\n{planned.basis}\n\n{planned.verdict}\n"
    assert Path.cwd() == tmp_path
