"""Parameters of the landmarks study."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from quintet.params.common import AdamCosine, Fraction, NonNegative, Positive, PositiveInt, Section, Seed, check_names


class LandmarksSynthetic(Section):
    images: Annotated[int, Field(ge=20)]
    size: Annotated[int, Field(ge=64, le=2048)]
    seed: Seed
    label_noise_px: NonNegative


class LandmarksAugment(Section):
    flip: Fraction
    rotation_deg: Annotated[float, Field(ge=0, le=90)]
    scale: Annotated[float, Field(ge=0, lt=0.9)]
    shift: Annotated[float, Field(ge=0, le=0.5)]
    brightness: Annotated[float, Field(ge=0, lt=1)]
    contrast: Annotated[float, Field(ge=0, lt=1)]


LandmarksLoss = Literal["wing", "symmetry", "distance"]


class LandmarksLossWeights(Section):
    wing: NonNegative
    symmetry: NonNegative
    distance: NonNegative


class LandmarksChoice(Section):
    """One configuration: the selected one's fields stand at the study's top level, the sweep's under `configs`."""

    arch: Literal["resnet18", "unet"]
    head: Literal["regression", "heatmap"]
    attention: bool
    losses: Annotated[list[LandmarksLoss], Field(min_length=1)]
    trains: Literal["all", "head"]
    epochs: PositiveInt
    rate_backbone: NonNegative
    rate_head: Positive

    @model_validator(mode="after")
    def possible(self) -> "LandmarksChoice":
        if self.arch == "unet" and self.head != "heatmap":
            raise ValueError("arch=unet has no pooled features: use head=heatmap (regression goes with arch=resnet18)")
        if self.arch == "unet" and self.attention:
            raise ValueError("attention=true needs arch=resnet18 (it stands after its backbone), or set attention=false")
        if len(set(self.losses)) < len(self.losses):
            raise ValueError(f"a loss stands twice in losses={self.losses}; change its share in loss_weights instead")
        if "wing" not in self.losses:
            raise ValueError("losses needs wing: symmetry and distance alone do not fix where the landmarks are")
        if self.trains == "all" and self.rate_backbone == 0:
            raise ValueError("trains=all needs rate_backbone > 0 (or trains=head)")
        return self


class LandmarksConfig(LandmarksChoice):
    after: str


class LandmarksSweep(Section):
    seeds: Annotated[list[Seed], Field(min_length=1)]


class LandmarksBaselines(Section):
    ridge_size: Annotated[int, Field(ge=4, le=128)]
    ridge_alphas: Annotated[list[Positive], Field(min_length=1)]


class Landmarks(LandmarksChoice, AdamCosine):
    raw: str
    on_error: Literal["raise", "skip"]
    synthetic: LandmarksSynthetic
    size: Annotated[int, Field(ge=32, le=1024, multiple_of=16)]
    clahe: Fraction
    split: str
    split_seed: Seed
    near_duplicate_distance: Annotated[int, Field(ge=0, le=32)]
    start_from: str
    seed: Seed
    weights: str
    width: Annotated[int, Field(ge=8, le=128, multiple_of=8)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    units: Literal["pixels", "normalized"]
    wing_omega: Positive
    wing_epsilon: Positive
    loss_weights: LandmarksLossWeights
    batch_size: PositiveInt
    augment: LandmarksAugment
    mirror_average: bool
    template: bool
    figures: Literal["examples", "all"]
    sweep: LandmarksSweep
    configs: Annotated[dict[str, LandmarksConfig], Field(min_length=1)]
    baselines: LandmarksBaselines
    published: dict[str, Positive]

    @model_validator(mode="after")
    def consistent(self) -> "Landmarks":
        if self.split not in ("reference", "stratified", "grouped") and not self.split.endswith(".csv"):
            raise ValueError(f"split={self.split!r}: allowed are reference, stratified, grouped or the path of a .csv file")
        if self.weights != "none" and self.width != 64:
            raise ValueError(f"weights={self.weights} are those of a full ResNet-18: they need width=64, got {self.width}")
        check_names(self.configs)
        for name, config in self.configs.items():
            if name in ("ridge", "mean-shape"):
                raise ValueError(f"configs: {name!r} is the name of a baseline")
            before = predecessor(config)
            if before and before not in self.configs:
                raise ValueError(f"configs.{name}.after: {before!r} is no configuration; there are {', '.join(self.configs)}")
            random = self.weights == "none" or config.arch == "unet"
            if config.trains == "head" and before is None and random and config.head == "heatmap":
                raise ValueError(f"configs.{name}: trains=head on a random backbone with head=heatmap learns nothing")
        return self


def predecessor(config: LandmarksConfig) -> str | None:
    """The configuration a phase continues from; None where it starts from scratch (`after` is prepare's output)."""
    path = Path(config.after)
    return path.name if path.parts[:1] == ("runs",) else None
