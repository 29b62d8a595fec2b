"""Results from elsewhere: what is read, what is refused, and that the ranking is the one that the pipeline would give."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from quintet.cli import app
from quintet.errors import InputError, InputProblemsError
from quintet.ranking import plan, rank
from quintet.ranking.elsewhere import Settings, load_ranking, rank_elsewhere, write_ranking
from quintet.ranking.elsewhere.reading import ERRORS, read_results
from quintet.results import COLUMNS

from .tables import draw, tidy

SUBJECT = r"^(?P<subject>.+?)-v\d+$"
# the summaries that nnU-Net v2 itself wrote, made by benchmarks/perfusion_nnunet.py: a folder of trainers with fold_K/validation
STORED = Path(__file__).parent / "nnunet"
NNUNET_RESULTS = os.environ.get("QUINTET_NNUNET_RESULTS", "")


def write_csv(path: Path, rows: dict[str, list[object]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def scores(shift: float = 0.0, cases: int = 12) -> dict[str, list[object]]:
    rng = np.random.default_rng(0)
    values = np.clip(rng.uniform(0.5, 0.8, cases) + shift + rng.normal(0, 0.005, cases), 0, 1)
    names = [f"p{i // 2}-v{i % 2}" for i in range(cases)]
    return {"case": list(names), "patient": [n[:2] for n in names], "score": list(values)}


def nnunet_summary(dices: dict[str, tuple[float, float]], *, version: int = 2) -> dict[str, object]:
    cases, old = [], []
    for name, (left, right) in dices.items():
        labels = {"1": {"Dice": left, "IoU": left / 2}, "(1, 2)": {"Dice": right, "IoU": right / 2}}
        cases.append({"metrics": labels, "prediction_file": f"/out/{name}.nii.gz", "reference_file": f"/gt/{name}.nii.gz"})
        old.append({"0": {"Dice": 0.99}} | labels | {"test": f"/out/{name}.nii.gz", "reference": f"/gt/{name}.nii.gz"})
    if version == 1:
        return {"results": {"all": old, "mean": {}}}
    return {"foreground_mean": {"Dice": 0.7}, "mean": {}, "metric_per_case": cases}


def write_trainers(root: Path, *, trainers: int = 2, folds: int = 2, version: int = 2) -> dict[tuple[str, str], float]:
    """nnU-Net's folders, TRAINER__nnUNetPlans__2d/fold_K/validation/summary.json; returns the mean Dice of each case."""
    rng, expected = np.random.default_rng(1), {}
    for k in range(trainers):
        name = f"nnUNetTrainer{k}__nnUNetPlans__2d"
        for fold in range(folds):
            dices = {f"sub{i}-v{v}": tuple(rng.uniform(0.6, 0.9, 2)) for i in range(fold, 16, folds) for v in (1, 2)}
            expected |= {(name, case): float(np.mean(pair)) for case, pair in dices.items()}
            folder = root / name / f"fold_{fold}" / "validation"
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps(nnunet_summary(dices, version=version)))
            for derived in ("postprocessed", "../../crossval_results_folds_0_1"):  # are left out
                (folder / derived).mkdir(parents=True, exist_ok=True)
                (folder / derived / "summary.json").write_text(json.dumps(nnunet_summary({"a-v1": (0.1, 0.1)})))
    return expected


def test_plain_csv_files_are_ranked_as_the_same_tidy_table(tmp_path: Path) -> None:
    files = [write_csv(tmp_path / f"{name}.csv", scores(shift)) for name, shift in (("new", 0.05), ("old", 0.0))]
    table = read_results([*map(str, files[:1]), f"baseline={files[1]}"], "Dice", subject=SUBJECT)
    assert set(table["config"]) == {"new", "baseline"}
    ranking = rank_elsewhere(table, Settings(metric="Dice", bounds=(0, 1), against="baseline"))
    assert (ranking.patients, ranking.cases) == (6, 12)
    assert ranking.table["config"].tolist() == ["new", "baseline"]
    assert ranking.answers["question"].tolist() == ["Is new better than baseline?"]
    assert ranking.answers["gain"][0] == pytest.approx(0.05, abs=0.01)


def test_the_tidy_table_gives_the_same_ranking_as_the_pipeline(tmp_path: Path) -> None:
    table = tidy(draw(np.random.default_rng(0), seeds=2, folds=3), seeds=2, cases=2)
    table.to_csv(tmp_path / "all.csv", index=False)
    found = rank_elsewhere(
        read_results([str(tmp_path / "all.csv")], "dice", subject=SUBJECT, bounds=(0, 100)), Settings(metric="dice")
    )
    expected = rank(table, "dice", lower_is_better=False)
    pd.testing.assert_frame_equal(found.table, expected.table)
    pd.testing.assert_frame_equal(found.pairs, expected.pairs)


@pytest.mark.parametrize("version", [1, 2])
def test_nnunet_trainers_and_folds(tmp_path: Path, version: int) -> None:
    expected = write_trainers(tmp_path / "results", trainers=3, version=version)
    table = read_results([str(tmp_path / "results")], "Dice", subject=SUBJECT)
    assert table.set_index(["config", "case"])["value"].to_dict() == pytest.approx(expected)
    assert sorted(table["fold"].unique()) == [0, 1]
    ranking = rank_elsewhere(table, Settings(metric="Dice", bounds=(0, 1)))
    assert (ranking.patients, ranking.cases, ranking.folds) == (16, 32, 2)


def test_linked_trainers_are_found(tmp_path: Path) -> None:
    write_trainers(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for trainer in (tmp_path / "real").iterdir():
        (tmp_path / "linked" / trainer.name).symlink_to(trainer)
    (tmp_path / "linked" / "circle").symlink_to(tmp_path / "linked")
    assert read_results([str(tmp_path / "linked")], "Dice", subject=SUBJECT)["config"].nunique() == 2


def test_repeated_nnunet_runs_are_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_trainers(tmp_path / f"seed_{seed}")
    table = read_results([str(tmp_path)], "IoU", subject=SUBJECT)
    assert sorted(table["seed"].unique()) == [0, 1]
    assert rank_elsewhere(table, Settings(metric="IoU")).run_sd == 0  # the same numbers twice


def test_this_projects_own_summary_is_read(tmp_path: Path) -> None:
    metrics = {"left": {"Dice": 0.5}, "right": {"Dice": 0.7}}
    file = tmp_path / "mine" / "evaluation" / "validation_summary.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"metric_per_case": [{"case": "a-v1", "metrics": metrics}]}))
    table = read_results([str(tmp_path / "mine")], "Dice", subject=SUBJECT)
    assert table[["config", "group", "case", "value"]].to_numpy().tolist() == [["mine", "a", "a-v1", 0.6]]


def test_stored_summaries_of_nnunet() -> None:
    """Of 8 cases of 6 phantoms, written by nnU-Net 2.8.1 itself (benchmarks/perfusion_nnunet.py, 20 and 45 iterations)."""
    ranking = rank_elsewhere(read_results([str(STORED)], "Dice", subject=SUBJECT), Settings(metric="Dice", bounds=(0, 1)))
    assert (ranking.patients, ranking.cases, ranking.folds) == (6, 8, 1)
    first, second = "nnUNetTrainer_45iterations__nnUNetPlans__2d", "nnUNetTrainer__nnUNetPlans__2d"
    assert ranking.table["config"].tolist() == [first, second]
    for name, mean in zip((first, second), ranking.table["mean_over_cases"], strict=True):
        summary = json.loads((STORED / name / "fold_1" / "validation" / "summary.json").read_text())
        assert mean == pytest.approx(summary["foreground_mean"]["Dice"])  # nnU-Net's own mean


@pytest.mark.skipif(not NNUNET_RESULTS, reason="QUINTET_NNUNET_RESULTS names no folder of nnU-Net results")
def test_summaries_that_nnunet_wrote() -> None:
    table = read_results([NNUNET_RESULTS], "Dice", subject=SUBJECT, undefined=1.0)
    ranking = rank_elsewhere(table, Settings(metric="Dice", bounds=(0, 1)))
    files = [json.loads(file.read_text()) for file in Path(NNUNET_RESULTS).rglob("validation/summary.json")]
    means = sorted(
        float(np.mean([np.mean([m["Dice"] for m in case["metrics"].values()]) for case in f["metric_per_case"]])) for f in files
    )
    if table["fold"].nunique() == 1:
        assert sorted(ranking.table["mean_over_cases"]) == pytest.approx(means)


def change(column: str, row: int, value: object) -> Callable[[dict[str, list[object]]], None]:
    def apply(rows: dict[str, list[object]]) -> None:
        rows[column][row] = value

    return apply


def drop_last(rows: dict[str, list[object]]) -> None:
    for values in rows.values():
        values.pop()


def rename(rows: dict[str, list[object]]) -> None:
    rows["case"] = [f"case_{i}" for i in range(len(rows["case"]))]


def two_folds(rows: dict[str, list[object]]) -> None:
    rows["fold"] = [i % 2 for i in range(len(rows["case"]))]


def twice(rows: dict[str, list[object]]) -> None:
    for values in rows.values():
        values.append(values[-1])


BAD = {
    "missing case": (drop_last, r"b, seed 0: 1 of 12 cases are missing \(p5-v1\); add their scores, or leave these cases out"),
    "other names": (rename, r"no case is in all configurations \(a: p0-v0, .*; b: case_0.*\); use the same case names"),
    "NaN": (
        change("score", 3, float("nan")),
        "b: 1 score\\(s\\) are missing or not finite, the first of case p1-v1; --undefined",
    ),
    "percent": (change("score", 3, 91.3), r"b: 1 score\(s\) are outside 0 to 1, the first of case p1-v1 \(91.3\); correct them"),
    "several folds": (
        two_folds,
        r"6 patient\(s\) are in several folds, the first is p0 \(folds 0, 1\): cases of a patient were split",
    ),
    "two patients": (
        change("patient", 3, "p9"),
        "case p1-v1 belongs to several patients: p1, p9; if these are different cases, put the patient into",
    ),
    "twice": (twice, r"b, fold 0, seed 0: 1 score\(s\) are given twice, the first of case p5-v1; name different configurations"),
    "text": (change("score", 3, "high"), "b.csv: row 5 has a score that is not a number"),
    "no patient": (change("patient", 3, ""), "b.csv: row 5 has no patient"),
    "no config": (lambda rows: rows.update(config=["b", " "] * 6), "b.csv: row 3 has no config"),
    "other columns": (lambda rows: rows.pop("patient"), r"b.csv: no column patient; it has case, score"),
    "half a fold": (lambda rows: rows.update(fold=[0.5] * 12), "b.csv: row 2 has no whole number as fold"),
    "decimal comma": (change("score", 3, "0,7"), "b.csv: row 5 has a score that is not a number"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_tables_get_one_sentence(tmp_path: Path, kind: str) -> None:
    break_it, message = BAD[kind]
    rows = scores()
    break_it(rows)
    files = [str(write_csv(tmp_path / "a.csv", scores())), str(write_csv(tmp_path / "b.csv", rows))]
    with pytest.raises((InputError, InputProblemsError), match=message) as caught:
        read_results(files, "Dice", subject=SUBJECT)
    assert len(getattr(caught.value, "problems", [""])) == 1


BAD_FILES = {
    "unquoted decimal comma": (
        "case,patient,score\np0-v0,p0,0,7\n",
        "row 2 has more fields than the header; quote text that contains commas",
    ),
    "a column twice": ("case,patient,score,score\na,b,0.7,0.8\n", "the column 'score' is listed twice"),
    "empty": ("\n", "the file is empty"),
    "no rows": ("case,patient,score\n", "it has no rows"),
    "two studies": (
        "study,config,fold,seed,group,case,metric,value\ns1,a,0,0,p,c,Dice,0.7\ns2,a,0,0,q,d,Dice,0.7\n",
        "several studies: s1, s2; rank one at a time",
    ),
    "other metrics": ("study,config,fold,seed,group,case,metric,value\ns,a,0,0,p,c,hd95,0.7\n", "no metric 'Dice'; it has hd95"),
    "one patient written in two ways": (
        "case,patient,score\na,p1,0.7\nb,P 01,0.8\n",
        "patients 'P 01' and 'p1' look like one person; write each patient in one way only",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_get_one_sentence(tmp_path: Path, kind: str) -> None:
    text, message = BAD_FILES[kind]
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises((InputError, InputProblemsError), match=message):
        read_results([str(tmp_path / "x.csv")], "Dice", subject=SUBJECT)


def test_files_as_spreadsheets_write_them(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes('\ufeffcase,patient,score\r\n"a ",01,"0.7"\r\n\r\n b,02,NA\r\n'.encode())
    table = read_results([str(tmp_path / "m.csv")], "Dice", subject=SUBJECT, undefined=0)
    assert table[["config", "group", "case", "value"]].to_numpy().tolist() == [["m", "01", "a", 0.7], ["m", "02", "b", 0.0]]
    (tmp_path / "s.csv").write_bytes("case;patient;score\r\na;01;0,7\r\nb;02;0,75\r\n".encode("utf-16"))
    table = read_results([str(tmp_path / "s.csv")], "Dice", subject=SUBJECT)
    assert table["value"].tolist() == [0.7, 0.75]
    (tmp_path / "l.csv").write_bytes("case,patient,score\nM\xfcller,1,0.7\n".encode("latin1"))
    with pytest.raises(InputError, match=r"l.csv: line 2 is not UTF-8"):
        read_results([str(tmp_path / "l.csv")], "Dice", subject=SUBJECT)
    with pytest.raises(InputError, match=r"none.csv does not exist"):
        read_results(["x=none.csv"], "Dice", subject=SUBJECT)


def test_fractions_beside_percent_are_refused_whatever_the_range(tmp_path: Path) -> None:
    rows = scores()
    write_csv(tmp_path / "a.csv", rows)
    write_csv(tmp_path / "b.csv", rows | {"score": [100 * float(str(v)) for v in rows["score"]]})
    files = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    for bounds in (None, (0, 100), (0, math.inf)):
        with pytest.raises(InputProblemsError, match="a has fractions, but b seems to have percent"):
            read_results(files, "DSC", subject=SUBJECT, bounds=bounds)


@pytest.mark.parametrize("metric", ["HD95", "ASSD", "mae", "Brier score", "distance_mm", "loss"])
def test_an_error_is_not_ranked_as_if_higher_were_better(tmp_path: Path, metric: str) -> None:
    write_csv(tmp_path / "a.csv", scores())
    with pytest.raises(InputError, match="its name is that of an error; add --lower-is-better"):
        CliRunner().invoke(
            app, ["rank", str(tmp_path / "a.csv"), "--metric", metric, "--output", str(tmp_path / "o")], catch_exceptions=False
        )


def test_undefined_scores_get_the_value_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "T" / "fold_0" / "validation"
    folder.mkdir(parents=True)
    text = json.dumps(nnunet_summary({"a-v1": (float("nan"), 0.5), "b-v1": (0.8, 0.6)}))
    (folder / "summary.json").write_text(text)
    with pytest.raises(InputProblemsError, match="not finite, the first of case a-v1"):
        read_results([str(tmp_path)], "Dice", subject=SUBJECT)
    table = read_results([str(tmp_path)], "Dice", subject=SUBJECT, undefined=1.0)
    assert table["value"].tolist() == pytest.approx([0.75, 0.7])


def test_bad_nnunet_folders_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no summary.json or validation_summary.json below this folder"):
        read_results([str(tmp_path)], "Dice", subject=SUBJECT)
    write_trainers(tmp_path / "ok")
    with pytest.raises(InputError, match="with 'HD95' of each case"):
        read_results([str(tmp_path / "ok")], "HD95", subject=SUBJECT)
    with pytest.raises(InputError, match=r"subject pattern .* finds no patient in a case, such as 'sub0-v1'; set --subject"):
        read_results([str(tmp_path / "ok")], "Dice", subject=r"^(?P<subject>\d+)$")
    with pytest.raises(InputError, match=r"needs a group \(\?P<subject>"):
        read_results([str(tmp_path / "ok")], "Dice", subject=".*")
    (tmp_path / "all" / "fold_all").mkdir(parents=True)
    (tmp_path / "all" / "fold_all" / "summary.json").write_text(json.dumps(nnunet_summary({"a-v1": (0.5, 0.5)})))
    with pytest.raises(InputError, match="fold_all was trained on the cases that it is tested on"):
        read_results([str(tmp_path / "all")], "Dice", subject=SUBJECT)
    (tmp_path / "best" / "fold_0_best").mkdir(parents=True)
    (tmp_path / "best" / "fold_0_best" / "summary.json").write_text(json.dumps(nnunet_summary({"a-v1": (0.5, 0.5)})))
    with pytest.raises(InputError, match="which fold is fold_0_best"):
        read_results([str(tmp_path / "best")], "Dice", subject=SUBJECT)
    trainer = next((tmp_path / "ok").iterdir())
    with pytest.raises(InputError, match="crossval_results_folds_0_1 repeats the cases of the folds"):
        read_results([str(trainer / "crossval_results_folds_0_1")], "Dice", subject=SUBJECT)
    changed = trainer / "fold_0" / "validation" / "summary.json"
    changed.write_text(changed.read_text().replace('"(1, 2)"', '"2"', 1))
    with pytest.raises(InputProblemsError, match=r"means over different labels: .*; evaluate the same labels everywhere"):
        read_results([str(tmp_path / "ok")], "Dice", subject=SUBJECT)
    changed.write_text(json.dumps({"metric_per_case": [{"metrics": {}, "prediction_file": "a"}]}))
    with pytest.raises(InputError, match="not a summary of nnU-Net"):
        read_results([str(tmp_path / "ok")], "Dice", subject=SUBJECT)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match="not a summary of nnU-Net"):
        read_results([str(tmp_path / "summary.json")], "Dice", subject=SUBJECT)


def quintet(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from quintet.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize("metric", ["log_loss", "across_axis_error_px", "FN", "HD95", "surface distance", "logloss", "MSE"])
def test_errors_are_known_by_their_names(metric: str) -> None:
    assert ERRORS.search(metric)


@pytest.mark.parametrize("metric", ["Dice", "NSD", "auc", "ndcg_at_10", "sensitivity", "F1", "balanced_accuracy", "concordance"])
def test_scores_are_no_errors(metric: str) -> None:
    assert not ERRORS.search(metric)


def test_a_score_that_depends_on_other_patients_is_refused(tmp_path: Path) -> None:
    rows = [("s", "A", 0, 0, "c", "p", metric, 0.5) for metric in ("ndcg_at_10", "ndcg_at_10/pseudo_value")]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(InputError, match="rank ndcg_at_10/pseudo_value"):
        read_results([str(tmp_path / "cases.csv")], "ndcg_at_10", subject="^(?P<subject>.+)$")


def test_commands_rank_and_plan(tmp_path: Path) -> None:
    write_trainers(tmp_path / "results", folds=1)
    done = quintet("rank", "results", "--output", "out", "--against", "nnUNetTrainer0__nnUNetPlans__2d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Is nnUNetTrainer1__nnUNetPlans__2d better than nnUNetTrainer0__nnUNetPlans__2d? ")
    assert "Ranked by Dice (higher is better) on 16 patients (32 cases)" in done.stdout
    assert {"ranking.html", "ranking.tex", "methods.md", "cases.csv"} <= {file.name for file in (tmp_path / "out").iterdir()}
    planned = quintet("plan", "out", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "Dice: patients needed for a power of 80 %" in planned.stdout
    again = quintet("rank", "results", "--output", "out", cwd=tmp_path)
    assert (again.returncode, "out exists and is not empty" in again.stderr) == (2, True)
    unknown = quintet("rank", "results", "--output", "other", "--against", "nnUNet", cwd=tmp_path)
    assert "unknown configuration nnUNet; available: nnUNetTrainer0__" in unknown.stderr
    assert not (tmp_path / "other").exists()
    neither = quintet("plan", "results", cwd=tmp_path)
    assert "results: neither a study nor a folder that `quintet rank` wrote" in neither.stderr


VALUES = {"metric": "dice", "lower_is_better": True, "alpha": 0.1, "bounds": [0, 100], "deterministic": ["A"]}
VALUES |= {"same_run_as": {"B": "A"}, "against": "C"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha", 0, "alpha: .* greater than 0"),
        ("alpha", 2, "alpha: .* less than 1"),
        ("alpha", float("nan"), "alpha: "),
        ("metric", "", "metric: "),
        ("lower_is_better", "no", "lower_is_better: .* boolean"),
        ("bounds", [1, 0], "the range 1 to 0 is empty"),
        ("bounds", [0, float("inf")], "bounds.1: .* finite"),
        ("deterministic", "A", "deterministic: .* array"),
        ("same_run_as", {"B": "A", "A": "B"}, "same_run_as goes in a circle: B = A = B"),
    ],
)
def test_settings_that_are_not_allowed(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings.of(VALUES | {name: value})


def test_a_changed_ranking_is_not_planned_with(tmp_path: Path) -> None:
    write_ranking(tidy(draw(np.random.default_rng(2))), Settings.of(VALUES), tmp_path / "out", title="T")
    text = (tmp_path / "out" / "cases.csv").read_text()
    (tmp_path / "out" / "cases.csv").write_text(text[:-3])
    with pytest.raises(InputError, match=r"cases.csv was changed or deleted; run `quintet rank` again"):
        load_ranking(tmp_path / "out")
    settings = tmp_path / "out" / "settings.json"
    settings.write_text(settings.read_text().replace("0.1", '"x"'))
    with pytest.raises(InputError, match=r"settings.json is damaged \(alpha: "):
        load_ranking(tmp_path / "out")


def test_names_with_special_characters_are_drawn_and_set_literally(tmp_path: Path) -> None:
    table = tidy(draw(np.random.default_rng(2), configs=3)).replace({"config": {"A": r"$\foo$", "B": "[12] a^{$", "C": "*ours"}})
    write_ranking(table, Settings(metric="dice"), tmp_path / "out", title="Cost $x^{$")
    lines = (tmp_path / "out" / "ranking.tex").read_text().splitlines()
    assert sum(line.startswith(("{}[12] a", "{}*ours", r"{}\$\textbackslash{}foo\$ &")) for line in lines) == 3


def test_a_written_ranking_is_read_again(tmp_path: Path) -> None:
    table = tidy(draw(np.random.default_rng(2)))
    settings = Settings.of(VALUES)
    written = write_ranking(table, settings, tmp_path / "out", title="T")
    read = load_ranking(tmp_path / "out")
    pd.testing.assert_frame_equal(read.table, written.table)
    pd.testing.assert_frame_equal(read.answers, written.answers)
    assert plan(read).verdict == plan(written).verdict
