"""The installed DVC has the private functions that the pipeline uses, and another DVC is refused."""

from importlib import metadata

import pytest

from quintet.errors import InputError
from quintet.pipeline.dvc import PRIVATE_NAMES, DvcPipeline, check_dvc


def test_the_installed_dvc_is_accepted():
    check_dvc()
    assert len(PRIVATE_NAMES) > 10


@pytest.mark.parametrize("version", ["3.60.1", "3.68.0", "4.0.0", "3.100.1"])
def test_an_untried_version_is_refused_with_the_range_and_the_remedy(version, monkeypatch, tmp_path):
    monkeypatch.setattr("dvc.__version__", version)
    with pytest.raises(InputError, match=rf"DVC {version} is installed.*tried with DVC 3\.61 to 3\.67; use `dvc repro` instead"):
        DvcPipeline(tmp_path)


@pytest.mark.parametrize("version", ["3.61.0", "3.67.9"])
def test_a_version_of_the_range_is_accepted(version, monkeypatch):
    monkeypatch.setattr("dvc.__version__", version)
    check_dvc()


@pytest.mark.parametrize("name", ["dvc.stage.run:_make_cmd", "dvc.stage.cache:StageCache.restore", "dvc.rwlock:rwlock"])
def test_a_missing_private_function_is_named(name, monkeypatch, tmp_path):
    assert name in PRIVATE_NAMES
    dotted = name.replace(":", ".")
    monkeypatch.delattr(dotted)
    with pytest.raises(InputError, match=f"DVC {metadata.version('dvc')} has no {dotted}.*use `dvc repro` instead"):
        DvcPipeline(tmp_path)
