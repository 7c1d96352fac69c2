"""The ready configurations, and the command that lists and copies them."""

import tomllib
from pathlib import Path

import pytest

from mlecs_lightning.__main__ import main
from mlecs_lightning.shipped import shipped_config, shipped_configs


def test_every_configuration_has_a_name(repo_root: Path) -> None:
    files = sorted((repo_root / "configs").rglob("*.yaml"))
    assert sorted(shipped_configs().values()) == files
    assert shipped_config("urfall/mlecs") == repo_root / "configs/urfall/mlecs.yaml"
    assert shipped_config("urfall/mlecs.yaml") is None


def test_the_wheel_holds_the_folder_where_the_package_looks_for_it(repo_root: Path) -> None:
    built = tomllib.loads((repo_root / "pyproject.toml").read_text())
    included = built["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"configs": "mlecs_lightning/configs"}


def test_configs_lists_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_configs())
    assert all(20 < len(line) <= 140 for line in lines)


def test_configs_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "quickstart"]) == 0
    assert capsys.readouterr().out == shipped_configs()["quickstart"].read_text()
    assert main(["configs", "quikstart"]) == 1
    error = capsys.readouterr().err
    assert "'quikstart'" in error
    assert "quickstart_eclm" in error


def test_configs_copies_and_never_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["configs", "urfall/mlecs", "--copy", str(tmp_path)]) == 0
    copy = tmp_path / "urfall" / "mlecs.yaml"
    assert copy.read_text() == shipped_configs()["urfall/mlecs"].read_text()
    copy.write_text("mine")
    for words in (["urfall/mlecs"], []):
        assert main(["configs", *words, "--copy", str(tmp_path)]) == 1
        assert str(copy) in capsys.readouterr().err
    assert copy.read_text() == "mine"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [copy]


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["configs", "quickstart", "--copy", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
