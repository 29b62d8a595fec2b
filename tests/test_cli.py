"""The command line as a user meets it."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from quintet.cli import app
from quintet.errors import InputError
from quintet.stage import append_time
from tests.conftest import ROOT

run = CliRunner().invoke
STUDIES = ("landmarks", "breakhis", "fusion", "perfusion")


def test_check_finds_nothing_wrong_with_phantoms_and_lists_what_is(checkout, raw):
    good = run(app, ["check", "landmarks", "--data", str(raw)])
    assert good.exit_code == 0
    assert "no problem found" in good.output
    bad = run(app, ["check", "landmarks", "--data", str(checkout / "nowhere")])
    assert bad.exit_code == 1
    assert "no such folder" in str(bad.exception)


def test_errors_have_no_traceback_and_exit_with_2(checkout):
    command = [
        sys.executable,
        "-c",
        "from quintet.cli import main; main()",
        "predict",
        "landmarks",
        "--model",
        "runs/none",
        "--input",
        "data",
        "--output",
        "x.csv",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout)
    assert done.returncode == 2
    assert done.stderr.startswith("error: runs/none: no run folder")
    assert "Traceback" not in done.stderr
    assert not (checkout / "x.csv").exists()


@pytest.mark.parametrize(
    "command",
    [*(f"{name} {study}" for name in ("predict", "evaluate") for study in STUDIES), "index ct"],
)
def test_results_inside_the_input_are_refused(checkout, raw, command):
    """Overlays and tables there would be taken for input by the next run."""
    option = "--data" if command.startswith("evaluate") else "--input"
    more = ["--overlays", str(raw / "images" / "overlays")] if command.startswith("predict") else []
    output = checkout / "points.csv" if more else raw / "results"
    done = run(app, [*command.split(), "--model", "runs/x", option, str(raw), "--output", str(output), *more])
    assert isinstance(done.exception, InputError)
    assert f"is inside {raw}, where it would be taken for input later" in str(done.exception)


def test_results_inside_the_input_by_another_path_are_refused(checkout, raw):
    (checkout / "link").symlink_to(raw)
    for place in ("link/points.csv", f"{raw}/../{raw.name}/points.csv"):
        done = run(app, ["predict", "landmarks", "--model", "runs/x", "--input", str(raw), "--output", place])
        assert "would be taken for input later" in str(done.exception)
    done = run(app, ["predict", "landmarks", "--model", "runs/x", "--input", "link", "--output", str(raw / "points.csv")])
    assert "would be taken for input later" in str(done.exception)


def test_analyze_writes_a_page(checkout, raw):
    done = run(app, ["analyze", "landmarks", "--data", str(raw), "--page", "page.html"])
    assert done.exit_code == 0, done.output
    page = (checkout / "page.html").read_text()
    assert "40 images" in page
    assert page.count("data:image/png;base64") == 1
    annotations = (raw / "annotations.csv").read_bytes()
    done = run(app, ["analyze", "landmarks", "--data", str(raw), "--page", str(raw / "annotations.csv")])
    assert "choose a name that ends in .html" in str(done.exception)
    assert (raw / "annotations.csv").read_bytes() == annotations


def test_paths_of_the_parameters_begin_at_the_root(checkout, raw, monkeypatch):
    stems = [line.split(",")[-1] for line in (raw / "annotations.csv").read_text().splitlines()]
    parts = ["test", "valid", *["train"] * (len(stems) - 2)]
    (checkout / "mine.csv").write_text("stem,split\n" + "".join(f"{s},{p}\n" for s, p in zip(stems, parts, strict=True)))
    text = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(text.replace("split: grouped", "split: mine.csv", 1))
    (checkout / "below").mkdir()
    monkeypatch.chdir(checkout / "below")
    assert "no problem found" in run(app, ["check", "landmarks", "--data", str(raw)]).output


def test_no_second_output_is_replaced(checkout, raw):
    (checkout / "p.csv.uncertainty.csv").write_text("mine")
    done = run(app, ["predict", "landmarks", "--model", "runs/x", "--input", str(raw), "--output", "p.csv"])
    assert "p.csv.uncertainty.csv exists" in str(done.exception)


def test_preset_shows_what_it_changes_and_touches_one_study(checkout):
    done = run(app, ["preset", "best", "landmarks"])
    assert "landmarks.head: regression -> heatmap" in done.output
    assert run(app, ["preset", "best", "landmarks"]).output.strip() == "params.yaml has these values already"


def test_preset_leaves_a_broken_file_alone_and_names_it(checkout):
    path = checkout / "params.yaml"
    for text, says in (("a: [", "not valid YAML"), ("[]", "expected a mapping"), ("a: 1\na: 2", "duplicate key")):
        path.write_text(text)
        done = run(app, ["preset", "best"])
        assert isinstance(done.exception, InputError)
        assert says in str(done.exception)
        assert path.read_text() == text


def test_doctor_reports_versions_and_device(checkout):
    done = run(app, ["doctor"])
    assert "torch 2." in done.output
    assert "automatic precision" in done.output


def test_evaluate_and_predict_agree_on_a_foreign_folder(checkout, raw, make_params):
    """`quintet evaluate` on a labelled folder measures exactly what `quintet predict` writes."""
    import numpy as np
    import pandas as pd

    from quintet import experiment
    from quintet.landmarks.data.prepare import prepare
    from tests.landmarks.test_study import SMALL

    params = make_params(SMALL)
    prepare(raw, checkout / "data", params.landmarks)
    experiment.train_selected("landmarks", params, checkout / "data", checkout / "runs" / "x")
    experiment.evaluate_selected("landmarks", params, checkout / "data", checkout / "runs" / "x", checkout / "scores.json")
    evaluated = run(app, ["evaluate", "landmarks", "--model", "runs/x", "--data", str(raw), "--output", "e"])
    assert evaluated.exit_code == 0, evaluated.output
    predicted = run(
        app, ["predict", "landmarks", "--model", "runs/x", "--model", "runs/x", "--input", str(raw), "--output", "p.csv"]
    )
    assert predicted.exit_code == 0, predicted.output
    true = pd.read_csv(raw / "annotations.csv", header=None).set_index(31).loc[:, 1:30]
    points = pd.read_csv("p.csv", header=None).set_index(31).loc[true.index, 1:30]
    distance = np.linalg.norm((points - true).to_numpy().reshape(40, 15, 2), axis=-1).mean() * 224 / 96
    shown = float(evaluated.output.split("error_px ")[1].split()[0])
    assert shown == pytest.approx(distance, abs=0.05)


def test_stage_counts_its_time_from_the_process_start_and_times_adds_up(checkout, raw):
    """A real stage script: its final line, its entry in logs/stages.csv, and the sum that `quintet times` prints."""
    script = str(ROOT / "stages/landmarks_prepare.py")
    command = [sys.executable, script, "--raw", str(raw), "--out", "out", "--page", "page.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=checkout)
    assert "landmarks_prepare: 40 images" in done.stdout
    assert "start-up and imports" in done.stdout
    assert (checkout / "out" / "split.csv").is_file()
    name, _, start_up, seconds = (checkout / "logs/stages.csv").read_text().strip().split(",")
    assert name == "landmarks_prepare"
    assert 0 < float(start_up) < float(seconds)
    with (checkout / "logs/stages.csv").open("a") as file:
        file.write("landmarks_tr")  # killed as it wrote
    append_time("landmarks_train", 1.0, 2.0, 3.0)
    shown = run(app, ["times"]).output
    assert "landmarks_train " in shown
    assert "all 2 processes" in shown
    assert f"{float(seconds):.1f}" in shown
