"""The drawn data of the default scale are those of dvc.lock, also with the arithmetic of an older processor."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from quintet.params import StudyName
from tests.conftest import ROOT
from tests.slow.conftest import sh

pytestmark = pytest.mark.slow
OLDER = "OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES='X86_V4 AVX512_ICL' OMP_NUM_THREADS=2"


def folder_md5(folder: Path) -> str:
    """As DVC computes it."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    entries = [{"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": name} for name, path in files]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


@pytest.mark.parametrize("study", [study.value for study in StudyName])
def test_drawn_data_are_those_of_the_lock_file(study, tmp_path):
    committed = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"][f"{study}_synthesize"]["outs"][0]["md5"]
    sh(f"{OLDER} python stages/{study}_synthesize.py --out {tmp_path / 'drawn'}", ROOT)
    assert folder_md5(tmp_path / "drawn") == committed
