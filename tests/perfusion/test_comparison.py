"""The ranking's own sections, on score tables with a known truth."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quintet import experiment, results
from quintet.perfusion import comparison
from quintet.perfusion.published import PUBLISHED


def section_tables(params, runs, ranking) -> dict[str, pd.DataFrame]:
    sections = comparison.report_sections(params.perfusion, ranking, runs)
    return {section.heading: section.table for section in sections}


def test_changes_against_the_own_baseline(simulated):
    params, runs, ranking = simulated({"separate-spatial": 0.05})
    tables = section_tables(params, runs, ranking)
    table = tables["Loss terms by architecture"].set_index("architecture")
    assert list(table.columns) == ["baseline", "spatial", "complementary", "combined", "adaptive", "multiscale"]
    change = float(table.loc["separate", "spatial"].split("(")[1].split(" ")[0])
    assert change == pytest.approx(0.05, abs=0.01)
    assert table.loc["separate", "spatial"].endswith("significant)")
    assert "significant" not in table.loc["shared", "spatial"]
    mean = ranking.table.set_index("config")["mean"]
    assert change == pytest.approx(mean["separate-spatial"] - mean["separate"], abs=1e-4)
    spread = tables["Range per architecture"].set_index("architecture")
    assert spread.loc["shared", "configurations"] == 6
    assert spread.loc["separate", "best"] == "separate-spatial"


def test_sides_and_published_tables(simulated):
    tables = section_tables(*simulated({}))
    sides = tables["Left and right"]
    np.testing.assert_allclose(sides["gap"], 0.012, atol=1e-9)
    np.testing.assert_allclose(sides["left"] - sides["right"], 0.012, atol=1e-9)
    table = tables["Published results and ours"].set_index("config")
    assert table.loc["shared-spatial", "published rank"] == "14"
    assert table.loc["shared", "published mean"] == 0.9057


def test_details_and_costs_are_means_over_runs(simulated):
    params, runs, ranking = simulated({"separate": 0.05}, seeds=(0, 1))
    tables = section_tables(params, runs, ranking)
    costs = tables["Cost"].set_index("config")
    assert set(costs["training, s"]) == {10.5}  # 10 s with seed 0, 11 s with seed 1
    assert list(costs.index) == list(ranking.table["config"])
    details = tables["Details"].set_index("config")["Dice (mean over cases)"]
    np.testing.assert_allclose(details, ranking.table.set_index("config")["mean_over_cases"], atol=1e-6)


def test_the_published_table_has_the_14_configurations_of_params(values):
    assert set(PUBLISHED) == set(values["perfusion"]["configs"]) == set(values["perfusion"]["sweep"]["configs"])
    means = [mean for mean, _, _ in PUBLISHED.values()]
    assert means == sorted(means, reverse=True)
    assert all(abs((left + right) / 2 - mean) < 0.011 for mean, left, right in PUBLISHED.values())


def test_duplicated_cases_of_a_patient_change_nothing(simulated):
    params, _, ranking = simulated({"separate": 0.01}, seeds=(0, 1), run_sd=0.004)
    tables = list(Path("runs").rglob("cases.csv"))
    for path in tables:
        table = results.read([path])
        duplicated = table[table["group"] == "p3"]
        results.write(pd.concat([table, duplicated.assign(case=duplicated["case"] + "-again")], ignore_index=True), path)
    assert len(tables) == 28
    again = experiment.rank_finished("perfusion", params, Path("runs"))
    assert again.cases == ranking.cases + 2
    columns = [column for column in ranking.table if column != "mean_over_cases"]
    pd.testing.assert_frame_equal(again.table[columns], ranking.table[columns])


def test_the_planned_comparisons_and_a_loss_term_that_helps_one_architecture_only(simulated):
    helped = {"separate-spatial": 0.05, "separate-complementary": 0.05, "separate-spatial-complementary": 0.05}
    answers = simulated(helped)[2].answers.set_index("question")
    assert len(answers) == 11 + 2  # added loss terms, and the two interactions
    for name in PUBLISHED:
        base = name.split("-")[0]
        if name != base:
            row = answers.loc[f"Is {name} better than {base}?"]
            assert (row["gain"], "Yes: the" in row["answer"]) == (
                pytest.approx(helped.get(name, 0), abs=0.01),
                name in helped,
            )
    assert answers.loc["Do added loss terms help separate more than shared?", "gain"] == pytest.approx(0.05, abs=0.01)
    assert answers.loc["Do added loss terms help separate more than shared?", "significant"]
    assert not answers.loc["Do added loss terms help crossattention more than shared?", "significant"]
