"""From similarities of test scans to tables and figures. No network here: baselines and embeddings from elsewhere take the same
way."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import results
from quintet.ct.data import Prepared
from quintet.ct.metrics import Retrieved, Scans, f1_scores, hubness, jaccard, retrieve
from quintet.errors import InputError
from quintet.files import atomic_folder, write_json
from quintet.runs import Record

LISTED = 10  # neighbours of each query that are written


def scans_of(data: Prepared, rows: NDArray[np.int64]) -> Scans:
    own = data.index.iloc[rows]
    return Scans(own["study"].to_numpy(str), own["patient"].to_numpy(str), data.labels[rows], data.findings)


def read_vectors(path: Path, names: NDArray[np.str_]) -> NDArray[np.float32]:
    """Embeddings from elsewhere, `[N, E]` in the order of `names`: a .npz with `id` and `vector`, or a .parquet with a column
    `id`
    and either a column `vector` of lists or one column a dimension. Further ids are ignored; a missing one is an error."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of embeddings")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                ids, vectors = file["id"].astype(str), np.asarray(file["vector"], np.float32)
        else:
            table = pd.read_parquet(path)
            ids = table["id"].astype(str).to_numpy()
            rest = table.drop(columns="id")
            vectors = np.stack(rest["vector"].to_list()) if "vector" in rest else rest.to_numpy()
            vectors = np.asarray(vectors, np.float32)
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected `id` and `vector` (.npz), or .parquet with `id`") from None
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise InputError(f"{path}: {len(ids)} ids, vectors of shape {vectors.shape}; expected one vector an id")
    if len(set(ids)) < len(ids):
        raise InputError(f"{path}: an id stands twice")
    row = {name: i for i, name in enumerate(ids)}
    if missing := [name for name in names if name not in row]:
        raise InputError(f"{path}: no vector for {len(missing)} of {len(names)} scans, such as {', '.join(missing[:5])}")
    own = vectors[[row[name] for name in names]]
    if not np.isfinite(own).all():
        raise InputError(f"{path}: the vector of {names[np.flatnonzero(~np.isfinite(own).all(1))[0]]} is not finite")
    return own


def by_query(found: Retrieved, scans: Scans, probability: NDArray[np.floating[Any]] | None) -> pd.DataFrame:
    """One row a query: every retrieval metric, and for each finding whether it was said (by the neighbours' votes; by the network
    where it classifies)."""
    table = pd.DataFrame({"study": scans.names, "patient": scans.patients, **found.metrics})
    for k, finding in enumerate(scans.findings):
        table[f"true/{finding}"] = scans.labels[:, k]
        table[f"vote/{finding}"] = found.votes[:, k]
        if probability is not None:
            table[f"probability/{finding}"] = probability[:, k]
    return table


def summary(table: pd.DataFrame, findings: list[str]) -> dict[str, float]:
    """Means over queries; F1 of the votes and, where the network classifies, of its head; mAP@5 of the queries with each
    finding."""
    true = table[[f"true/{name}" for name in findings]].to_numpy()
    metrics = {f"m{name}" if name.startswith("ap_") else name: table[name].mean() for name in table.filter(regex="_at_")}
    metrics |= f1_scores(table[[f"vote/{name}" for name in findings]].to_numpy() >= 0.5, true, findings)
    if f"probability/{findings[0]}" in table:
        said = table[[f"probability/{name}" for name in findings]].to_numpy() >= 0.5
        metrics |= {f"head/{name}": value for name, value in f1_scores(said, true, findings).items()}
    for k, name in enumerate(findings):
        metrics[f"map_at_5/{name}"] = table["ap_at_5"][true[:, k] > 0].mean()
    metrics["map_at_5/none"] = table["ap_at_5"][~(true > 0).any(1)].mean()
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
    probability: NDArray[np.floating[Any]] | None = None,
    vectors: NDArray[np.floating[Any]] | None = None,
    model: Path | None = None,
    hubs: bool = True,
) -> dict[str, float]:
    """Measure how N scans retrieve each other, `similarity` `[N, N]`; writes `out` = {cases.csv, neighbours.csv, metrics.json,
    figures/; with `vectors` embeddings.npz}. `model`: the folder with the training's history and curves, for figures. `hubs`: off
    where a similarity has ties only, whose neighbours mean nothing."""
    from quintet.ct import figures

    found = retrieve(similarity, scans, neighbours=neighbours)
    table = by_query(found, scans, probability)
    findings = list(scans.findings)
    metrics = summary(table, findings)
    if hubs:
        metrics["hubness_skew_at_10"] = hubness(found.nearest, len(scans))
    with atomic_folder(out) as folder:
        tidy = results.tidy(
            table.drop(columns=["study", "patient"]),
            record.study,
            record.config,
            fold=record.fold,
            seed=record.seed,
            cases=table["study"],
            groups=table["patient"],
        )
        results.write(tidy.dropna(subset="value").reset_index(drop=True), folder / "cases.csv")
        if hubs:
            _neighbours(found, scans).to_csv(folder / "neighbours.csv", index=False)
        if vectors is not None:
            np.savez(folder / "embeddings.npz", id=scans.names, vector=np.asarray(vectors, np.float32))
        write_json(folder / "metrics.json", metrics)
        (folder / "figures").mkdir()
        figures.draw_all(folder / "figures", table, findings, similarity=similarity, scans=scans, title=record.name, model=model)
    return metrics


def _neighbours(found: Retrieved, scans: Scans) -> pd.DataFrame:
    """The nearest scans of each query, those of its own patient left out."""
    nearest, values = found.nearest[:, :LISTED], found.similarity[:, :LISTED]
    queries, places = np.nonzero(nearest >= 0)
    others = nearest[queries, places]
    relevance = jaccard(scans.labels, scans.labels)[queries, others]
    return pd.DataFrame(
        {
            "query": scans.names[queries],
            "rank": places + 1,
            "study": scans.names[others],
            "similarity": values[queries, places].round(5),
            "jaccard": relevance.round(4),
        }
    )
