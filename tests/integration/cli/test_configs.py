"""The configurations in configs/: each runs by the command in its head, and says what it sets."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from mlecs_lightning import algorithms
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.data import Manifest, URFall
from mlecs_lightning.rounds import Algorithm
from tests.integration.parsed import Parsed

ROOT = Path(__file__).resolve().parents[3]
# What comes on top of another is no run of its own: test_paper.py has it.
ON_TOP = {Path("configs/paper/pocket.yaml")}
CONFIGS = sorted({p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.yaml")} - ON_TOP)
SLOW = {Path("configs/paper/urfall.yaml")}
METHODS = [name for name in algorithms.__all__ if issubclass(getattr(algorithms, name), Algorithm)]
every_config = pytest.mark.parametrize(
    "path", [pytest.param(p, marks=pytest.mark.slow if p in SLOW else ()) for p in CONFIGS], ids=str
)


def write_manifest(config: dict[str, Any], path: Path) -> Path:
    """Write two samples of every split for each client of a configuration, or for five domains."""
    data, clients = config["data"]["init_args"], config["clients"]
    drawn = "count" in clients
    owners = [f"topic {i}" for i in range(5)] if drawn else list(clients)
    words = [word for words in (data.get("labels") or {"": ["video"]}).values() for word in words]
    lines = [
        {
            "id": f"{split} {owner} {i}",
            "split": split,
            **({} if split == "public" else {"domain" if drawn else "client": owner}),
            "target": f"{words[i % len(words)]} .",
            "modalities": {
                modality: {"text": f"{modality} {i}"}
                if declared["kind"] == "text"
                else np.full(declared["shape"], float(i)).tolist()
                for modality, declared in data["modalities"].items()
            },
        }
        for split in ("public", "train", "test")
        for owner in owners
        for i in range(2)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def resolve(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Parties]:
    """Check a configuration as a run does before it builds models; skip without its data."""

    def call(path: Path, *args: str) -> Parties:
        config = yaml.safe_load((ROOT / path).read_text())
        named = config["data"]["class_path"].rpartition(".")[2]
        if named == URFall.__name__:
            args += ("--data.init_args.root", str(request.getfixturevalue("urfd_root")))
        elif named == Manifest.__name__:
            file = write_manifest(config, tmp_path / "lines.jsonl")
            args += ("--data.init_args.file", str(file))
        cli = Parsed(["fit", "--config", str(ROOT / path), *args])
        return Parties.resolve(cli.federation, cli.algorithm, cli.datamodule)

    return call


def test_the_configs_that_the_documentation_names_are_there() -> None:
    assert {Path("configs/quickstart.yaml"), Path("configs/urfall/mlecs.yaml")} <= set(CONFIGS)


@every_config
def test_a_config_resolves_into_its_parties(resolve: Callable[..., Parties], path: Path) -> None:
    written = yaml.safe_load((ROOT / path).read_text())
    parties = resolve(path)
    assert parties.seed == written["seed_everything"]
    if "count" not in written["clients"]:
        assert {name: list(profile.modalities) for name, profile in parties.profiles.items()} == {
            name: client["modalities"] for name, client in written["clients"].items()
        }
    assert differences(written["server"], parties.server.to_dict()) == []
    for name, model in parties.models.items():
        own = set(written["clients"].get(name, ())) - {"modalities", "domains"}
        common = {key: value for key, value in written["edge"].items() if key not in own}
        assert differences(common, model.to_dict()) == []


@every_config
@pytest.mark.parametrize(
    "algorithm",
    [
        "FedAvg",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("Standalone", "StandalonePublic", "Centralized")
        ),
    ],
)
def test_a_config_serves_the_other_algorithms(
    merged: Callable[..., dict[str, Any]], path: Path, algorithm: str
) -> None:
    config = merged("--config", ROOT / path, "--algorithm", algorithm)
    written = yaml.safe_load((ROOT / path).read_text())
    assert config["algorithm"]["class_path"] == f"mlecs_lightning.{algorithm}"
    steps = written["algorithm"]["init_args"]["steps"]
    assert steps.items() <= config["algorithm"]["init_args"]["steps"].items()


@pytest.mark.parametrize("algorithm", METHODS)
def test_every_method_takes_the_steps_of_another(
    merged: Callable[..., dict[str, Any]], algorithm: str
) -> None:
    words = ("--config", ROOT / "configs/quickstart.yaml", "--algorithm", algorithm)
    config = merged(*words, "--algorithm.steps.warmup", "7")
    assert config["algorithm"]["class_path"].endswith(f".{algorithm}")
    assert config["algorithm"]["init_args"]["steps"]["warmup"] == 7


@every_config
def test_a_config_survives_being_printed(
    mlecs: Callable[..., SimpleNamespace],
    merged: Callable[..., dict[str, Any]],
    path: Path,
    tmp_path: Path,
) -> None:
    """And so does all that it leaves at its default: the printed one names every key."""
    printed = mlecs("fit", "--config", ROOT / path, "--print_config").out
    (tmp_path / "printed.yaml").write_text(printed)
    assert mlecs("fit", "--config", tmp_path / "printed.yaml", "--print_config").out == printed
    config = yaml.safe_load(printed)
    written = yaml.safe_load((ROOT / path).read_text())
    assert differences(written, config) == []
    assert config["data"]["class_path"] == f"mlecs_lightning.{written['data']['class_path']}"
    assert config["trainer"]["gradient_clip_val"] == 1.0


def differences(written: object, config: object, at: str = "") -> list[str]:
    """Say which values of a file are others in the configuration made of it."""
    if isinstance(written, dict) and isinstance(config, dict):
        return [
            difference
            for key, value in written.items()
            for difference in differences(value, config.get(key, "nothing"), f"{at}.{key}")
        ]
    if isinstance(written, list) and isinstance(config, list) and len(written) == len(config):
        pairs = enumerate(zip(written, config, strict=True))
        return [d for n, (one, other) in pairs for d in differences(one, other, f"{at}[{n}]")]
    if at.endswith("class_path"):
        return [] if str(config).endswith(str(written).rpartition(".")[2]) else [at]
    return [] if written == config else [f"{at}: {written!r} became {config!r}"]


# What a reader is told ----------------------------------------------------------------------------


@every_config
def test_the_head_of_a_config_is_the_command_that_runs_it(
    mlecs: Callable[..., SimpleNamespace], path: Path
) -> None:
    head = re.match(r"(?:#.*\n)+", (ROOT / path).read_text())
    assert head is not None
    commands = re.findall(r"^#\s+python (\S+) (.*)$", head[0], re.MULTILINE)
    assert commands != []
    for script, line in commands:
        assert (ROOT / script).is_file()
        subcommand, *args = shlex.split(line)
        files = [args[i + 1] for i, word in enumerate(args) if word == "--config"]
        assert str(path) in files
        args = [str(ROOT / word) if word in files else word for word in args]
        ran = mlecs(subcommand, *args, "--print_config")
        assert (ran.code, ran.err) == (0, "")


@every_config
def test_every_section_of_a_config_says_what_it_is_for(path: Path) -> None:
    sections = re.split(r"^(?=\w)", (ROOT / path).read_text(), flags=re.MULTILINE)[1:]
    assert len(sections) >= 6
    assert [s.splitlines()[0] for s in sections if "#" not in s] == []


@every_config
def test_a_config_names_no_place_on_anybodys_machine(path: Path) -> None:
    assert re.findall(r"(?<![\w.])(?:/|~)[\w/]+", (ROOT / path).read_text()) == []
