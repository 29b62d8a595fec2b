"""The BreaKHis tree: .../{benign,malignant}/SOB/{type}/{patient}/{40X,...}/SOB_B_A-14-22549AB-40-001.png (Spanhol 2016)."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quintet.breakhis.data.classes import CLASSES, MAGNIFICATIONS, TYPES, class_of
from quintet.imaging.folders import files_below, print_passed_over, with_suffix
from quintet.imaging.pictures import PICTURES
from quintet.tables import spelled_alike

NAME = re.compile(r"SOB_(?P<letter>[BM])_(?P<code>[A-Z]+)-(?P<patient>\d+-[0-9A-Z]+)-(?P<factor>\d+)-\d+")
LAYOUT = "{benign,malignant}/SOB/TYPE/PATIENT/{40X,100X,200X,400X}/NAME.png"


@dataclass(frozen=True)
class Image:
    path: Path
    patient: str  # such as 14-22549AB
    tumour_class: str
    tumour_type: str
    magnification: str


def parse_name(stem: str) -> tuple[str, str, str] | None:
    """(type, patient, magnification) according to a file name; None if it is not a BreaKHis name."""
    match = NAME.fullmatch(stem)
    type_of_code = {code: name for name, code in TYPES.items()}
    if not match or match["code"] not in type_of_code or f"{match['factor']}X" not in MAGNIFICATIONS:
        return None
    tumour_type = type_of_code[match["code"]]
    if (class_of(tumour_type) == "benign") != (match["letter"] == "B"):
        return None
    return tumour_type, match["patient"], f"{match['factor']}X"


def read_tree(raw: Path) -> tuple[list[Image], list[str]]:
    """All images whose names and folders agree, and one sentence per problem. Pixels are not read here."""
    raw = Path(raw)
    if not raw.is_dir():
        return [], [f"{raw}: no such folder; breakhis.raw must be a folder with the tree {LAYOUT}"]
    files, others = with_suffix(files_below(raw), PICTURES)
    images: list[Image] = []
    problems, seen, misplaced = [], dict[str, Path](), dict[tuple[Path, str], list[str]]()
    for path in files:
        where = path.relative_to(raw)
        image = _parse_path(path)
        if isinstance(image, str):
            misplaced.setdefault((where.parent, image), []).append(where.name)
        elif path.stem in seen:
            problems.append(f"{where}: {path.stem} also exists as {seen[path.stem]}; delete one of them")
        else:
            seen[path.stem] = where
            images.append(image)
    for (folder, wrong), names in misplaced.items():  # one sentence per folder: a wrong folder holds many pictures
        more = f" and {len(names) - 1} others" if len(names) > 1 else ""
        problems.append(f"{folder / names[0]}{more}: {wrong}")
    print_passed_over(others, raw, ", ".join(PICTURES))
    if not images:
        found = f"{len(files)} pictures, but none in such a folder" if files else "no .png or .jpg below it"
        return [], [f"{raw}: expected images at .../{LAYOUT}; found {found}", *problems[:3]]
    for name in CLASSES:
        if not any(image.tumour_class == name for image in images) and not problems:
            problems.append(f"{raw}: no {name} image below it; give the folder that holds both classes")
    return images, problems + _patients_in_both_classes(images)


def _parse_path(path: Path) -> Image | str:
    """The image, or what is wrong with its folder or name."""
    folders = path.absolute().parts[-6:-1]  # the folders may be above a relative path
    if len(folders) < 5 or folders[0] not in CLASSES or folders[1] != "SOB" or folders[2] not in TYPES:
        alike = [f"{name} for {folder}" for folder in folders[:3] if (name := _meant(folder)) and name != folder]
        return f"not at .../{LAYOUT}; " + (f"write {', '.join(alike)}" if alike else "move it there or out of the tree")
    tumour_class, _, tumour_type, folder, magnification = folders
    named = parse_name(path.stem)
    if named is None:
        return "not a BreaKHis name (SOB_B_A-14-22549AB-40-001: class, type, year, slide, magnification, number); rename it"
    from_name = (class_of(named[0]), *named)
    from_folders = (tumour_class, tumour_type, folder.rpartition("_")[2], magnification)  # SOB_B_A_14-22549AB -> 14-22549AB
    keys = ("class", "type", "patient", "magnification")
    if wrong := [
        f"the name gives {key} {a}, the folder {b}" for key, a, b in zip(keys, from_name, from_folders, strict=True) if a != b
    ]:
        return f"{'; '.join(wrong)}; one of them is wrong"
    return Image(path, named[1], tumour_class, tumour_type, magnification)


def _meant(folder: str) -> str | None:
    """The folder of the layout that a name is most like."""
    return spelled_alike(folder, (*CLASSES, "SOB", *TYPES))


def _patients_in_both_classes(images: Iterable[Image]) -> list[str]:
    folders: dict[str, dict[str, Path]] = defaultdict(dict)
    for image in images:
        folders[image.patient].setdefault(image.tumour_class, image.path.parent)
    return [
        f"patient {patient} is under both classes: {' and '.join(map(str, found.values()))}; one of them is wrong"
        for patient, found in sorted(folders.items())
        if len(found) > 1
    ]


def missing_magnifications(images: Iterable[Image]) -> dict[str, list[str]]:
    """Patient -> the magnifications at which it has no image; complete patients are left out."""
    available: dict[str, set[str]] = defaultdict(set)
    for image in images:
        available[image.patient].add(image.magnification)
    missing = {p: [m for m in MAGNIFICATIONS if m not in found] for p, found in sorted(available.items())}
    return {patient: magnifications for patient, magnifications in missing.items() if magnifications}
