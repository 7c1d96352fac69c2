"""Fixtures that all tests share, and the environment that they run in."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Set before anything imports transformers, which reads them once, at import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Inside the checkout, and one for all workers: a pocket model is trained once, not once a worker.
os.environ.setdefault("MLECS_CACHE", str(ROOT / ".cache" / "tests"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Folder of the checkout, where configs/ and cli.py are."""
    return ROOT


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Folder where the package keeps its pocket models during the tests."""
    path = Path(os.environ["MLECS_CACHE"])
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def urfd_root() -> Path:
    """Folder of the UR Fall data; tests that ask for it are skipped where there is none."""
    named = os.environ.get("MLECS_URFD_ROOT")
    places = (
        [Path(named)] if named else [ROOT / "data/urfd", ROOT.parent / "shared" / "data" / "urfd"]
    )
    for place in places:
        if place.is_dir():
            return place
    pytest.skip(f"no UR Fall data in {' or '.join(map(str, places))}; set MLECS_URFD_ROOT")
