"""Errors that the user can fix: printed without a traceback, exit code 2."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STORAGE_ERRORS = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "your quota is used up; make room",
    errno.EROFS: "the file system is read-only; remount it, or work in a clone elsewhere",
    errno.EACCES: "permission denied; correct its owner or mode (chown, chmod)",
    errno.ENAMETOOLONG: "its name is too long for the file system; shorten the name of the case or of the output",
    errno.EPERM: "not permitted; correct its owner or mode (chown, chmod)",
}


# of a full disk as NumPy, and PyTorch's writer, report it
FULL_DISK = ("requested and", "unexpected pos", "PytorchStreamWriter failed")


class InputError(Exception):
    """An input that the user must correct. The message states what is wrong, in which file or row, and what to do."""


class InputProblemsError(InputError):
    """Every problem found in one data set, listed together (the first 50 in the message, all in `problems`)."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = problems
        shown = "\n".join(f"  - {p}" for p in problems[:50])
        more = f"\n  ... and {len(problems) - 50} more" if len(problems) > 50 else ""
        super().__init__(f"{where}: {len(problems)} problem(s)\n{shown}{more}")


def sentences(error: InputError) -> list[str]:
    """The problems that an error lists, or its message."""
    return error.problems if isinstance(error, InputProblemsError) else [str(error)]


@contextmanager
def exit_on_user_error(where: str = "") -> Iterator[None]:
    """Exit with status 2 and a one-line message on an input or storage error; `where` is the path to report if the operating
    system does not name one. Every other error is a bug and keeps its traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception as raised:
        cause = raised if isinstance(raised, OSError) else raised.__context__  # Matplotlib fails again while it closes a PDF
        code = cause.errno if isinstance(cause, OSError) else None
        if code is None and any(words in str(raised) for words in FULL_DISK):
            code = errno.ENOSPC
        if code not in STORAGE_ERRORS:
            raise
        place = getattr(cause, "filename", None) or where
        print(f"error: {place}: {STORAGE_ERRORS[code]}, then run the same command again", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
    else:
        return
    raise SystemExit(2)
