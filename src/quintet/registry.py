"""Named variants (networks, losses, heads) as registered functions.

    LOSSES = Registry("loss")

    @LOSSES.register
    def wing(...): ...

    LOSSES["wing"]

The legal names stand once more as `Literal`s in params.py, so that a wrong one is answered before torch is imported;
a test holds both against each other.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from quintet.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])


class Registry(dict[str, Callable[..., Any]]):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, function: F) -> F:
        """Register under the function's (or class's) own name."""
        if function.__name__ in self:
            raise ValueError(f"{self.kind} {function.__name__!r} is registered twice")
        self[function.__name__] = function
        return function

    def __missing__(self, name: str) -> Callable[..., Any]:
        raise InputError(f"unknown {self.kind} {name!r}; there are: {', '.join(sorted(self))}")
