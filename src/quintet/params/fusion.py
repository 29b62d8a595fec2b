"""Parameters of the multimodal fusion study."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

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
    SeedSweep,
    StudyData,
    StudyParams,
    SubjectPattern,
)

CLINICAL = "clinical"  # the clinical features, as a modality beside the imaging ones
BASELINES = ("clinical-only", "oracle")
ADAPTS = ("attention", "diffusion")  # the methods whose losses test-time training can minimise
LATE = "late"
IMPUTES = ("mean", "ridge", "gaussian", "flow")  # the methods that complete the tokens of a patient (model/imputation.py)
SWEEP = Path("runs/fusion/sweep")
ADAPTATION_STEPS = "ttt/steps"  # the metric of an evaluation with the number that it chose
TTT = "-ttt"  # suffix of a configuration with test-time training: the same trained weights
Task = Literal["total", "total_mr", "brain_structures", "none"]
Encoder = Literal["small", "resnet10", "resnet18", "resnet34", "resnet50"]
Width = Annotated[int, Field(ge=8, le=128, multiple_of=8)]
Units = Annotated[list[PositiveInt], Field(min_length=1)]


class FusionScanner(Section):
    """How a hospital's images differ: intensities to the power `gamma`; the others are factors."""

    gamma: Positive
    shading: NonNegative
    voxels: Annotated[float, Field(ge=1, le=4)]
    noise: NonNegative


class FusionSecondHospital(Section):
    patients: NonNegativeInt
    scanner: FusionScanner


class FusionSynthetic(Section):
    patients: Annotated[int, Field(ge=40)]
    unlabelled: Fraction
    phenotypes: Annotated[float, Field(ge=0, lt=1)]
    interaction: NonNegative
    second_hospital: FusionSecondHospital
    seed: Seed


class FusionColumns(Section):
    """Of the clinical table; `patient` may be auto (the first column), `event` empty (nobody is censored), and `hospital` absent
    from the table (nobody is external)."""

    patient: str
    label: str
    time: str
    event: str
    hospital: str


class FusionData(StudyData):
    names: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    modalities: list[str]
    channels: dict[str, PositiveInt]
    vectors: list[str]
    components: PositiveInt
    tables: Annotated[list[str], Field(min_length=1)]
    columns: FusionColumns
    drop: list[str]
    unlabelled: Literal["keep", "refuse"]
    external: list[str]
    task: Literal["classification", "survival"]
    skull_strip: bool
    size: Annotated[int, Field(ge=8, le=256)]
    spacing_mm: Annotated[float, Field(ge=0, le=20)]
    percentiles: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=2, max_length=2)]
    subject_pattern: SubjectPattern
    split: str
    split_seed: Seed
    test: Annotated[float, Field(gt=0, lt=1)]
    validation: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def consistent(self) -> "FusionData":
        if unknown := [name for name in self.modalities if name not in self.names]:
            raise ValueError(f"modalities: {', '.join(unknown)} without patterns in names; choose from {', '.join(self.names)}")
        if unknown := [name for name in self.channels if name not in self.names]:
            raise ValueError(f"channels: {', '.join(unknown)}: no such modality; choose from {', '.join(self.names)}")
        every = [*self.modalities, *self.vectors]
        if len(set(every)) < len(every):
            raise ValueError(f"modalities, vectors: an entry is listed twice in {every}")
        if not every:
            raise ValueError("modalities and vectors are both empty; name at least one modality")
        for name in [*self.names, *self.vectors]:
            if name == CLINICAL or not name.replace("_", "").isalnum():
                raise ValueError(
                    f"names, vectors: {name!r}: letters, digits and _ only, and not {CLINICAL!r} (the clinical features)"
                )
        if self.split != "stratified" and not self.split.endswith(".csv"):
            raise ValueError(f"split={self.split!r}: choose stratified or the path of a .csv file")
        if self.test + self.validation >= 1:
            raise ValueError(f"test={self.test} and validation={self.validation} leave nothing to train on")
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"percentiles={self.percentiles}: the lower one must come first")
        if self.task == "survival" and not self.columns.time:
            raise ValueError("task=survival needs columns.time, the name of the column with survival times")
        return self


class FusionSegmentation(Section):
    segmenter: Literal["threshold", "totalsegmentator", "none"]
    totalsegmentator: str
    fast: bool
    segmenter_tasks: dict[str, Task]


class FusionAugment(Section):
    flip: Fraction
    affine: Fraction
    rotation_deg: Annotated[float, Field(ge=0, le=90)]
    intensity: Annotated[float, Field(ge=0, lt=1)]


class FusionDiffusion(Section):
    target: Literal["mean", "teacher", "unguarded"]
    teacher_decay: Annotated[float, Field(gt=0, lt=1)]
    steps: Annotated[int, Field(ge=10)]
    schedule: Literal["linear", "cosine"]
    predicts: Literal["velocity", "sample"]
    layers: PositiveInt

    @field_validator("predicts", mode="before")
    @classmethod
    def refuse_noise(cls, value: object) -> object:
        if value == "noise":
            raise ValueError(
                "at the step where sampling starts, the noise says nothing about the sample, whose estimate would be the "
                "network's error times a thousand; choose velocity (the same information at every step) or sample"
            )
        return value


class FusionFlow(Section):
    width: PositiveInt
    layers: PositiveInt
    iterations: PositiveInt
    batch_size: PositiveInt
    rate: Positive
    weight_decay: NonNegative
    steps: PositiveInt


class FusionTokens(Section):
    """The training on frozen tokens, in place of the values of the same name."""

    size: PositiveInt
    predictor_units: list[PositiveInt]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    rate: Positive
    weight_decay: NonNegative


class FusionLossWeights(Section):
    prediction: Positive
    diffusion: NonNegative
    reconstruction: NonNegative
    contrastive: NonNegative


class FusionConfig(Configuration):
    """How modalities are joined. `encoders`: frozen (those of late fusion, trained before) or trained together with the fusion;
    `modality_dropout`: the share of modalities masked in training; `patients`: all, or those with every modality."""

    method: Literal["attention", "diffusion", "concat", "late", "shaspec", "transformer", "mean", "ridge", "gaussian", "flow"]
    encoders: Literal["frozen", "trained"]
    modality_dropout: Annotated[float, Field(ge=0, lt=1)]
    patients: Literal["all", "complete"]

    @model_validator(mode="after")
    def check_encoders(self) -> "FusionConfig":
        if self.method == LATE and self.encoders == "frozen":
            raise ValueError(f"method={LATE} trains the encoders that the others freeze; set encoders: trained")
        if self.method in (*IMPUTES, "shaspec", "transformer") and self.encoders == "trained":
            raise ValueError(f"method={self.method} needs tokens that stay the same; set encoders: frozen")
        if self.method in ADAPTS and self.encoders == "frozen":
            raise ValueError(f"method={self.method} trains its encoders by its own losses; set encoders: trained")
        return self

    def start(self, seed: int) -> Path | None:
        """The run whose encoders are used; None: own ones are trained."""
        return SWEEP / LATE / f"seed{seed}" if self.encoders == "frozen" else None


class FusionOwnEncoder(Section):
    """What the encoder of a modality has of its own: images an encoder and a width, tables units; None: as for the others."""

    encoder: Encoder | None = None
    width: Width | None = None
    clinical_units: Units | None = None


class FusionTraining(AdamCosine):
    survival_loss: Literal["cox", "mse"]
    encoder: Encoder
    width: Width
    clinical_units: Units
    own_encoders: dict[str, FusionOwnEncoder]
    hidden: Annotated[int, Field(ge=8)]
    heads: PositiveInt
    predictor_units: list[PositiveInt]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    recompute: bool
    diffusion: FusionDiffusion
    tokens: FusionTokens
    flow: FusionFlow
    sampling_steps: PositiveInt
    loss_weights: FusionLossWeights
    temperature: Positive
    epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    rate: Positive
    augment: FusionAugment

    @model_validator(mode="after")
    def consistent(self) -> "FusionTraining":
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be divisible by heads ({self.heads})")
        if self.sampling_steps > self.diffusion.steps:
            raise ValueError(f"sampling_steps={self.sampling_steps}: the diffusion has {self.diffusion.steps} steps")
        return self

    def encoder_of(self, modality: str, *keys: str) -> dict[str, Any]:
        """The values of `keys` (fields of FusionOwnEncoder) for a modality: its own, or those of all."""
        own = self.own_encoders.get(modality, FusionOwnEncoder())
        return {key: getattr(self, key) if getattr(own, key) is None else getattr(own, key) for key in keys}

    def on_tokens(self) -> "FusionTraining":
        """The values for training on frozen tokens."""
        return self.model_copy(update=self.tokens.model_dump(exclude={"size"}))


class FusionTtt(Section):
    """Test-time training; the number of steps is chosen on the validation patients."""

    steps: Annotated[list[NonNegativeInt], Field(min_length=1)]
    rate: Positive


class FusionEvaluation(Section):
    samples: PositiveInt
    draws: PositiveInt
    ttt: FusionTtt
    test_missing: Annotated[float, Field(gt=0, lt=1)]


class Fusion(FusionConfig, StudyParams):
    """The keys of the selected configuration are at the top level."""

    synthetic: FusionSynthetic
    data: FusionData
    segmentation: FusionSegmentation
    seed: Seed
    training: FusionTraining
    evaluation: FusionEvaluation
    sweep: SeedSweep
    configs: Annotated[dict[str, FusionConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def consistent(self) -> "Fusion":
        tasks, modalities = self.segmentation.segmenter_tasks, self.data.modalities
        known = ", ".join(self.data.names)
        if unknown := [name for name in tasks if name not in self.data.names]:
            raise ValueError(f"segmentation.segmenter_tasks: {', '.join(unknown)}: no such modality; choose from {known}")
        if self.segmentation.segmenter == "totalsegmentator":
            if missing := [name for name in modalities if name not in tasks]:
                raise ValueError(
                    f"segmentation.segmenter_tasks: no task for {', '.join(missing)} (none: use the threshold's mask)"
                )
            if self.segmentation.fast and (slow := [m for m in modalities if tasks[m] == "brain_structures"]):
                raise ValueError(
                    f"segmentation.segmenter_tasks: brain_structures of {', '.join(slow)} has no fast mode; set fast: false"
                )
        images, tables = {"encoder", "width"}, {"clinical_units"}
        kinds = dict.fromkeys(modalities, images) | dict.fromkeys([*self.data.vectors, CLINICAL], tables)
        for name, own in self.training.own_encoders.items():
            if name not in kinds:
                raise ValueError(f"training.own_encoders: {name}: no such modality; choose from {', '.join(kinds)}")
            if wrong := own.model_fields_set - kinds[name]:
                raise ValueError(
                    f"training.own_encoders.{name}: {', '.join(sorted(wrong))}: it takes {', '.join(sorted(kinds[name]))} only"
                )
        self.sweep.check(self.configs)
        if LATE not in self.configs or self.configs[LATE].method != LATE:
            raise ValueError(f"configs: {LATE} (method: {LATE}) trains the encoders that others freeze; put it back")
        if LATE in self.sweep.configs:
            raise ValueError(f"sweep.configs: {LATE} is always trained (others need its encoders); remove it from the list")
        if self.encoders == "frozen" and self.seed not in self.sweep.seeds:
            raise ValueError(f"seed={self.seed}: encoders=frozen needs a seed of sweep.seeds ({self.sweep.seeds})")
        if reserved := [name for name in self.configs if name in BASELINES or name.endswith(TTT)]:
            raise ValueError(
                f"configs: {reserved[0]!r} is reserved for a baseline or for a configuration with test-time training"
            )
        return self

    def sweep_runs(self) -> dict[str, list[str]]:
        """With late fusion, whose encoders the others freeze."""
        return {LATE: list(self.sweep.runs)} | super().sweep_runs()
