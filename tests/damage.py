"""What happens to files on people's disks."""

from pathlib import Path


def link_to_nowhere(path: Path) -> None:
    """As git-annex leaves a file whose content was not fetched."""
    path.unlink()
    path.symlink_to("../.git/annex/objects/x")


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
