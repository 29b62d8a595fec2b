"""The `quintet` commands that only this study has, or that it extends."""

from typer.testing import CliRunner

from quintet.cli import app

run = CliRunner().invoke


def test_index_search_and_check(checkout, scans, trained):
    assert "no problem found" in run(app, ["check", "ct", "--data", str(scans)]).output
    index = ["index", "ct", "--model", str(trained[0]), "--input", str(scans), "--output", "index"]
    done = run(app, index)
    assert done.exit_code == 0, done.exception
    assert "scans 40" in done.output
    search = ["search", "ct", "--index", "index", "--query", "study-0003", "-k", "4", "--montage", "m.png"]
    done = run(app, search)
    assert done.exit_code == 0, done.exception
    assert len(done.output.splitlines()) == 6  # header, four scans, the montage
    assert "ends in .png" in str(run(app, [*search[:-1], "m.jpg"]).exception)
    for command in (search, index):
        assert "exists" in str(run(app, command).exception)


def test_evaluate_takes_a_file_of_embeddings(checkout, scans, trained):
    done = run(app, ["predict", "ct", "--model", str(trained[0]), "--input", str(scans), "--output", "vectors.npz"])
    assert "40 cases predicted" in done.output, done.exception
    done = run(app, ["evaluate", "ct", "--model", "vectors.npz", "--data", str(scans), "--output", "measured"])
    assert done.exit_code == 0, done.exception
    assert "ndcg_at_10" in done.output
    assert (checkout / "measured" / "cases.csv").is_file()
