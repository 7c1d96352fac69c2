"""Imports run one way, files stay short, and the package itself imports nothing heavy."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlecs_lightning

PACKAGE = Path(mlecs_lightning.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
MAX_LINES = 400
MAX_FILES = 12

# A layer may import itself and the layers of a lower rank; two of one rank stay apart.
RANK = {
    "differences": 0,
    "errors": 0,
    "extras": 1,
    "functional": 1,
    "lazy": 0,
    "names": 0,
    "renamed_keys": 0,
    "types": 0,
    "class_paths": 1,
    "storage": 1,
    "settings": 2,
    "wire": 2,
    "aggregation": 3,
    "metrics": 3,
    "nn": 3,
    "data": 4,
    "modules": 4,
    "callbacks": 5,
    "deploy": 5,
    "report": 5,
    "rounds": 6,
    "algorithms": 7,
    "checkpoints": 7,
    "clients": 8,
    "cohorts": 7,
    "evaluation": 9,
    "federated": 10,
    "network": 11,
    "__init__": 12,
    "cli": 13,
    "shipped": 1,
    "commands": 14,
    "__main__": 15,
}
# A method is a plug-in: what it takes to run one must work for a method that nobody here wrote.
KNOW_METHODS = ("algorithms", "__init__", "cli")
# What names a method in code. "mlecs" is the name of the package as well: only the class counts.
METHODS = re.compile(
    r"(?<![A-Za-z])(?i:eclm|cdcca|fedavg|fedprox|coplms|standalone|centralized)|\bMLECS\b"
)
# The name of an extra, what a table is compared with by default, and which bar of it is a bound.
NAMED = {
    (
        "report/command.py",
        "the algorithm to compare the others with; by default MLECS, otherwise the first",
    ),
    ("extras.py", "eclm"),
    ("report/page.py", "MLECS"),
    ("report/results/rows.py", "Centralized"),
}
# Packages that import their names on first use, beside the top-level one.
LAZY = ("report", "algorithms", "algorithms.mlecs", "algorithms.eclm", "algorithms.cdcca")
# What no file of a layer up to and including this rank may import.
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
FABRIC = ("lightning.fabric", "lightning.Fabric", "lightning_fabric")
BANNED_UP_TO = {"metrics": LIGHTNING, "data": FABRIC}
# What the files of a layer may import and nothing else, beside the standard library.
ONLY = {"functional": ("torch", "mlecs_lightning.functional")}


def layer_of(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def within(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def imported(file: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of every import, TYPE_CHECKING or inside functions too."""
    parents = ("mlecs_lightning", *file.parent.parts)
    nodes = list(ast.walk(tree))
    aliases = set()
    for node in nodes:
        match node:
            case ast.Import(names=names):
                aliases |= {name.asname or name.name for name in names if name.name == "lightning"}
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = parents[: len(parents) + 1 - level] if level else ()
                base = ".".join((*above, *([module] if module else [])))
                yield from ((node.lineno, f"{base}.{name.name}") for name in names)
    for node in nodes:  # `import lightning as L; L.Fabric` imports Fabric as well
        match node:
            case ast.Attribute(value=ast.Name(id=alias), attr=attr) if alias in aliases:
                yield node.lineno, f"lightning.{attr}"


def faults_of_import(layer: str, name: str) -> Iterator[str]:
    """Yield what is wrong with `layer` importing `name`."""
    if within(name, ("mlecs_lightning",)):
        head = name.split(".")[1] if "." in name else "__init__"
        target = head if head in RANK else "__init__"  # a public name or __version__
        above = target != layer and RANK[target] >= RANK[layer]
        if above or (target == "algorithms" and layer not in KNOW_METHODS):
            yield f"{layer} may not import {target}"
    for highest, roots in BANNED_UP_TO.items():
        if RANK[layer] <= RANK[highest] and within(name, roots):
            yield f"nothing up to {highest} may import {name}"
    standard = name.split(".")[0] in sys.stdlib_module_names
    if layer in ONLY and not standard and not within(name, ONLY[layer]):
        yield f"{layer} may import {' and '.join(ONLY[layer])} alone, not {name}"


def faults(file: Path, source: str) -> list[str]:
    """List what is wrong with a file of the package, each fault with its line."""
    layer = layer_of(file)
    if layer not in RANK:
        return [f"{file}: layer {layer!r} is not in RANK"]
    found = [
        f"{file}:{line}: {fault}"
        for line, name in imported(file, ast.parse(source))
        for fault in faults_of_import(layer, name)
    ]
    lines = source.count("\n")
    return found + ([f"{file}: {lines} lines, over {MAX_LINES}"] if lines > MAX_LINES else [])


def names_and_texts(tree: ast.AST) -> Iterator[str]:
    """Yield every identifier and every string that is no docstring."""
    nodes = list(ast.walk(tree))
    docstrings = {
        id(node.value)
        for node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in nodes:
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield text
            case (
                ast.Name(id=name)
                | ast.Attribute(attr=name)
                | ast.arg(arg=name)
                | ast.keyword(arg=str(name))
                | ast.alias(name=name)
                | ast.FunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                yield name


def methods_named(source: str) -> set[str]:
    return {text for text in names_and_texts(ast.parse(source)) if METHODS.search(text)}


def test_nothing_but_the_algorithms_names_a_method() -> None:
    """What it takes to run a method must work for one that nobody here wrote."""
    named = {
        (str(file), text)
        for file in FILES
        if layer_of(file) not in KNOW_METHODS
        for text in methods_named((PACKAGE / file).read_text())
    }
    assert named == NAMED


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(algorithm, ECLM)",
        "module.eclm",
        "def cdcca_parts(): ...",
        "class FedAvgMixin: ...",
        "from elsewhere import FedProx",
        "kind == 'StandalonePublic'",
        "f'{name} is no MLECS'",
        "build(coplms=True)",
        "def f(centralized): ...",
    ],
)
def test_name_of_a_method_is_found(source: str) -> None:
    assert len(methods_named(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "'''As ECLM does.'''",
        "def f():\n    '''As ECLM does.'''  # and FedAvg",
        "import mlecs_lightning",
        "os.environ['MLECS_CACHE']",
        "write('mlecs_config.json')",
    ],
)
def test_other_names_are_no_methods(source: str) -> None:
    assert methods_named(source) == set()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_file_keeps_to_its_layer(file: Path) -> None:
    assert faults(file, (PACKAGE / file).read_text()) == []


@pytest.mark.parametrize("top", ["src", "tests", "benchmarks", "scripts"])
def test_no_folder_holds_more_files_than_can_be_taken_in(repo_root: Path, top: str) -> None:
    counts = Counter(path.parent for path in (repo_root / top).rglob("*.py"))
    assert counts
    assert {folder: n for folder, n in counts.items() if n > MAX_FILES} == {}


def test_every_layer_of_the_table_exists() -> None:
    assert {layer_of(file) for file in FILES} >= set(RANK)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("functional/volume.py", "import numpy"),
        ("functional/volume.py", "from ..types import Batch"),
        ("functional/volume.py", "from mlecs_lightning.types import Batch"),
        ("types.py", "from .nn import Connector"),
        ("nn/backbone.py", "from lightning import LightningModule"),
        ("metrics/text.py", "def f():\n    import pytorch_lightning"),
        ("modules/edge.py", "from ..data.base import FederatedDataModule"),
        ("modules/edge.py", "from lightning import Fabric"),
        ("modules/edge.py", "import lightning as L\nL.Fabric()"),
        ("data/base.py", "import lightning.fabric.utilities"),
        ("data/base.py", "if TYPE_CHECKING:\n    from ..federated import context"),
        ("federated/trainer.py", "from ..algorithms.base import Algorithm"),
        ("federated/trainer.py", "from .. import algorithms"),
        ("federated/trainer.py", "from mlecs_lightning import MLECS"),
        ("callbacks/progress.py", "from ..federated.trainer import FederatedTrainer"),
        ("algorithms/mlecs/algorithm.py", "import mlecs_lightning"),
        ("helpers.py", "import torch"),
        ("nn/backbone.py", "\n" * (MAX_LINES + 1)),
    ],
)
def test_fault_is_found(file: str, source: str) -> None:
    assert len(faults(Path(file), source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("functional/volume.py", "import math\nimport torch.nn as nn\nfrom . import gram"),
        ("nn/backbone.py", "from ..types import Batch\nfrom . import connector"),
        ("modules/edge.py", "import lightning as L\nL.LightningModule"),
        ("federated/trainer.py", "from lightning import Fabric\nfrom ..modules import EdgeModule"),
        ("callbacks/progress.py", "from ..metrics.text import TextMetrics"),
        ("cli/parser.py", "from .. import __version__\nfrom ..algorithms.base import Steps"),
        ("nn/backbone.py", "\n" * MAX_LINES),
    ],
)
def test_sound_file_has_no_fault(file: str, source: str) -> None:
    assert faults(Path(file), source) == []


# The report, and the sections that algorithms add to it, are read where nothing is trained.
LIGHT = ("mlecs_lightning", *(f"mlecs_lightning.{name}" for name in LAZY))


def test_importing_a_lazy_package_loads_nothing_heavy() -> None:
    program = (
        f"import sys, {', '.join(LIGHT)}; "
        f"[dir(sys.modules[name]) for name in {LIGHT}]; print(*sorted("
        "{'torch', 'transformers', 'lightning', 'peft', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", [n for n in mlecs_lightning.__all__ if n != "__version__"])
def test_public_name_is_the_class_of_that_name(name: str) -> None:
    assert getattr(mlecs_lightning, name).__name__ == name


@pytest.mark.parametrize("package", LAZY)
def test_names_of_a_lazy_package_are_those_that_it_can_import(package: str) -> None:
    lazy = importlib.import_module(f"mlecs_lightning.{package}")
    assert dir(lazy) == sorted(lazy.__all__)
    assert [getattr(lazy, name).__name__ for name in lazy.__all__] == lazy.__all__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'mlecs_lightning' has no attribute 'FedSGD'"):
        _ = mlecs_lightning.FedSGD


def test_citation_names_the_version_of_the_package(repo_root: Path) -> None:
    lines = (repo_root / "CITATION.cff").read_text().splitlines()
    assert f"version: {mlecs_lightning.__version__}" in lines
