"""Packages that import their public names on first use (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType

__all__ = ["import_all", "lazy_names"]


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package that imports its names on first use.

    A type checker needs the same imports under ``if TYPE_CHECKING``.

    Args:
        package: The package's ``__name__``.
        homes: For each name the module of the package that defines it.
    """

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def __dir__() -> list[str]:
        return sorted(import_module(package).__all__)

    return __getattr__, __dir__


def import_all(package: ModuleType) -> None:
    """Import all public names of a lazy package, for code that looks for subclasses."""
    for name in package.__all__:
        getattr(package, name)
