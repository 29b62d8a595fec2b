"""`quintet` on this study as a user meets it."""

from typer.testing import CliRunner

from quintet.cli import app
from tests.ct.test_study import trained  # noqa: F401

run = CliRunner().invoke


def test_index_search_and_check(checkout, scans, trained):  # noqa: F811
    assert "no problem found" in run(app, ["check", "ct", "--data", str(scans)]).output
    done = run(app, ["index", "ct", "--model", str(trained[0]), "--input", str(scans), "--output", "index"])
    assert done.exit_code == 0, done.exception
    assert "scans 40" in done.output
    command = ["search", "ct", "--index", "index", "--query", "study-0003", "-k", "4", "--montage", "m.png"]
    done = run(app, command)
    assert done.exit_code == 0, done.exception
    assert len(done.output.splitlines()) == 6  # header, four scans, the montage
    assert "is there already" in str(run(app, command).exception)
    assert "is there already" in str(
        run(app, ["index", "ct", "--model", str(trained[0]), "--input", str(scans), "--output", "index"]).exception
    )


def test_evaluate_takes_a_file_of_embeddings(checkout, scans, trained):  # noqa: F811
    done = run(app, ["predict", "ct", "--model", str(trained[0]), "--input", str(scans), "--output", "vectors.npz"])
    assert "40 cases predicted" in done.output, done.exception
    done = run(app, ["evaluate", "ct", "--model", "vectors.npz", "--data", str(scans), "--output", "measured"])
    assert done.exit_code == 0, done.exception
    assert "map_at_5" in done.output
    assert (checkout / "measured" / "cases.csv").is_file()
