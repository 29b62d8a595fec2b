"""Types and sections that every study's parameters are made of."""

from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
PRECISIONS = Literal["auto", "bf16", 32, 16]


class StudyName(StrEnum):
    landmarks = "landmarks"
    perfusion = "perfusion"
    breakhis = "breakhis"
    ct = "ct"
    fusion = "fusion"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Compute(Section):
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Seed
    workers: Literal["auto"] | Seed
    tensorboard: bool
    debug: bool


class RankingParams(Section):
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    bootstrap: Annotated[int, Field(ge=100)]


class Optimisation(Section):
    """What every study's training has in common (training/fit.py)."""

    precision: PRECISIONS
    weight_decay: NonNegative
    clip_norm: NonNegative
    accumulate: PositiveInt


class AdamCosine(Optimisation):
    rate_floor: NonNegative
    warmup: Fraction
    patience: Seed


class SeedSweep(Section):
    """The cells of a study with one split: configuration x seed."""

    configs: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]

    @property
    def runs(self) -> list[str]:
        """The names of a configuration's run folders."""
        return [f"seed{seed}" for seed in self.seeds]

    def check(self, configs: Collection[str]) -> None:
        """Raise ValueError where a cell cannot be: an unknown configuration, an entry twice."""
        if unknown := [name for name in self.configs if name not in configs]:
            raise ValueError(f"sweep.configs: {', '.join(unknown)}: no such configuration; there are {', '.join(configs)}")
        for what, values in self.model_dump().items():
            if len(set(values)) < len(values):
                raise ValueError(f"sweep.{what}: an entry stands twice in {values}")
        check_names(configs)


class Sweep(SeedSweep):
    """The cells of a study with folds: configuration x fold x seed."""

    folds: Annotated[list[Seed], Field(min_length=1)]

    @property
    def runs(self) -> list[str]:
        return [f"fold{fold}-seed{seed}" for fold in self.folds for seed in self.seeds]

    def check_folds(self, *, fold: int, folds: int) -> None:
        """Raise ValueError where a fold is not there."""
        for what, chosen in (("fold", [fold]), ("sweep.folds", self.folds)):
            if wrong := [f for f in chosen if f >= folds]:
                raise ValueError(f"{what}: {wrong[0]} is too large; folds={folds} are numbered 0 to {folds - 1}")


def check_names(configs: Collection[str]) -> None:
    for name in configs:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"configs: {name!r}: letters, digits, - and _ only (it names a folder)")
