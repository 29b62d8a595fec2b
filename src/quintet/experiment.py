"""The driver: train, evaluate and rank the runs of any study, and apply trained runs to a user's folder.

Run folders and their records are described in runs.py, what a study implements in study.py. Outputs are written
atomically. Importing this module imports neither torch nor MLflow.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

from quintet.comparison import evaluation_metrics, prune_runs, publish
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_file, atomic_folder, write_json
from quintet.params import Compute, Configuration, Ensembles, Params, StudyParams
from quintet.ranking import Ranking
from quintet.results import write_scores
from quintet.runs import CODE_TAGS, Record, code_md5, new_record
from quintet.study import Metrics, Runs, load_ensemble_study, load_study

P = TypeVar("P", bound=StudyParams)


@dataclass(frozen=True)
class Run:
    """What to train: a configuration (under the name that its record gets), on one fold with one seed."""

    stage: str
    name: str
    config: Configuration
    fold: int
    seed: int


def train_selected(name: str, params: Params, data: Path, run: Path) -> Record:
    """Train the selected configuration into `run` = {record.json, model/}."""
    from quintet.training.fit import delete_resume_checkpoints

    section: Any = params.of(name)
    selected = Run(f"{name}_train", "selected", section, getattr(section, "fold", 0), section.seed)
    record = _train(name, params, data, run, selected, previous=run)  # kept by `persist`: fusion depends on evaluated runs
    delete_resume_checkpoints(record)
    return record


def evaluate_selected(name: str, params: Params, data: Path, run: Path, scores: Path) -> Metrics:
    """Evaluate the selected run into `run`/evaluation and write the metrics that git keeps to `scores`."""
    from quintet.serving.model import write_model
    from quintet.tracking import upload

    metrics = _evaluate(name, params, data, run, detailed=True)
    write_scores(metrics, scores)
    upload(run, write_model)
    return metrics


def run_sweep_entry(name: str, params: Params, data: Path, out: Path, config: str, *, fold: int = 0, seed: int) -> Metrics:
    """Train and evaluate one configuration of the sweep into the run folder `out`."""
    (metrics,) = _sweep(name, params, data, out, config, {".": (fold, seed)})
    return metrics


def run_sweep_config(name: str, params: Params, data: Path, out: Path, config: str) -> list[Metrics]:
    """Train and evaluate one configuration on the sweep's folds (if the study has any) with its seeds, into the run folders below
    `out`, all of them or none."""
    return _sweep(name, params, data, out, config, params.of(name).sweep.runs)


def _sweep(name: str, params: Params, data: Path, out: Path, config: str, runs: dict[str, tuple[int, int]]) -> list[Metrics]:
    from quintet.serving.model import write_model
    from quintet.tracking import upload
    from quintet.training.fit import delete_resume_checkpoints

    configs = params.of(name).configs
    if config not in configs:
        raise InputError(f"--config {config}: no such configuration; choose one of {', '.join(configs)}")
    records, metrics = [], []
    with atomic_folder(out) as folder:
        for place, (fold, seed) in runs.items():
            entry = Run(f"{name}_sweep", config, configs[config], fold, seed)
            records.append(_train(name, params, data, folder / place, entry, previous=out / place))
            metrics.append(_evaluate(name, params, data, folder / place, detailed=False))
    for record in records:
        delete_resume_checkpoints(record)
    for place in runs:
        upload(out / place, write_model)
    return metrics


def _train(name: str, params: Params, data: Path, out: Path, run: Run, *, previous: Path | None = None) -> Record:
    """Train into the run folder `out`, unless the run folder `previous` holds the same training."""
    study, section = load_study(name), resolve_precision_of(params.of(name), params.compute)
    prepared = study.load_data(data)
    if not 0 <= run.fold < prepared.fold_count:
        raise InputError(f"fold {run.fold}: {data} has {prepared.fold_count} folds, numbered from 0; run {name}_prepare again")
    values = run.config.configuration_values() | section.training_values()
    if params.compute.debug:  # without augmentation this is another training
        values |= {"debug": True}
    inputs = {"data": data} | study.training_inputs(run.config, section, run.seed)
    record = new_record(name, run.stage, run.name, fold=run.fold, seed=run.seed, params=values, inputs=inputs, raw=section.raw)
    record.tags["code_md5"] = code_md5()
    if previous and (reused := _same_training(previous, record)):
        if previous != out:
            shutil.copytree(previous / "model", out / "model")
        reused.tags["dvc_exp_name"] = record.tags["dvc_exp_name"]  # that which evaluates it
        record = reused
    else:
        trained = study.train(prepared, run.config, section, params.compute, record)
        (out / "record.json").unlink(missing_ok=True)  # a kill must not leave it beside another run's model
        shutil.rmtree(out / "evaluation", ignore_errors=True)  # scores and calibration of the model before
        with atomic_folder(out / "model") as folder:
            trained.save(folder)
    record.save(out)
    return record


def _same_training(previous: Path, record: Record) -> Record | None:
    """The record in `previous` if training again would give the same model: then only the evaluation has to run again."""
    if not ((previous / "record.json").is_file() and (previous / "model" / "model.pt").is_file()):
        return None
    found = Record.load(previous)
    same_code = all(found.tags.get(tag) == record.tags[tag] for tag in CODE_TAGS)
    return found if found.key == record.key and same_code else None


def resolve_precision_of(section: P, compute: Compute) -> P:
    """Replace `precision: auto` with the precision of this machine, which becomes part of the run's identity."""
    from quintet.training.hardware import resolve_device, resolve_precision

    precision = 32 if compute.debug else resolve_precision(section.training.precision, resolve_device(compute.device))
    return section.model_copy(update={"training": section.training.model_copy(update={"precision": precision})})


def _evaluate(name: str, params: Params, data: Path, run: Path, *, detailed: bool) -> Metrics:
    study, section, record = load_study(name), params.of(name), Record.load(run)
    with atomic_folder(run / "evaluation") as folder:
        prepared = study.load_data(data)
        metrics = study.evaluate(run, prepared, folder, section, params.compute, record, detailed=detailed)
        write_json(folder / "metrics.json", metrics)
        if settings := section.evaluation_values():
            write_json(folder / "settings.json", settings)
    return metrics


def run_baselines(name: str, params: Params, data: Path, out: Path) -> dict[str, Metrics]:
    """Evaluate a study's baselines into the run folders `out`/NAME/seed0 (or fold<n>-seed0; without model/), all of them or none;
    returns each baseline's metrics, averaged over folds."""
    study, section = load_study(name), params.of(name)
    found = study.baselines(study.load_data(data), section)

    def evaluate(label: str, fold: int, evaluation: Path) -> tuple[Record, Metrics]:
        inputs = {"data": data} | found[label].inputs
        record = new_record(
            name, f"{name}_baselines", label, fold=fold, seed=0, params=found[label].params, inputs=inputs, raw=section.raw
        )
        return record, found[label].evaluate(evaluation, record)

    return _evaluate_untrained(out, list(found), section, evaluate)


def run_ensembles(name: str, params: Params, data: Path, sweep: Path, out: Path) -> dict[str, Metrics]:
    """Evaluate the mean predictions of the sweep's runs into the run folders `out`/NAME/seed0 (or fold<n>-seed0), all of them or
    none; returns each ensemble's metrics, averaged over folds."""
    study, section = load_ensemble_study(name), params.of(name)
    prepared, sets = study.load_data(data), cast(Ensembles, section.sweep).ensembles
    ensembles = {label: members or list(section.sweep_runs()) for label, members in sets.items()}

    def evaluate(label: str, fold: int, evaluation: Path) -> tuple[Record, Metrics]:
        places = [place for place, (of_fold, _) in section.sweep.runs.items() if of_fold == fold]
        members = [sweep / config / place for config in ensembles[label] for place in places]
        inputs = {"data": data} | {f"{run.parent.name} {run.name}": run / "model" / "model.pt" for run in members}
        values = {"members": ", ".join(ensembles[label])} | section.evaluation_values()
        record = new_record(name, f"{name}_ensembles", label, fold=fold, seed=0, params=values, inputs=inputs, raw=section.raw)
        return record, study.evaluate_ensemble(members, prepared, evaluation, section, params.compute, record)

    return _evaluate_untrained(out, list(ensembles), section, evaluate)


def _evaluate_untrained(
    out: Path, labels: Sequence[str], section: StudyParams, evaluate: Callable[[str, int, Path], tuple[Record, Metrics]]
) -> dict[str, Metrics]:
    """Write a run folder without model/ for each label and fold; returns each label's metrics, averaged over folds."""
    from quintet.tracking import upload

    with atomic_folder(out) as folder:
        for label in labels:
            for place, fold in section.sweep.untrained_runs.items():
                evaluation = folder / label / place / "evaluation"
                evaluation.mkdir(parents=True)
                record, metrics = evaluate(label, fold, evaluation)
                write_json(evaluation / "metrics.json", metrics)
                record.save(evaluation.parent)
    runs = {label: _folders(out / label) for label in labels}
    for run in chain.from_iterable(runs.values()):
        upload(run)
    return {str(label): values.dropna().to_dict() for label, values in evaluation_metrics(runs, labels).iterrows()}


def run_folders(section: StudyParams, sweep: Path, *others: Path) -> Runs:
    """The sweep's run folders that params name, and every run folder below `others` (baselines, ensembles)."""
    runs = {config: [sweep / config / run for run in names] for config, names in section.sweep_runs().items()}
    labels = {label.name: label for folder in others if folder.is_dir() for label in _folders(folder)}
    return runs | {name: _folders(label) for name, label in labels.items()}


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, without files that an operating system left (.DS_Store)."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def rank_runs(
    name: str, params: Params, sweep: Path, baselines: Path, out: Path, report: Path, *, ensembles: Path | None = None
) -> Ranking:
    """Rank the runs that params name; writes the folder `report` and `out` = {record.json}. Sweep runs that params no longer name
    are removed first (`dvc checkout` brings them back); otherwise a fresh clone would rank different runs."""
    from quintet.tracking import save_view, upload

    study, section = load_study(name), params.of(name)
    runs = run_folders(section, sweep, baselines, *([ensembles] if ensembles else []))
    prune_runs(sweep, [run for folders in runs.values() for run in folders if run.is_relative_to(sweep)])
    ranking = study.rank(params, runs)
    publish(
        name,
        ranking,
        runs,
        out,
        report,
        title=study.TITLE,
        unit=study.UNIT,
        sections=lambda folder: study.report_sections(params, ranking, runs, folder),
    )
    upload(out)
    save_view(name, study.RUN_SCORES, lower_is_better=study.LOWER_IS_BETTER)
    return ranking


def rank_finished(name: str, params: Params, runs: Path) -> Ranking:
    """The ranking of the finished runs below `runs`, without a report."""
    sweep, *others = (runs / name / part for part in ("sweep", "baselines", "ensembles"))
    return load_study(name).rank(params, run_folders(params.of(name), sweep, *others))


def predict_folder(
    name: str, runs: Sequence[Path], source: Path, output: Path, *, overlays: Path | None, device: str, skip: bool, **options: Any
) -> int:
    """Predict a folder of new cases with the mean of the given runs; returns the number of cases.

    Cases that cannot be read are all listed at once; with `skip` they are left out instead.
    """
    study, problems = load_study(name), list[str]()
    models = study.load_models(runs, device)
    with ExitStack() as stack:
        atomic = atomic_folder if study.PREDICTS_FOLDER else atomic_file
        outputs = [stack.enter_context(atomic(path)) for path in study.prediction_files(output)]
        pictures = stack.enter_context(atomic_folder(overlays)) if overlays else None
        count = study.predict(models, source, outputs, problems, overlays=pictures, **options)
        if problems and (not skip or not count):
            raise InputProblemsError(f"{source} (--skip leaves them out)", problems)
    for problem in problems:
        print(f"skipped: {problem}")
    return count


def evaluate_folder(name: str, runs: Sequence[Path], raw: Path, out: Path, params: Params, *, device: str) -> Metrics:
    """Evaluate the mean prediction of runs on every case of a labelled raw folder; writes the folder `out`.

    Scores on cases that a run was trained on are optimistic.
    """
    with atomic_folder(out) as folder:
        metrics = load_study(name).evaluate_folder(runs, raw, folder, params.of(name), device)
        write_json(folder / "metrics.json", metrics)
    return metrics
