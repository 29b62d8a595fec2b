"""What people have on their disks: tables that do not fit the folders, columns of mixed kind, answers among the features, visits
of one person, files that are not recognised. One clear sentence each, in check, in preparation and in prediction alike."""

import gzip
import shutil
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from quintet.errors import InputError, InputProblemsError
from quintet.experiment import predict_folder
from quintet.fusion.data.clinical import Category, Encoder, Numeric
from quintet.fusion.data.preparation import Preparation
from quintet.fusion.data.prepare import _reject_foreign_values, check, find_all_patients, prepare
from quintet.fusion.data.segmentation import mask_of, segment, segmenter_for
from quintet.fusion.data.tabular import read_tables
from quintet.imaging.volumes import read_nifti
from tests.damage import become_folder, link_to_nowhere


def tables(raw, small, **changes):
    """The tables of the usable patients, as preparation reads them."""
    fusion = small.fusion.model_copy(update={"data": small.fusion.data.model_copy(update=changes)})
    patients, problems = find_all_patients(raw, Preparation.of(fusion), {})
    found, more = read_tables(raw, patients, {}, fusion)
    return found, problems + more


def write(raw, table, **options):
    table.to_csv(raw / "clinical_data.csv", index=False, **options)


def rename(raw, old, new):
    (raw / old).rename(raw / new)
    for path in (raw / new).iterdir():
        path.rename(path.with_name(path.name.replace(old, new)))


def predict(trained, raw, out):
    return predict_folder("fusion", [trained[0]], raw, out, device="cpu", overlays=None, skip=False)


@pytest.mark.parametrize("width", [2, 4])
def test_lost_leading_zeros(raw, small, table, trained, tmp_path, width):
    for number, name in enumerate(table["patient"]):
        rename(raw, name, f"{number + 1:0{width}d}")
    write(raw, table.assign(patient=[str(n + 1) for n in range(len(table))]))
    first = f"{1:0{width}d}"
    if width > 2:
        with pytest.raises(InputError, match=f"is '{first}' the row '1'"):
            tables(raw, small)
    else:  # from 10 on, the names are equal
        assert len([p for p in tables(raw, small)[1] if "write both alike" in p]) == 9
    with pytest.raises(InputError) as caught:
        predict(trained, raw, tmp_path / "p.csv")
    assert "clinical_data.csv" in str(caught.value)
    assert not (tmp_path / "p.csv").exists()


def test_one_row_in_another_spelling(raw, small, table, trained, tmp_path):
    name = table["patient"][5]
    write(raw, table.assign(patient=table["patient"].replace(name, name.upper().replace("_", " "))))
    _, problems = tables(raw, small)
    (problem,) = [p for p in problems if name in p]
    assert "write both alike" in problem
    with pytest.raises(InputProblemsError) as caught:
        predict(trained, raw, tmp_path / "p.csv")
    assert [p for p in caught.value.problems if "write both alike" in p] == list(caught.value.problems)


def test_rows_without_a_folder_are_counted(raw, small, table, capsys):
    shutil.rmtree(raw / table["patient"][3])
    tables(raw, small)
    assert f"1 rows of clinical_data.csv have no patient here, such as {table['patient'][3]}" in capsys.readouterr().out


def test_identifiers_are_no_features(raw, small, table, capsys):
    write(raw, table.assign(number=[str(7_100_000 + 37 * k) for k in range(len(table))]))
    tables(raw, small)
    assert "is clinical column 'number' an identifier or a date" in capsys.readouterr().out


@pytest.mark.parametrize(("new", "meant"), [("Kidney-Function", "'Kidney-Function'"), ("gfr", "add it")])
def test_a_column_that_prediction_lacks(raw, table, trained, tmp_path, new, meant):
    write(raw, table.rename(columns={"kidney_function": new}))
    with pytest.raises(InputError, match="no column 'kidney_function', which the model was trained with") as caught:
        predict(trained, raw, tmp_path / "p.csv")
    assert meant in str(caught.value)


def test_accents_of_another_file_system(raw, small, table):
    name = "Zoë_1"
    rename(raw, table["patient"][0], unicodedata.normalize("NFD", name))
    write(raw, table.assign(patient=[name, *table["patient"][1:]]))
    found, problems = tables(raw, small)
    assert not problems
    assert name in set(found.table["patient"])


@pytest.mark.parametrize("gap", ["#N/A", "n.a.", "-", "NULL", "#DIV/0!", "Missing"])
def test_gaps_in_a_column_of_numbers(raw, small, table, gap):
    table.loc[[2, 7, 9], "age"] = gap
    write(raw, table)
    found, _ = tables(raw, small)
    kinds = {column.name: type(column).__name__ for column in found.encoder.columns}
    assert kinds["age"] == "Numeric"


COLUMNS = {
    "text among numbers": (lambda t: t["age"].mask(t.index % 9 == 0, "about 60"), "are no numbers, such as 'about 60'"),
    "a unit in a small table": (
        lambda t: t["age"].head(12).mask(t.index[:12] == 3, "44 y").reindex(t.index, fill_value=""),
        "44 y",
    ),
    "two spellings": (lambda t: t["sex"].mask(t.index % 4 == 0, "F"), "differ in spelling only"),
    "a code for missing": (
        lambda t: t["age"].mask(t.index == 4, "-999").mask(t["age"] == "", "60"),
        "-999 is far from the others",
    ),
    "another code": (lambda t: pd.Series("1.5", t.index).mask(t.index % 2 == 0, "3").mask(t.index == 6, "99"), "99 is far from"),
    "infinite": (lambda t: t["age"].mask(t.index == 4, "1e400"), "has '1e400'"),
    "too large": (lambda t: t["age"].mask(t.index == 4, "3e39"), "has '3e39'"),
    "percent signs": (lambda t: (60 + 10 * (t.index % 4)).astype(str) + "%", "written as text"),
    "units": (lambda t: (60 + t.index % 4).astype(str) + " years", "written as text"),
    "dates": (lambda t: pd.Series("1940-03-1", t.index) + (t.index % 4).astype(str), "written as text"),
    "thousands": (lambda t: pd.Series("1,09", t.index) + (t.index % 4).astype(str), "written as text"),
    "free text": (lambda t: "remark " + t.index.astype(str), "different texts"),
    "the answer in other words": (lambda t: t["outcome"].map({"stable": "no", "progression": "yes"}), "reveal the answer"),
    "the answer with a margin": (
        lambda t: (np.where(t["outcome"] == "stable", 0, 9) + t.index % 5).astype(str),
        "separates the classes of outcome without error",
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_that_are_refused(raw, small, table, kind):
    make, message = COLUMNS[kind]
    write(raw, table.assign(extra=make(table)))
    with pytest.raises(InputError, match=message) as caught:
        tables(raw, small)
    assert "'extra'" in str(caught.value)


def test_every_unusable_column_is_listed(raw, small, table):
    """Beside the patients' own problems."""
    table.loc[3, "outcome"] = ""
    code = table["outcome"].map({"stable": "7", "progression": "8", "": "7"})
    write(raw, table.assign(code=code, dose=[str(n) if n % 7 else "about" for n in range(len(table))]))
    fusion = small.fusion.model_copy(update={"data": small.fusion.data.model_copy(update={"unlabelled": "refuse"})})
    problems = check(raw, fusion)
    assert [p.split(":")[0] for p in problems] == [
        f"patient {table['patient'][3]}",
        "clinical column 'code' has one value in each class of outcome and never in another",
        "clinical column 'dose'",
    ]


def test_harmless_columns_pass(raw, small, table):
    """A name that contains the target's letters, a constant, codes, and ties with the answer by chance."""
    extra = {"stableford": "12.5", "grade": table.index.map(lambda n: ["1", "2", "2a", "3"][n % 4]), "dose": "0.1"}
    write(raw, table.assign(**extra))
    found, problems = tables(raw, small)
    assert not problems
    assert {c.name for c in found.encoder.columns} & set(extra) == {"grade"}  # constants are left out
    assert np.abs(found.vectors[-1]).max() < 10


@pytest.mark.parametrize(
    ("label", "feature", "refused"),
    [
        ("os", "dose", False),
        ("os", "position", False),
        ("age_class", "dosage", False),
        ("pfs", "pfs_2", True),
        ("ki67", "ki67_", True),
    ],
)
def test_letters_of_the_target_in_another_word_are_no_leak(raw, small, table, label, feature, refused):
    answer = table["outcome"].map({"stable": "1", "progression": "2"})
    write(
        raw, table.rename(columns={"outcome": label}).assign(**{feature: answer if refused else np.resize(["1", "2", "3"], 30)})
    )
    columns = small.fusion.data.columns.model_copy(update={"label": label})
    if refused:
        with pytest.raises(InputError, match=f"'{feature}' is named like the target"):
            tables(raw, small, columns=columns)
    else:
        assert not tables(raw, small, columns=columns)[1]


SURVIVAL = {
    "months": lambda days: days / 30.4,
    "weeks": lambda days: (days / 7).round(),
    "follow_up_rank": lambda days: days.rank(),
    "years_left": lambda days: 10 - days / 365.25,
    "hazard": lambda days: 100 / days,
    "log_time": np.log,
}


@pytest.mark.parametrize("column", SURVIVAL)
def test_the_answer_of_survival_is_no_feature(raw, small, table, column):
    days = table["survival_days"].astype(float)
    write(raw, table.assign(**{column: SURVIVAL[column](days).round(3).astype(str)}))
    with pytest.raises(InputError, match="has the order of survival_days"):
        tables(raw, small, task="survival")


@pytest.mark.parametrize("words", [("dead", "alive"), ("1", "0"), ("Deceased", "Living"), ("x", "")])
def test_the_event_is_no_feature(raw, small, table, words):
    event = table["event"].map({"1.0": words[0], "0.0": words[1]})
    write(raw, table.assign(status=event))
    with pytest.raises(InputError, match=r"'status' (has one value in each class|is missing in some classes)"):
        tables(raw, small, task="survival")


@pytest.mark.parametrize("part", ["train", "valid", "test", "all"])
def test_a_part_without_an_event_is_refused(raw, small, table, part):
    """Concordance is undefined there, and a hazard cannot be learnt."""
    parts = np.resize(["train", "train", "train", "valid", "test"], len(table))
    quiet = np.full(len(table), True) if part == "all" else parts == part
    write(raw, table.assign(event=np.where(quiet, "0", np.resize(["1", "1", "0"], len(table)))))
    pd.DataFrame({"patient": table["patient"], "split": parts}).to_csv("mine.csv", index=False)
    with pytest.raises(InputError, match=r"no event|without (an )?event|nobody"):
        tables(raw, small, task="survival", split="mine.csv")


@pytest.mark.parametrize("given", ["TRUE", "2020-01-01", ""])
def test_rows_come_before_what_follows_from_them(raw, small, table, given):
    """Times as words leave no time: the rows are the fault."""
    write(raw, table.assign(survival_days=given or "1,264"))
    with pytest.raises(InputProblemsError) as caught:
        tables(raw, small, task="survival")
    assert f"survival_days is {given or '1,264'!r}, expected" in caught.value.problems[0]
    assert len(caught.value.problems) == len(table) + 1


@pytest.mark.parametrize("words", [("dead", "alive"), ("TRUE", "FALSE"), ("1: yes", "0: no")])
def test_events_as_words_are_one_sentence(raw, small, table, words):
    write(raw, table.assign(event=np.resize(words, len(table))))
    with pytest.raises(InputError, match=r"column 'event' holds .*; write 0 \(censored\) or 1 \(event\)") as caught:
        tables(raw, small, task="survival")
    assert not isinstance(caught.value, InputProblemsError)
    assert all(repr(word) in str(caught.value) for word in words)


def test_one_number_in_two_spellings_is_one_class(raw, small, table):
    labels = table["outcome"].map({"stable": "0", "progression": "1"})
    write(raw, table.assign(outcome=labels.mask(table.index % 3 == 0, labels + ".0")))
    with pytest.raises(InputError, match="are one number"):
        tables(raw, small)
    write(raw, table.assign(outcome=table["outcome"].mask(table.index % 3 == 0, table["outcome"] + "\u200b")))
    assert set(tables(raw, small)[0].table["label"]) == {"stable", "progression"}  # invisible characters


def test_two_folders_of_one_name_are_named(raw, small, table):
    for old, new in zip(table["patient"][:2], ("José", unicodedata.normalize("NFD", "José")), strict=True):
        rename(raw, old, new)
    assert [p for p in check(raw, small.fusion) if "its accents stored in two ways" in p]


def test_prediction_treats_a_code_as_missing(raw, table, trained, tmp_path, capsys):
    name = table["patient"][2]
    rows = []
    for value in ("", "-999", "1e300"):
        table.loc[2, "age"] = value
        write(raw, table)
        out = tmp_path / f"p{len(rows)}.csv"
        predict(trained, raw, out)
        rows.append(pd.read_csv(out).set_index("patient").loc[name])
    assert rows[0].equals(rows[1])
    assert rows[0].equals(rows[2])
    printed = capsys.readouterr().out
    assert f"patient {name}: age is '-999', far from the training mean" in printed


def test_a_table_of_another_kind_is_pointed_at(raw, trained, tmp_path, capsys):
    (raw / "clinical_data.csv").rename(raw / "clinical_data.xlsx")
    predict(trained, raw, tmp_path / "p.csv")
    assert "save clinical_data.xlsx as clinical_data.csv" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "second"), [("Stable", "stable"), ("PD", "Pd"), ("no change", "no  change"), ("yes", "YES")])
def test_labels_in_two_spellings(raw, small, table, first, second):
    labels = table["outcome"].replace("stable", first)
    labels[table.index[labels == first][::2]] = second
    write(raw, table.assign(outcome=labels))
    with pytest.raises(InputError, match="differ in spelling only"):
        tables(raw, small)


@pytest.mark.parametrize(
    "parts",
    [
        ["test"] * 5 + ["train"] * 21 + ["valid"] * 4,
        ["valid"] * 5 + ["train"] * 20 + ["test"] * 5,
        ["train"] * 10 + ["valid", "test"] * 10,
    ],
)
def test_a_part_of_one_class_is_refused(raw, small, table, parts):
    by_class = table.sort_values("outcome")["patient"].tolist()
    pd.DataFrame({"patient": by_class, "split": parts}).to_csv("mine.csv", index=False)
    with pytest.raises(InputError, match=r"the (valid|test|train) part has \d+ patient\(s\), none of them '"):
        tables(raw, small, split="mine.csv")


@pytest.mark.parametrize("scheme", ["sub-{}_ses-{}", "P{}_V{}", "BraTS-GLI-{:05d}-10{}"])
def test_visits_of_one_person_stay_in_one_part(raw, small, table, scheme):
    names = [scheme.format(n // 2, n % 2) for n in range(len(table))]
    for old, new in zip(table["patient"], names, strict=True):
        rename(raw, old, new)
    write(raw, table.assign(patient=names))
    found, problems = tables(raw, small)
    assert not problems
    split = found.table.set_index("patient")["split"]
    assert all(split[names[n]] == split[names[n + 1]] for n in range(0, len(names) - 1, 2))
    parts = split.rename_axis("patient").reset_index()
    parts.loc[parts["patient"] == names[0], "split"] = "valid" if split[names[0]] != "valid" else "train"
    parts.to_csv("mine.csv", index=False)
    with pytest.raises(InputProblemsError, match="one patient in several parts"):
        tables(raw, small, split="mine.csv")


def test_no_visit_of_a_tested_person_is_learnt_from(raw, small, table, capsys):
    """Imputation learns from patients without an outcome, but not from another visit of a person in validation or test."""
    names = [f"P{n // 2}-v{n % 2}" for n in range(len(table))]
    for old, new in zip(table["patient"], names, strict=True):
        rename(raw, old, new)
    table.loc[1::2, "outcome"] = ""
    write(raw, table.assign(patient=names))
    found, _ = tables(raw, small)
    split = found.table.set_index("patient")["split"]
    tested = {name[:-1] for name in split.index[split.isin(["valid", "test"])]}
    learnt = {name[:-1] for name in split.index[split.isin(["train", "unlabelled"])]}
    assert tested
    assert not tested & learnt
    assert f"{len(tested)} visits without an outcome are of people in validation or test" in capsys.readouterr().out
    table.loc[0, "hospital"], table.loc[1, "outcome"] = "B", "stable"
    write(raw, table.assign(patient=names))
    with pytest.raises(InputProblemsError, match="one patient in several parts"):
        tables(raw, small, external=["B"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(hospital=t["hospital"].where(t.index % 4 != 1, "b")), "differ in spelling only"),
        (lambda t: t.rename(columns={"hospital": "Hospital"}), "is the column 'Hospital' the hospital"),
        (lambda t: t.assign(outcome=t["outcome"].where(t.index % 5 > 0, "-9")), "outcome is -9: a code for missing"),
    ],
)
def test_hospitals_and_outcomes_in_other_words(raw, small, table, change, message):
    table["hospital"] = ["A", "B"] * (len(table) // 2) + ["A"] * (len(table) % 2)
    write(raw, change(table))
    with pytest.raises(InputError, match=message):
        tables(raw, small, external=["B"])


def test_one_image_under_two_names(raw, small, table):
    a, b = (next((raw / table["patient"][n]).glob("*.nii.gz")) for n in (0, 3))
    shutil.copy(a, b)
    problems = check(raw, small.fusion)
    assert len([p for p in problems if "the same file as" in p]) == 1


def test_what_is_not_recognised_is_listed(raw, small, table, capsys):
    """Masks, images with contrast and files of other names are no modality; folders without images are named."""
    for n, path in enumerate(sorted(raw.glob("*/*"))):
        if "t1c" in path.name.lower():
            path.rename(path.with_name(f"scan{n % 2}.nii.gz"))
    empty, nested, other = (raw / name for name in table["patient"][:3])
    for path in [*empty.iterdir(), *other.iterdir()]:
        path.unlink()
    (nested / "anat").mkdir()
    for path in nested.glob("*.nii.gz"):
        path.rename(nested / "anat" / path.name)
    (other / "IM0001.dcm").write_bytes(b"x")
    problems = check(raw, small.fusion)
    for folder, held in ((empty, "nothing"), (nested, "only anat"), (other, "only IM0001.dcm")):
        assert [p for p in problems if f"no NIfTI file in {folder}, {held}" in p]
    assert [p for p in problems if "no training patient has mri_t1ce" in p]
    printed = capsys.readouterr().out
    assert "mri_t1ce 0" in printed
    assert "scan0.nii.gz (" in printed


@pytest.mark.parametrize(
    ("name", "modality"),
    [("t1_gd", None), ("t1_post", None), ("t1_ce", None), ("flair_seg", None), ("x_flair_mask", None), ("t1_pre", "mri_t1")],
)
def test_names_that_only_look_like_a_modality(tmp_path, make_params, name, modality):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / f"{name}.nii.gz").write_bytes(b"")
    fusion = make_params().fusion
    preparation = Preparation.of(fusion).model_copy(update={"modalities": ["mri_t1", "mri_flair"]})
    patients, _ = find_all_patients(tmp_path, preparation, {})
    assert list(patients["p"]) == ([modality] if modality else [])


def _colour(path):
    array = np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def _flip(path):
    """One bit in the middle: the stream can still be unpacked, to other values."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


FILES = {
    "a link to nowhere": (link_to_nowhere, "a link to ../.git/annex/objects/x, which does not exist"),
    "a folder": (become_folder, "a folder, expected a NIfTI file"),
    "a pointer": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n"), "git lfs pull"),
    "colours": (_colour, "colours"),
    "complex": (lambda p: nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), p), "complex numbers"),
    "empty": (lambda p: p.write_bytes(b""), "0 bytes"),
    "a flipped bit": (_flip, "corrupt or truncated"),
    "not compressed": (lambda p: p.write_bytes(gzip.decompress(p.read_bytes())), "it is not compressed"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[:400]), "corrupt or truncated"),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_cause_of_an_unreadable_image_is_named(raw, small, kind):
    damage, message = FILES[kind]
    path = sorted(raw.glob("*/*.nii.gz"))[4]
    damage(path)
    with pytest.raises(InputError, match=message):
        read_nifti(path)
    with pytest.raises(InputError, match=message):
        mask_of(path, segmenter_for(small.fusion.segmentation, "pet"), cache=Path("cache"))
    assert [p for p in check(raw, small.fusion) if str(path) in p and message.split(",")[0] in p]


@pytest.mark.parametrize(("move", "share"), [([0, 0, -900], "0%"), ([300, 0, 0], "0%")])
def test_images_at_different_places_are_named(raw, small, move, share):
    """In check, by the images' own boxes, and in preparation, by the masks'."""
    patient = next(p for p in sorted(raw.iterdir()) if p.is_dir() and len(list(p.glob("*pet*"))) and len(list(p.iterdir())) > 1)
    path = next(patient.glob("*pet*"))
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += move
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    (problem,) = [p for p in check(raw, small.fusion) if patient.name in p]
    assert f"share {share} of what they show" in problem
    segment(raw, Path("masks"), small.fusion)
    with pytest.raises(InputProblemsError, match="mm apart; register them"):
        prepare(raw, Path("masks"), Path("prepared"), small.fusion)


MASKED = {
    "three voxels": (lambda a: np.where(np.arange(a.size).reshape(a.shape) < 3, 1000, 0), "threshold found only"),
    "a mask in place of an image": (lambda a: np.where(a > np.percentile(a, 80), 100, 0), "every voxel in its mask is 100"),
}


@pytest.mark.parametrize("kind", MASKED)
def test_check_knows_what_preparation_makes_of_an_image(raw, small, kind):
    """Masks and cubes, not only whether a file can be read."""
    change, message = MASKED[kind]
    path = sorted(raw.glob("*/*.nii.gz"))[3]
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)).astype(np.float32), image.affine), path)
    problems = check(raw, small.fusion)
    assert [p for p in problems if str(path) in p and message in p], problems
    with pytest.raises(InputProblemsError, match=message):
        segment(raw, Path("masks"), small.fusion)
        prepare(raw, Path("masks"), Path("prepared"), small.fusion)


@pytest.mark.parametrize("words", [("none", "partial", "complete"), ("unknown", "stable", "progression"), ("-", "x", "y")])
def test_a_class_that_is_named_like_a_missing_value(raw, small, table, words):
    write(raw, table.assign(outcome=np.resize(words, len(table))))
    with pytest.raises(InputError, match=f"outcome is '{words[0]}' in .* rows: a class, or missing"):
        tables(raw, small)


def test_plus_and_minus_are_values(raw, small, table):
    write(raw, table.assign(outcome=table["outcome"].map({"stable": "-", "progression": "+"}), marker=np.resize(["+", "-"], 30)))
    found, _ = tables(raw, small)
    assert set(found.table["label"]) == {"+", "-"}
    assert [c.values for c in found.encoder.columns if c.name == "marker"] == [["+", "-"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([-999, -888, *range(40, 60)], "-999 is far from the others|-888 is far from the others"),
        ([-1, *range(30, 60)], "-1 is the only negative value: a code for missing"),
        (["61,5", "70,25", *range(30, 60)], "has a decimal comma; write a point"),
    ],
)
def test_codes_that_hide_each_other_and_decimal_commas(raw, small, table, given, message):
    table["age_at_scan"] = np.resize(np.array(given, object), len(table))
    write(raw, table)
    with pytest.raises(InputError, match=message):
        tables(raw, small)


@pytest.mark.parametrize(
    ("column", "given", "message"),
    [
        (Category("sex", ["f", "m"]), ["F", "M", ""], "column 'sex': 'F' and all others are unknown; in training: 'f', 'm'"),
        (Numeric("age", 60, 10), ["68,0", "70,5"], "column 'age': '68,0' is no number"),
    ],
)
def test_prediction_refuses_a_column_of_which_nothing_is_known(column, given, message):
    table = pd.DataFrame({column.name: given})
    with pytest.raises(InputError, match=message):
        _reject_foreign_values(table, Encoder([column]), Path("clinical_data.csv"))
    table.loc[0] = "f" if isinstance(column, Category) else "61"
    _reject_foreign_values(table, Encoder([column]), Path("clinical_data.csv"))  # single cells are notes


def test_prediction_says_that_a_column_has_another_scale(raw, table, trained, tmp_path, capsys):
    numbers = pd.to_numeric(table["age"], errors="coerce")
    write(raw, table.assign(age=(numbers - 60).astype(str).replace("nan", "")))
    predict(trained, raw, tmp_path / "out.csv")
    assert "warning: clinical column 'age': the median" in capsys.readouterr().out


def test_one_image_in_two_places(raw, small):
    """The same file as two modalities of a patient, and a copy saved anew under another person."""
    both = [p for p in sorted(raw.iterdir()) if p.is_dir() and len(list(p.glob("*t1c*"))) and len(list(p.glob("*f*.nii.gz")))]
    t1ce, flair = (
        next(p for p in both[0].iterdir() if any(k in p.name.lower() for k in keys)) for keys in (("t1c",), ("t2f", "fla"))
    )
    shutil.copy(t1ce, flair)
    source = next(p for p in both[1].iterdir() if "t1c" in p.name.lower())
    target = next(p for p in both[2].iterdir() if "t1c" in p.name.lower())
    image = nib.load(source)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float64), image.affine), target)
    problems = check(raw, small.fusion)
    assert any("hold one image; is one of them misnamed?" in p and both[0].name in p for p in problems)
    assert any(f"{both[2].name}: an image is one of {both[1].name}, another person, saved anew" in p for p in problems)
