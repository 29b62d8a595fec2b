"""Parameters of the landmarks study."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from quintet.params.common import (
    AdamCosine,
    Configuration,
    Ensembles,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
    Section,
    Seed,
    Seeds,
    StudyData,
    StudyParams,
    check_names,
)

LandmarksLoss = Literal["wing", "symmetry", "distance", "jensen_shannon"]
BASELINES = ("mean_shape", "ridge", "oracle")
UNIT = "px at 224"  # of errors


class LandmarksSynthetic(Section):
    images: Annotated[int, Field(ge=20)]
    size: Annotated[int, Field(ge=64, le=2048)]
    seed: Seed
    label_noise_px: NonNegative


class LandmarksData(StudyData):
    size: Annotated[int, Field(ge=32, le=1024, multiple_of=16)]
    clahe: Fraction
    split: str
    split_seed: Seed
    near_duplicate_distance: Annotated[int, Field(ge=0, le=32)]

    @model_validator(mode="after")
    def consistent(self) -> "LandmarksData":
        if self.split not in ("reference", "stratified", "grouped") and not self.split.endswith(".csv"):
            raise ValueError(f"split={self.split!r}: choose reference, stratified, grouped or the path of a .csv file")
        return self


class LandmarksAugment(Section):
    flip: Fraction
    rotation_deg: Annotated[float, Field(ge=0, le=90)]
    scale: Annotated[float, Field(ge=0, lt=0.9)]
    shift: Annotated[float, Field(ge=0, le=0.5)]
    brightness: Annotated[float, Field(ge=0, lt=1)]
    contrast: Annotated[float, Field(ge=0, lt=1)]


class LandmarksLossWeights(Section):
    wing: NonNegative
    symmetry: NonNegative
    distance: NonNegative
    jensen_shannon: NonNegative


class LandmarksConfig(Configuration):
    arch: Literal["resnet18", "unet"]
    head: Literal["regression", "heatmap"]
    attention: bool
    losses: Annotated[list[LandmarksLoss], Field(min_length=1)]
    trains: Literal["all", "head"]
    epochs: PositiveInt
    rate_backbone: NonNegative
    rate_head: Positive

    @model_validator(mode="after")
    def check_combination(self) -> "LandmarksConfig":
        if self.arch == "unet" and self.head != "heatmap":
            raise ValueError("arch=unet has no pooled features: use head=heatmap (regression needs arch=resnet18)")
        if self.arch == "unet" and self.attention:
            raise ValueError("attention=true needs arch=resnet18 (it follows that backbone), or set attention=false")
        if len(set(self.losses)) < len(self.losses):
            raise ValueError(
                f"a loss is listed twice in losses={self.losses}; change its weight in training.loss_weights instead"
            )
        if "wing" not in self.losses:
            raise ValueError("losses needs wing: symmetry and distance alone do not determine where the landmarks are")
        if "jensen_shannon" in self.losses and self.head != "heatmap":
            raise ValueError("losses: jensen_shannon compares heatmaps, so it needs head=heatmap")
        if self.trains == "all" and self.rate_backbone == 0:
            raise ValueError("trains=all needs rate_backbone > 0 (or trains=head)")
        return self

    def start(self, seed: int) -> Path | None:
        """The run folder whose weights the training starts from; None: random or pretrained weights."""
        return None


class LandmarksPhase(LandmarksConfig):
    """A configuration of the sweep. `after` is the sweep folder of the phase before it, or prepare's output for a first phase.
    `control`: the configuration with which a planned question compares it, after equally many epochs; or `none`."""

    after: str
    control: str

    @property
    def predecessor(self) -> str | None:
        """The configuration that this phase continues from."""
        path = Path(self.after)
        return path.name if path.parts[:1] == ("runs",) else None

    def start(self, seed: int) -> Path | None:
        return Path(self.after) / f"seed{seed}" if self.predecessor else None


class LandmarksTraining(AdamCosine):
    weights: str
    width: Annotated[int, Field(ge=8, le=128, multiple_of=8)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    units: Literal["pixels", "normalized"]
    wing_omega: Positive
    wing_epsilon: Positive
    frame: Literal["patient", "image"]
    heatmap_sigma_px: Positive
    loss_weights: LandmarksLossWeights
    weight_averaging: Annotated[float, Field(ge=0, lt=1)]
    batch_size: PositiveInt
    augment: LandmarksAugment

    @model_validator(mode="after")
    def consistent(self) -> "LandmarksTraining":
        if self.weights != "none" and self.width != 64:
            raise ValueError(f"weights={self.weights} belong to a full ResNet-18: they need width=64, got {self.width}")
        return self


class LandmarksSweep(Seeds, Ensembles):
    """Every configuration with every seed, and ensembles of these runs."""


class LandmarksEvaluation(Section):
    mirror_average: bool
    template: bool


class LandmarksBaselines(Section):
    ridge_size: Annotated[int, Field(ge=4, le=128)]
    ridge_alphas: Annotated[list[Positive], Field(min_length=1)]


class Landmarks(LandmarksConfig, StudyParams):
    """The keys of the selected configuration are at the top level."""

    synthetic: LandmarksSynthetic
    data: LandmarksData
    start_from: str
    seed: Seed
    figures: Literal["examples", "all"]
    training: LandmarksTraining
    evaluation: LandmarksEvaluation
    baselines: LandmarksBaselines
    sweep: LandmarksSweep
    configs: Annotated[dict[str, LandmarksPhase], Field(min_length=1)]
    published: dict[str, Positive]

    @model_validator(mode="after")
    def consistent(self) -> "Landmarks":
        check_names(self.configs)
        self.sweep.check_ensembles(self.configs)
        if taken := [name for name in (*self.configs, *self.sweep.ensembles) if name in BASELINES]:
            raise ValueError(f"{taken[0]!r} is the name of a baseline; choose another one")
        for name, config in self.configs.items():
            before = config.predecessor
            for key, other in (("after", before), ("control", config.control)):
                if other not in (None, "none", *self.configs):
                    raise ValueError(
                        f"configs.{name}.{key}: {other!r} is not a configuration; choose from {', '.join(self.configs)}"
                    )
            random = self.training.weights == "none" or config.arch == "unet"
            if config.trains == "head" and before is None and random and config.head == "heatmap":
                raise ValueError(f"configs.{name}: trains=head on a random backbone with head=heatmap learns nothing")
        if self.training.patience and any(config.control != "none" for config in self.configs.values()):
            raise ValueError(
                "training.patience: a configuration and its control would stop at different epochs: 0, or control: none"
            )
        for name, config in self.configs.items():
            own = self.total_epochs(name)
            if config.control != "none" and own != (others := self.total_epochs(config.control)):
                raise ValueError(
                    f"configs.{name}: trained for {own} epochs with its earlier phases, but its control {config.control} for "
                    f"{others}: give both equally many epochs, or set control: none"
                )
        return self

    def total_epochs(self, name: str) -> int:
        """Epochs of a configuration together with the phases before it."""
        phases: list[str] = []
        before: str | None = name
        while before:
            if before in phases:
                raise ValueError(f"configs.{name}: its phases come after each other in a circle: {', '.join(phases)}")
            phases.append(before)
            before = self.configs[before].predecessor
        return sum(self.configs[phase].epochs for phase in phases)

    def start(self, seed: int) -> Path | None:
        return None if self.start_from == "none" else Path(self.start_from)
