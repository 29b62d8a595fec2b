"""From similarities of the test scans to tables and figures.

There is no network here: baselines and external embeddings are evaluated in the same way.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import results
from quintet.ct.evaluation import figures
from quintet.ct.evaluation.jackknife import patient_pseudo_values
from quintet.ct.metrics import PSEUDO_VALUE, Retrieved, Scans, f1_scores, hubness, jaccard, retrieve
from quintet.errors import InputError
from quintet.runs import Record

LISTED_NEIGHBOURS = 10  # per query in neighbours.csv
COMPARED = {"ndcg_at_10": 10, "ap_at_5": 5}  # the metrics with pseudo-values of the patients, and their k


def read_vectors(path: Path, names: NDArray[np.str_]) -> NDArray[np.float32]:
    """Read external embeddings, `[N, E]` in the order of `names`; other ids are ignored.

    A .npz file has the arrays `id` and `vector`; a .parquet file has a column `id` and either a column `vector` of lists or one
    column per dimension. Raises InputError for an unreadable file, a missing or repeated id, or a vector that is not finite.
    """
    ids, vectors = _read_ids_and_vectors(Path(path))
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise InputError(f"{path}: {len(ids)} ids and vectors of shape {vectors.shape}; expected one vector per id")
    row_of = {name: row for row, name in enumerate(ids)}
    if len(row_of) < len(ids):
        raise InputError(f"{path}: an id is listed twice")
    if missing := [name for name in names if name not in row_of]:
        raise InputError(f"{path}: no vector for {len(missing)} of {len(names)} scans, such as {', '.join(missing[:5])}")
    chosen = vectors[[row_of[name] for name in names]]
    finite = np.isfinite(chosen).all(1)
    if not finite.all():
        raise InputError(f"{path}: the vector of {names[np.flatnonzero(~finite)[0]]} is not finite")
    return chosen


def _read_ids_and_vectors(path: Path) -> tuple[NDArray[Any], NDArray[np.float32]]:
    if not path.is_file():
        raise InputError(f"{path}: no such embeddings file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return file["id"].astype(str), np.asarray(file["vector"], np.float32)
        table = pd.read_parquet(path)
        columns = table.drop(columns="id")
        names = [re.fullmatch(r"(.*?)\d+", str(name)) for name in columns]
        if "vector" not in columns and (None in names or len({found[1] for found in names if found}) > 1):
            wrong = ", ".join(str(name) for name, found in zip(columns, names, strict=True) if not found) or ", ".join(columns)
            raise InputError(f"{path}: the columns of a vector are numbered alike (e0, e1, ...), but not {wrong}; remove others")
        vectors = np.stack(columns["vector"].to_list()) if "vector" in columns else columns.to_numpy()
        return table["id"].astype(str).to_numpy(), np.asarray(vectors, np.float32)
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected `id` and `vector` (.npz), or .parquet with `id`") from None


def query_table(found: Retrieved, scans: Scans, probabilities: NDArray[np.floating[Any]] | None) -> pd.DataFrame:
    """One row per query: every retrieval metric, and for each finding its label, the share of the nearest scans that have it and,
    if the network classifies, its probability."""
    table = pd.DataFrame({"study": scans.names, "patient": scans.patients, **found.metrics})
    for k, finding in enumerate(scans.findings):
        table[f"true/{finding}"] = scans.labels[:, k]
        table[f"vote/{finding}"] = found.votes[:, k]
        if probabilities is not None:
            table[f"probability/{finding}"] = probabilities[:, k]
    return table


def summary(table: pd.DataFrame, findings: list[str]) -> dict[str, float]:
    """Means over queries; F1 of the votes and, if the network classifies, of its head; NDCG@10 of queries with each finding."""
    true = table[[f"true/{name}" for name in findings]].to_numpy()
    metrics = {f"m{name}" if name.startswith("ap_") else name: table[name].mean() for name in table.filter(regex="_at_")}
    metrics |= f1_scores(table[[f"vote/{name}" for name in findings]].to_numpy() >= 0.5, true, findings)
    if f"probability/{findings[0]}" in table:
        predicted = table[[f"probability/{name}" for name in findings]].to_numpy() >= 0.5
        metrics |= {f"head/{name}": value for name, value in f1_scores(predicted, true, findings).items()}
    for k, name in enumerate(findings):
        metrics[f"ndcg_at_10/{name}"] = table["ndcg_at_10"][true[:, k] > 0].mean()
    metrics["ndcg_at_10/none"] = table["ndcg_at_10"][~(true > 0).any(1)].mean()
    metrics["queries"] = float(len(table))
    metrics["patients"] = float(table["patient"].nunique())
    metrics["queries_without_relevant"] = float(table["recall_at_1"].isna().sum())
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


def evaluate(
    similarity: NDArray[np.floating[Any]],
    scans: Scans,
    *,
    neighbours: int,
    record: Record,
    out: Path,
    probabilities: NDArray[np.floating[Any]] | None = None,
    vectors: NDArray[np.floating[Any]] | None = None,
    model: Path | None = None,
    arbitrary_neighbours: bool = False,
) -> dict[str, float]:
    """Evaluate how N scans retrieve each other by `similarity` `[N, N]`; returns the metrics and writes cases.csv,
    neighbours.csv, figures/ and, given `vectors`, embeddings.npz into `out`.

    `model`: the folder with the training's history and precision-recall curves, for figures. `arbitrary_neighbours`: the nearest
    scans of a query are an arbitrary choice among ties, so neighbours.csv and hubness are left out.
    """
    found = retrieve(similarity, scans, neighbours=neighbours)
    table = query_table(found, scans, probabilities)
    findings = list(scans.findings)
    metrics = summary(table, findings)
    if not arbitrary_neighbours:
        metrics["hubness_skew_at_10"] = hubness(found.nearest, len(scans))
        _neighbour_table(found, scans).to_csv(out / "neighbours.csv", index=False)
    results.write(_tidy(table, patient_pseudo_values(similarity, scans, found.metrics, COMPARED), record), out / "cases.csv")
    if vectors is not None:
        np.savez(out / "embeddings.npz", id=scans.names, vector=np.asarray(vectors, np.float32))
    (out / "figures").mkdir()
    figures.plot_all(out / "figures", table, similarity=similarity, scans=scans, title=record.name, model=model)
    return metrics


def _tidy(table: pd.DataFrame, pseudo_values: dict[str, NDArray[np.float64]], record: Record) -> pd.DataFrame:
    """The tidy table: one row per metric and query, and one row per pseudo-value and patient."""
    by_query, patients = table.drop(columns=["study", "patient"]), np.unique(table["patient"])
    by_patient = pd.DataFrame({PSEUDO_VALUE.format(name): values for name, values in pseudo_values.items()})
    parts = [(by_query, table["study"], table["patient"]), (by_patient, patients, patients)]
    tables = [
        results.to_tidy(values, record.study, record.config, fold=record.fold, seed=record.seed, cases=cases, groups=groups)
        for values, cases, groups in parts
    ]
    return pd.concat(tables).dropna(subset="value").reset_index(drop=True)


def _neighbour_table(found: Retrieved, scans: Scans) -> pd.DataFrame:
    """The nearest scans of other patients for each query."""
    nearest, similarity = found.nearest[:, :LISTED_NEIGHBOURS], found.similarity[:, :LISTED_NEIGHBOURS]
    queries, places = np.nonzero(nearest >= 0)
    neighbours = nearest[queries, places]
    relevance = jaccard(scans.labels, scans.labels)[queries, neighbours]
    return pd.DataFrame(
        {
            "query": scans.names[queries],
            "rank": places + 1,
            "study": scans.names[neighbours],
            "similarity": similarity[queries, places].round(5),
            "jaccard": relevance.round(4),
        }
    )
