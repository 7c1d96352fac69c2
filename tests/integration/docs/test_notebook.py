"""The notebook of the documentation: its cells are code of today, and they run in order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def cells(repo_root: Path) -> list[str]:
    """The code cells of the notebook, in order."""
    notebook = json.loads((repo_root / "docs" / "first_steps.ipynb").read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "without outputs in git"
    return ["".join(each["source"]) for each in notebook["cells"] if each["cell_type"] == "code"]


def test_the_cells_are_python_and_name_what_the_package_has(cells: list[str]) -> None:
    for cell in cells:
        compile(cell, "cell", "exec")
    names: dict[str, object] = {}
    exec(cells[0], names)  # the imports
    assert {"MLECS", "FederatedTrainer", "Federation"} <= names.keys()


@pytest.mark.slow
def test_the_cells_run_one_after_another(cells: list[str], tmp_path: Path) -> None:
    # As a kernel does it: one process, one namespace, cell by cell.
    program = "import json, sys\nspace = {}\nfor cell in json.load(sys.stdin): exec(cell, space)\n"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(cells),
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "macro_f1" in ran.stdout
    assert "right would be: a " in ran.stdout
    assert (tmp_path / "runs" / "first_steps" / "version_0" / "summary.json").is_file()
