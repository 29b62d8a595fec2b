"""`quintet` on this study as a user meets it."""

import shutil

from typer.testing import CliRunner

from quintet.cli import app
from tests.breakhis.test_study import trained  # noqa: F401

run = CliRunner().invoke


def test_check_lists_what_is_wrong(checkout, slides):
    assert "no problem found" in run(app, ["check", "breakhis", "--data", str(slides)]).output
    broken = shutil.copytree(slides, checkout / "broken")
    path = next((broken / "benign/SOB/adenosis").glob("*/40X/*.png"))
    path.rename(path.with_name("photo.png"))
    next((broken / "benign/SOB/adenosis").glob("*/100X/*.png")).write_bytes(b"")
    message = str(run(app, ["check", "breakhis", "--data", str(broken)]).exception)
    assert "photo.png: not a BreaKHis name" in message
    assert "the file is empty" in message


def test_predict_writes_a_new_file_only(checkout, slides, trained):  # noqa: F811
    patient = next((slides / "malignant/SOB/mucinous_carcinoma").iterdir())
    command = ["predict", "breakhis", "--model", str(trained[0]), "--input", str(patient), "--output", "out.csv"]
    done = run(app, command)
    assert done.exit_code == 0, done.exception
    assert "1 case predicted" in done.output
    before = (checkout / "out.csv").read_text()
    assert "exists; choose another file" in str(run(app, command).exception)
    assert (checkout / "out.csv").read_text() == before
