"""Typed, validated parameters. No defaults here: params.yaml has the values.

Validation happens before torch is imported, so that a wrong value is answered within two seconds.
"""

from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from quintet.errors import InputError
from quintet.params.breakhis import BreakHis, BreakHisConfig
from quintet.params.common import (
    AdamCosine,
    Compute,
    Configuration,
    Ensembles,
    Optimisation,
    RankingParams,
    Section,
    StudyName,
    StudyParams,
)
from quintet.params.ct import Ct, CtConfig
from quintet.params.fusion import Fusion, FusionConfig
from quintet.params.landmarks import Landmarks, LandmarksConfig
from quintet.params.perfusion import Perfusion, PerfusionConfig

__all__ = [
    "AdamCosine",
    "BreakHis",
    "BreakHisConfig",
    "Compute",
    "Configuration",
    "Ct",
    "CtConfig",
    "Ensembles",
    "Fusion",
    "FusionConfig",
    "Landmarks",
    "LandmarksConfig",
    "Optimisation",
    "Params",
    "Perfusion",
    "PerfusionConfig",
    "StudyName",
    "StudyParams",
    "load",
    "parse",
]


class Params(Section):
    compute: Compute
    ranking: RankingParams
    landmarks: Landmarks
    perfusion: Perfusion
    breakhis: BreakHis
    ct: Ct
    fusion: Fusion

    def of(self, study: str) -> StudyParams:
        """One study's parameters."""
        section: StudyParams = getattr(self, study)
        return section


def parse(values: dict[str, Any]) -> Params:
    """Validate; every wrong value is named with its key and what is allowed."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = []
        for e in error.errors():
            key = ".".join(str(part) for part in e["loc"])
            known = _siblings(e["loc"]) if e["type"] == "extra_forbidden" else ""
            got = "" if isinstance(e["input"], dict) else f" (got {e['input']!r})"
            lines.append(f"  {key}: {e['msg'].removeprefix('Value error, ')}{known}{got}")
        raise InputError("params.yaml has errors:\n" + "\n".join(lines)) from None


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.YAMLError(f"the key {key.value} is in line {lines[key.value]} and in line {line}; delete one")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate a params file. Numbers such as 1e-3, which YAML reads as text, are accepted."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; run from the root of the repository")
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=_UniqueKeys)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 (perhaps Windows-1252 or Latin-1); save the file as UTF-8") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return parse(values)


def _siblings(location: tuple[int | str, ...]) -> str:
    model: Any = Params
    for part in location[:-1]:
        if hasattr(model, "model_fields"):
            model = model.model_fields[str(part)].annotation
        else:  # every entry of a dict[str, X] is an X
            model = next(reversed(get_args(model)), None)
    names = sorted(getattr(model, "model_fields", ()))
    return f"; choose from: {', '.join(names)}" if names else ""
