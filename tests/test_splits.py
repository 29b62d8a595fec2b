from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from quintet import splits
from quintet.errors import InputError


def test_large_groups_are_tested_as_often_as_small_ones():
    """scikit-learn deals the largest groups to the first folds, whatever the seed."""
    sizes = [4] * 3 + [1] * 57
    groups = [f"g{n}" for n, size in enumerate(sizes) for _ in range(size)]
    tested = []
    for seed in range(60):
        parts = splits.grouped_split(groups, ["a" if group < "g4" else "b" for group in groups], seed=seed)
        tested.append(np.mean([parts[groups.index(f"g{n}")] == "test" for n in range(3)]))
    assert np.mean(tested) == pytest.approx(0.15, abs=0.1)


def test_random_split_equals_the_reference():
    """957 rows -> 669/144/144 by two calls of scikit-learn's train_test_split with random_state 42."""
    parts = np.array(splits.random_split(957, seed=42))
    train, rest = train_test_split(np.arange(957), test_size=0.3, random_state=42)
    valid, test = train_test_split(rest, test_size=0.5, random_state=42)
    assert [(parts == p).sum() for p in splits.PARTS] == [669, 144, 144]
    for name, rows in zip(splits.PARTS, (train, valid, test), strict=True):
        assert set(np.flatnonzero(parts == name)) == set(rows)


def test_stratified_split_keeps_proportions():
    strata = ["a"] * 200 + ["b"] * 100
    parts = np.array(splits.random_split(300, seed=1, strata=strata))
    for part in splits.PARTS:
        rows = np.flatnonzero(parts == part)
        assert abs((rows < 200).mean() - 2 / 3) < 0.02


def test_grouped_split_never_divides_a_group_and_is_reproducible():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 80, 300)
    groups, strata = [f"g{n}" for n in numbers], [str(n % 3) for n in numbers]
    parts = splits.grouped_split(groups, strata, seed=5)
    assert splits.leaks(parts, groups) == []
    assert parts == splits.grouped_split(groups, strata, seed=5)
    assert [parts.count(p) / 300 for p in splits.PARTS] == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_single_member_stratum_is_an_error():
    with pytest.raises(InputError, match=r"'rare' has 1 image"):
        splits.random_split(101, seed=0, strata=["common"] * 100 + ["rare"])


def test_a_leak_is_refused_with_its_members():
    with pytest.raises(InputError, match=r"g1: a \(train\), b \(test\)"):
        splits.reject_leaks(["train", "test", "valid"], ["g1", "g1", "g2"], ["a", "b", "c"], remedy="move one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem,part\na,train\n", "expected the columns stem,split"),
        ("stem,split\na,train\nb,valid\nb,test\n", "b is listed twice"),
        ("stem,split\na,train\n", "b is not listed"),
        ("stem,split\na,train\nb,exam\n", "row 3: split 'exam'"),
        ("stem,split\na,train\nb,test\n", "none of these cases has split valid"),
        ("stem,split\na,train\nb,test\nelsewhere,valid\n", "none of these cases has split valid"),
    ],
)
def test_bad_split_files(tmp_path, text, message):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        splits.read_split(path, ["a", "b"])
    assert message in str(caught.value)


def test_rows_of_others_may_have_other_parts(tmp_path):
    """As in the split that fusion writes, where one's own begins: patients without an outcome, and of other hospitals."""
    path = tmp_path / "split.csv"
    path.write_text("patient,split\na,train\nb,valid\nc,test\nd,unlabelled\ne,external\n")
    assert splits.read_split(path, ["a", "b", "c"], column="patient") == ["train", "valid", "test"]


@pytest.mark.parametrize("name", ["splits/mine.csv", "splits/breakhis/folds of 2024.csv", "mine.csv"])
def test_a_file_that_git_does_not_know_is_missing_in_an_experiment(tmp_path, monkeypatch, name):
    """A queued experiment runs in a copy of the repository, where untracked files are absent."""
    for folder, hint in ((tmp_path, ""), (tmp_path / ".dvc/tmp/exps/tmp123", "git add it")):
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        with pytest.raises(InputError, match="no such split file") as caught:
            splits.read_split(Path(name), ["a"])
        assert ("git add it" in str(caught.value)) == bool(hint)


def test_names_with_a_suffix_are_pointed_at(tmp_path):
    rows = "".join(f"x-{n}.png,{part}\n" for n, part in enumerate(("train", "valid", "test")))
    (tmp_path / "mine.csv").write_text(f"stem,split\n{rows}")
    with pytest.raises(InputError, match=r"mine\.csv: x-0 is not listed; is it 'x-0\.png'\? Write both alike"):
        splits.read_split(tmp_path / "mine.csv", ["x-0", "x-1", "x-2"])
