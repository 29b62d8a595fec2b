"""dvc.yaml against the code: every expanded stage names existing scripts, sources and parameters, and the ones it really uses."""

import os
import re
from pathlib import Path

import pytest
import yaml

from quintet.params import Configuration, Params, StudyName
from tests.conftest import ROOT
from tests.sources import sources

STUDIES = [study.value for study in StudyName]


@pytest.fixture(scope="module")
def stages():
    from dvc.repo import Repo

    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return {stage.addressing: stage for stage in Repo(".").index.stages}
    finally:
        os.chdir(before)


def params_of(stage) -> set[str]:
    return {key for dep in stage.deps if hasattr(dep, "params") for key in dep.params}


def paths_of(stage) -> set[str]:
    return {dep.def_path for dep in stage.deps if not hasattr(dep, "params")}


def script_of(name: str) -> Path:
    return ROOT / "stages" / f"{name.partition('@')[0]}.py"


def test_all_stages_are_there(stages, make_params):
    sweep_runs = set()
    for study in STUDIES:
        for config, runs in make_params().of(study).sweep_runs().items():
            together = study in ("landmarks", "breakhis", "fusion")  # all runs of a configuration in one stage
            runs = [""] if together else ["-" + re.sub("fold|seed", "", run) for run in runs]
            sweep_runs |= {f"{study}_sweep@{config}{run}" for run in runs}
    names = ("synthesize", "prepare", "train", "evaluate", "baselines", "rank")
    every = {f"{study}_{name}" for study in STUDIES for name in names}
    some = {"landmarks_ensembles", "perfusion_ensembles", "fusion_segment", "report"}
    sweep_runs = sweep_runs - {"fusion_sweep@late"} | {"fusion_encoders"}
    assert set(stages) == sweep_runs | every | some
    assert len(sweep_runs) == 8 + 14 + 7 + 9 + 15
    assert {script_of(name).name for name in stages} == {path.name for path in (ROOT / "stages").glob("*.py")}


def test_every_stage_says_how_long_it_usually_takes(stages):
    assert [name for name, stage in stages.items() if not stage.meta["seconds"] > 0] == []


def test_scripts_sources_and_parameters_exist(stages, values):
    checked = 0
    for name, stage in stages.items():
        assert re.search(r"stages/\w+\.py", stage.cmd).group() == f"stages/{script_of(name).name}"
        assert f"stages/{script_of(name).name}" in paths_of(stage), name
        for path in paths_of(stage):
            if path.startswith(("src", "stages", "splits")):
                assert (ROOT / path).exists(), (name, path)
                checked += 1
        for key in params_of(stage):
            part = values
            for piece in key.split("."):
                part = part[piece]
            checked += 1
    assert checked > 400


def test_a_stage_depends_on_every_source_that_it_uses(stages):
    """Shared modules included; see tests/sources.py for those that no stage depends on."""
    checked = 0
    for name, stage in stages.items():
        watched = paths_of(stage)
        missing = {path for path in sources(script_of(name)) if not any(f"{path}/".startswith(f"{dep}/") for dep in watched)}
        assert not missing, (name, sorted(missing))
        checked += len(sources(script_of(name)))
    assert checked > 400


@pytest.mark.parametrize("study", STUDIES)
def test_training_depends_on_the_configuration_and_the_training_section(stages, study, make_params):
    section = make_params().of(study)
    config = {f"{study}.{key}" for key in section.configuration_values()}
    also = {f"{study}.{key}" for key in ("fold", "seed", "start_from") if key in type(section).model_fields}
    read = {f"{study}.training"} | ({"ct.evaluation"} if study == "ct" else set())
    assert params_of(stages[f"{study}_train"]) == config | also | read
    for name, stage in stages.items():
        if name.startswith(f"{study}_sweep@"):
            entry = next(key for key in params_of(stage) if key.startswith(f"{study}.configs."))
            assert name.removeprefix(f"{study}_sweep@").startswith(entry.removeprefix(f"{study}.configs."))
            assert params_of(stage) >= read | {entry}
            assert not params_of(stage) & config


@pytest.mark.parametrize("study", STUDIES)
def test_an_evaluation_value_trains_nothing_again(stages, study, make_params):
    """ct validates with its evaluation section, so there it is a training value too."""
    if make_params().of(study).evaluation_values() and study != "ct":
        assert f"{study}.evaluation" not in params_of(stages[f"{study}_train"])
        assert f"{study}.evaluation" in params_of(stages[f"{study}_evaluate"])


def test_sweep_outputs_stay_until_they_are_replaced(stages):
    """So that a run whose training did not change is only evaluated again."""
    sweeps = [stage for name, stage in stages.items() if "_sweep@" in name]
    assert len(sweeps) == 52
    assert all(out.persist for stage in sweeps for out in stage.outs)


@pytest.mark.parametrize("study", STUDIES)
def test_the_selected_configuration_touches_nothing_of_the_sweep(stages, study):
    section = Params.model_fields[study].annotation
    config = next(cls for cls in section.__mro__ if Configuration in cls.__bases__)
    names = {f"{study}.{name}" for name in {*config.model_fields, "seed", "fold"} & set(section.model_fields)}
    assert {name for name, stage in stages.items() if params_of(stage) & names} == {f"{study}_train"}


@pytest.mark.parametrize("name", ["paper", "best", "top3", "smoke"])
def test_presets_are_valid_and_change_something(name, tmp_path):
    from quintet.presets import apply_preset

    (tmp_path / "presets").mkdir()
    for path in ("params.yaml", f"presets/{name}.yaml"):
        (tmp_path / path).write_text((ROOT / path).read_text())
    assert apply_preset(tmp_path, name, None)
    assert "# The selected configuration" in (tmp_path / "params.yaml").read_text()
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) != yaml.safe_load((ROOT / "params.yaml").read_text())
