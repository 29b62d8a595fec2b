"""Tables as spreadsheets, scripts and people write them: read rightly, or refused with the remedy."""

import codecs
import re
import unicodedata

import pandas as pd
import pytest

from quintet import splits
from quintet.errors import InputError, InputProblemsError
from quintet.subjects import describe, same_files, subject_of
from quintet.tables import read_cells, read_text_table, spelled_alike

ROWS = [["patient", "weight", "notes"], ["P-01", "61.5", "fine, so far"], ["P-02", "", "Zoë"]]
PLAIN = 'patient,weight,notes\nP-01,61.5,"fine, so far"\nP-02,,Zoë\n'
GERMAN = "patient;weight;notes\nP-01;61,5;fine, so far\nP-02;;Zoë\n"

READABLE = {
    "plain": PLAIN.encode(),
    "byte order mark": codecs.BOM_UTF8 + PLAIN.encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "big-endian UTF-16": codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
    "carriage returns": PLAIN.replace("\n", "\r\n").encode(),
    "semicolons and decimal commas": GERMAN.encode(),
    "tabs": GERMAN.replace(";", "\t").encode(),
    "bars": GERMAN.replace(";", "|").encode(),
    "old line ends": PLAIN.replace("\n", "\r").encode(),
    "invisible characters": PLAIN.replace("P-01", "P-01\u200b").encode(),
    "sep=;": ("sep=;\n" + GERMAN).encode(),
    "quoted sep": ('"sep=,"\r\n' + PLAIN).encode(),
    "empty rows and columns behind": "\n".join(line + ",," for line in [*PLAIN.splitlines(), "", ",,"]).encode(),
    "decomposed accents": unicodedata.normalize("NFD", PLAIN).encode(),
    "a last row without its last fields": PLAIN.replace("P-02,,Zoë\n", 'P-02,,"Zoë"').encode(),
    "spaces around": PLAIN.replace("P-01,61.5", " P-01 , 61.5").encode(),
}


@pytest.mark.parametrize("kind", READABLE)
def test_one_table_in_many_forms(tmp_path, kind):
    (tmp_path / "t.csv").write_bytes(READABLE[kind])
    table = read_text_table(tmp_path / "t.csv")
    assert [list(table), *table.to_numpy().tolist()] == ROWS


REFUSED = {
    "Windows-1252": (PLAIN.encode("cp1252"), "line 3 is not UTF-8"),
    "Latin-1 in the header": ("patient,größe\nP,1\n".encode("latin-1"), "line 1 is not UTF-8"),
    "a spreadsheet": (b"PK\x03\x04rest", "a spreadsheet"),
    "NUL": (PLAIN.encode() + b"\0\0\n", "line 4 has NUL"),
    "an open quotation mark": (b'a,b\n1,"2\n3,4\n', "quotation mark"),
    "an index without name": (b",patient\n0,P\n1,Q\n", "column 1 has no name"),
    "a nameless column in the middle": (b"patient,,b\nP,1,2\n", "column 2 has no name"),
    "too many fields": (b"patient,b\nP,1\nQ,1,2\n", "row 3 has more fields"),
    "a column twice": (b"patient,b,b\nP,1,2\n", "'b' is listed twice"),
    "empty": (b"", "is empty"),
    "only empty rows": (b"\n,,\n\n", "is empty"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_named(tmp_path, kind):
    data, message = REFUSED[kind]
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_text_table(tmp_path / "t.csv")
    assert "t.csv" in str(caught.value)


def test_a_folder_in_place_of_a_table(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_cells(tmp_path)


@pytest.mark.parametrize(
    ("name", "others", "expected"),
    [
        ("001", ["2", "1", "10"], "1"),
        ("patient_007", ["Patient-7", "patient_070"], "Patient-7"),
        ("sub-03", ["SUB 3", "sub-30"], "SUB 3"),
        ("BraTS-0012", ["brats_0012"], "brats_0012"),
        ("kidney_function", ["kidney_fuction", "sex"], "kidney_fuction"),
        ("age", ["sex", "dose"], None),
        ("x", [], None),
    ],
)
def test_the_spelling_that_is_probably_meant(name, others, expected):
    assert spelled_alike(name, others) == expected


@pytest.mark.parametrize(
    ("first", "second", "one"),
    [
        ("P1-v1", "P1-v2", True),
        ("sub-1_ses-2", "sub-1_ses-b", True),
        ("sub-12_ses-1", "sub-1_ses-1", False),
        ("P1_V1", "P1_V02", True),
        ("pat3_visit1", "pat3_visit2", True),
        ("UCSF-9_tp1", "UCSF-9_tp3", True),
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005-101", True),
        ("BraTS-GLI-00005-100", "BraTS-GLI-00006-100", False),
        ("sub-01_ses-1_asl", "sub-01_ses-2_asl", True),
        ("sub-01_ses-1", "sub-01_ses-2_run-1", True),
        ("sub-01_run-1", "sub-01_run-2", True),
        ("sub-01_ses-1_asl", "sub-02_ses-1_asl", False),
        ("PerfTerr001-v1-rest", "PerfTerr001-v2-rest", True),
        ("PerfTerr001-v1-rest", "PerfTerr002-v1-rest", False),
        ("ASL-v1-001", "ASL-v1-002", False),
        ("patient_000", "patient_001", False),
        ("BraTS-0001", "BraTS-0002", False),
        ("Brats20_001", "Brats20_002", False),
        ("case_v", "case_w", False),
        ("TCGA_CS_4942", "TCGA_CS_4943", False),
        ("survey_12", "survey_13", False),
    ],
)
@pytest.mark.parametrize("study", ["perfusion", "fusion"])
def test_visits_of_one_person(make_params, study, first, second, one):
    pattern = re.compile(make_params().of(study).data.subject_pattern)
    assert (subject_of(first, pattern) == subject_of(second, pattern)) == one


def test_people_who_may_be_the_same_are_asked_about():
    asked = describe(["s1_a", "s1_b", "s2_a"], ["s1_a", "s1_b", "s2_a"], "x.subject_pattern")
    assert asked.startswith("3 cases of 3 people: is that so? Names such as s1_a and s1_b")
    for names in (["P003-v1", "p003-v2"], ["AB12_20190304", "AB12_20200811"], ["P12a", "P12b"], ["sub-01_ses-1", "sub-1_ses-2"]):
        assert "is that so" in describe(names, names, "x")
    assert describe(["s1_a", "s1_b"], ["s1", "s1"], "x") == "2 cases of 1 people"
    assert "is that so" not in describe(["case_001", "case_002"], ["case_001", "case_002"], "x")
    for names in (["BraTS-0001", "Brats20_002"], ["Brats20_002", "Brats20_005"], ["TCGA-02-0006", "TCGA-02-0009"]):
        assert "is that so" not in describe(names, names, "x")


def test_files_of_two_people_that_are_the_same(tmp_path):
    files = {}
    for name, content in (("a1", b"x" * 9), ("a2", b"x" * 9), ("b", b"y" * 9), ("c", b"x" * 9), ("d", b"x" * 8)):
        files[name] = [tmp_path / name]
        files[name][0].write_bytes(content)
    people = {"a1": "a", "a2": "a", "b": "b", "c": "c", "d": "d"}
    (problem,) = same_files(files | {"e": [tmp_path / "absent"]}, people | {"e": "e"})
    assert problem.startswith(f"{tmp_path / 'c'}: the same file as {tmp_path / 'a1'}")


@pytest.mark.parametrize("cells", [["300", "900", "1,100"], ["1,100", "2,450", "7"]])
def test_a_comma_that_may_separate_thousands_is_refused(tmp_path, cells):
    path = tmp_path / "t.csv"
    path.write_text("patient\tdays\n" + "".join(f"p{n}\t{cell}\n" for n, cell in enumerate(cells)))
    with pytest.raises(InputError, match=r"t\.csv: row \d: is \d,\d{3} \d{4} or \d\.\d{3}\?"):
        read_text_table(path)
    path.write_text(path.read_text().replace("00", "0"))  # decimals
    if cells[0] == "300":
        assert read_text_table(path)["days"].tolist() == ["30", "90", "1.10"]


@pytest.mark.parametrize("delimiter", [";", ","])
def test_points_that_may_separate_thousands_are_refused(tmp_path, delimiter):
    path = tmp_path / "t.csv"
    path.write_text(
        f"patient{delimiter}days\n" + "".join(f"p{n}{delimiter}{c}\n" for n, c in enumerate(["858", "1.608", "3.114", "4.500"]))
    )
    with pytest.raises(InputError, match=r"t\.csv: row 3: is 1\.608 1608 or 1\.608\?"):
        read_text_table(path)
    path.write_text(path.read_text().replace("4.500", "4.5"))  # decimals
    assert read_text_table(path)["days"].tolist() == ["858", "1.608", "3.114", "4.5"]


def test_a_table_keeps_texts_that_look_like_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("patient,code\n001,1e3\n002,NA\n")
    expected = pd.DataFrame({"patient": ["001", "002"], "code": ["1e3", "NA"]}, index=[2, 3], dtype=str)
    pd.testing.assert_frame_equal(read_text_table(tmp_path / "t.csv"), expected)


def test_rows_have_the_numbers_that_a_spreadsheet_shows(tmp_path):
    (tmp_path / "table.csv").write_text('\npatient;note\n\nP;"two\nlines"\n\nQ;\n', encoding="utf-8")
    assert read_text_table(tmp_path / "table.csv").index.tolist() == [4, 6]
    (tmp_path / "splits.csv").write_text("patient,split\nP,train\n\nQ,testing\n", encoding="utf-8")
    with pytest.raises(InputProblemsError, match="row 4: split 'testing'"):
        splits.read_split(tmp_path / "splits.csv", ["P", "Q"], column="patient")


def test_a_case_without_the_pattern_s_group_is_a_person_of_its_own():
    pattern = re.compile(r"(?P<subject>x\d)|P")
    assert [subject_of(case, pattern) for case in ("x1-a", "P1", "P2")] == ["x1", "P1", "P2"]
