"""Apply trained runs to a user's folder: `quintet predict ct` and `quintet evaluate ct`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.ct.data.raw import Labels, find_scans, match, read_cube, read_labels
from quintet.ct.evaluation.inference import Embeddings, Model, concatenate, embed_with_all, load_models
from quintet.ct.evaluation.scores import evaluate, read_vectors
from quintet.ct.metrics import Scans, cosine
from quintet.errors import InputError, InputProblemsError
from quintet.imaging.cubes import Cube
from quintet.params import Ct
from quintet.runs import load_joint, new_record


def embed_scans(models: Sequence[Model], scans: dict[str, Path], problems: list[str]) -> Iterator[tuple[str, Cube, Embeddings]]:
    """Name, cube and embedding of each readable scan, one in memory at a time; adds a sentence to `problems` for the others."""
    for name, path in scans.items():
        try:
            cube, _ = read_cube(path, models[0].cubes, threads=2)
        except InputError as error:
            problems.append(f"scan {name}: {error}")
            continue
        yield name, cube, embed_with_all(models, cube[None])


def predict_folder(models: Sequence[Model], source: Path, out: Path, problems: list[str], *, overlays: Path | None = None) -> int:
    """Embed every scan in `source` and write the file `out`, which `quintet evaluate` and ct.external can read.

    .npz: id, vector; .parquet: id, e0, e1, ...; .csv: the same with the findings' probabilities, if the network classifies.
    Returns the number of scans; adds a sentence to `problems` for each unreadable one. Raises InputError for `overlays`.
    """
    if overlays:
        raise InputError("ct has no overlays; `quintet search ct --montage` shows a scan beside its nearest neighbours")
    found = [(name, embedding) for name, _, embedding in embed_scans(models, find_scans(source), problems)]
    if not found:
        return 0
    names, embeddings = [name for name, _ in found], concatenate([embedding for _, embedding in found])
    if out.suffix == ".npz":
        np.savez(out, id=np.array(names), vector=embeddings.vectors)
        return len(names)
    table = pd.DataFrame({"id": names})
    if out.suffix == ".csv" and embeddings.probabilities is not None:
        for finding, column in zip(models[0].findings, embeddings.probabilities.T, strict=True):
            table[f"probability_{finding}"] = column.astype(float)
    table = pd.concat([table, pd.DataFrame(embeddings.vectors).add_prefix("e")], axis=1)
    if out.suffix == ".csv":
        table.to_csv(out, index=False)
    else:
        table.to_parquet(out)
    return len(names)


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, params: Ct, device: str) -> dict[str, float]:
    """Evaluate how the labelled scans of a raw folder retrieve each other, into the folder `out`.

    `runs`: run folders, whose embeddings are combined, or one .npz or .parquet file of external embeddings.
    """
    if any(run.is_file() for run in runs) and len(runs) > 1:
        raise InputError("a file of embeddings is evaluated by itself; give one --model, or several run folders")
    if runs[0].is_file():
        labels = read_labels(raw, params.data.chosen_findings)
        names = np.array(sorted(labels.table.index))
        embeddings = Embeddings(read_vectors(runs[0], names), None)
        record = new_record("ct", "evaluate", runs[0].stem, seed=0, params={}, inputs={"embeddings": runs[0]})
    else:
        models = load_models(runs, device)
        labels = read_labels(raw, models[0].findings)
        names, embeddings = _embed_labelled(models, raw, labels)
        record = load_joint(runs)
    if not labels.table[labels.findings].to_numpy().any():
        raise InputError(f"{raw}: no scan has any finding, so there is nothing to retrieve; give scans with findings")
    if labels.table.loc[names, "patient"].nunique() < 3:
        raise InputError(f"{raw}: scans of fewer than three people; retrieval is judged among other people's scans")
    return evaluate(
        cosine(embeddings.vectors),
        _scans(labels, names),
        neighbours=params.evaluation.neighbours,
        record=record,
        out=out,
        probabilities=embeddings.probabilities,
        vectors=embeddings.vectors,
    )


def _embed_labelled(models: Sequence[Model], raw: Path, labels: Labels) -> tuple[NDArray[np.str_], Embeddings]:
    """Names and embeddings of all scans of a labelled folder; raises InputProblemsError if one is missing or unreadable."""
    scans = find_scans(raw)
    names, problems = match(scans, labels)
    parts = [embedding for _, _, embedding in embed_scans(models, {name: scans[name] for name in names}, problems)]
    if problems:
        raise InputProblemsError(str(raw), problems)
    return np.array(names), concatenate(parts)


def _scans(labels: Labels, names: NDArray[Any]) -> Scans:
    table = labels.table.loc[list(names)]
    return Scans(names, table["patient"].to_numpy(str), table[labels.findings].to_numpy(np.float32), labels.findings)
