"""What is wrong with a configuration, all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

__all__ = ["ConfigurationError", "FaultList"]

P = ParamSpec("P")
T = TypeVar("T")


class ConfigurationError(ValueError):
    """What a user wrote does not fit; says which keys and what is allowed."""


class FaultList(list[str]):
    """What is wrong with a configuration, collected: a user wants to read all of it at once."""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the message of a `ValueError` and go on behind the block."""
        try:
            yield
        except ValueError as error:
            self.append(str(error))

    def attempt(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a function; if it raises a `ValueError`, keep the message and return ``None``."""
        with self.collecting():
            return function(*args, **kwargs)
        return None

    def raise_any(self, *, title: str | None = None) -> None:
        """Raise all in one message, one a line.

        Args:
            title: First line of the message.

        Raises:
            ConfigurationError: If there are any.
        """
        if self:
            raise ConfigurationError("\n".join([*([title] if title else []), *self]))
