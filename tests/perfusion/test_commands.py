"""`quintet` on this study as a user meets it."""

from typer.testing import CliRunner

from quintet.cli import app
from tests.conftest import ROOT
from tests.perfusion.test_comparison import simulated  # noqa: F401

run = CliRunner().invoke


def test_check_and_analyze(checkout, flow_maps):
    assert "no problem found" in run(app, ["check", "perfusion", "--data", str(flow_maps)]).output
    bad = run(app, ["check", "perfusion", "--data", str(flow_maps / "imagesTr")])
    assert "dataset.json: missing" in str(bad.exception)
    done = run(app, ["analyze", "perfusion", "--data", str(flow_maps), "--page", "page.html"])
    assert done.exit_code == 0, done.output
    page = (checkout / "page.html").read_text()
    assert "of 6 people" in page
    assert page.count("data:image/png;base64") == 1
    for heading in ("Folds", "Grids", "Territories", "What the preparation costs"):
        assert heading in page


def test_results_do_not_replace_a_folder_that_holds_something(checkout, flow_maps):
    (checkout / "mine").mkdir()
    (checkout / "mine" / "thesis.txt").write_text("years of work")
    for command in (["predict", "perfusion", "--input", str(flow_maps)], ["evaluate", "perfusion", "--data", str(flow_maps)]):
        done = run(app, [*command, "--model", "runs/x", "--output", "mine"])
        assert "not empty" in str(done.exception)
    assert (checkout / "mine" / "thesis.txt").is_file()


def test_preset_top3_lays_over_the_sweep_alone(checkout):
    done = run(app, ["preset", "top3"])
    assert "perfusion.sweep.seeds: 0 -> 0, 1, 2" in done.output
    assert all(line.startswith("perfusion.sweep.") for line in done.output.strip().splitlines())


def test_plan_says_what_would_separate_the_first(checkout, simulated):  # noqa: F811
    """On simulated tables of two seeds, with a configuration that is truly better."""
    simulated({"separate": 0.02}, folds=range(5), seeds=(0, 1), run_sd=0.004)
    params = (ROOT / "params.yaml").read_text()
    params = params.replace(
        "    folds: # of 0 to folds - 1\n    - 0\n", "    folds:\n    - 0\n    - 1\n    - 2\n    - 3\n    - 4\n", 1
    )
    head, _, tail = params.partition("  sweep:\n    configs:\n    - shared-spatial-complementary")
    tail = tail.replace("    seeds:\n    - 0\n", "    seeds:\n    - 0\n    - 1\n", 1)
    (checkout / "params.yaml").write_text(f"{head}  sweep:\n    configs:\n    - shared-spatial-complementary{tail}")
    done = run(app, ["plan", "perfusion"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "separate vs" in done.output
    asked = run(app, ["plan", "perfusion", "--difference", "0.01"])
    assert asked.exit_code == 0
    assert asked.output != done.output
