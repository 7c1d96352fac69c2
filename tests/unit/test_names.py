import ast
import os
import subprocess
import sys

import pytest

from mlecs_lightning.names import client_name_faults, modality_name_faults


@pytest.mark.parametrize(
    "name",
    ["kitchen", "007", "no", "küche", "日本", "a.b", "a b", "room-2", "_", "x" * 200, "training"],
)
def test_a_name_that_is_a_file_name_everywhere_is_taken(name: str) -> None:
    assert client_name_faults([name, "other"]) == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "is no name; one begins with a letter, a digit or '_'"),
        (".hidden", "is no name"),
        ("..", "is no name"),
        ("a/b", "is no name"),
        ("a\\b", "is no name"),
        ("a:b", "is no name"),
        ("a\0b", "is no name"),
        ("a\n", "is no name"),
        ("a ", "the last two signs not being '.' or a space"),
        ("a.", "the last two signs not being '.' or a space"),
        ("server", "is taken, by the server: rename the client"),
        ("Server", "is taken, by the server"),
        ("all", "is taken, by the mean of all clients"),
        ("val", "is taken, by a split"),
        ("nul", "is that of a device on Windows"),
        ("COM1.txt", "is that of a device on Windows"),
        ("x" * 201, "has 201 bytes, at most 200 are allowed: shorten it"),
        ("日" * 67, "has 201 bytes"),
    ],
)
def test_a_name_that_is_none_somewhere_is_refused(name: str, fault: str) -> None:
    (said,) = client_name_faults([name])
    assert said.startswith("clients: the name '")
    assert fault in said


@pytest.mark.parametrize(
    ("one", "other"), [("Kitchen", "kitchen"), ("STRASSE", "straße"), ("\xfc", "u\u0308")]
)
def test_names_that_are_one_folder_are_refused_together(one: str, other: str) -> None:
    (said,) = client_name_faults([one, "hall", other])
    assert said.startswith(
        f"clients: the names {one!r} and {other!r} are one folder on some systems"
    )


@pytest.mark.parametrize(
    "name",
    [
        *("acc", "training", "type", "no", "_x", "größe", "gro\u0308\u00dfe", "x" * 200),
        *("mic-1", "front camera", "3d", "007", "acc -x-"),
    ],
)
def test_a_modality_may_be_called_as_people_call_it(name: str) -> None:
    assert modality_name_faults([name], key="m") == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "cannot name a modality: expected letters, digits, '_', '-' and spaces, and one of "),
        ("my.cam", "no points, since names of tensors have them"),
        ("a/b", "cannot name"),
        ("-a", "cannot name"),
        ("a ", "cannot name"),
        (" a", "cannot name"),
        ("a\n", "cannot name"),
        ("~type", "cannot name"),
        ("x" * 300, "has 300 bytes, at most 200"),
    ],
)
def test_a_modality_that_is_no_word_is_refused(name: str, fault: str) -> None:
    (said,) = modality_name_faults([name], key="data.modalities")
    assert said.startswith("data.modalities: '")
    assert fault in said
    assert len(said) < 240


def test_two_modalities_that_look_the_same_are_refused() -> None:
    (said,) = modality_name_faults(["gr\xf6\xdfe", "gro\u0308\xdfe"], key="m")
    assert "two modalities are called" in said
    assert "write both in one form (NFC)" in said


def test_a_name_that_this_locale_has_no_letters_for_is_refused() -> None:
    """In a process of its own: the encoding of file names is chosen when Python starts."""
    ask = "print(ascii(client_name_faults(['k\\xfcche', 'hall'])))"
    program = f"from mlecs_lightning.names import client_name_faults; {ask}"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True
    )
    (said,) = ast.literal_eval(ran.stdout.decode("utf-8", "surrogateescape"))
    assert "cannot name a file in this locale: set PYTHONUTF8=1" in said
