"""Types and sections that every study's parameters are made of."""

import math
import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = NonNegativeInt
Precision = Literal["auto", "bf16", 32, 16]
OnError = Literal["raise", "skip"]


class StudyName(StrEnum):
    landmarks = "landmarks"
    perfusion = "perfusion"
    breakhis = "breakhis"
    ct = "ct"
    fusion = "fusion"


def _with_subject(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if "subject" not in groups:
        raise ValueError("it needs a group (?P<subject>...)")
    return pattern


def _without_home(folder: str) -> str:
    if folder.startswith("~") or "$" in folder:
        raise ValueError("write the whole path: DVC, which reads it too, replaces neither ~ nor variables")
    return folder


RawFolder = Annotated[str, AfterValidator(_without_home)]
SubjectPattern = Annotated[str, AfterValidator(_with_subject)]  # finds the person in a case's name


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's true would be the number 1."""
        if cls.model_fields[str(info.field_name)].annotation is not bool and any(
            isinstance(entry, bool) for entry in (value if isinstance(value, list) else [value])
        ):
            raise ValueError("true and false are not allowed here")
        return value


class Compute(Section):
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: NonNegativeInt
    workers: Literal["auto"] | NonNegativeInt
    compile: Literal["none", "default", "reduce-overhead"]
    tensorboard: bool
    debug: bool


class RankingParams(Section):
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    bootstrap: Annotated[int, Field(ge=100)]


class Optimisation(Section):
    """What the training of every study has in common (training/fit.py)."""

    precision: Precision
    weight_decay: NonNegative
    clip_norm: NonNegative
    accumulate: PositiveInt


class AdamCosine(Optimisation):
    rate_floor: NonNegative
    warmup: Fraction
    patience: NonNegativeInt

    @model_validator(mode="after")
    def falls(self) -> Self:
        cosine = getattr(self, "schedule", "cosine") == "cosine"
        if cosine and self.rate_floor > (rate := getattr(self, "rate", math.inf)):
            raise ValueError(f"rate_floor={self.rate_floor:g} is above rate={rate:g}: the rate would not fall")
        return self


class Configuration(Section):
    """One configuration of a study. A study has one direct subclass; the selected configuration and the sweep's extend it."""

    def configuration_values(self) -> dict[str, Any]:
        """The fields that distinguish configurations, without those that a subclass adds."""
        own = next(cls for cls in type(self).__mro__ if Configuration in cls.__bases__)
        return self.model_dump(include=set(own.model_fields))  # type: ignore[attr-defined]


class Seeds(Section):
    """The axes of a sweep over every configuration."""

    seeds: Annotated[list[Seed], Field(min_length=1)]

    @model_validator(mode="after")
    def distinct(self) -> Self:
        for axis, values in self.model_dump().items():
            if isinstance(values, list) and len(set(values)) < len(values):
                raise ValueError(f"{axis}: an entry is listed twice in {values}")
        return self

    @property
    def runs(self) -> dict[str, tuple[int, Seed]]:
        """A configuration's run folders: name -> (fold, seed)."""
        return {f"seed{seed}": (0, seed) for seed in self.seeds}

    @property
    def untrained_runs(self) -> dict[str, int]:
        """The run folders of a method without seeds: name -> fold."""
        return {"seed0": 0}


class SeedSweep(Seeds):
    """The runs of a study with a single split: configuration x seed."""

    configs: Annotated[list[str], Field(min_length=1)]

    def check(self, configs: Collection[str]) -> None:
        """Raise ValueError for an unknown configuration."""
        if unknown := [name for name in self.configs if name not in configs]:
            raise ValueError(f"sweep.configs: {', '.join(unknown)}: no such configuration; choose from {', '.join(configs)}")
        check_names(configs)


class Sweep(SeedSweep):
    """The runs of a study with folds: configuration x fold x seed."""

    folds: Annotated[list[NonNegativeInt], Field(min_length=1)]

    @property
    def runs(self) -> dict[str, tuple[int, Seed]]:
        return {f"fold{fold}-seed{seed}": (fold, seed) for fold in self.folds for seed in self.seeds}

    @property
    def untrained_runs(self) -> dict[str, int]:
        return {f"fold{fold}-seed0": fold for fold in self.folds}

    def check_folds(self, *, fold: int, folds: int) -> None:
        """Raise ValueError for a fold that does not exist."""
        for key, chosen in (("fold", [fold]), ("sweep.folds", self.folds)):
            if wrong := [f for f in chosen if f >= folds]:
                raise ValueError(f"{key}: {wrong[0]} is too large; data.folds={folds} are numbered 0 to {folds - 1}")


class Ensembles(Section):
    """Ensembles of a sweep: name -> the configurations whose trained runs are averaged, all seeds of a fold together; an empty
    list means every configuration."""

    ensembles: dict[str, list[str]]

    def check_ensembles(self, trained: Collection[str]) -> None:
        """Raise ValueError for a member that the sweep does not train, or a name that a configuration has."""
        for name, members in self.ensembles.items():
            if name in trained:
                raise ValueError(f"sweep.ensembles: {name} is a configuration; choose another name")
            if len(set(members)) < len(members):
                raise ValueError(f"sweep.ensembles.{name}: a member is listed twice in {members}")
            if unknown := [member for member in members if member not in trained]:
                raise ValueError(
                    f"sweep.ensembles.{name}: {', '.join(unknown)}: not in the sweep, which trains {', '.join(trained)}"
                )
        check_names(self.ensembles)


class StudyData(Section):
    """What the preparation of every study has in common."""

    on_error: OnError


class StudyParams(Section):
    """What the driver (experiment.py) reads of any study's parameters."""

    raw: RawFolder
    data: StudyData
    training: Optimisation
    sweep: Seeds
    configs: Mapping[str, Configuration]

    def skipping(self) -> Self:
        """The same, but problems of the data are left out instead of raised."""
        return self.model_copy(update={"data": self.data.model_copy(update={"on_error": "skip"})})

    def training_values(self) -> dict[str, Any]:
        """Every value shared by the configurations that training depends on; with the configuration they identify a run."""
        return self.training.model_dump()

    def evaluation_values(self) -> dict[str, Any]:
        """The evaluation section; empty for a study without one."""
        section = getattr(self, "evaluation", None)
        return section.model_dump() if section else {}

    def sweep_runs(self) -> dict[str, list[str]]:
        """Configuration -> the names of its run folders; every configuration where the sweep does not list them."""
        return {name: list(self.sweep.runs) for name in getattr(self.sweep, "configs", self.configs)}


def check_names(configs: Collection[str]) -> None:
    for name in configs:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"configs: {name!r}: use letters, digits, - and _ only (it is also a folder's name)")
