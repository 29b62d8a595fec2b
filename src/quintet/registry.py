"""Named variants (networks, losses, heads) as registered functions.

    LOSSES = Registry("loss")

    @LOSSES.register("wing")
    def wing(...): ...

    LOSSES["wing"]

The legal names are repeated as `Literal`s in params/, so that a wrong one is reported before torch is imported; a test compares
the two.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from quintet.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])


class Registry(dict[str, Callable[..., Any]]):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[F], F]:
        """Register a function or class under a name; raises ValueError for a name that is taken."""

        def decorate(function: F) -> F:
            if name in self:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self[name] = function
            return function

        return decorate

    def __missing__(self, name: str) -> Callable[..., Any]:
        raise InputError(f"unknown {self.kind} {name!r}; choose from: {', '.join(sorted(self))}")
