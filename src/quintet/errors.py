"""What a user's input or machine may cause: printed without a traceback, exit code 2."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STORAGE = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "your quota is used up; make room",
    errno.EROFS: "the file system is read-only; remount it, or work in a clone elsewhere",
    errno.EACCES: "permission denied; correct its owner or mode (chown, chmod)",
    errno.EPERM: "not permitted; correct its owner or mode (chown, chmod)",
}


class InputError(Exception):
    """What is wrong, in which file or row, and what to do about it."""


class InputProblemsError(InputError):
    """Several problems of one data set, each a full sentence, all listed at once."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = problems
        shown = "\n".join(f"  - {p}" for p in problems[:50])
        more = f"\n  ... and {len(problems) - 50} more" if len(problems) > 50 else ""
        super().__init__(f"{where}: {len(problems)} problem(s)\n{shown}{more}")


@contextmanager
def exit_on_user_error(where: str = "") -> Iterator[None]:
    """End the program with one clear line where the input or the storage is at fault; `where` stands for a file that the system
    does not name. Any other error is a fault of ours and keeps its traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        code = errno.ENOSPC if error.errno is None and "requested and" in str(error) else error.errno  # NumPy's short write
        if code not in STORAGE:
            raise
        print(f"error: {error.filename or where}: {STORAGE[code]}, then run the same command again", file=sys.stderr)
    else:
        return
    raise SystemExit(2)
