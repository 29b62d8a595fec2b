"""What runs say of a user's folder: `quintet predict ct` and `quintet evaluate ct`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.ct.evaluation import evaluate, read_vectors
from quintet.ct.inference import Embedded, Model, joined, load_models
from quintet.ct.metrics import Scans, cosine
from quintet.ct.raw import Labels, find_studies, match, read_cube, read_labels
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_file
from quintet.params import Ct
from quintet.runs import Record, new_record


def embed_studies(
    models: Sequence[Model], studies: dict[str, Path], problems: list[str]
) -> Iterator[tuple[str, NDArray[np.uint8], Embedded]]:
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
        raise InputProblemsError(f"{source} (--skip leaves them out)", problems)
    names, vectors = np.array([name for name, _ in found]), np.concatenate([own.vectors for _, own in found])
    with atomic_file(output) as beside:
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
            raise InputProblemsError(str(raw), problems)
        names, found = np.array(kept), _stacked(parts)
        record = Record.load(runs[0])
    return evaluate(
        cosine(found.vectors),
        _scans(labels, names),
        neighbours=params.neighbours,
        record=record,
        out=out,
        probability=found.probability,
        vectors=found.vectors,
    )


def _stacked(parts: list[Embedded]) -> Embedded:
    heads = [part.probability for part in parts if part.probability is not None]
    return Embedded(np.concatenate([part.vectors for part in parts]), np.concatenate(heads) if heads else None)


def _scans(labels: Labels, names: NDArray[Any]) -> Scans:
    own = labels.table.loc[list(names)]
    return Scans(names, own["patient"].to_numpy(str), own[labels.findings].to_numpy(np.float32), labels.findings)
