"""The sections of the ranking's report, from run folders made by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quintet import results
from quintet.landmarks import study
from quintet.landmarks.data.anatomy import NAMES
from quintet.params.landmarks import BASELINES
from quintet.runs import Record


@pytest.fixture
def runs(make_params, tmp_path) -> dict[str, list[Path]]:
    """Each configuration and baseline evaluated on 12 images with two seeds; each entry is 1 px better than the one before."""
    configs = make_params().landmarks.configs
    found: dict[str, list[Path]] = {}
    for number, name in enumerate([*configs, *BASELINES]):
        for seed in (0,) if name in BASELINES else (0, 1):
            run = tmp_path / name / f"seed{seed}"
            rng = np.random.default_rng(seed)
            values = pd.DataFrame({"error_px": 20 - number + rng.normal(0, 0.1, 12)})
            names = [f"image{i}" for i in range(12)]
            table = results.to_tidy(values, "landmarks", name, fold=0, seed=seed, cases=names, groups=names)
            results.write(table, run / "evaluation" / "cases.csv")
            metrics = {"error_px": 1.0, "error_px_COVID": 2.0, "error_px_00_mediastinum_top": 3.0, "error_px_median": 0.5}
            (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
            Record("landmarks", "s", name, seed, {}, {}, metrics={"train_seconds": 7.0}).save(run)
            found.setdefault(name, []).append(run)
    return found


def test_the_lowest_error_is_first_and_baselines_are_deterministic(make_params, runs):
    ranking = study.rank(make_params({"ranking.bootstrap": 100}), runs)
    assert list(ranking.table["config"][:2]) == ["ridge", "mean_shape"]
    assert ranking.lower_is_better
    assert ranking.ceiling == "oracle"
    covered = ranking.table.set_index("config")["covered"]
    assert covered["mean_shape"] == 0
    assert covered["ridge"] == pytest.approx(0.5)  # 1 px better than the floor, 1 px worse than the ceiling
    assert ranking.label == "mean error"
    assert (ranking.table.set_index("config").loc[["ridge", "mean_shape"], "run_sd"] == 0).all()


def test_planned_comparisons_are_with_the_controls(make_params, runs):
    """Each entry of `runs` is 1 px better than the one before it; all seeds share their noise, as descendants share weights."""
    answers = study.rank(make_params({"ranking.bootstrap": 100}), runs).answers.set_index("question")
    pairs = ["symmetry than continued-3", "complete than continued-4", "attention than finetune", "heatmap than complete"]
    assert list(answers.index) == [f"Is {pair.replace(' than', ' better than')}?" for pair in pairs]
    assert answers["gain"].to_list() == pytest.approx([-1, -1, 5, 3], abs=1e-9)
    assert answers["answer"].str.contains("Yes: the gain is +", regex=False).to_list() == [False, False, True, True]
    assert answers["answer"].str.contains("No, the opposite", regex=False).to_list() == [True, True, False, False]


def test_tables_by_diagnosis_and_landmark_and_the_curve(make_params, runs, tmp_path):
    params = make_params({"ranking.bootstrap": 100})
    sections = {s.heading: s for s in study.report_sections(params, study.rank(params, runs), runs, tmp_path)}
    assert list(sections["By diagnosis"].table) == ["config", "COVID"]
    assert list(sections["By landmark"].table) == ["config", f"0 {NAMES[0]}"]
    assert set(sections["Details"].table["median"]) == {0.5}
    assert set(sections["Cost"].table["training, s"]) == {7.0}
    assert sections["Success detection rate"].figures == [tmp_path / "sdr.png"]
    assert (tmp_path / "sdr.png").stat().st_size > 1000
