"""Parameters of the BreakHis study."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quintet.params.common import (
    AdamCosine,
    Configuration,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Section,
    Seed,
    StudyData,
    StudyParams,
    Sweep,
)

Magnification = Literal["40X", "100X", "200X", "400X"]
Attention = Literal["channel", "spatial", "hierarchical", "fusion"]
BASELINES = ("prior", "stain", "oracle")
STRIDE = {"small": 16, "b0": 32, "b1": 32, "lite0": 32}  # input pixels per pixel of the last feature map


class BreakHisSynthetic(Section):
    patients: Annotated[int, Field(ge=20)]
    width: Annotated[int, Field(ge=64, le=1400)]
    separation: NonNegative
    seed: Seed


class BreakHisData(StudyData):
    size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    near_duplicate_distance: Annotated[int, Field(ge=0, le=32)]
    folds: Annotated[int, Field(ge=2)]
    split: str
    split_seed: Seed
    validation: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def consistent(self) -> "BreakHisData":
        if self.split not in ("grouped", "official") and not self.split.endswith(".csv"):
            raise ValueError(f"split={self.split!r}: choose grouped, official or the path of a .csv file")
        return self


class BreakHisLoss(Section):
    alpha: Positive
    gamma: NonNegative
    smoothing: Annotated[float, Field(ge=0, lt=1)]
    class_weights: bool
    types: NonNegative


class BreakHisAugment(Section):
    flip: Fraction
    rotation: Fraction
    rotation_deg: Annotated[float, Field(ge=0, le=180)]
    elastic: Fraction
    blur: Fraction
    colour: Fraction
    colour_jitter: Annotated[float, Field(ge=0, le=0.9)]
    erase: Fraction


class BreakHisConfig(Configuration):
    """Which magnifications the network sees, which attention modules it has, and what is trained."""

    magnifications: Annotated[list[Magnification], Field(min_length=1)]
    attention: list[Attention]
    trains: Literal["all", "linear"]

    @model_validator(mode="after")
    def check_combination(self) -> "BreakHisConfig":
        for key, values in (("magnifications", self.magnifications), ("attention", self.attention)):
            if len(set(values)) < len(values):
                raise ValueError(f"an entry is listed twice in {key}={values}")
        if self.trains == "linear" and self.attention:
            raise ValueError("trains=linear is a probe of frozen features: it needs attention=[]")
        between = [name for name in self.attention if name in ("hierarchical", "fusion")]
        if between and len(self.magnifications) == 1:
            raise ValueError(f"attention={between} works between magnifications: it needs two or more of them")
        return self


class BreakHisTraining(AdamCosine):
    backbone: Literal["small", "b0", "b1", "lite0"]
    weights: str
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)]
    units: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    validation_dropout: bool
    epochs: PositiveInt
    samples: PositiveInt
    batch_size: Literal["auto"] | Annotated[int, Field(ge=3)]  # batches are made even: batch norm needs two
    rate: Positive
    schedule: Literal["plateau", "cosine"]
    keep: Literal["best", "last"]
    plateau_patience: NonNegativeInt
    plateau_factor: Annotated[float, Field(gt=0, lt=1)]
    loss: BreakHisLoss
    mixup: NonNegative
    drop_magnification: Annotated[float, Field(ge=0, lt=1)]
    augment: BreakHisAugment

    @model_validator(mode="after")
    def consistent(self) -> "BreakHisTraining":
        if self.weights != "none" and self.backbone == "small":
            raise ValueError(f"weights={self.weights} belong to a whole EfficientNet: they need backbone=b0, b1 or lite0")
        if (self.weights == "package" and self.backbone != "lite0") or (self.weights == "imagenet" and self.backbone == "lite0"):
            raise ValueError(
                f"weights={self.weights} do not exist for backbone={self.backbone}: package is for lite0, imagenet for b0 and b1"
            )
        return self


class BreakHis(BreakHisConfig, StudyParams):
    """The keys of the selected configuration are at the top level."""

    synthetic: BreakHisSynthetic
    data: BreakHisData
    fold: NonNegativeInt
    seed: Seed
    training: BreakHisTraining
    sweep: Sweep
    configs: Annotated[dict[str, BreakHisConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def consistent(self) -> "BreakHis":
        backbone, size = self.training.backbone, self.data.size
        if size < 2 * STRIDE[backbone]:
            raise ValueError(f"data.size={size} leaves backbone={backbone} one pixel: at least {2 * STRIDE[backbone]} are needed")
        self.sweep.check(self.configs)
        if taken := [name for name in BASELINES if name in self.configs]:
            raise ValueError(f"configs: {taken[0]!r} is the name of a baseline; rename this configuration")
        self.sweep.check_folds(fold=self.fold, folds=self.data.folds)
        return self
