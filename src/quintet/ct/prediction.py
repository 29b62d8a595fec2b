"""From a trained run to embeddings: of prepared scans (evaluation) and of folders (`quintet predict|evaluate ct`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from quintet.ct.evaluation import evaluate, read_vectors
from quintet.ct.metrics import Scans, cosine
from quintet.ct.networks import Proximity, see
from quintet.ct.raw import Labels, find_studies, match, read_cube, read_labels
from quintet.errors import InputError, Problems
from quintet.files import whole_file
from quintet.params import Ct
from quintet.runs import new_record, read_record
from quintet.training.hardware import resolve_device
from quintet.training.models import load_model

BATCH = 8
Cubes = NDArray[np.uint8]  # [N, S, S, S]


@dataclass(frozen=True)
class Embedded:
    vectors: NDArray[np.float32]  # [N, E], of length 1
    probability: NDArray[np.float32] | None  # [N, F] where the network classifies


@dataclass(frozen=True)
class Model:
    """A network and what its input went through: cubes of `size` voxels, a window of HU."""

    net: Proximity
    size: int
    window_hu: tuple[float, float]
    findings: list[str]
    device: str

    @staticmethod
    def load(run: Path, device: str) -> "Model":
        return Model.read(run / "model" / "model.pt", device)

    @staticmethod
    def read(path: Path, device: str) -> "Model":
        state, build = load_model(path)
        if "input_size" not in build or "arch" not in build:
            raise InputError(f"{path}: a model of another study; give a run of runs/ct")
        try:
            size, (low, high), names = build.pop("size"), build.pop("window"), build.pop("names")
            net = Proximity(**build)
            net.load_state_dict(state)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}); train it again") from None
        device = resolve_device(device)
        net = net.eval().to(device)
        net.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Model(net, size, (low, high), names, device)

    def get_embeddings(self, volumes: torch.Tensor, *, mixed_precision: bool = False) -> Embedded:
        """Of stored cubes `[B, S, S, S]` uint8; `mixed_precision`: bfloat16 where it applies."""
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=mixed_precision):
            out = self.net(see(volumes.to(self.device), self.net.input_size))
        scores = None if out.scores is None else out.scores.float().sigmoid().cpu().numpy()
        return Embedded(out.embedding.float().cpu().numpy(), scores)

    def __call__(self, volumes: Cubes, rows: NDArray[np.int64] | None = None) -> Embedded:
        """A few of many stored cubes at a time."""
        chosen = np.arange(len(volumes)) if rows is None else rows
        parts = [
            self.get_embeddings(torch.from_numpy(np.stack([volumes[row] for row in chosen[start : start + BATCH]])))
            for start in range(0, len(chosen), BATCH)
        ]
        probability = (
            None if parts[0].probability is None else np.concatenate([p.probability for p in parts if p.probability is not None])
        )
        return Embedded(np.concatenate([p.vectors for p in parts]), probability)


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    """Runs whose embeddings are joined: they must see the same cubes."""
    models = [Model.load(run, device) for run in runs]
    for model, run in zip(models, runs, strict=True):
        if (model.size, model.window_hu) != (models[0].size, models[0].window_hu):
            raise InputError(f"{runs[0]} and {run} were trained on cubes of other sizes or windows; give runs of one data set")
    return models


def joined(models: Sequence[Model], cubes: Cubes) -> Embedded:
    """The vectors of several runs behind each other (cosine similarity is then the mean of theirs), probabilities averaged."""
    found = [model(cubes) for model in models]
    vectors = np.concatenate([one.vectors for one in found], 1) / np.float32(np.sqrt(len(found)))
    heads = [one.probability for one in found if one.probability is not None]
    mean = np.mean(heads, 0).astype(np.float32) if len(heads) == len(found) else None
    return Embedded(vectors.astype(np.float32), mean)


def embed_studies(
    models: Sequence[Model], studies: dict[str, Path], problems: list[str]
) -> Iterator[tuple[str, NDArray[np.uint8], Embedded]]:  # fmt: skip
    """Name, cube and embedding of each readable study, one in memory at a time; what cannot be read is added to `problems`."""
    for name, path in studies.items():
        try:
            cube, _ = read_cube(path, models[0].size, models[0].window_hu, threads=2)
        except InputError as error:
            problems.append(f"study {name}: {error}")
            continue
        yield name, cube, joined(models, cube[None])


def predict_folder(runs: Sequence[Path], source: Path, output: Path, *, overlays: Path | None, device: str, skip: bool) -> int:
    """Embed every study below `source` into `output` (.npz: id, vector; .parquet or .csv: id, probabilities of the findings where
    the runs classify, e0, e1, ...); returns their number. `quintet evaluate` and ct.external take what this writes."""
    if overlays:
        raise InputError("ct has no overlays; `quintet search ct --montage` draws a scan beside its neighbours")
    if output.suffix not in (".npz", ".parquet", ".csv"):
        raise InputError(f"{output}: name a .npz, .parquet or .csv file")
    models, problems = load_models(runs, device), list[str]()
    found = [(name, own) for name, _, own in embed_studies(models, find_studies(source), problems)]
    if problems and (not skip or not found):
        raise Problems(f"{source} (--skip leaves them out)", problems)
    names, vectors = np.array([name for name, _ in found]), np.concatenate([own.vectors for _, own in found])
    with whole_file(output) as beside:
        if output.suffix == ".npz":
            np.savez(beside, id=names, vector=vectors)
        else:
            table = pd.DataFrame({"id": names})
            for k, finding in enumerate(models[0].findings):
                if output.suffix == ".csv" and all(own.probability is not None for _, own in found):
                    table[f"probability_{finding}"] = [float(own.probability[0, k]) for _, own in found]  # type: ignore[index]
            table = pd.concat([table, pd.DataFrame(vectors).add_prefix("e")], axis=1)
            table.to_csv(beside, index=False) if output.suffix == ".csv" else table.to_parquet(beside)
    for problem in problems:
        print(f"skipped: {problem}")
    return len(names)


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, *, device: str, params: Ct) -> dict[str, float]:
    """Measure how the labelled studies of a folder retrieve each other by the embeddings of the runs, or of one .npz or .parquet
    file of embeddings from elsewhere; writes `out` and returns the metrics.

    Scans that a run was trained on flatter it: give it a folder it has not seen.
    """
    labels = read_labels(raw)
    if runs[0].is_file():
        names = np.array(sorted(labels.table.index))
        found = Embedded(read_vectors(runs[0], names), None)
        record = new_record("ct", "evaluate", runs[0].stem, seed=0, params={}, inputs={"embeddings": runs[0]})
    else:
        studies = find_studies(raw)
        kept, problems = match(studies, labels)
        models = load_models(runs, device)
        if models[0].findings != labels.findings:
            raise InputError(
                f"{raw}: labels.csv names {', '.join(labels.findings)}; the run knows {', '.join(models[0].findings)}"
            )
        parts = [own for _, _, own in embed_studies(models, {name: studies[name] for name in kept}, problems)]
        if problems:
            raise Problems(str(raw), problems)
        names, found = np.array(kept), _stacked(parts)
        record = read_record(runs[0])
    return evaluate(cosine(found.vectors), _scans(labels, names), neighbours=params.neighbours, record=record, out=out,
                    probability=found.probability, vectors=found.vectors)  # fmt: skip


def _stacked(parts: list[Embedded]) -> Embedded:
    heads = [part.probability for part in parts if part.probability is not None]
    return Embedded(np.concatenate([part.vectors for part in parts]), np.concatenate(heads) if heads else None)


def _scans(labels: Labels, names: NDArray[Any]) -> Scans:
    own = labels.table.loc[list(names)]
    return Scans(names, own["patient"].to_numpy(str), own[labels.findings].to_numpy(np.float32), labels.findings)
