"""Files found by patterns of names, the clinical table, targets."""

import numpy as np
import pandas as pd
import pytest

from quintet.errors import InputError
from quintet.fusion.data.clinical import Category, Encoder, Numeric, reject_leaks
from quintet.fusion.data.preparation import Preparation
from quintet.fusion.data.raw import find_patients, read_table, targets
from tests.fusion.conftest import ELSEWHERE, HERE

ALL = ["mri_t1", "mri_t1ce", "mri_t2", "mri_flair", "ct", "pet"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["mri_t1", "mri_t1ce", "mri_t2", "mri_flair", "ct", "pet"], ALL),
        (["BraTS-1-t1n", "BraTS-1-t1c", "BraTS-1-t2w", "BraTS-1-t2f", "BraTS-1-seg"], ALL[:4]),
        (["BraTS20_1_t1", "BraTS20_1_t1ce", "BraTS20_1_t2", "BraTS20_1_flair", "BraTS20_1_seg"], ALL[:4]),
        (["TCGA-1_t1", "TCGA-1_t1c", "TCGA-1_t2", "TCGA-1_fla"], ALL[:4]),
        (["Flair_subtrMeanDivStd", "T1c_subtrMeanDivStd", "brainmask", "OTMultiClass"], ["mri_t1ce", "mri_flair"]),
    ],
    ids=["generic", "brats new", "brats old", "fla", "prefix"],
)
def test_every_naming_scheme_at_once(make_params, tmp_path, names, expected):
    (tmp_path / "p").mkdir()
    for name in names:
        (tmp_path / "p" / f"{name}.nii.gz").touch()
    patients, problems = find_patients(tmp_path, make_params().fusion.data.names, ALL)
    assert not problems
    assert sorted(patients["p"]) == sorted(expected)


def test_real_folders_are_detected(make_params, real_fusion):
    patients, problems = find_patients(real_fusion, make_params().fusion.data.names, ALL)
    assert not problems
    assert {name: len(files) for name, files in patients.items()} == {
        "BraTS-case-001": 4,
        "TCGA-FG-6692": 4,
        "brats_2013_pat0005_1": 2,
        "brats_2013_pat0006_1": 2,
    }


def test_ambiguous_files_are_named(make_params, tmp_path):
    (tmp_path / "p").mkdir()
    for name in ("a_t1", "b_t1"):
        (tmp_path / "p" / f"{name}.nii.gz").touch()
    _, problems = find_patients(tmp_path, make_params().fusion.data.names, ALL)
    assert len(problems) == 1
    assert "a_t1.nii.gz and b_t1.nii.gz are both mri_t1" in problems[0]
    _, problems = find_patients(tmp_path, {"x": ["*_t1"], "y": ["a_*"]}, ["x", "y"])
    assert "a_t1.nii.gz matches the patterns of x and y" in problems[0]


BAD_TABLES = {
    "twice": ("patient,age\na,1\na,2\n", "row 3: patient a is listed twice"),
    "no name": ("patient,age\n,1\n", "row 2: no patient"),
    "column twice": ("patient,age,age\na,1,2\n", "the column 'age' is listed twice"),
    "too many fields": ("patient,age\na,1,2,3\n", "row 2 has more fields than the header"),
    "bytes": (b"patient,age\n\xff\xfe,1\n", "line 2 is not UTF-8"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_bad_tables(make_params, tmp_path, kind):
    text, message = BAD_TABLES[kind]
    (tmp_path / "clinical_data.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    data = make_params().fusion.data
    with pytest.raises(InputError) as caught:
        read_table(tmp_path, data.tables, data.columns)
    assert message in str(caught.value)
    assert "clinical_data.csv" in str(caught.value)


def test_targets_name_the_patient(make_params, tmp_path):
    (tmp_path / "clinical_data.csv").write_text("patient,outcome,survival_days,event\na,yes,10,1\nb,NA,0,1\nc,no,x,2\n")
    p = Preparation.of(make_params().fusion)
    table, problems = targets(read_table(tmp_path, p.tables, p.columns), ["a", "b", "c", "d"], p)
    assert [problem.split(":")[0] for problem in problems] == ["patient b", "patient d"]
    assert table.loc["c", "label"] == "no"
    p = Preparation.of(make_params({"fusion.data.task": "survival"}).fusion)
    _, problems = targets(read_table(tmp_path, p.tables, p.columns), ["a", "b", "c"], p)
    assert any("survival_days is '0', expected days above 0" in text for text in problems)
    assert any("event is '2'" in text for text in problems)
    p = Preparation.of(make_params({"fusion.data.columns.label": "grade"}).fusion)
    with pytest.raises(InputError, match="no column grade"):
        targets(read_table(tmp_path, p.tables, p.columns), ["a"], p)


def table(**columns):
    return pd.DataFrame(columns, index=[f"p{i}" for i in range(len(next(iter(columns.values()))))])


def test_encoder_is_fitted_on_training_and_flags_missing_values():
    train = table(age=["50", "70", ""], sex=["f", "m", "f"], empty=["", "", ""])
    encoder = Encoder.fit(train)
    assert encoder.columns == [Numeric("age", 60.0, 10.0), Category("sex", ["f", "m"])]
    features, known, notes = encoder(table(age=["80", "", "old", ""], sex=["m", "", "x", ""]))
    assert features.tolist() == [[2, 0, 0, 1, 0], [0, 1, 0, 0, 1], [0, 1, 0, 0, 1], [0, 1, 0, 0, 1]]
    assert known.tolist() == [True, False, False, False]
    assert len(notes) == 2
    assert "patient p2: age is 'old'" in notes[0]
    again = Encoder.from_dicts(encoder.to_dicts())
    assert again == encoder
    lacking, known, _ = encoder(pd.DataFrame(index=["q"]))
    assert lacking.tolist() == [[0, 1, 0, 0, 1]]
    assert not known.any()


def test_a_column_of_free_text_is_refused():
    with pytest.raises(InputError, match=r"'note': 30 different texts"):
        Encoder.fit(table(note=[f"text {i}" for i in range(30)]))


@pytest.mark.parametrize(
    ("columns", "leaks"),
    [
        ({"code": ["1", "2", "1", "2"]}, True),  # one value per class
        ({"outcome_code": ["1", "1", "2", "2"]}, True),  # named like the label
        ({"age": ["1", "2", "3", "4"]}, False),
        ({"same": ["1", "1", "1", "1"]}, False),  # the same in all classes
    ],
)
def test_columns_that_reveal_the_label(columns, leaks):
    labels = pd.Series(["a", "b", "a", "b"], index=[f"p{i}" for i in range(4)])
    if leaks:
        with pytest.raises(InputError, match=r"fusion.data.drop="):
            reject_leaks(table(**columns), labels, "outcome")
    else:
        reject_leaks(table(**columns), labels, "outcome")


def test_phantoms_in_both_layouts(heads, make_params):
    patients, problems = find_patients(heads, make_params().fusion.data.names, ["mri_t1ce", "mri_flair", "pet"])
    assert not problems
    assert len(patients) == HERE + ELSEWHERE
    assert {name.split("-")[0].split("_")[0] for name in patients} == {"patient", "BraTS", "Brats20"}
    assert {len(files) for files in patients.values()} >= {2, 3}
    frame = pd.read_csv(heads / "clinical_data.csv")
    assert frame["marker"].isna().any()
    assert 0.2 < frame["event"].mean() < 0.95
    assert (np.isfinite(frame["survival_days"]) == frame["outcome"].notna()).all()
