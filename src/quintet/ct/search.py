"""`quintet index ct` and `quintet search ct`: embed a folder once, then find the scans that are most like one.

An index is a folder: vectors.npy `[N, E]`, studies.csv (study, file, patient and findings where labels.csv is there), views.npy
`[N, 3, S, S]` (middle slices, for montages), index.json, models/*.pt (it needs nothing outside), and with FAISS faiss.index.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.ct.figures import montage, views_of
from quintet.ct.inference import Embedded, Model, joined, load_models
from quintet.ct.prediction import embed_studies
from quintet.ct.raw import LABELS, find_studies, read_cube, read_labels
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_folder, write_json

LISTS = 4  # IVF: lists per square root of the collection
LINKS = 32  # HNSW: links of a scan
CHECKED = 10  # neighbours whose recall against exact search is reported
Floats = NDArray[np.float32]


def build(runs: Sequence[Path], source: Path, out: Path, *, kind: str, device: str, skip: bool) -> dict[str, Any]:
    """Write the index of every study below `source` to `out`, whole or not at all; returns what index.json says."""
    library = _faiss() if kind != "exact" else None
    studies = find_studies(source)
    labels = read_labels(source) if (Path(source) / LABELS).is_file() else None
    models, problems = load_models(runs, device), list[str]()
    names, vectors, views = [], [], []
    for name, cube, found in embed_studies(models, studies, problems):
        names.append(name)
        vectors.append(found.vectors[0])
        views.append(views_of(cube))
    if problems and (not skip or not names):
        raise InputProblemsError(f"{source} (--skip leaves them out)", problems)
    table = pd.DataFrame({"study": names, "file": [studies[name].name for name in names]})
    if labels is not None:
        known = labels.table.reindex(names)
        table["patient"] = known["patient"].to_numpy()
        table["findings"] = [_listed(row, labels.findings) for _, row in known.iterrows()]
    stacked = np.stack(vectors)
    about: dict[str, Any] = {
        "study": "ct",
        "kind": kind,
        "scans": len(names),
        "dimensions": stacked.shape[1],
        "models": len(models),
    }
    with atomic_folder(out) as folder:
        if library is not None:
            about |= _approximate(library, kind, stacked, folder / "faiss.index")
        np.save(folder / "vectors.npy", stacked)
        np.save(folder / "views.npy", np.stack(views))
        table.to_csv(folder / "studies.csv", index=False)
        (folder / "models").mkdir()
        for number, run in enumerate(runs):
            shutil.copy(run / "model" / "model.pt", folder / "models" / f"{number}.pt")
        write_json(folder / "index.json", about)
    for problem in problems:
        print(f"skipped: {problem}")
    return about


def _listed(row: pd.Series, findings: Sequence[str]) -> str:
    return "" if row[list(findings)].isna().any() else ", ".join(name for name in findings if row[name]) or "none"


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise InputError(
            "ct.index=hnsw and ivf need a package: pip install -c constraints.txt faiss-cpu (exact needs none)"
        ) from None
    return faiss


def _approximate(faiss: Any, kind: str, vectors: Floats, path: Path) -> dict[str, float]:
    """Write a FAISS index by inner product; returns the recall of its nearest scans against exact search."""
    count, dimensions = vectors.shape
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimensions, LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        lists = max(1, min(count // 2, round(LISTS * count**0.5)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimensions), dimensions, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, lists // 8)
        index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(path))
    k = min(CHECKED, count)
    _, found = index.search(vectors, k)
    exact = np.argsort(-vectors @ vectors.T, axis=1, kind="stable")[:, :k]
    recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), exact.tolist(), strict=True)])
    return {f"recall_at_{k}_against_exact": float(recall)}


@dataclass(frozen=True)
class Index:
    about: dict[str, Any]
    studies: pd.DataFrame
    vectors: Floats
    views: NDArray[np.uint8]
    folder: Path

    @staticmethod
    def load(folder: Path) -> "Index":
        try:
            about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            studies = pd.read_csv(folder / "studies.csv", dtype=str, keep_default_na=False)
            vectors, views = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("vectors", "views"))
            if not len(studies) == len(vectors) == len(views) == about["scans"]:
                raise ValueError("its files disagree about the number of scans")
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: no index, or damaged ({error}); make one with `quintet index ct`") from None
        return Index(about, studies, vectors, views, folder)

    def query(self, name: str, device: str) -> tuple[Floats, NDArray[np.uint8], int | None]:
        """Vector, views and, if it is one of the index, row of a query: a study of the index, or the path of another one."""
        rows = np.flatnonzero(self.studies["study"] == name)
        if len(rows):
            return self.vectors[rows[0]], self.views[rows[0]], int(rows[0])
        path = Path(name)
        if not path.exists():
            some = ", ".join(self.studies["study"][:3])
            raise InputError(f"{name}: neither a study of the index (such as {some}) nor a series folder or NIfTI file")
        models = [Model.read(p, device) for p in sorted((self.folder / "models").glob("*.pt"))]
        cube, _ = read_cube(path, models[0].size, models[0].window_hu, threads=2)
        found: Embedded = joined(models, cube[None])
        return found.vectors[0], views_of(cube), None

    def nearest(self, vector: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
        """Rows and similarities, most similar first; equals stay in the index's order."""
        count = min(count, len(self.vectors))
        if self.about["kind"] == "exact":
            similarity = np.asarray(self.vectors @ vector)
            rows = np.argsort(-similarity, kind="stable")[:count]
            return rows, similarity[rows]
        index = _faiss().read_index(str(self.folder / "faiss.index"))
        similarity, rows = index.search(np.ascontiguousarray(vector[None]), count)
        there = rows[0] >= 0
        return rows[0][there], similarity[0][there]


def search(folder: Path, name: str, k: int, *, picture: Path | None, device: str) -> pd.DataFrame:
    """The k scans of an index that are most like `name` (itself, and scans of the same patient where patients are known, left
    out): rank, study, similarity, and findings where known. `picture`: a montage of the query beside them."""
    index = Index.load(folder)
    vector, views, own = index.query(name, device)
    studies = index.studies
    same = np.zeros(len(studies), bool)
    if own is not None:
        same[own] = True
        if "patient" in studies and studies["patient"][own]:
            same |= (studies["patient"] == studies["patient"][own]).to_numpy()
    rows, similarity = index.nearest(vector, k + int(same.sum()))
    kept = ~same[rows]
    rows, similarity = rows[kept][:k], similarity[kept][:k]
    table = pd.DataFrame(
        {"rank": np.arange(1, len(rows) + 1), "study": studies["study"].to_numpy()[rows], "similarity": similarity.round(4)}
    )
    if "findings" in studies:
        table["findings"] = studies["findings"].to_numpy()[rows]
    if picture:
        of = lambda row: f"\n{studies['findings'][row]}" if "findings" in studies else ""  # noqa: E731
        query = f"query {Path(name).name}" + (of(own) if own is not None else "")
        shown = [
            (f"{r}. {s}: {v:.3f}{of(row)}", index.views[row])
            for r, s, v, row in zip(table["rank"], table["study"], similarity, rows, strict=True)
        ]
        montage(picture, [(query, views), *shown], "Query and most similar scans (similarity; findings)")
    return table
