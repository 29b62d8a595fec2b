import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from quintet import splits
from quintet.errors import InputError


def test_random_split_is_the_references():
    """957 rows -> 669/144/144, by scikit-learn's train_test_split twice with random_state 42."""
    parts = np.array(splits.random_split(957, seed=42))
    train, rest = train_test_split(np.arange(957), test_size=0.3, random_state=42)
    valid, test = train_test_split(rest, test_size=0.5, random_state=42)
    assert [(parts == p).sum() for p in splits.PARTS] == [669, 144, 144]
    for name, rows in zip(splits.PARTS, (train, valid, test), strict=True):
        assert set(np.flatnonzero(parts == name)) == set(rows)


def test_stratified_split_keeps_shares():
    strata = ["a"] * 200 + ["b"] * 100
    parts = np.array(splits.random_split(300, seed=1, strata=strata))
    for part in splits.PARTS:
        rows = np.flatnonzero(parts == part)
        assert abs((rows < 200).mean() - 2 / 3) < 0.02


def test_grouped_split_never_divides_a_group_and_is_reproducible():
    rng = np.random.default_rng(0)
    groups = [f"g{k}" for k in rng.integers(0, 80, 300)]
    strata = [str(hash(g) % 3) for g in groups]
    parts = splits.grouped_split(groups, strata, seed=5)
    assert splits.leaks(parts, groups) == []
    assert parts == splits.grouped_split(groups, strata, seed=5)
    assert {p: round(parts.count(p) / 300, 1) for p in splits.PARTS} == {"train": 0.7, "valid": 0.2, "test": 0.2} or (
        0.6 < parts.count("train") / 300 < 0.8
    )


def test_single_member_stratum_is_an_error():
    with pytest.raises(InputError, match=r"'rare' has 1 image"):
        splits.random_split(101, seed=0, strata=["common"] * 100 + ["rare"])


def test_leak_is_refused_with_its_members():
    with pytest.raises(InputError, match=r"g1: a \(train\), b \(test\)"):
        splits.refuse_leaks(["train", "test", "valid"], ["g1", "g1", "g2"], ["a", "b", "c"], remedy="move one")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stem,part\na,train\n", "expected the columns stem,split"),
        ("stem,split\na,train\nb,valid\nb,test\n", "b stands twice"),
        ("stem,split\na,train\n", "b is not listed"),
        ("stem,split\na,train\nb,exam\n", "row 3: split 'exam'"),
        ("stem,split\na,train\nb,test\n", "no row says valid"),
    ],
)
def test_bad_split_files(tmp_path, text, says):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        splits.read_split(path, ["a", "b"])
    assert says in str(caught.value)
