"""Errors in a configuration, collected and reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

__all__ = ["ConfigurationError", "FaultList"]

P = ParamSpec("P")
T = TypeVar("T")


class ConfigurationError(ValueError):
    """A configuration is invalid; says which keys and what is allowed."""


class FaultList(list[str]):
    """A list of faults in a configuration, to be reported in one message."""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Append the message of a `ValueError` in the block, and continue after it."""
        try:
            yield
        except ValueError as error:
            self.append(str(error))

    def attempt(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a function; on a `ValueError`, append its message and return ``None``."""
        with self.collecting():
            return function(*args, **kwargs)
        return None

    def raise_any(self, *, title: str | None = None) -> None:
        """Raise one error with all faults, one per line.

        Args:
            title: First line of the message.

        Raises:
            ConfigurationError: If there are any.
        """
        if self:
            raise ConfigurationError("\n".join([*([title] if title else []), *self]))
