import numpy as np
import pandas as pd
import pytest

from quintet.breakhis.data.classes import case_number, class_of
from quintet.breakhis.data.folds import make_folds, read_official
from quintet.errors import InputError


def patients(benign=10, malignant=15, siblings=True):
    names = [(f"14-{100 + i}", "benign") for i in range(benign)] + [(f"14-{500 + i}", "malignant") for i in range(malignant)]
    extra = [("14-100B", "benign"), ("14-500CD", "malignant"), ("14-500EF", "malignant")] if siblings else []
    return pd.DataFrame([*names, *extra], columns=["patient", "class"])


@pytest.mark.parametrize("seed", range(5))
def test_grouped_folds_keep_patients_and_biopsies_together(make_params, tmp_path, seed):
    table = patients()
    params = make_params({"breakhis.data.split_seed": seed}).breakhis.data
    folds, notes = make_folds(table, tmp_path, params)
    assert not notes
    joined = folds.merge(table, on="patient").assign(case=lambda t: t["patient"].map(case_number))
    assert (joined.groupby(["fold", "case"])["part"].nunique() == 1).all()
    assert not joined.duplicated(["fold", "patient"]).any()
    tested = joined[joined["part"] == "test"]
    assert sorted(tested["patient"]) == sorted(table["patient"])  # each exactly once
    assert set(tested.groupby("fold")["class"].nunique()) == {2}
    inner = joined[joined["part"] != "test"]
    share = inner.groupby(["fold", "class"])["part"].apply(lambda p: (p == "valid").mean())
    assert share.between(0.15, 0.45).all()  # 30 % of few
    again, _ = make_folds(table.sample(frac=1, random_state=1).sort_values("patient"), tmp_path, params)
    pd.testing.assert_frame_equal(
        folds.sort_values(["fold", "patient"], ignore_index=True), again.sort_values(["fold", "patient"], ignore_index=True)
    )


def test_too_few_patients_of_a_class(make_params, tmp_path):
    with pytest.raises(InputError, match="5 folds need at least 5 patients of each class, benign has 4"):
        make_folds(patients(benign=4, siblings=False), tmp_path, make_params().breakhis.data)


def hand_made(tmp_path, rows):
    path = tmp_path / "folds.csv"
    path.write_text("patient,fold\n" + "".join(f"{p},{f}\n" for p, f in rows))
    return str(path)


def test_hand_made_folds_take_precedence(make_params, tmp_path):
    table = patients(siblings=False)
    rows = [(p, i % 5) for i, p in enumerate(table["patient"])]
    folds, _ = make_folds(table, tmp_path, make_params({"breakhis.data.split": hand_made(tmp_path, rows)}).breakhis.data)
    tested = folds[folds["part"] == "test"].set_index("patient")["fold"]
    assert {p: tested[p] for p, _ in rows} == dict(rows)


def test_every_problem_of_a_hand_made_file_at_once(make_params, tmp_path):
    rows = [(p, i % 5) for i, p in enumerate(patients(siblings=False)["patient"])]
    rows = [*rows[1:], rows[3], ("14-9", 0), (rows[5][0], 7)]
    with pytest.raises(InputError) as caught:
        make_folds(
            patients(siblings=False), tmp_path, make_params({"breakhis.data.split": hand_made(tmp_path, rows)}).breakhis.data
        )
    for part in (
        "14-100 is not listed",
        "14-103 is listed twice",
        "14-9 is not a patient",
        "fold '7' is not a whole number from 0 to 4",
    ):
        assert part in str(caught.value)


def official(folder, parts):
    """One file: patient -> part."""
    lines = [
        f"SOB_{'B' if c == 'benign' else 'M'}_{'A' if c == 'benign' else 'DC'}-{p}-{m}-001.png|{m}|1|{part}"
        for p, (c, part) in parts.items()
        for m in (40, 100)
    ]
    (folder / "dsfold1.txt").write_text("\n".join(lines))
    (folder / "dsfold2.txt").write_text("\n".join(lines).replace("|1|", "|2|"))


def test_official_folds(make_params, tmp_path):
    table = patients(siblings=False)
    official(tmp_path, {p: (c, "test" if i % 3 == 0 else "train") for i, (p, c) in enumerate(table.itertuples(index=False))})
    params = make_params(
        {"breakhis.data.split": "official", "breakhis.data.folds": 2, "breakhis.sweep.folds": [0, 1]}
    ).breakhis.data
    folds, notes = make_folds(table, tmp_path, params)
    assert not notes
    tested = folds[(folds["part"] == "test") & (folds["fold"] == 1)]
    assert sorted(tested["patient"]) == sorted(table["patient"][::3])
    with pytest.raises(InputError, match="does not name patient 14-100B"):
        make_folds(patients(), tmp_path, params)
    with pytest.raises(InputError, match=r"dsfold1.txt, dsfold2.txt, breakhis.data.folds is 5"):
        make_folds(table, tmp_path, make_params({"breakhis.data.split": "official"}).breakhis.data)
    (tmp_path / "dsfold2.txt").write_text("SOB_B_A-14-100-40-001.png|40|1\n")
    with pytest.raises(InputError, match=r"line 1: .*expected NAME\|MAGNIFICATION"):
        make_folds(table, tmp_path, params)


def test_official_folds_of_the_whole_data_set(make_params, real_slides):
    """All 7,909 names parse. Patients in training and test are reported and trained on; separated slides are reported."""
    rows = set()
    for number in range(1, 6):
        parts = read_official(real_slides / "folds" / f"dsfold{number}.txt")
        rows |= {(p, class_of(t)) for part in parts.values() for p, types in part.items() for t in types}
    table = pd.DataFrame(sorted(rows), columns=["patient", "class"])
    assert (len(table), (table["class"] == "benign").sum()) == (81, 24)  # 82 in the paper, which counts 13412 twice
    lines = [line for line in (real_slides / "folds/dsfold1.txt").read_text().splitlines() if line]
    assert len(lines) == 7909
    folds, notes = make_folds(table, real_slides, make_params({"breakhis.data.split": "official"}).breakhis.data)
    double = [note for note in notes if "in training and test" in note]
    assert [note.split()[0] for note in double] == ["dsfold1.txt", "dsfold3.txt", "dsfold5.txt"]
    assert all("14-13412" in note and "ductal_carcinoma" in note and "lobular_carcinoma" in note for note in double)
    assert not folds.duplicated(["fold", "patient"]).any()
    assert (folds[(folds["patient"] == "14-13412") & folds["fold"].isin([0, 2, 4])]["part"] != "test").all()
    assert sum("slides of biopsy" in note for note in notes) > 30
    assert np.isclose(folds.groupby("fold")["part"].apply(lambda p: (p == "test").sum()).mean(), 27.4, atol=0.5)


@pytest.mark.parametrize(
    "text", [b"", b"patient,fold\n14-100,0,1,2\n", b'patient,fold\n"14', b"\xff\xfep\x00", b"patient;fold\n"]
)
def test_a_file_that_is_not_a_table(make_params, tmp_path, text):
    (tmp_path / "folds.csv").write_bytes(text)
    with pytest.raises(InputError, match=r"folds.csv"):
        make_folds(patients(), tmp_path, make_params({"breakhis.data.split": str(tmp_path / "folds.csv")}).breakhis.data)


def test_bad_official_files_are_refused(make_params, tmp_path):
    table = patients(siblings=False)
    params = make_params(
        {"breakhis.data.split": "official", "breakhis.data.folds": 2, "breakhis.sweep.folds": [0, 1]}
    ).breakhis.data
    official(tmp_path, {p: (c, "test" if c == "benign" else "train") for p, c in table.itertuples(index=False)})
    with pytest.raises(InputError, match="fold 0 trains on no benign patient"):
        make_folds(table, tmp_path, params)
    text = (tmp_path / "dsfold1.txt").read_text()
    (tmp_path / "dsfold2.txt").write_text(text)
    with pytest.raises(InputError, match="it names fold 1, the file name fold 2"):
        make_folds(table, tmp_path, params)
    (tmp_path / "dsfold2.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"dsfold2.txt: cannot be read"):
        make_folds(table, tmp_path, params)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "dsfold1.txt").write_text(text)
    with pytest.raises(InputError, match="keep one of them"):
        make_folds(table, tmp_path, params)
