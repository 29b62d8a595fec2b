"""Parameters of the perfusion study."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quintet.params.common import (
    Configuration,
    Ensembles,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Optimisation,
    Positive,
    PositiveInt,
    Section,
    Seed,
    StudyData,
    StudyParams,
    SubjectPattern,
    Sweep,
)

PerfusionLoss = Literal["spatial", "complementary", "multiscale", "adaptive"]
Normalisation = Literal["channel", "joint"]
BASELINES = ("threshold", "oracle")
EXCLUSIVE = ("spatial", "multiscale", "adaptive")  # three forms of one term


class PerfusionSynthetic(Section):
    subjects: Annotated[int, Field(ge=5)]
    seed: Seed


class PerfusionData(StudyData):
    subject_pattern: SubjectPattern
    normalisation: Normalisation
    folds: Annotated[int, Field(ge=2)]
    split: str
    split_seed: Seed

    @model_validator(mode="after")
    def consistent(self) -> "PerfusionData":
        if self.split != "auto" and not self.split.endswith(".json"):
            raise ValueError(f"split={self.split!r}: choose auto or the path of a splits_final.json")
        return self


class PerfusionAugment(Section):
    """Shares of the images that each transform changes; ranges are nnU-Net's (model/augmentation.py)."""

    rotation: Fraction
    rotation_deg: Annotated[float, Field(ge=0, le=180)]
    scale: Fraction
    noise: Fraction
    blur: Fraction
    brightness: Fraction
    contrast: Fraction
    low_resolution: Fraction
    gamma: Fraction
    gamma_inverted: Fraction
    mirror_left_right: Fraction
    mirror_front_back: Fraction


class PerfusionLossWeights(Section):
    spatial: NonNegative
    complementary: NonNegative
    multiscale: NonNegative
    adaptive: Annotated[list[NonNegative], Field(min_length=2, max_length=2)]


class PerfusionConfig(Configuration):
    """`separate_at` may be left out: decoder."""

    arch: Literal["shared", "separate", "crossattention"]
    losses: list[PerfusionLoss]
    separate_at: Literal["decoder", "head"] = "decoder"

    @model_validator(mode="after")
    def check_combination(self) -> "PerfusionConfig":
        if len(set(self.losses)) < len(self.losses):
            raise ValueError(
                f"a loss is listed twice in losses={self.losses}; change its weight in training.loss_weights instead"
            )
        if len(forms := [name for name in self.losses if name in EXCLUSIVE]) > 1:
            raise ValueError(f"losses: {' and '.join(forms)} are forms of one term; keep one of them")
        if self.arch != "separate" and self.separate_at == "head":
            raise ValueError(f"separate_at=head belongs to arch=separate; arch={self.arch} needs separate_at=decoder")
        return self


class PerfusionTraining(Optimisation):
    epochs: PositiveInt
    iterations: PositiveInt
    batch_size: PositiveInt
    patch: Annotated[list[Annotated[int, Field(ge=16, multiple_of=2)]], Field(min_length=2, max_length=2)]
    features: Annotated[int, Field(ge=4, le=64, multiple_of=4)]
    deep_supervision: bool
    attention_tokens: Annotated[int, Field(ge=4)]
    rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    oversample_foreground: Fraction
    loss_weights: PerfusionLossWeights
    augment: PerfusionAugment


class PerfusionBaselines(Section):
    """What the threshold is chosen from."""

    sigma_px: Annotated[list[NonNegative], Field(min_length=1)]
    share: Annotated[list[Fraction], Field(min_length=1)]
    flow: Annotated[list[NonNegative], Field(min_length=1)]


class PerfusionEvaluation(Section):
    mirror_average: bool
    save_probabilities: bool


class PerfusionSweep(Sweep, Ensembles):
    """Configurations on folds with seeds, and ensembles of these runs."""


class Perfusion(PerfusionConfig, StudyParams):
    """The keys of the selected configuration are at the top level."""

    synthetic: PerfusionSynthetic
    data: PerfusionData
    fold: NonNegativeInt
    seed: Seed
    training: PerfusionTraining
    evaluation: PerfusionEvaluation
    baselines: PerfusionBaselines
    sweep: PerfusionSweep
    configs: Annotated[dict[str, PerfusionConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def consistent(self) -> "Perfusion":
        self.sweep.check(self.configs)
        self.sweep.check_ensembles(self.sweep.configs)
        if taken := [name for name in BASELINES if name in self.configs or name in self.sweep.ensembles]:
            raise ValueError(f"configs: {taken[0]} is a baseline; choose another name")
        self.sweep.check_folds(fold=self.fold, folds=self.data.folds)
        return self
