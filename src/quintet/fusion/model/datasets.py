"""Batches of patients, requested by lists of rows: images and vectors, or the tokens of frozen encoders."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from quintet.fusion.data.prepared import Prepared


class Patients(Dataset[dict[str, Any]]):
    """Batches of patients, requested by lists of rows; volumes are read from the memory-mapped file."""

    def __init__(self, data: Prepared) -> None:
        self.volumes, self.names = data.volumes, data.table["patient"].tolist()
        self.vectors, self.present = [torch.from_numpy(v) for v in data.vectors], torch.from_numpy(data.present)
        self.target = torch.from_numpy(data.target)

    def __getitem__(self, rows: list[int]) -> dict[str, Any]:
        volumes = torch.from_numpy(np.stack([self.volumes[row] for row in rows])).float()
        return {
            "volumes": volumes,
            "vectors": [v[rows] for v in self.vectors],
            "present": self.present[rows],
            "target": self.target[rows],
            "rows": torch.tensor(rows),
            "case": [self.names[row] for row in rows],
        }


class Tokens(Dataset[dict[str, Any]]):
    """Batches of patients whose encoders are frozen: their tokens `[N, K, D]`, computed once."""

    def __init__(self, tokens: Tensor, patients: Patients) -> None:
        self.tokens, self.names, self.present, self.target = tokens, patients.names, patients.present, patients.target

    def __getitem__(self, rows: list[int]) -> dict[str, Any]:
        return {
            "tokens": self.tokens[rows],
            "present": self.present[rows],
            "target": self.target[rows],
            "rows": torch.tensor(rows),
            "case": [self.names[row] for row in rows],
        }
