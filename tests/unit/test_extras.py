"""Optional packages: the table of extras, the error, and an import without any of them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mlecs_lightning.extras import EXTRAS, MissingExtraError, Need, require

# Names on PyPI that are not those of the modules.
PYPI = {"av": "av", "sklearn": "scikit-learn", "rouge_score": "rouge-score"}
# Used by other tools, by name at run time, or where no code of ours asks for them.
APART = {"all", "dev", "docs", "trackers"}
# What a device does without: everything that only an extra brings.
OPTIONAL = sorted({module for modules in EXTRAS.values() for module in modules} - {"jinja2"})

# Runs the rest of a program as if packages and their metadata were not there.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

HIDDEN = set(sys.argv.pop(1).split(","))

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else PathFinder.find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        hidden = (context.name or "").replace("-", "_") in HIDDEN
        return iter(()) if hidden else PathFinder.find_distributions(context)

sys.meta_path[:] = [Without if each is PathFinder else each for each in sys.meta_path]
"""


def declared(repo_root: Path) -> dict[str, set[str]]:
    """Return the packages that each extra of pyproject.toml names."""
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    return {
        extra: {re.split(r"[\[<>=]", each)[0] for each in packages}
        for extra, packages in project["optional-dependencies"].items()
    }


def test_every_extra_installs_what_the_code_asks_it_for(repo_root: Path) -> None:
    written = declared(repo_root)
    assert EXTRAS.keys() == written.keys() - APART
    for extra, modules in EXTRAS.items():
        wanted = {PYPI.get(name, name.replace("_", "-")) for name in modules}
        assert wanted == written[extra], extra


def test_all_is_every_extra_but_those_that_need_an_environment_of_their_own(
    repo_root: Path,
) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    every = project["optional-dependencies"]
    named = re.findall(r"\[(.*)\]", "\n".join(every["all"]))
    assert set(",".join(named).split(",")) == every.keys() - {
        *("all", "dev", "docs", "flower", "quantized")
    }
    assert not {"scikit-learn", "matplotlib", "tensorboard", "rouge-score", "bert-score"} & {
        re.split(r"[\[<>=]", each)[0] for each in project["dependencies"]
    }


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ([Need("mp4", "video")], 'mp4 needs PyAV: pip install "mlecs_lightning[video]"'),
        (
            [
                Need("a", "metrics", ("rouge_score",), "set b: false"),
                Need("pillow", "docs", ("re",)),
            ],
            'a needs rouge-score: pip install "mlecs_lightning[metrics]", or set b: false',
        ),
        (
            [Need("a", "digits"), Need("b", "metrics", otherwise="leave it"), Need("c", "digits")],
            'packages are missing: pip install "mlecs_lightning[digits,metrics]"\n'
            "  a needs scikit-learn\n"
            "  b needs rouge-score and bert-score (or leave it)\n"
            "  c needs scikit-learn",
        ),
    ],
)
def test_one_error_names_all_and_the_command(
    needs: list[Need], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as refused:
        require(*needs)
    assert str(refused.value) == said
    assert isinstance(refused.value, ImportError)


def test_what_is_installed_is_no_fault() -> None:
    require()
    require(Need("numbers", "metrics", ("math", "json")))


def test_a_device_and_the_command_line_start_without_optional_packages(tmp_path: Path) -> None:
    program = f"""{WITHOUT}
import mlecs_lightning.network.join, mlecs_lightning.deploy, mlecs_lightning.network.serve
from mlecs_lightning import load_exported
from mlecs_lightning.__main__ import main
codes = [main(["report", "."]), main(["fit", "--config", "quickstart"])]
print(codes, sorted(HIDDEN & sys.modules.keys()))
"""
    hidden = ",".join({*OPTIONAL, "nltk", "pandas", "scikit_learn"})
    done = subprocess.run(
        [sys.executable, "-c", program, hidden], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "[1, 1] []\n", done.stderr
    assert (
        'a report needs matplotlib and scipy: pip install "mlecs_lightning[report]"' in done.stderr
    )
    assert (
        'packages are missing: pip install "mlecs_lightning[digits,answers,metrics]"' in done.stderr
    )
    assert list(tmp_path.iterdir()) == [], "nothing was trained"
