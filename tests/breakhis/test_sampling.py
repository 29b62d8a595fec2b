import subprocess
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader

from quintet.breakhis.data import sampling
from quintet.breakhis.data.classes import MAGNIFICATIONS
from quintet.breakhis.data.prepared import load
from quintet.breakhis.data.sampling import (
    MISSING,
    PatientRows,
    QuadrupleBatches,
    all_quadruples,
    automatic_batch_size,
    epoch_quadruples,
    samples_per_epoch,
    utilisation,
)
from quintet.breakhis.model.module import Quadruples


def patients(counts=((12, 9, 10, 11), (4, 4, 20, 6), (30, 0, 25, 28))):
    rows = [[np.arange(n) + 100 * i for n in own] for i, own in enumerate(counts)]
    return PatientRows([f"14-{i}" for i in range(len(counts))], rows)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (4, 2), (8, 5), (15, 6), (16, 6), (30, 6), (31, 6), (100, 6)])
def test_samples_of_a_patient(count, expected):
    assert samples_per_epoch(count, 3) == expected


def test_shares_above_the_cap():
    assert [samples_per_epoch(n, 50) for n in (10, 15, 20, 30, 40)] == [6, 9, 8, 12, 10]


def test_quadruples_are_of_one_patient_and_deal_every_image_before_one_comes_again():
    own = patients()
    seen = {m: [] for m in range(4)}
    for epoch in range(10):
        quadruples, owner = epoch_quadruples(own, 3, seed=7, epoch=epoch)
        assert (quadruples[owner == 2][:, 1] == MISSING).all()
        for rows, who in zip(quadruples, owner, strict=True):
            assert all(row in own.rows[who][m] for m, row in enumerate(rows) if row != MISSING)
            if who == 0:
                for m in range(4):
                    seen[m].append(rows[m])
    for m in range(4):  # the first 12 draws of 12 images are all different
        count = len(own.rows[0][m])
        assert len(set(seen[m][:count])) == count
        assert np.bincount(seen[m]).max() - np.bincount(seen[m]).min() <= 1


def test_utilisation_and_coverage():
    each, so_far = utilisation(patients(), 3, seed=0, epochs=10)
    assert so_far[0] == each[0] < so_far[1] <= so_far[-1] == 1
    assert 0.2 < np.mean(each) < 0.7


def test_every_image_is_scored():
    own = patients()
    quadruples, owner = all_quadruples(own)
    assert np.bincount(owner).tolist() == [12, 20, 30]
    for i, rows in enumerate(own.rows):
        for m in range(4):
            assert set(quadruples[owner == i][:, m]) == (set(rows[m]) or {MISSING})


def test_the_same_in_another_process_with_another_hash_seed():
    own = PatientRows(["14-1", "14-22549AB"], [[np.arange(9)] * 4, [np.arange(17)] * 4])
    here = str([item[0].tolist() + item[2].tolist() for item in QuadrupleBatches(own, 3, 5, seed=3)])
    code = (
        "import numpy as np; from quintet.breakhis.data.sampling import *;"
        "own = PatientRows(['14-1', '14-22549AB'], [[np.arange(9)] * 4, [np.arange(17)] * 4]);"
        "print([item[0].tolist() + item[2].tolist() for item in QuadrupleBatches(own, 3, 5, seed=3)])"
    )
    environment = {"PYTHONHASHSEED": "2", "PATH": ""}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert len(here) > 100
    assert there.strip() == here


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(slide_arrays, make_params, workers):
    data = load(slide_arrays)
    own = data.image_rows(data.patients("train", 0), MAGNIFICATIONS)
    augment = make_params(
        {"breakhis.training.augment.elastic": 1.0, "breakhis.training.augment.erase": 1.0}
    ).breakhis.training.augment

    def images(count):
        loader = DataLoader(
            Quadruples(data, list(MAGNIFICATIONS), list(own.names), augment),
            sampler=QuadrupleBatches(own, 2, 5, seed=1),
            batch_size=None,
            num_workers=count,
        )
        return [np.stack(batch["images"]) for batch in loader]

    for one, other in zip(images(0), images(workers), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ranks_share_an_epoch_and_batches_are_even(monkeypatch):
    own = patients(((10,) * 4,) * 7)
    whole = sum(len(item[0]) for item in QuadrupleBatches(own, 3, 12, seed=0))
    assert whole == 42
    seen = []
    for rank in range(2):
        monkeypatch.setattr(sampling, "rank_and_world_size", lambda rank=rank: (rank, 2))
        batches = list(QuadrupleBatches(own, 3, 4, seed=0))
        assert len(batches) == len(QuadrupleBatches(own, 3, 4, seed=0)) == 6
        assert {len(b[0]) for b in batches} == {3, 4}  # never one alone: batch norm needs two
        seen += [(int(who), *rows) for b in batches for who, rows in zip(b[1], b[0].tolist(), strict=True)]
    assert len(set(seen)) == 42


@pytest.mark.parametrize(
    ("device", "samples", "size"),
    [("cuda", 5000, 16), ("cuda", 1500, 20), ("cuda", 500, 24), ("mps", 1500, 12), ("cpu", 5000, 4), ("cpu", 200, 12)],
)
def test_automatic_batch(device, samples, size):
    assert automatic_batch_size(device, samples) == size
