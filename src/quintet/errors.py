"""The one error that a user's input may cause: printed without a traceback, exit code 2."""


class InputError(Exception):
    """What is wrong, in which file or row, and what to do about it."""


class Problems(InputError):  # noqa: N818  (it reads as what it holds)
    """Several problems of one data set, each a full sentence, all listed at once."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = problems
        shown = "\n".join(f"  - {p}" for p in problems[:50])
        more = f"\n  ... and {len(problems) - 50} more" if len(problems) > 50 else ""
        super().__init__(f"{where}: {len(problems)} problem(s)\n{shown}{more}")
