import shutil

import pytest
from PIL import Image

from quintet.breakhis.data.classes import MAGNIFICATIONS, TYPES, case_number
from quintet.breakhis.data.tree import missing_magnifications, parse_name, read_tree


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SOB_B_A-14-22549AB-40-001", ("adenosis", "14-22549AB", "40X")),
        ("SOB_M_DC-14-13412-400-012", ("ductal_carcinoma", "14-13412", "400X")),
        ("SOB_B_TA-14-16184CD-100-003", ("tubular_adenoma", "14-16184CD", "100X")),
        ("SOB_M_A-14-22549AB-40-001", None),  # adenosis is benign
        ("SOB_B_XX-14-22549AB-40-001", None),
        ("SOB_B_A-14-22549AB-50-001", None),
        ("IMG_0001", None),
    ],
)
def test_names(name, expected):
    assert parse_name(name) == expected


def test_case_number_drops_the_letters_of_a_slide():
    assert [case_number(p) for p in ("14-22549AB", "14-22549G", "14-9146")] == ["14-22549", "14-22549", "14-9146"]


def test_a_good_tree_reads_without_a_problem(slides):
    images, problems = read_tree(slides)
    assert not problems
    assert {i.tumour_type for i in images} == set(TYPES)
    assert {i.magnification for i in images} == set(MAGNIFICATIONS)
    assert len({i.patient for i in images}) == 20
    assert read_tree(slides / "malignant" / "..")[1] == []


@pytest.fixture
def tree(slides, tmp_path):
    """One benign and one malignant patient, to be broken."""
    for place in ("benign/SOB/adenosis", "malignant/SOB/lobular_carcinoma"):
        patient = next((slides / place).iterdir())
        shutil.copytree(patient, tmp_path / "breast" / place / patient.name)
    return tmp_path


def first(tree, magnification="40X", kind="benign"):
    return next(iter(sorted(tree.glob(f"breast/{kind}/SOB/*/*/{magnification}/*.png"))))


def test_name_that_contradicts_its_folder(tree):
    moves = {"40X": ("-40-", "-100-"), "100X": ("_A-", "_F-"), "200X": ("-14-", "-15-"), "400X": ("SOB_B_A", "SOB_M_DC")}
    for magnification, (old, new) in moves.items():
        path = first(tree, magnification)
        path.rename(path.with_name(path.name.replace(old, new)))
    _, problems = read_tree(tree)
    for what in (
        "magnification 100X, the folder 40X",
        "type fibroadenoma, the folder adenosis",
        "patient 15-",
        "class malignant",
    ):
        assert any(f"the name gives {what}" in p and "breast/benign" in p for p in problems), what


def test_other_bad_places(tree):
    path = first(tree)
    shutil.copy(path, tree / "breast" / "loose.png")
    shutil.copy(path, path.with_name("photo.png"))
    shutil.copy(path, path.with_suffix(".jpg"))
    shutil.copy(path, path.with_name(f"._{path.name}"))  # written by macOS, ignored
    _, problems = read_tree(tree)
    assert len(problems) == 3
    assert any("loose.png: not at .../{benign" in p for p in problems)
    assert any("photo.png: not a BreaKHis name" in p for p in problems)
    assert any("also exists as" in p and ".jpg" in p for p in problems)


def test_wrong_tree_is_one_problem_and_examples(tmp_path):
    assert "no such folder" in read_tree(tmp_path / "nowhere")[1][0]
    assert "no .png or .jpg below it" in read_tree(tmp_path)[1][0]
    for number in range(9):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    images, problems = read_tree(tmp_path)
    assert not images
    assert "9 pictures, but none in such a folder" in problems[0]
    assert len(problems) == 2  # one sentence for the whole folder
    assert "0.png and 8 others: not at" in problems[1]


def test_a_patient_under_both_classes(tree):
    source = first(tree).parents[1]
    name = source.name.replace("SOB_B_A", "SOB_M_DC")
    target = tree / "breast/malignant/SOB/ductal_carcinoma" / name / "40X"
    target.mkdir(parents=True)
    for path in (source / "40X").iterdir():
        shutil.copy(path, target / path.name.replace("SOB_B_A", "SOB_M_DC"))
    _, problems = read_tree(tree)
    assert len(problems) == 1
    assert "under both classes" in problems[0]
    assert "adenosis" in problems[0]
    assert "ductal_carcinoma" in problems[0]


def test_missing_magnifications_are_reported(tree):
    shutil.rmtree(first(tree).parent)
    images, problems = read_tree(tree)
    assert not problems
    assert list(missing_magnifications(images).values()) == [["40X"]]


def test_real_tree_and_its_missing_magnifications(real_slides):
    images, problems = read_tree(real_slides)
    assert not problems
    assert len(images) == 64
    assert len({i.patient for i in images}) == 30
    missing = missing_magnifications(images)
    assert len(missing) == 29  # one patient has all four
    assert all(missing.values())


def test_linked_folders_are_read_and_loops_end(tree, tmp_path):
    linked = tmp_path / "linked"
    for place in ("benign/SOB/adenosis", "malignant/SOB"):
        (linked / place).parent.mkdir(parents=True)
        (linked / place).symlink_to(tree / "breast" / place)
    (linked / "benign" / "again").symlink_to(linked)
    images, problems = read_tree(linked)
    assert not problems
    assert len(images) == len(read_tree(tree / "breast")[0])


def test_a_relative_folder_within_the_tree(tree, monkeypatch):
    monkeypatch.chdir(tree / "breast")
    images, problems = read_tree(".")
    assert not problems
    assert all(not image.path.is_absolute() for image in images)
    monkeypatch.chdir(tree / "breast" / "benign")
    assert "no malignant image below it" in read_tree(".")[1][0]


@pytest.mark.parametrize("change", [str.upper, str.title, lambda name: name.replace("o", "0", 1), lambda name: f" {name}"])
@pytest.mark.parametrize("old", ["adenosis", "SOB", "benign"])
def test_a_folder_in_another_spelling_is_named_once(tree, old, change):
    if change(old) == old:
        return
    for folder in [path for path in tree.rglob(old) if path.is_dir()]:
        folder.rename(folder.with_name(change(old)))
    _, problems = read_tree(tree)
    wrong = [p for p in problems if f"write {old} for {change(old)}" in p]
    assert 0 < len(wrong) >= len(problems) - 1
    assert len(wrong) < sum(1 for _ in tree.rglob("*.png")) / 2
