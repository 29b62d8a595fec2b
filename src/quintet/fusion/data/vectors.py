"""Modalities that are tables of numbers, such as radiomic features, as a few components. Fitted on training patients only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CLIP_SD = 5.0  # standardised values are clipped: a single stray value must not decide a component
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class VectorEncoder:
    """Standardises `columns` and reduces them to principal components of unit variance, all fitted on training patients."""

    columns: list[str]
    mean: list[float]
    sd: list[float]
    components: list[list[float]]  # [columns, width]; they divide by the SD of a component

    @property
    def width(self) -> int:
        return len(self.components[0]) if self.components else 0

    @staticmethod
    def fit(table: pd.DataFrame, width: int) -> "VectorEncoder":
        """`table`: numbers of training patients, NaN where missing. Columns without spread are left out. At most `width`
        components (fewer if there are fewer columns or patients)."""
        rows = table.dropna(how="all")
        rows = rows.loc[:, rows.std(ddof=0) > 1e-9 * rows.abs().max()]
        mean, sd = rows.mean(), rows.std(ddof=0)
        x = _standardised(rows, mean.to_numpy(), sd.to_numpy())
        if not x.size:
            return VectorEncoder([], [], [], [])
        _, scale, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
        scale = scale / np.sqrt(len(x))
        kept = [k for k in range(min(width, len(scale))) if scale[k] > 1e-6 * scale[0]]
        # the sign of a component is arbitrary: the largest weight is positive
        axes = axes[kept] * np.sign(axes[kept, np.abs(axes[kept]).argmax(1)])[:, None]
        components = (axes / scale[kept, None]).T
        return VectorEncoder([str(c) for c in rows], mean.tolist(), sd.tolist(), components.tolist())

    def __call__(self, table: pd.DataFrame) -> tuple[Floats, NDArray[np.bool_]]:
        """Components `[N, width]`, and which patients have any number `[N]`; a missing number counts as the training mean."""
        known = table.reindex(columns=self.columns)
        x = _standardised(known, np.array(self.mean), np.array(self.sd)) if self.columns else np.zeros((len(table), 0))
        values = x @ np.array(self.components).reshape(len(self.columns), self.width)
        return values.astype(np.float32), known.notna().any(axis=1).to_numpy()

    def missing_columns(self, table: pd.DataFrame) -> list[str]:
        return [name for name in self.columns if name not in table]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a saved model."""
        return vars(self).copy()


def _standardised(table: pd.DataFrame, mean: NDArray[np.floating[Any]], sd: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    values = (table.to_numpy(float) - mean) / sd
    return np.clip(np.nan_to_num(values), -CLIP_SD, CLIP_SD)


def encode(
    tables: Mapping[str, pd.DataFrame], encoders: Mapping[str, VectorEncoder], patients: Sequence[str]
) -> tuple[list[Floats], NDArray[np.bool_]]:
    """Of each modality the components `[N, width]` of these patients, and which of the modalities they have `[N, V]`."""
    found = [encoders[name](tables[name].reindex(list(patients))) for name in encoders]
    has = np.stack([known for _, known in found], 1) if found else np.zeros((len(patients), 0), bool)
    return [values for values, _ in found], has
