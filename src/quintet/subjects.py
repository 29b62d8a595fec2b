"""Which cases are of one person: visits that names tell apart, and files that are the same under two names."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.tables import folded


def subject_of(case: str, pattern: re.Pattern[str]) -> str:
    """The person of a case; a case without one, because the pattern does not match, is a person of its own."""
    found = pattern.match(case)
    return (found and found["subject"]) or case


def describe(names: Sequence[str], subjects: Sequence[str], key: str) -> str:
    """How many people the cases are of, and a question if all are different though names share a number and then differ in one
    or two digits, a date, a letter or a word, or differ in capitals or leading zeros only; `key`: the parameter."""
    text = f"{len(names)} cases of {len(set(subjects))} people"
    shared: dict[str, list[str]] = defaultdict(list)
    for name in names:
        start = re.match(r"(.*\d.*?)[-_. ]+(?:\d{1,2}|\d{6}|\d{8}|[a-zA-Z]+\d{0,2})$", name) or re.match(r"(.*\d)[a-zA-Z]$", name)
        shared[folded(start[1] if start else name)].append(name)
    several = [own for own in shared.values() if len(own) > 1]
    if len(set(subjects)) < len(names) or not several:
        return text
    return f"{text}: is that so? Names such as {' and '.join(several[0][:2])} may be of one person ({key})"


def same_files(files: Mapping[str, Sequence[Path]], subjects: Mapping[str, str]) -> list[str]:
    """A problem for each file of a case that is byte for byte a file of another person; only files of equal size are read."""
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for case, paths in files.items():
        for path in paths:
            if path.is_file():
                by_size[path.stat().st_size].append((case, path))
    first: dict[bytes, tuple[str, Path]] = {}
    problems = []
    for group in by_size.values():
        if len({subjects[case] for case, _ in group}) < 2:
            continue
        for case, path in group:
            digest = hashlib.blake2b(path.read_bytes()).digest()
            other, same = first.setdefault(digest, (case, path))
            if subjects[other] != subjects[case]:
                problems.append(
                    f"{path}: the same file as {same}, under the name of another person; remove one, or name both alike"
                )
    return problems


def same_contents(digests: Mapping[str, Sequence[str]], subjects: Mapping[str, str]) -> list[str]:
    """A problem for each case with an image that has the voxels of another person's image, though the files differ; `digests`:
    hashes of each case's images."""
    first: dict[str, str] = {}
    problems = []
    for case, own in digests.items():
        for digest in own:
            other = first.setdefault(digest, case)
            if subjects[other] != subjects[case]:
                problems.append(f"{case}: an image is one of {other}, another person, saved anew; remove it, or name both alike")
                break
    return problems


def digest_of(array: NDArray[Any]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
