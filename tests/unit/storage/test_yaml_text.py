import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlecs_lightning.storage.yaml_text import YamlFaultError, dump_yaml, parse_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{k0: *a{n - 1}, k1: *a{n - 1}, k2: *a{n - 1}}}\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 6: there are more than 100,000 values up to here, aliases written out; rem"),
        (MERGED, "there are more than 100,000 values up to here"),
        ("- x\n" * 200_000, "line 100000: there are more than 100,000 values"),
        ("a: &a [1, *a]", r"line 1: \*a is a part of itself"),
        ("a: &a {b: &b [*a]}", r"\*a is a part of itself"),
        ("[" * 100_000, "line 1: values lie more than 40 levels deep"),
        ("{a: " * 5000, "values lie more than 40 levels deep"),
        ("- " * 5000 + "x", "values lie more than 40 levels deep"),
    ],
    ids=["list", "table", "flat", "itself", "inside", "brackets", "tables", "lists"],
)
def test_a_bomb_is_refused_before_anything_is_built(text: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(YamlFaultError, match=message):
        parse_yaml(text)
    assert time.process_time() - start < 2  # 0.3 s at most, where a bomb takes hours


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"written twice, and the first would be lost: \['a'\]"),
        ("no: 1\n'no': 2", r"\['no'\]"),
        ("x: {y: [{007: 1, 007: 2}]}", r"\['x\.y\.007'\]"),
        ("? [a, b]\n: 1", "line 1: a key must be a word"),
        ("a: !!int x", "a value cannot be read: invalid literal"),
        ("a: " + "1" * 5000, "a value cannot be read: Exceeds the limit"),
    ],
)
def test_what_would_be_lost_or_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(YamlFaultError, match=message):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["a: [", "a: *b", "a: !!python/object:os.system x", "a: \0", "\t"])
def test_no_yaml_is_an_error_of_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


WORDS = [
    *("no", "yes", "on", "off", "007", "010", "0o7", "1e3", "1.5", "2026-01-01", "12:30", "null"),
    *("~", "0x1f", "1_000", ".nan", "True", "=", "é", "日本"),
]


@pytest.mark.parametrize("word", WORDS)
def test_names_are_read_as_written(word: str) -> None:
    text = f"""
clients: {{{word}: {{modalities: [{word}, a], domains: [{word}]}}}}
data:
  init_args:
    modalities: {{{word}: {{kind: series, shape: [1, 010]}}}}
    labels: {{{word}: [{word}]}}
    schedule: {{init_args: {{domains: {{a: [{word}]}}, shifts: [{{clients: [{word}]}}]}}}}
"""
    read = parse_yaml(text)
    assert read["clients"] == {word: {"modalities": [word, "a"], "domains": [word]}}
    data = read["data"]["init_args"]
    assert list(data["modalities"]) == [word]
    assert data["labels"] == {word: [word]}
    assert data["schedule"]["init_args"] == {
        "domains": {"a": [word]},
        "shifts": [{"clients": [word]}],
    }
    assert parse_yaml(f"[{word}]", at=["data", "labels", "up"]) == [word]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[yes, no, on, off, true, ~, null]", [True, False, True, False, True, None, None]),
        ("[1, -2, 0x10, 1_000, 0]", [1, -2, 16, 1000, 0]),
        ("[1e-3, 1.5, -.5, 2., 1.0e-05]", [1e-3, 1.5, -0.5, 2.0, 1e-05]),
        # YAML 1.1 says 8, 750, 3661 and a date.
        ("[010, 12:30, 1:01:01, 2026-01-01]", ["010", "12:30", "1:01:01", "2026-01-01"]),
        ("{<<: {a: 1, b: 1}, b: 2}", {"a": 1, "b": 2}),
        ("domains: null", {"domains": None}),
        ("", None),
    ],
)
def test_other_values_are_numbers_and_switches(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.sampled_from(WORDS)))
def test_what_is_written_is_read_back(values: dict[str, str]) -> None:
    named = {"labels": {name: [word] for name, word in values.items()}, "value": values}
    text = dump_yaml(named)
    assert parse_yaml(text) == named
    assert yaml.safe_load(text) == named  # whoever else reads a config.yaml
    assert text.isascii()  # in whatever encoding
