"""The parameters of the preparation that new patients must go through as well. They are saved with the data and with a model."""

from typing import Any

from pydantic import Field

from quintet.params import Fusion
from quintet.params.common import Section
from quintet.params.fusion import FusionColumns, FusionSegmentation


class Preparation(Section):
    """Fields of the parameter sections `data` and `segmentation`, side by side."""

    names: dict[str, list[str]]
    modalities: list[str]
    channels: dict[str, int] = Field(default_factory=dict)  # absent from older runs, whose modalities have one
    vectors: list[str]
    tables: list[str]
    columns: FusionColumns
    drop: list[str]
    task: str
    segmenter: str
    totalsegmentator: str
    fast: bool
    segmenter_tasks: dict[str, str]
    skull_strip: bool
    size: int
    spacing_mm: float
    percentiles: list[float]

    @staticmethod
    def of(params: Fusion) -> "Preparation":
        values = params.data.model_dump() | params.segmentation.model_dump()
        return Preparation(**{name: values[name] for name in Preparation.model_fields})

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a saved model or a JSON file; `Preparation(**values)` reads them."""
        return self.model_dump(mode="json")

    @property
    def cubes(self) -> list[tuple[str, int]]:
        """What a patient's cubes hold, in their order: a modality and a channel of it."""
        return [(name, channel) for name in self.modalities for channel in range(self.channels_of(name))]

    def channels_of(self, modality: str) -> int:
        return self.channels.get(modality, 1)

    @property
    def segmentation(self) -> FusionSegmentation:
        return FusionSegmentation.model_validate(self.model_dump(include=set(FusionSegmentation.model_fields)))
