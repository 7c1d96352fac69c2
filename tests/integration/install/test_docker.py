"""docker/: what the files name exists. (No image is built: that takes a registry.)"""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from mlecs_lightning.cli import main


def test_the_image_installs_extras_that_there_are(repo_root: Path) -> None:
    text = (repo_root / "docker" / "Dockerfile").read_text()
    (named,) = re.findall(r"'/src\[([\w,]+)\]'", text)
    declared = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    assert set(named.split(",")) <= declared["optional-dependencies"].keys()
    assert all((repo_root / name).is_file() for name in re.findall(r"constraints[\w-]*\.txt", text))


def test_server_and_devices_are_started_by_commands_that_are_understood(
    repo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services = yaml.safe_load((repo_root / "docker" / "compose.yaml").read_text())["services"]
    making = services.pop("keys")["command"][-1]
    for name, service in services.items():
        with pytest.raises(SystemExit) as ended:
            main([*service["command"].split(), "--print_config"])
        assert ended.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert name == config.get("client", "server")
    assert list(config["clients"]) == [name for name in services if name != "server"]
    (keyed,) = re.findall(r"for name in (.+?);", making)
    assert keyed.split() == list(config["clients"])
