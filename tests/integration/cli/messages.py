"""What an error message must say."""

from collections.abc import Sequence
from pathlib import Path


def missing(words: Sequence[str], message: str, tmp_path: Path = Path()) -> list[str]:
    """Return the words that a message lacks; in them TMP is the test's own folder."""
    return [word for word in words if word.replace("TMP", str(tmp_path)) not in message]
