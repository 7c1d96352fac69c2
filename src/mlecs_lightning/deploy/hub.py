"""Exported models on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.storage.paths import expanded

__all__ = ["check_repository", "exported_folder", "upload"]

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


def check_repository(name: str) -> None:
    """Check the form of a name on the hub.

    Raises:
        ConfigurationError: If it is not ``user/name``.
    """
    if not _REPOSITORY.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name on the hub: expected user/name, of letters, digits, '-', '_' and "
            "'.'"
        )


def upload(folder: Path, repository: str, *, private: bool, revision: str | None) -> str:
    """Upload a folder to the hub as one commit; the repository is created if it is missing.

    Args:
        folder: The folder.
        repository: ``user/name``.
        private: Whether a new repository is private.
        revision: The branch, created if missing; ``main`` by default.

    Returns:
        The address of the commit.

    Raises:
        ConfigurationError: If the hub refuses, or cannot be reached; says what to do.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message="Export of mlecs_lightning",
        )
    except _failures() as error:
        if _is_unreachable(error):
            raise ConfigurationError(
                f"push {repository}: the hub cannot be reached ({_first_line(error)}): check the "
                "network, HF_HUB_OFFLINE and HF_ENDPOINT, and push again"
            ) from error
        raise ConfigurationError(
            f"push {repository}: {_first_line(error)}; `hf auth login` or HF_TOKEN gives the "
            "permission to write"
        ) from error
    return str(done.commit_url)


def exported_folder(place: str | Path, *, revision: str | None) -> Path:
    """Return the folder of an exported model, downloaded if it is on the hub.

    Args:
        place: A folder, or ``user/name`` on the hub where there is no such folder.
        revision: Branch, tag or commit on the hub.

    Raises:
        ConfigurationError: If a folder is given with a revision, or the download fails.
    """
    folder = expanded(place)
    if folder.exists() or isinstance(place, Path) or not _REPOSITORY.fullmatch(place):
        if revision is not None:
            raise ConfigurationError(
                f"load_exported: revision {revision!r} is for models of the hub, and "
                f"{str(place)!r} is a folder: leave it out"
            )
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, revision=revision))
    except _failures() as error:
        raise ConfigurationError(
            f"load_exported: there is no folder {place!r}, and the hub says: {_first_line(error)}"
        ) from error


def _transport_error() -> type[Exception]:
    """Return the base of the errors of the hub's HTTP client, which need not be an `OSError`.

    It is that of httpx in version 1 of huggingface_hub and that of httpx2 in version 2.
    """
    from huggingface_hub import errors

    found: type[Exception] = getattr(errors, "HTTPError", ConnectionError)
    return found


def _failures() -> tuple[type[Exception], ...]:
    """Return what a call of the hub raises if it fails."""
    return (OSError, ValueError, _transport_error())


def _is_unreachable(error: Exception) -> bool:
    """Return whether the hub has not answered; otherwise it has refused."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return False
    return isinstance(error, (ConnectionError, TimeoutError, _transport_error()))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
