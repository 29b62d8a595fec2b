"""Shared fixtures: the project's parameters shrunk to seconds, a small synthetic study, and the real data where it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quintet.params import Params, parse

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "real"


@pytest.fixture(scope="session")
def values() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.fixture
def make_params(values: dict[str, Any]) -> Callable[..., Params]:
    """`make_params({"landmarks.size": 32})`: params.yaml with some values changed."""

    def make(changes: dict[str, Any] | None = None) -> Params:
        import copy

        changed = copy.deepcopy(values)
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            part = changed
            for name in path:
                part = part[name]
            part[last] = value
        return parse(changed)

    return make


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 phantoms of 96 px in the study's on-disk format."""
    from quintet.landmarks.synthetic import synthesize

    folder = tmp_path_factory.mktemp("raw") / "landmarks"
    synthesize(folder, images=40, size=96, seed=3, label_noise_px=0.5)
    return folder


@pytest.fixture(scope="session")
def real_landmarks() -> Path:
    if not (REAL / "landmarks").is_dir():
        pytest.skip("../shared/real is not here")
    return REAL / "landmarks"
