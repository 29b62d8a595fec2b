"""`quintet index ct` and `quintet search ct`: embed a folder once, then find the scans most similar to a given one.

An index is a folder that needs no other files: vectors.npy `[N, E]`, studies.csv (study, file and, if there is a labels.csv,
patient and findings), views.npy `[N, 3, S, S]` (middle slices, for montages), index.json, models/*.pt and, with FAISS,
faiss.index.
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

from quintet.ct.data.raw import LABELS, Labels, find_scans, read_cube, read_labels
from quintet.ct.evaluation.figures import Views, middle_slices, montage
from quintet.ct.evaluation.inference import Model, embed_with_all, load_models
from quintet.ct.prediction import embed_scans
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_folder, write_json

LISTS = 4  # of an IVF index, per square root of the number of scans
LINKS = 32  # per scan of an HNSW index
RECALL_AT = 10  # nearest scans whose recall against exact search is reported
Floats = NDArray[np.float32]


def build(runs: Sequence[Path], source: Path, out: Path, *, kind: str, device: str, skip: bool) -> dict[str, Any]:
    """Write the index of all scans in `source` to the folder `out`; returns the contents of index.json.

    `kind`: exact, hnsw or ivf. Unreadable scans raise InputProblemsError, or are left out with `skip`.
    """
    faiss = _import_faiss() if kind != "exact" else None
    scans = find_scans(source)
    labels = read_labels(source) if (Path(source) / LABELS).is_file() else None
    models, problems = load_models(runs, device), list[str]()
    names, vectors, views = [], [], []
    for name, cube, embedding in embed_scans(models, scans, problems):
        names.append(name)
        vectors.append(embedding.vectors[0])
        views.append(middle_slices(cube))
    if problems and (not skip or not names):
        raise InputProblemsError(f"{source} (--skip leaves them out)", problems)
    stacked = np.stack(vectors)
    about: dict[str, Any] = {
        "study": "ct",
        "kind": kind,
        "scans": len(names),
        "dimensions": stacked.shape[1],
        "models": len(models),
    }
    with atomic_folder(out) as folder:
        if faiss is not None:
            about |= _write_faiss_index(faiss, kind, stacked, folder / "faiss.index")
        np.save(folder / "vectors.npy", stacked)
        np.save(folder / "views.npy", np.stack(views))
        _scan_table(names, scans, labels).to_csv(folder / "studies.csv", index=False)
        (folder / "models").mkdir()
        for number, run in enumerate(runs):
            shutil.copy(run / "model" / "model.pt", folder / "models" / f"{number}.pt")
        write_json(folder / "index.json", about)
    for problem in problems:
        print(f"skipped: {problem}")
    return about


def _scan_table(names: list[str], scans: dict[str, Path], labels: Labels | None) -> pd.DataFrame:
    table = pd.DataFrame({"study": names, "file": [scans[name].name for name in names]})
    if labels is not None:
        known = labels.table.reindex(names)
        table["patient"] = known["patient"].to_numpy()
        table["findings"] = [_findings_text(row, labels.findings) for _, row in known.iterrows()]
    return table


def _findings_text(row: pd.Series, findings: Sequence[str]) -> str:
    return "" if row[list(findings)].isna().any() else ", ".join(name for name in findings if row[name]) or "none"


def _import_faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise InputError(
            "ct.index=hnsw and ivf need a package: pip install -c constraints.txt faiss-cpu (exact needs none)"
        ) from None
    return faiss


def _write_faiss_index(faiss: Any, kind: str, vectors: Floats, path: Path) -> dict[str, float]:
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
    if count < 2:
        return {}
    k = min(RECALL_AT, count - 1)  # without the query itself, which every index finds
    _, found = index.search(vectors, k + 1)
    exact = np.argsort(-vectors @ vectors.T, axis=1, kind="stable")
    shared = [
        len({other for other in a if other != row} & set([other for other in b if other != row][:k])) / k
        for row, (a, b) in enumerate(zip(found.tolist(), exact.tolist(), strict=True))
    ]
    return {f"recall_at_{k}_against_exact": float(np.mean(shared))}


@dataclass(frozen=True)
class Index:
    about: dict[str, Any]  # index.json
    scans: pd.DataFrame  # studies.csv
    vectors: Floats
    views: NDArray[np.uint8]  # [N, 3, S, S]
    folder: Path

    @staticmethod
    def load(folder: Path) -> "Index":
        try:
            about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            scans = pd.read_csv(folder / "studies.csv", dtype=str, keep_default_na=False)
            vectors, views = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("vectors", "views"))
            if not len(scans) == len(vectors) == len(views) == about["scans"]:
                raise ValueError("its files disagree about the number of scans")
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: not an index, or damaged ({error}); make one with `quintet index ct`") from None
        return Index(about, scans, vectors, views, folder)

    def query(self, name: str, device: str) -> tuple[Floats, Views, int | None]:
        """Vector, views and row of a query: the name of a scan in the index, or the path of a scan (row None if the index
        does not have it)."""
        rows = np.flatnonzero(self.scans["study"] == name)
        if len(rows):
            return self.vectors[rows[0]], self.views[rows[0]], int(rows[0])
        path = Path(name)
        if not path.exists():
            examples = ", ".join(self.scans["study"][:3])
            raise InputError(f"{name}: neither a scan in the index (such as {examples}) nor a series folder or NIfTI file")
        models = [Model.read(p, device) for p in sorted((self.folder / "models").glob("*.pt"), key=lambda p: int(p.stem))]
        cube, _ = read_cube(path, models[0].cubes, threads=2)
        vector = embed_with_all(models, cube[None]).vectors[0]
        same = (self.scans["file"] == path.name) & (self.vectors @ vector > 1 - 1e-5)
        return vector, middle_slices(cube), int(same.idxmax()) if same.any() else None

    def nearest(self, vector: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
        """Rows and similarities, most similar first; exact search keeps ties in the order of the index."""
        count = min(count, len(self.vectors))
        if self.about["kind"] == "exact":
            similarity = np.asarray(self.vectors @ vector)
            rows = np.argsort(-similarity, kind="stable")[:count]
            return rows, similarity[rows]
        index = _import_faiss().read_index(str(self.folder / "faiss.index"))
        if self.about["kind"] == "hnsw":  # as many candidates as results find half of them
            index.hnsw.efSearch = max(index.hnsw.efSearch, 4 * count)
        similarity, rows = index.search(np.ascontiguousarray(vector[None]), count)
        if (rows < 0).any() and self.about["kind"] == "ivf":  # the lists that were searched hold too few scans
            index.nprobe = index.nlist
            similarity, rows = index.search(np.ascontiguousarray(vector[None]), count)
        found = rows[0] >= 0
        return rows[0][found], similarity[0][found]

    def same_patient(self, row: int) -> NDArray[np.bool_]:
        """`[N]`: the scan itself and, if patients are known, the other scans of its patient."""
        same = np.arange(len(self.scans)) == row
        if "patient" in self.scans and self.scans["patient"][row]:
            same |= (self.scans["patient"] == self.scans["patient"][row]).to_numpy()
        return same

    def caption(self, row: int) -> str:
        return f"\n{self.scans['findings'][row]}" if "findings" in self.scans else ""


def search(folder: Path, name: str, k: int, *, picture: Path | None, device: str) -> pd.DataFrame:
    """The k scans of an index that are most similar to `name`: rank, study, similarity and, if known, findings.

    The query itself and, if patients are known, the other scans of its patient are left out. `picture`: where to write a montage
    of the query beside the scans found.
    """
    index = Index.load(folder)
    vector, views, own = index.query(name, device)
    excluded = np.zeros(len(index.scans), bool) if own is None else index.same_patient(own)
    rows, similarity = index.nearest(vector, k + int(excluded.sum()))
    kept = ~excluded[rows]
    rows, similarity = rows[kept][:k], similarity[kept][:k]
    names = index.scans["study"].to_numpy()[rows]
    table = pd.DataFrame({"rank": np.arange(1, len(rows) + 1), "study": names, "similarity": similarity.round(4)})
    if "findings" in index.scans:
        table["findings"] = index.scans["findings"].to_numpy()[rows]
    if picture:
        query = f"query {Path(name).name}" + (index.caption(own) if own is not None else "")
        neighbours = [
            (f"{rank}. {study}: {value:.3f}{index.caption(row)}", index.views[row])
            for rank, study, value, row in zip(table["rank"], names, similarity, rows, strict=True)
        ]
        montage(picture, [(query, views), *neighbours], "Query and most similar scans (similarity; findings)")
    return table
