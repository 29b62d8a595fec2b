"""Lay a file of presets/ over params.yaml, keeping its comments and order."""

from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML, YAMLError

from quintet import params
from quintet.errors import InputError
from quintet.files import atomic_file


def apply_preset(root: Path, name: str, study: str | None) -> list[str]:
    """Change params.yaml; returns one line `key: old -> new` per changed value. Nothing is written if the result is not valid."""
    source = root / "presets" / f"{name}.yaml"
    if not source.is_file():
        raise InputError(f"{source}: no such preset")
    values = yaml.safe_load(source.read_text(encoding="utf-8"))
    if study:
        values = {key: part for key, part in values.items() if key == study}
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.indent(mapping=2, sequence=2, offset=0)
    path = root / "params.yaml"
    try:
        target = editor.load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(target, dict):
        raise InputError(f"{path}: expected a mapping of sections, got {type(target).__name__}")
    changed = _lay(target, values, "")
    params.parse(target)
    if changed:
        with atomic_file(path) as beside, beside.open("w", encoding="utf-8") as file:
            editor.dump(target, file)
    return changed


def _lay(target: Any, values: dict[str, Any], prefix: str) -> list[str]:
    changed = []
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            changed += _lay(target[key], value, f"{prefix}{key}.")
        elif target.get(key) != value:
            changed.append(f"{prefix}{key}: {_plain(target.get(key))} -> {_plain(value)}")
            target[key] = value
    return changed


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
