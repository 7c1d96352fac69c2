"""Hooks of mkdocs: generated pages, and links to files outside of docs/ (see mkdocs.yml)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!\!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
# Tags of sources, such as [A] [C]: two in a row are a link in Markdown.
TAG = re.compile(r"\[([A-Z])\](?![(:])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and leave out of the navigation what does not exist."""
    from scripts.docs_reference import commands_page, configuration_page  # takes seconds

    pages = {
        "reference/commands.md": commands_page(),
        "reference/configuration.md": configuration_page(),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    config.nav = list(_existing(config.nav, {file.src_uri for file in files}))
    return files


def _existing(nav: Iterable[Any], known: set[str]) -> Iterator[Any]:
    """Yield the entries of a navigation whose pages exist."""
    for entry in nav:
        if isinstance(entry, str):
            if entry in known:
                yield entry
            continue
        ((title, below),) = entry.items()
        if isinstance(below, list):
            yield {title: list(_existing(below, known))}
        elif below in known:
            yield entry


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that lead out of docs/ to the repository; without one, leave their text."""
    folder = Path(config.docs_dir) / Path(page.file.src_uri).parent

    def outside(found: re.Match[str]) -> str:
        text, target, anchor = found[1], (folder / found[2]).resolve(), found[3] or ""
        if target.is_relative_to(config.docs_dir):
            return found[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: there is no {found[2]}")
        if not config.repo_url:
            return text if text.startswith("`") else f"`{text}`"
        path = target.relative_to(ROOT).as_posix()
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"

    return TAG.sub(r"\\[\1\\]", LINK.sub(outside, markdown))
