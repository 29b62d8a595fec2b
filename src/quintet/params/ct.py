"""Parameters of the chest CT study."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quintet.params.common import (
    AdamCosine,
    Configuration,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
    Section,
    Seed,
    SeedSweep,
    StudyData,
    StudyParams,
    check_names,
)

LEGACY_PX = 300  # rows and columns that the legacy network is made for
MIN_PX = 65  # rows and columns that leave the first 3D convolution 3 x 3
BASELINES = ("random", "prior", "histogram", "random-network")
ORACLE = "oracle"


class CtReader(Section):
    sensitivity: Fraction
    specificity: Fraction


class CtPrevalence(Section):
    consolidation: Fraction
    nodules: Fraction
    cysts: Fraction


class CtSynthetic(Section):
    scans: Annotated[int, Field(ge=40)]
    matrix: Annotated[int, Field(ge=32, le=512)]
    prevalence: CtPrevalence
    association: Annotated[float, Field(ge=0, lt=1)]
    reader: CtReader
    seed: Seed


class CtData(StudyData):
    size: Annotated[int, Field(ge=16, le=512)]
    box_mm: NonNegative
    findings: Literal["all"] | Annotated[list[str], Field(min_length=1)]
    window: Annotated[list[float], Field(min_length=2, max_length=2)]
    split: str
    split_seed: Seed
    test: Annotated[float, Field(gt=0, lt=1)]
    validation: Annotated[float, Field(gt=0, lt=1)]
    train_eval: Fraction

    @property
    def chosen_findings(self) -> list[str] | None:
        """None: all of labels.csv."""
        return None if self.findings == "all" else self.findings

    @model_validator(mode="after")
    def consistent(self) -> "CtData":
        if self.split != "grouped" and not self.split.endswith(".csv"):
            raise ValueError(f"split={self.split!r}: choose grouped or the path of a .csv file")
        if self.chosen_findings and len(set(self.chosen_findings)) < len(self.chosen_findings):
            raise ValueError(f"findings: an entry is listed twice in {self.chosen_findings}; delete one")
        if self.test + self.validation >= 1:
            raise ValueError(f"test={self.test} and validation={self.validation} leave nothing to train on")
        if self.window[0] >= self.window[1]:
            raise ValueError(f"window={self.window}: the lower end in HU must come first")
        return self


class CtAugment(Section):
    mirror: Fraction
    affine: Fraction
    rotation_deg: Annotated[float, Field(ge=0, le=90)]
    scale: Annotated[float, Field(ge=0, lt=0.9)]
    noise: Fraction
    noise_sd: NonNegative


class CtConfig(Configuration):
    """Which network, what it is trained for, and which triplets it learns from."""

    arch: Literal["adaptive", "legacy"]
    objective: Literal["micro_f1", "triplet", "graded_contrast"]
    selector: Literal["none", "all", "hardest", "random_hard", "semi_hard"]

    @model_validator(mode="after")
    def check_combination(self) -> "CtConfig":
        if (self.objective == "triplet") == (self.selector == "none"):
            raise ValueError(
                f"objective={self.objective} with selector={self.selector}: triplet needs all, hardest, random_hard or "
                "semi_hard, the others need none"
            )
        return self


Batches = Literal["random", "overlapping", "disjoint"]


class CtBatches(Section):
    triplet: Batches
    graded_contrast: Batches


class CtCrossEntropy(Section):
    """Weights by objective."""

    micro_f1: NonNegative
    triplet: NonNegative
    graded_contrast: NonNegative


class CtTraining(AdamCosine):
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
    batches: CtBatches
    classes: Annotated[int, Field(ge=2)]
    samples: Annotated[int, Field(ge=2)]
    rate: Positive
    schedule: Literal["step", "cosine"]
    step_epochs: PositiveInt
    step_factor: Annotated[float, Field(gt=0, lt=1)]
    f1_average: Literal["samples", "micro"]
    f1_smooth: NonNegative
    cross_entropy: CtCrossEntropy
    margin: Positive
    temperature: Positive
    augment: CtAugment

    @model_validator(mode="after")
    def consistent(self) -> "CtTraining":
        depth, *plane = self.input_size
        if depth % 3:
            raise ValueError(f"input_size={self.input_size}: slices are grouped in threes, {depth} is not a multiple of 3")
        if min(plane) < MIN_PX:
            raise ValueError(
                f"input_size={self.input_size}: under {MIN_PX} rows or columns the first 3D convolution gets less than 3 x 3"
            )
        if self.weights != "none" and self.width != 64:
            raise ValueError(f"weights={self.weights} belong to a full ResNet-18: they need width=64, got {self.width}")
        return self


class CtEvaluation(Section):
    neighbours: PositiveInt


class Ct(CtConfig, StudyParams):
    """The keys of the selected configuration are at the top level."""

    synthetic: CtSynthetic
    data: CtData
    seed: Seed
    training: CtTraining
    evaluation: CtEvaluation
    index: Literal["exact", "hnsw", "ivf"]
    external: dict[str, str]
    sweep: SeedSweep
    configs: Annotated[dict[str, CtConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def consistent(self) -> "Ct":
        self.sweep.check(self.configs)
        check_names(self.external)
        for name in self.configs | self.external:
            if name in (*BASELINES, ORACLE) or (name in self.external and name in self.configs):
                raise ValueError(f"{name!r} is the name of a baseline or of two entries of configs and external; rename it")
        for name, path in self.external.items():
            if not path.endswith((".npz", ".parquet")):
                raise ValueError(f"external.{name}: {path!r} is not a .npz or .parquet file of ids and vectors")
        return self

    def training_values(self) -> dict[str, Any]:
        """Validation lets neighbours vote."""
        return super().training_values() | {"neighbours": self.evaluation.neighbours}
