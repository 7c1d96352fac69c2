"""What the documents name exists: files, functions, modules, commands, options, links, layers."""

import ast
import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name

import pytest

import mlecs_lightning
from mlecs_lightning.federated import FederatedTrainer
from tests.unit.test_architecture import RANK

PACKAGE = Path(mlecs_lightning.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
# A path with `<name>` in it is a pattern for a new file, and is not looked for.
FILE = re.compile(r"(?<![\w/<>*.-])([\w./-]+\.(?:py|yaml))(?::([A-Za-z_][\w.]*))?(?![\w>])")
MODULE = re.compile(r"(?<![\w/.-])mlecs_lightning(?:\.\w+)+")
COMMAND = re.compile(r"python -m (benchmarks(?:\.\w+)+)")
TARGET = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w/])trainer\.([a-z]\w+)(?<!py)")
MEMBER = re.compile(r"`([A-Z]\w*)\.(\w+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
TITLE = re.compile(r'^```\w+ title="([^"]+)"$', re.MULTILINE)
# Pages of the site that scripts/docs_site.py makes.
GENERATED = {ROOT / "docs/reference/commands.md", ROOT / "docs/reference/configuration.md"}
# What a run or a user writes; the repository has none of them.
WRITTEN = {"config.yaml", "__init__.py", "federation.yaml", "kitchen.yaml", "space.yaml"}
SOURCES = [ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))]


def defined(tree: ast.Module, name: str) -> bool:
    """Whether a module defines a dotted name: a function, a class, a constant, or a member."""
    body: list[ast.stmt] = tree.body
    for part in name.split("."):
        found = next((node for node in body if part in names_of(node)), None)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def names_of(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def found(path: str) -> Path | None:
    """Return a file named from the root of the repository or of the package."""
    return next((base / path for base in (ROOT, PACKAGE) if (base / path).is_file()), None)


def faults_of_files(text: str) -> Iterator[str]:
    written_here = WRITTEN | set(TITLE.findall(text))
    for written, name in FILE.findall(text):
        path = re.sub(r"^(\.\./)+", "", written)
        file = None if path in written_here else found(path)
        if file is None and path not in written_here:
            yield f"there is no file {path}"
        elif file is not None and name and not defined(ast.parse(file.read_text()), name):
            yield f"{path} does not define {name}"


def faults_of_modules(text: str) -> Iterator[str]:
    for name in MODULE.findall(text):
        try:
            resolve_name(name)
        except (ImportError, AttributeError):
            yield f"there is no {name}"


def faults_of_members(text: str) -> Iterator[str]:
    """Yield each `Class.member` whose class is ours and does not define the member."""
    for kind, name in MEMBER.findall(text):
        trees = [tree for tree in SOURCES if defined(tree, kind)]
        if trees and not any(defined(tree, f"{kind}.{name}") for tree in trees):
            yield f"{kind} does not define {name}"


def faults_of_commands(text: str) -> Iterator[str]:
    for name in COMMAND.findall(text):
        path = ROOT / name.replace(".", "/")
        if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
            yield f"there is no {name}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in TARGET.findall(text):
        if name not in targets:
            yield f"there is no target {name} in the Makefile"


def faults_of_keys(text: str) -> Iterator[str]:
    # In Python `trainer.fit` is no option, but a member.
    known = {*signature(FederatedTrainer).parameters, *dir(FederatedTrainer)}
    for key in OPTION.findall(text):
        if key not in known:
            yield f"there is no option trainer.{key}"


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {heading.strip().replace(" ", "-") for heading in kept}


def faults_of_links(text: str, folder: Path) -> Iterator[str]:
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        if "://" in link or (path and (folder / path).resolve() in GENERATED):
            continue
        if path and not (folder / path).exists():
            yield f"there is no {link}"
        elif anchor and anchor not in anchors((folder / path).read_text() if path else text):
            yield f"there is no heading for {link}"


def faults(text: str, folder: Path) -> list[str]:
    return [
        *faults_of_files(text),
        *faults_of_modules(text),
        *faults_of_members(text),
        *faults_of_commands(text),
        *faults_of_keys(text),
        *faults_of_links(text, folder),
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    assert faults(document.read_text(), document.parent) == []


@pytest.mark.parametrize(
    "text",
    [
        "`federated/loop.py`",
        "`federated/trainer.py:FederatedTrainer.fly`",
        "`wire/channel.py:Canal`",
        "`Tower.climb`",
        "`configs/slowstart.yaml`",
        "`mlecs_lightning.federated.loop`",
        "python -m benchmarks.speed",
        "`make bench-everything`",
        "`--trainer.max_epochs 3`",
        "[walk](docs/walk.md)",
        "[walk](docs/design.md#a-walk-in-the-park)",
    ],
)
def test_fault_is_found(text: str) -> None:
    assert len(faults(text, ROOT)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "`src/mlecs_lightning/algorithms/<name>.py`",
        "`nn/tower.py:Tower.forward`, `Tower.view`, `rounds/learner.py:EdgeLearner`",
        "`mlecs_lightning.FederatedTrainer`, `mlecs_lightning.report.results.matrix`",
        "python benchmarks/all.py; python -m benchmarks.quality; `make check`",
        "[walk](docs/design.md#where-to-add-things), [paper](https://arxiv.org/abs/2602.14107)",
    ],
)
def test_what_exists_is_no_fault(text: str) -> None:
    assert faults(text, ROOT) == []


def test_the_table_of_the_rooms_shows_the_ranks() -> None:
    _, text = (ROOT / "docs/design.md").read_text().split("## The rooms\n")
    floors = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    shown = [(room, int(rank)) for rank, cell in floors for room in re.findall(r"`(\w+)`: ", cell)]
    assert sorted(shown) == sorted(RANK.items())
    assert [rank for _, rank in shown] == sorted(RANK.values(), reverse=True)
