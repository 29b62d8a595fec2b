"""What every study promises, tested once for all five: seeds, resuming, refusals, and what a run folder holds."""

import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quintet import experiment, results
from quintet.errors import InputError
from quintet.params import Params, StudyName, parse
from quintet.runs import Record, load_evaluated
from quintet.study import load_study
from tests.conftest import ROOT, assert_killed_equals_alone, equal, merged, state_of

STUDIES = [study.value for study in StudyName]
HERE = {"compute": {"device": "cpu", "threads": 1}}


@pytest.fixture(scope="session")
def smoke(values) -> dict[str, Any]:
    """The smallest scale at which every stage runs."""
    return merged(merged(values, yaml.safe_load((ROOT / "presets" / "smoke.yaml").read_text())), HERE)


@pytest.fixture(scope="session")
def params(smoke) -> Params:
    return parse(smoke)


def run_stage_main(name: str, params: Params, **paths: Path) -> str:
    spec = importlib.util.spec_from_file_location(name, ROOT / "stages" / f"{name}.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(params, **paths)


@pytest.fixture(scope="session", params=STUDIES)
def prepared(request, params, tmp_path_factory) -> tuple[str, Path]:
    """Study and prepared data, made by the study's own stages."""
    study, folder = request.param, tmp_path_factory.mktemp(request.param)
    raw, data, masks = folder / "raw", folder / "data", folder / "masks"
    run_stage_main(f"{study}_synthesize", params, out=raw)
    further = {}
    if study == "fusion":
        run_stage_main("fusion_segment", params, raw=raw, out=masks)
        further = {"masks": masks}
    summary = run_stage_main(f"{study}_prepare", params, raw=raw, out=data, page=folder / "data.html", **further)
    assert str(data) in summary
    assert (folder / "data.html").stat().st_size > 10_000
    return study, data


@pytest.fixture(scope="session")
def swept(prepared, params, tmp_path_factory) -> Path:
    """A finished run of the sweep: the study's first configuration that starts from nothing."""
    study, data = prepared
    folder = tmp_path_factory.mktemp(f"{study}-sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # checkpoints go here; without a dvc.yaml nothing is mirrored
        experiment.run_sweep_entry(study, params, data, folder / "run", first_config(params, study), seed=0)
    return folder / "run"


def first_config(params: Params, study: str) -> str:
    return next(iter(params.of(study).sweep_runs()))


def test_a_run_folder_holds_record_model_and_evaluation(prepared, swept, params):
    study, _ = prepared
    record = Record.load(swept)
    assert (record.study, record.stage, record.seed) == (study, f"{study}_sweep", 0)
    assert record.inputs.keys() >= {"data"}
    assert torch.load(swept / "model" / "model.pt", weights_only=True).keys() == {"state_dict", "build"}
    assert "epoch" in (swept / "model" / "history.csv").read_text().splitlines()[0]
    cases = results.read([swept / "evaluation" / "cases.csv"])
    assert set(cases["study"]) == {study}
    metrics = json.loads((swept / "evaluation" / "metrics.json").read_text())
    assert metrics
    assert all(isinstance(value, float) for value in metrics.values())
    settings = params.of(study).evaluation_values()
    assert (swept / "evaluation" / "settings.json").is_file() == bool(settings)
    assert not list(swept.parent.glob(".checkpoints/*"))
    assert not list(swept.parent.glob(".*part*"))


def test_the_record_is_read_as_it_was_written_and_settings_change_the_key(swept, tmp_path):
    record = Record.load(swept)
    record.save(tmp_path)
    assert (tmp_path / "record.json").read_bytes() == (swept / "record.json").read_bytes()
    evaluated, settings = load_evaluated(swept), swept / "evaluation" / "settings.json"
    assert (evaluated.key != record.key) == settings.is_file()
    assert settings.is_file() == ("trained_key" in evaluated.tags)


def test_same_seed_same_weights_and_scores_another_seed_others(prepared, swept, params, tmp_path, monkeypatch):
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    config = first_config(params, study)
    for seed in (0, 1):
        experiment.run_sweep_entry(study, params, data, tmp_path / f"seed{seed}", config, seed=seed)
    assert equal(state_of(tmp_path / "seed0"), state_of(swept))
    assert not equal(state_of(tmp_path / "seed1"), state_of(swept))
    assert (tmp_path / "seed0" / "evaluation" / "cases.csv").read_bytes() == (swept / "evaluation" / "cases.csv").read_bytes()


def test_a_sweep_run_is_trained_again_only_where_training_changed(prepared, swept, params, tmp_path, monkeypatch):
    """DVC keeps the outputs of sweep runs until they are replaced (`persist`), so that a new evaluation can reuse the model."""
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    shutil.copytree(swept, tmp_path / "run")
    config, started = first_config(params, study), Record.load(swept).tags["started"]
    time.sleep(1.1)  # `started` is in whole seconds
    experiment.run_sweep_entry(study, params, data, tmp_path / "run", config, seed=0)
    assert Record.load(tmp_path / "run").tags["started"] == started
    monkeypatch.setattr(experiment, "code_md5", lambda: "another version of the code")
    experiment.run_sweep_entry(study, params, data, tmp_path / "run", config, seed=0)
    assert Record.load(tmp_path / "run").tags["started"] > started


def test_killed_and_run_again_equals_left_alone(prepared, smoke, tmp_path):
    study, data = prepared
    place = smoke[study] if study == "landmarks" else smoke[study]["training"]
    longer = {"epochs": 4} if "epochs" in place else {}
    values = merged(smoke, {study: longer if study == "landmarks" else {"training": longer}})
    assert_killed_equals_alone(f"{study}_train.py", data, values, tmp_path, kill_after="2/4")


def test_a_fold_that_the_data_does_not_have_is_refused(prepared, params, tmp_path, monkeypatch):
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"fold 7: .* folds, numbered from 0; run {study}_prepare again"):
        experiment.run_sweep_entry(study, params, data, tmp_path / "run", first_config(params, study), fold=7, seed=0)
    assert not list(tmp_path.glob("*run*"))


def test_an_unknown_configuration_is_refused(prepared, params, tmp_path, monkeypatch):
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--config nonsense: no such configuration; choose one of "):
        experiment.run_sweep_entry(study, params, data, tmp_path / "run", "nonsense", seed=0)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_study_is_refused(prepared, swept, tmp_path):
    study, _ = prepared
    for other in STUDIES:
        if other != study:
            with pytest.raises(InputError, match=r"a model of another study|not evaluated"):
                load_study(other).load_models([swept], "cpu")


def test_automatic_precision_is_part_of_the_run_s_identity(prepared, params, monkeypatch):
    study, _ = prepared
    section = params.of(study)
    automatic = section.model_copy(update={"training": section.training.model_copy(update={"precision": "auto"})})
    keys = set()
    for supported, precision in ((True, "bf16"), (False, 32)):
        monkeypatch.setattr("quintet.training.hardware.cpu_computes_bf16", lambda supported=supported: supported)
        resolved = experiment.resolve_precision_of(automatic, params.compute)
        assert resolved.training_values()["precision"] == precision
        keys.add(Record(study, "s", "c", 0, resolved.training_values(), {}).key)
    assert len(keys) == 2


def test_baselines_are_those_that_are_named(prepared, params, tmp_path, monkeypatch):
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    metrics = experiment.run_baselines(study, params, data, tmp_path / "baselines")
    assert list(metrics) == list(load_study(study).baseline_names(params.of(study)))
    for name in metrics:
        assert (tmp_path / "baselines" / name / "seed0" / "evaluation" / "cases.csv").is_file()
