import subprocess
import sys

import numpy as np
import pytest

from quintet.ct.model.sampling import BalancedBatches
from quintet.errors import InputError

SETS = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)], np.float32)


def sampler(labels, **options):
    rows = np.arange(100, 100 + len(labels))
    return BalancedBatches(rows, labels, **{"classes": 2, "samples": 3, "overlap": False, "seed": 0} | options)


def test_classes_of_a_batch_have_no_common_finding():
    labels = np.repeat(SETS, 7, axis=0)
    whole = sampler(labels)
    batches = list(whole)
    assert len(batches) == len(whole) == 7
    for batch in batches:
        assert all(100 <= row < 142 for row in batch)
        rows = labels[np.array(batch) - 100].reshape(2, 3, 3)
        assert (rows == rows[:, :1]).all()  # the samples of a class have the same set
        assert not (rows[0, 0] * rows[1, 0]).any()
        assert (rows[0, 0] != rows[1, 0]).any()


def test_with_overlap_a_batch_has_disjoint_sets_and_partial_overlaps():
    labels = np.repeat(SETS, 8, axis=0)
    partial = 0
    for batch in sampler(labels, classes=4, samples=2, overlap=True):
        sets = labels[np.array(batch) - 100].reshape(4, 2, 3)[:, 0]
        assert len(np.unique(sets, axis=0)) == 4
        assert not (sets[0] * sets[1]).any()  # so that there is a triplet
        common = np.triu(sets @ sets.T, 1) > 0
        partial += common.any()
    assert partial > 3
    for options in ({"classes": 7}, {"classes": 2}):  # six sets in all; two sets that always overlap
        with pytest.raises(InputError, match="two of them with no finding in common"):
            sampler(labels if options["classes"] == 7 else np.repeat(SETS[[1, 4]], 4, axis=0), overlap=True, **options)


def test_every_scan_of_a_set_is_drawn_before_one_is_drawn_again():
    labels = np.repeat(SETS[:2], 6, axis=0)
    drawn = np.concatenate(list(sampler(labels)))
    assert sorted(drawn) == list(range(100, 112))


def test_an_epochs_order_is_a_function_of_seed_and_epoch():
    labels = np.repeat(SETS, 5, axis=0)
    overlapping = [list(sampler(labels, classes=4, overlap=True)) for _ in range(2)]
    assert overlapping[0] == overlapping[1]
    one, same, other = sampler(labels), sampler(labels), sampler(labels, seed=1)
    assert list(one) == list(same)
    assert list(one) != list(other)
    first = list(one)
    one.set_epoch(1)
    assert list(one) != first
    code = "import numpy as np; from tests.ct.test_sampling import *;print(list(sampler(np.repeat(SETS, 5, axis=0))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(list(same))


def test_ranks_share_the_batches(monkeypatch):
    labels = np.repeat(SETS, 8, axis=0)
    whole = list(sampler(labels))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("quintet.ct.model.sampling.rank_and_world_size", lambda rank=rank: (rank, 2))
        parts.append(list(sampler(labels)))
    assert [batch for pair in zip(*parts, strict=True) for batch in pair] == whole


def test_every_label_set_that_can_start_a_batch_may_do_so():
    """Three findings, all eight label sets: nobody, and each finding alone, are four sets without a common finding."""
    sets = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    alone = [k for k, row in enumerate(sets) if row.sum() <= 1]
    assert sampler(np.repeat(sets, 4, axis=0), classes=4).first_sets == alone
    assert len(sampler(np.repeat(sets, 4, axis=0), classes=3).first_sets) == 7  # all but the one with every finding


def test_more_classes_and_sets_without_a_disjoint_one():
    for batch in sampler(np.repeat(SETS, 4, axis=0), classes=4):
        sets = {tuple(row) for row in np.repeat(SETS, 4, axis=0)[np.array(batch) - 100]}
        assert sets == {tuple(row) for row in SETS[:4].tolist()}  # the only four
    with pytest.raises(InputError, match=r"needs 2 label sets, with .* lower ct.training.classes"):
        sampler(np.repeat(SETS[[1, 4]], 4, axis=0))
