"""Sections that an algorithm adds to the report, from a module ``report`` beside its class."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec, resolve_name
from pathlib import Path
from types import ModuleType
from typing import Protocol

from mlecs_lightning.report.parts import Group, Section, Setting

__all__ = ["SectionHook", "algorithm_sections"]

_PACKAGE = __name__.partition(".")[0]


class SectionHook(Protocol):
    """The function ``report_sections`` of a module ``report`` in the package of an algorithm.

    For the class ``my_package.my_algorithm.MyAlgorithm`` that module is ``my_package.report``. It
    is loaded without the packages around it, so that a report does not wait for their imports; it
    should not import torch itself.
    """

    def __call__(
        self, setting: Setting, groups: Sequence[Group], *, charts: bool
    ) -> Sequence[Section]:
        """Return the sections of the algorithm, in their order on the page.

        Args:
            setting: All runs of one setting.
            groups: The groups of this setting whose runs are of the algorithm.
            charts: Whether to draw charts; Markdown has none.
        """


def algorithm_sections(setting: Setting, *, charts: bool = True) -> list[Section]:
    """Return the sections that the algorithms of a setting add.

    Algorithms that cannot be found or loaded are listed in a section of their own.

    Args:
        setting: Runs of one setting.
        charts: Whether to draw charts.
    """
    groups_by_path: dict[str, list[Group]] = {}
    for group in setting.groups:
        path = group.runs[0].class_path
        if path:
            # As on the command line, a bare name is one of this package.
            groups_by_path.setdefault(path if "." in path else f"{_PACKAGE}.{path}", []).append(
                group
            )
    found: list[Section] = []
    missing: list[str] = []
    for path, groups in groups_by_path.items():
        try:
            hook = _find_hook(path)
        except Exception as error:  # code from outside may raise anything
            missing.append(f"{path} ({error})")
            continue
        if hook is not None:
            found += hook(setting, groups, charts=charts)
    if missing:
        note = (
            "The page may lack sections of these algorithms, because their code cannot be loaded "
            f"here: {'; '.join(missing)}. Make their packages importable, for example with "
            "PYTHONPATH, and write the report again."
        )
        found.append(Section("Missing sections", note))
    return found


def _find_hook(class_path: str) -> SectionHook | None:
    """Return the hook of an algorithm; ``None`` if it has none.

    Raises:
        ImportError: If the class cannot be found.
        Exception: Whatever the module raises when it is loaded.
    """
    package = _package_of(class_path)
    spec = _spec_of(f"{package}.report") if package else None
    if spec is None:
        return None
    hook: SectionHook | None = getattr(_load(spec), "report_sections", None)
    return hook


def _package_of(class_path: str) -> str:
    """Return the package whose folder holds the class; empty for a module outside of packages.

    A class may be named by a package that only passes it on. Imports are followed by reading the
    source, also those under ``TYPE_CHECKING``, as packages with lazy imports (PEP 562) write them.
    """
    module, _, name = class_path.rpartition(".")
    visited: set[tuple[str, str]] = set()
    while True:
        spec = _spec_of(module)
        if spec is None or spec.origin is None or (module, name) in visited:
            raise ImportError(f"no module {module!r}")
        visited.add((module, name))
        source = _import_of(name, Path(spec.origin))
        if source is None:
            return spec.parent or ""
        statement, name = source
        relative = "." * statement.level + (statement.module or "")
        module = resolve_name(relative, spec.parent)


def _import_of(name: str, file: Path) -> tuple[ast.ImportFrom, str] | None:
    """Return the statement that imports a name, and the name there; ``None`` if there is none."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node, alias.name
    return None


def _spec_of(module: str) -> ModuleSpec | None:
    """Find a module without importing the packages around it, as `find_spec` would."""
    top, *below = module.split(".")
    spec = find_spec(top) if top else None
    name = top
    for part in below:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    return spec


def _load(spec: ModuleSpec) -> ModuleType:
    if spec.name in sys.modules:
        return sys.modules[spec.name]
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
