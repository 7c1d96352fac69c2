"""The documentation site: pages are reached, messages exist, and it builds without a warning."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, in which a tag names a function."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: None)
CONFIG: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
GENERATED = {"reference/commands.md", "reference/configuration.md"}


def pages(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    below = nav.values() if isinstance(nav, dict) else nav
    assert isinstance(below, Iterable)
    return [page for each in below for page in pages(each)]


def test_every_page_is_reached_from_the_navigation_once() -> None:
    found = pages(CONFIG["nav"])
    assert len(found) == len(set(found))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert there <= set(found), "add these pages to the nav of mkdocs.yml"
    assert not there & GENERATED, "a generated page would be overwritten"


def test_every_message_of_troubleshooting_is_one_of_the_program() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    # Literals that stand in rows below each other are one text.
    said = [
        re.sub(r'"\n\s*f?"', "", path.read_text()) for path in sorted((ROOT / "src").rglob("*.py"))
    ]
    assert [row for row in rows if not any(row in text for text in said)] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    reference = (tmp_path / "site" / "reference" / "configuration.html").read_text()
    assert "trainer.participation.min_clients" in reference
    assert "token_fraction" in reference
    commands = (tmp_path / "site" / "reference" / "commands.html").read_text()
    assert "mlecs data check" in commands


@pytest.mark.parametrize(
    ("repo_url", "text", "shown"),
    [
        ("", "[`a`](../LICENSE)", "`a`"),
        ("", "[a](../configs/quickstart.yaml)", "`a`"),
        ("https://x.org/y/", "[a](../LICENSE#b)", "[a](https://x.org/y/blob/main/LICENSE#b)"),
        ("https://x.org/y/", "[a](method.md#b)", "[a](method.md#b)"),
        ("", "[A] [C] and [A](method.md)", r"\[A\] \[C\] and [A](method.md)"),
    ],
)
def test_links_out_of_the_documents_lead_to_the_repository(
    repo_url: str, text: str, shown: str
) -> None:
    pytest.importorskip("mkdocs")
    from scripts.docs_site import on_page_markdown

    page = SimpleNamespace(file=SimpleNamespace(src_uri="guide.md"))
    config = SimpleNamespace(docs_dir=str(DOCS), repo_url=repo_url)
    assert on_page_markdown(text, page=page, config=config, files=None) == shown


def test_a_link_to_nothing_stops_the_build() -> None:
    pytest.importorskip("mkdocs")
    from scripts.docs_site import on_page_markdown

    page = SimpleNamespace(file=SimpleNamespace(src_uri="concepts/drift.md"))
    config = SimpleNamespace(docs_dir=str(DOCS), repo_url="")
    with pytest.raises(FileNotFoundError, match=r"concepts/drift\.md: there is no \.\./\.\./gone"):
        on_page_markdown("[a](../../gone.md)", page=page, config=config, files=None)
