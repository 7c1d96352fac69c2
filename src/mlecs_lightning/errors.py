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

    def check_range(
        self,
        key: str,
        value: float | None,
        *,
        at_least: float | None = None,
        above: float | None = None,
    ) -> None:
        """Append a fault if a number is below its minimum; ``None`` stands for no limit.

        Args:
            key: The YAML key.
            value: The number.
            at_least: Its minimum.
            above: A bound that it must exceed.
        """
        if value is None:
            return
        if at_least is not None and not value >= at_least:
            self.append(f"{key} must be at least {at_least}, got {value}")
        if above is not None and not value > above:
            self.append(f"{key} must be above {above}, got {value}")

    def raise_any(self, *, title: str | None = None) -> None:
        """Raise one error with all faults, one per line.

        Args:
            title: First line of the message.

        Raises:
            ConfigurationError: If there are any.
        """
        if self:
            raise ConfigurationError("\n".join([*([title] if title else []), *self]))
