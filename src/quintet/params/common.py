"""Types and sections that every study's parameters are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
PRECISIONS = Literal["auto", "bf16", 32, 16]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Compute(Section):
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Seed
    tensorboard: bool
    debug: bool


class RankingParams(Section):
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    bootstrap: Annotated[int, Field(ge=100)]


class Optimisation(Section):
    """What every study's training has in common (training/fit.py)."""

    batch_size: Count
    precision: PRECISIONS
    weight_decay: NonNegative
    clip_norm: NonNegative
    accumulate: Count


class AdamCosine(Optimisation):
    rate_floor: NonNegative
    warmup: Share
    patience: Seed
