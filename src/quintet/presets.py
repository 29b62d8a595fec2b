"""Apply a preset to params.yaml, keeping its comments and order."""

import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from quintet import params
from quintet.errors import InputError
from quintet.files import atomic_file

COMMITTED = "demo"  # the preset that restores the committed params.yaml


def apply_preset(root: Path, name: str, study: str | None) -> list[str]:
    """Change params.yaml, or only the section of one study; returns one line `key: old -> new` per changed value.

    The preset `demo` restores the values of the last commit; every other preset is a file of presets/. Raises InputError, and
    writes nothing, if a file cannot be read or the result is not valid.
    """
    path, editor = root / "params.yaml", _editor()
    source = path.name if name == COMMITTED else f"presets/{name}.yaml"
    text = _committed(root, source) if name == COMMITTED else _read(root / source)
    target, values = _parse(editor, _read(path), path), _parse(editor, text, root / source)
    if study:
        if study not in values:
            raise InputError(f"{source} has no values of {study}; params.yaml is unchanged")
        values = target | {study: values[study]}
    changes = _merge(target, values, exact=name == COMMITTED)
    params.parse(target)
    if name == COMMITTED and not study:
        with atomic_file(path) as temporary:
            temporary.write_bytes(text)
    elif changes:
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            editor.dump(target, file)
    return changes


def _editor() -> YAML:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.indent(mapping=2, sequence=2, offset=0)
    return editor


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path.read_bytes()


def _committed(root: Path, name: str) -> bytes:
    """A file of the last commit. `./` makes git look for it in `root`, which need not be the top folder of the repository."""
    try:
        done = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise InputError(
            f"the committed {name} cannot be read ({reason}); `quintet preset {COMMITTED}` needs git and a clone of the project "
            f"in which {name} is committed"
        ) from None
    return done.stdout


def _parse(editor: YAML, text: bytes, path: Path) -> CommentedMap:
    try:
        values = editor.load(text)
    except YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, CommentedMap):
        raise InputError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


def _merge(target: Any, values: Any, prefix: str = "", *, exact: bool) -> list[str]:
    """Change `target` in place; `exact` also removes the keys that `values` lacks."""
    changes = []
    for key in [key for key in target if exact and key not in values]:
        changes.append(f"{prefix}{key}: {_format(target.pop(key))} -> removed")
    for key, value in values.items():
        old = target.get(key)
        if value and isinstance(value, dict) and isinstance(old, dict):  # {} replaces a mapping
            changes += _merge(old, value, f"{prefix}{key}.", exact=exact)
        elif old != value:
            changes.append(f"{prefix}{key}: {_format(old)} -> {_format(value)}")
            target[key] = _with_comment_of(old, value) if isinstance(value, list) else value
    return changes


def _with_comment_of(old: Any, items: list[Any]) -> CommentedSeq:
    """A list with the comment after the last item of `old`: to YAML it belongs to that item, to a reader to the next key."""
    new = CommentedSeq(items)
    if isinstance(old, CommentedSeq) and (comment := old.ca.items.get(len(old) - 1)):
        new.ca.items[len(new) - 1] = comment
    return new


def _format(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
