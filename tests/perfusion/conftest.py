"""Phantoms, and the study's parameters shrunk to seconds."""

from pathlib import Path

import pytest

from tests.conftest import with_changes

SMALL = {
    "perfusion.folds": 3,
    "perfusion.epochs": 2,
    "perfusion.iterations": 3,
    "perfusion.batch_size": 6,
    "perfusion.features": 4,
    "perfusion.sweep": {"configs": ["shared", "separate"], "folds": [0], "seeds": [0]},
    "perfusion.attention_tokens": 16,
    "ranking.bootstrap": 100,
}


@pytest.fixture(scope="session")
def flow_maps(tmp_path_factory) -> Path:
    """6 people in nnU-Net's raw layout."""
    from quintet.perfusion.synthetic import synthesize

    folder = tmp_path_factory.mktemp("raw") / "perfusion"
    synthesize(folder, subjects=6, seed=3)
    return folder


@pytest.fixture
def small(make_params):
    return make_params(SMALL)


@pytest.fixture(scope="session")
def flow_arrays(flow_maps, tmp_path_factory, values) -> Path:
    """The phantoms, prepared."""
    from quintet.params import parse
    from quintet.perfusion.data import prepare

    folder = tmp_path_factory.mktemp("prepared") / "perfusion"
    prepare(flow_maps, folder, parse(with_changes(values, {"perfusion.folds": 3})).perfusion)
    return folder
