"""Where Flower's programs are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def flower() -> Path:
    """The folder of Flower's programs: ``MLECS_FLOWER``, or the environment that make builds."""
    folder = Path(os.environ.get("MLECS_FLOWER", ROOT / ".flower-venv" / "bin"))
    if not (folder / "flower-superlink").exists():
        pytest.skip("Flower is not installed: `make test` installs it into .flower-venv")
    return folder
