"""Parameters of the chest CT study."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quintet.params.common import AdamCosine, Fraction, NonNegative, Positive, PositiveInt, Section, Seed, SeedSweep, check_names

LEGACY_PX = 300  # rows and columns that the legacy network is made for
FEWEST_PX = 65  # rows and columns that leave the first 3D convolution 3 x 3
BASELINES = ("random", "prior", "histogram")


class CtSynthetic(Section):
    scans: Annotated[int, Field(ge=40)]
    matrix: Annotated[int, Field(ge=32, le=512)]
    seed: Seed


class CtAugment(Section):
    affine: Fraction
    rotation_deg: Annotated[float, Field(ge=0, le=90)]
    scale: Annotated[float, Field(ge=0, lt=0.9)]
    noise: Fraction
    noise_sd: NonNegative


class CtConfig(Section):
    """One configuration: which network, what it is trained for, which triplets it learns from."""

    arch: Literal["adaptive", "legacy"]
    objective: Literal["micro_f1", "triplet"]
    selector: Literal["none", "all", "hardest", "random_hard", "semi_hard"]

    @model_validator(mode="after")
    def possible(self) -> "CtConfig":
        if (self.objective == "triplet") == (self.selector == "none"):
            raise ValueError(
                f"objective={self.objective} with selector={self.selector}: triplet needs all, hardest, random_hard or "
                "semi_hard, micro_f1 needs none"
            )
        return self


class CtChoice(CtConfig):
    """The selected configuration: its fields stand at the study's top level."""

    seed: Seed


class Ct(CtChoice, AdamCosine):
    raw: str
    on_error: Literal["raise", "skip"]
    synthetic: CtSynthetic
    size: Annotated[int, Field(ge=16, le=512)]
    window: Annotated[list[float], Field(min_length=2, max_length=2)]
    split: str
    split_seed: Seed
    test: Annotated[float, Field(gt=0, lt=1)]
    validation: Annotated[float, Field(gt=0, lt=1)]
    train_eval: Fraction
    input_size: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    weights: str
    width: Annotated[int, Field(ge=8, le=128, multiple_of=8)]
    units: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
    embedding: Annotated[int, Field(ge=2)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    chunk: Annotated[int, Field(ge=0)]
    centre: bool
    epochs: PositiveInt
    batch_size: PositiveInt
    classes: Annotated[int, Field(ge=2)]
    samples: Annotated[int, Field(ge=2)]
    rate: Positive
    schedule: Literal["step", "cosine"]
    step_epochs: PositiveInt
    step_factor: Annotated[float, Field(gt=0, lt=1)]
    f1_average: Literal["samples", "micro"]
    f1_smooth: NonNegative
    cross_entropy: NonNegative
    margin: Positive
    augment: CtAugment
    neighbours: PositiveInt
    index: Literal["exact", "hnsw", "ivf"]
    external: dict[str, str]
    sweep: SeedSweep
    configs: Annotated[dict[str, CtConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def consistent(self) -> "Ct":
        if self.split != "grouped" and not self.split.endswith(".csv"):
            raise ValueError(f"split={self.split!r}: allowed are grouped or the path of a .csv file")
        if self.test + self.validation >= 1:
            raise ValueError(f"test={self.test} and validation={self.validation} leave nothing to train on")
        if self.window[0] >= self.window[1]:
            raise ValueError(f"window={self.window}: the lower end in HU comes first")
        depth, *plane = self.input_size
        if depth % 3:
            raise ValueError(f"input_size={self.input_size}: slices go in threes, {depth} is not a multiple of 3")
        if min(plane) < FEWEST_PX:
            raise ValueError(
                f"input_size={self.input_size}: under {FEWEST_PX} rows or columns the first 3D convolution gets less than 3 x 3"
            )
        if self.weights != "none" and self.width != 64:
            raise ValueError(f"weights={self.weights} are those of a full ResNet-18: they need width=64, got {self.width}")
        self.sweep.check(self.configs)
        check_names(self.external)
        for name in self.configs | self.external:
            if name in BASELINES or (name in self.external and name in self.configs):
                raise ValueError(f"{name!r} is the name of a baseline or of two entries of configs and external; rename it")
        for name, path in self.external.items():
            if not path.endswith((".npz", ".parquet")):
                raise ValueError(f"external.{name}: {path!r} is no .npz or .parquet file of ids and vectors")
        return self
