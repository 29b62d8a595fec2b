"""`quintet` on this study as a user meets it."""

import pytest
import yaml
from typer.testing import CliRunner

from quintet.cli import app
from tests.conftest import with_changes

run = CliRunner().invoke


def test_check_and_analyze(checkout, flow_maps):
    assert "no problem found" in run(app, ["check", "perfusion", "--data", str(flow_maps)]).output
    bad = run(app, ["check", "perfusion", "--data", str(flow_maps / "imagesTr")])
    assert "dataset.json: missing" in str(bad.exception)
    done = run(app, ["analyze", "perfusion", "--data", str(flow_maps), "--page", "page.html"])
    assert done.exit_code == 0, done.output
    page = (checkout / "page.html").read_text()
    assert "of 6 people" in page
    assert "skipped" not in page
    assert page.count("data:image/png;base64") == 1
    for heading in ("Folds", "Grids", "Territories", "Accuracy lost by resampling"):
        assert heading in page


@pytest.mark.parametrize(("command", "option"), [("predict", "--input"), ("evaluate", "--data")])
def test_results_do_not_replace_a_folder_with_content(checkout, flow_maps, command, option):
    (checkout / "mine").mkdir()
    (checkout / "mine" / "thesis.txt").write_text("years of work")
    done = run(app, [command, "perfusion", option, str(flow_maps), "--model", "runs/x", "--output", "mine"])
    assert "not empty" in str(done.exception)
    assert (checkout / "mine" / "thesis.txt").is_file()


def test_preset_top3_changes_the_sweep_alone(checkout):
    done = run(app, ["preset", "top3"])
    assert "perfusion.sweep.seeds: 0 -> 0, 1, 2" in done.output
    assert all(line.startswith("perfusion.sweep.") for line in done.output.strip().splitlines())


def test_plan_states_what_would_make_the_lead_significant(checkout, values, simulated):
    """On simulated tables of two seeds, with a configuration that is truly better."""
    simulated({"separate": 0.02}, folds=range(5), seeds=(0, 1), run_sd=0.004)
    changed = with_changes(values, {"perfusion.sweep.folds": list(range(5)), "perfusion.sweep.seeds": [0, 1]})
    (checkout / "params.yaml").write_text(yaml.safe_dump(changed))
    done = run(app, ["plan", "perfusion"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "separate vs" in done.output
    smaller = run(app, ["plan", "perfusion", "--difference", "0.01"])
    assert smaller.exit_code == 0
    assert smaller.output != done.output
