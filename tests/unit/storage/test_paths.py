from pathlib import Path

import pytest

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.storage.paths import expanded, expanded_name


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("~/x", "/home/ada/x"),
        ("$HOME/x", "/home/ada/x"),
        ("${DATA}/$DATA", "/data//data"),
        ("a/~/b", "a/~/b"),
        ("a$/5$", "a$/5$"),
        ("x", "x"),
    ],
)
def test_home_and_variables_are_replaced_as_a_shell_does(written: str, path: str) -> None:
    assert expanded(written, key="k") == Path(path)
    assert expanded(Path(written)) == Path(path)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("$NOWHERE/x", r"\['NOWHERE'\], and no such variable is set: export NOWHERE="),
        ("/a/${NOWHERE}", "no such variable is set"),
        ("~nobody-of-that-name/x", "the home of a user that is not there"),
    ],
)
def test_a_path_that_would_be_another_is_refused(written: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^data.root: the path .*{words}"):
        expanded(written, key="data.root")


def test_an_id_of_a_hub_stays_what_it_is() -> None:
    assert expanded_name("owner/name") == "owner/name"
    assert expanded_name("./here/") == "./here/"
    assert expanded_name("~/model") == "/home/ada/model"
