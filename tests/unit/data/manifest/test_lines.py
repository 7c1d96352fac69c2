import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlecs_lightning.data.manifest.line import UNNAMED, Line
from mlecs_lightning.data.manifest.lines import raise_faults, read_lines
from mlecs_lightning.errors import ConfigurationError

SOUND = {"id": "a", "split": "train", "modalities": {"tilt": [1, 2]}, "target": "up ."}


def read(folder: Path, *rows: object) -> tuple[list[Line], list[str]]:
    """Write objects as JSON, and bytes as they are, one a line."""
    file = folder / "m.jsonl"
    file.write_bytes(
        b"".join(
            (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
        )
    )
    return read_lines([file], None, ["tilt", "wave"])


def changed(**values: Any) -> dict[str, Any]:
    return {k: v for k, v in {**SOUND, **values}.items() if v != "left out"}


# Sound lines --------------------------------------------------------------------------------------


def test_a_line_is_read_with_all_that_it_may_say(tmp_path: Path) -> None:
    row = changed(
        id=7,
        client="kitchen",
        group="rec-1",
        modalities={"tilt": "x.csv", "wave": None},
        target="left out",
        targets=[" up . ", "rising ."],
        instruction="which way ?",
        meta={"anything": [1]},
    )
    (line,), faults = read(tmp_path, row)
    assert faults == []
    assert line == Line(
        where="m.jsonl:1",
        root=tmp_path,
        id="7",
        split="train",
        owner="client",
        domain="kitchen",
        group="rec-1",
        modalities={"tilt": "x.csv"},
        instruction="which way ?",
        targets=("up .", "rising ."),
    )


def test_what_a_line_does_not_say_has_its_default(tmp_path: Path) -> None:
    (line,), faults = read(tmp_path, SOUND)
    assert faults == []
    assert (line.owner, line.domain, line.group) == (None, UNNAMED, "a")
    assert (line.instruction, line.targets) == (None, ("up .",))


def test_null_is_the_same_as_left_out(tmp_path: Path) -> None:
    keys = dict.fromkeys(("client", "domain", "group", "instruction", "targets"))
    assert read(tmp_path, {**SOUND, **keys}) == read(tmp_path, SOUND)


def test_blank_lines_a_mark_at_the_start_and_windows_endings_do_no_harm(tmp_path: Path) -> None:
    first = b"\xef\xbb\xbf" + json.dumps(SOUND).encode() + b"\r"
    lines, faults = read(tmp_path, first, b"", b"  ", changed(id="b", target="über ."))
    assert faults == []
    assert [(line.where, line.targets[0]) for line in lines] == [
        ("m.jsonl:1", "up ."),
        ("m.jsonl:4", "über ."),
    ]


def test_several_files_are_one_manifest_and_each_is_the_root_of_its_paths(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "m.jsonl")
        files[-1].write_text(json.dumps(changed(id=name)))
    lines, faults = read_lines(files, None, ["tilt"])
    assert faults == []
    assert [(line.where, line.root) for line in lines] == [(f"{f}:1", f.parent) for f in files]
    assert {line.root for line in read_lines(files, tmp_path, ["tilt"])[0]} == {tmp_path}


# Faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"id": "a", ', "m.jsonl:1: is not valid JSON: Expecting property name"),
        (b'{"id": "\xff"}', "m.jsonl:1: is no text in UTF-8: "),
        (b"7", "m.jsonl:1: expected a JSON object, got '7'"),
        (b'{"a":' * 100_000, "m.jsonl:1: is not valid JSON: "),
        (b'{"id": "a", "id": "b"}', "written twice, and the first would be lost: ['id']"),
        (b'{"id": "a", "modalities": {"tilt": [NaN]}}', "NaN is not a number in JSON"),
        (changed(id="left out"), "m.jsonl:1: id: expected a text or a whole number, got None"),
        (changed(id=" "), "m.jsonl:1 (id ' '): id: expected a text"),
        (changed(id=True), "id: expected a text or a whole number, got True"),
        (
            changed(split="dev"),
            "split: expected one of ['public', 'train', 'val', 'test'], got 'dev'",
        ),
        (changed(client=[1]), "client: expected a text or a whole number, got [1]"),
        (changed(client="a", domain="b"), "client and domain: expected one of the two, got both"),
        (
            changed(client="a", split="public"),
            "client: a public sample belongs to no client, got 'a'",
        ),
        (changed(group=1.5), "group: expected a text or a whole number, got 1.5"),
        (changed(modality="x"), "unknown keys ['modality'], known: ['id', 'split', "),
        (changed(modalities=["x"]), "modalities: expected names and their values, got ['x']"),
        (changed(modalities="left out"), "modalities: expected names and their values, got None"),
        (changed(modalities={"taste": 1}), "modalities: ['taste'] are not among ['tilt', 'wave']"),
        (changed(modalities={}), "modalities: expected at least one of ['tilt', 'wave'], got none"),
        (changed(modalities={"tilt": None}), "modalities: expected at least one of"),
        (changed(target="left out"), "expected either target, a text, or targets, a list of texts"),
        (changed(targets=["up ."]), "expected either target, a text, or targets, a list of texts"),
        (changed(target=" "), "target: expected a text that is not blank, got [' ']"),
        (changed(target="left out", targets="up"), "targets: expected a list of texts, got 'up'"),
        (changed(target="left out", targets=[]), "targets: expected a list of texts, got []"),
        (changed(target="left out", targets=["up", 3]), "not blank, got ['up', 3]"),
        (changed(instruction=""), "instruction: expected a text, got ''"),
    ],
)
def test_a_wrong_line_is_named_and_left_out(tmp_path: Path, row: object, message: str) -> None:
    lines, (fault, *_) = read(tmp_path, row, changed(id="other"))
    assert message in fault
    assert [line.id for line in lines] == ["other"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps([SOUND, SOUND]),
            "is one JSON array, .*: jq -c '.\\[\\]' m.jsonl > new-m.jsonl",
        ),
        (json.dumps([SOUND, SOUND], indent=2), "is one JSON array, but a manifest has one JSON ob"),
        (json.dumps(SOUND, indent=2), "is the beginning of a JSON object, .*: jq -c . m.jsonl > n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_of_another_layout_is_one_fault(
    tmp_path: Path, content: str, message: str, encoding: str
) -> None:
    lines, (fault,) = read(tmp_path, content.encode(encoding))
    assert lines == []
    assert re.search(message, fault)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_manifest_in_another_encoding_is_one_fault(tmp_path: Path, encoding: str) -> None:
    rows = "\n".join(json.dumps(changed(id=n)) for n in range(9))
    _, (fault,) = read(tmp_path, rows.encode(encoding))
    name = encoding[:6].upper()
    assert fault.startswith(f"m.jsonl:1: is no text in UTF-8 but in {name}: save it anew: iconv -f")


def test_a_modality_that_looks_the_same_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(
        json.dumps(changed(modalities={"gr\xf6\xdfe": 1}))
        + "\n"
        + json.dumps(changed(id="b", modalities={"Tilt": 1}))
    )
    _, faults = read_lines([tmp_path / "m.jsonl"], None, ["gro\u0308\xdfe", "tilt"])
    assert "; a name that looks the same is written with decomposed letters" in faults[0]
    assert faults[1].endswith("; 'tilt' differs from it in case alone")


def test_all_faults_of_a_line_are_told(tmp_path: Path) -> None:
    _, faults = read(
        tmp_path, {"id": "a", "colour": "red", "split": "dev", "modalities": {"taste": 1}}
    )
    assert [fault.removeprefix("m.jsonl:1 (id 'a'): ").split(":")[0] for fault in faults] == [
        "unknown keys ['colour'], known",
        "split",
        "expected either target, a text, or targets, a list of texts; only a line of split "
        "public, or of test, to be answered by predict, may lack both",
        "modalities",
    ]


def test_a_line_may_lack_its_target_where_nobody_needs_it(tmp_path: Path) -> None:
    rows = [
        {"id": "new", "modalities": {"tilt": [1, 2]}},
        {"id": "null", "split": "test", "target": None, "modalities": {"tilt": [1, 2]}},
        {"id": "public", "split": "public", "modalities": {"tilt": [1, 2]}},
        {"id": "val", "split": "val", "modalities": {"tilt": [1, 2]}},
    ]
    lines, faults = read(tmp_path, *rows)
    assert [(line.id, line.split, line.targets) for line in lines] == [
        ("new", "test", ()),
        ("null", "test", ()),
        ("public", "public", ()),
    ]
    (fault,) = faults
    assert fault.split(":")[1] == "4 (id 'val')"
    assert "only a line of split public, or of test" in fault


def test_an_id_stands_once(tmp_path: Path) -> None:
    _, faults = read(tmp_path, SOUND, changed(id="b"), changed(split="test"))
    assert faults == ["m.jsonl:3 (id 'a'): m.jsonl:1 has the same id"]


def test_clients_and_domains_do_not_mix(tmp_path: Path) -> None:
    _, faults = read(tmp_path, changed(client="k"), changed(id="b", split="test", domain="k"))
    assert faults == [
        "a manifest may name clients or domains, not both: m.jsonl:1 names a client and m.jsonl:2 "
        "names a domain"
    ]


def test_a_private_sample_without_an_owner_among_owned_ones_is_a_fault(tmp_path: Path) -> None:
    others = [changed(id=s, split=s) for s in ("public", "test", "val")]  # these need none
    _, faults = read(tmp_path, changed(client="k"), changed(id="b"), *others)
    assert faults == ["m.jsonl:2 (id 'b'): names no client, but other lines of split train do"]


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data\.init_args\.file: there is no file '.*no\.js"
    ):
        read_lines([tmp_path / "no.jsonl"], None, ["tilt"])


def test_of_many_faults_the_first_are_shown_and_the_others_counted() -> None:
    with pytest.raises(ConfigurationError) as raised:
        raise_faults([f"fault {i}" for i in range(1025)])
    said = str(raised.value).splitlines()
    assert said[0] == "the manifest has 1,025 faults:"
    assert said[1:21] == [f"fault {i}" for i in range(20)]
    assert said[21:] == ["... and 1,005 more"]
    raise_faults([])


# Parquet ------------------------------------------------------------------------------------------


def test_parquet_without_pyarrow_names_what_to_install(tmp_path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("pyarrow is installed")
    (tmp_path / "m.parquet").touch()
    with pytest.raises(ImportError, match=r"m\.parquet is Parquet .* mlecs_lightning\[parquet\]"):
        read_lines([tmp_path / "m.parquet"], None, ["tilt"])


def test_parquet_says_what_json_says(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [  # pyarrow takes the columns from the first row
        changed(client="k", modalities={"tilt": [1, 2], "wave": "x.csv"}, targets=None),
        changed(id="b", client="k", modalities={"wave": "y.csv"}, target=None, targets=["up ."]),
    ]
    expected, _ = read(tmp_path, *rows)
    for texts in (False, True):
        table = [{**r, "modalities": json.dumps(r["modalities"])} if texts else r for r in rows]
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "m.parquet")
        lines, faults = read_lines([tmp_path / "m.parquet"], None, ["tilt", "wave"])
        assert faults == []
        assert [line.modalities for line in lines] == [line.modalities for line in expected]
        assert [line.targets for line in lines] == [line.targets for line in expected]


@pytest.mark.parametrize("before", ["", "a", "ab"])  # at least one of them tears a letter
def test_an_array_in_another_script_is_told_once(before: str, tmp_path: Path) -> None:
    text = f'[\n{{"id": "{before}' + "\u732b" * 1000 + '"}\n]'
    (tmp_path / "m.jsonl").write_text(text, encoding="utf-8")
    _, faults = read_lines([tmp_path / "m.jsonl"], None, ["tilt"])
    assert len(faults) == 1
    assert "JSON array" in faults[0]


@pytest.mark.parametrize("other", ["Ku\u0308che", "K\u00fcche "])
@pytest.mark.parametrize("key", ["client", "group"])
def test_names_that_look_the_same_are_a_fault(key: str, other: str, tmp_path: Path) -> None:
    rows = [changed(**{key: "K\u00fcche"}), changed(id="b", **{key: other})]
    _, faults = read(tmp_path, *rows)
    assert any(f"{key} {other!a} looks like" in fault for fault in faults)


def test_a_manifest_that_is_named_twice_is_a_fault(tmp_path: Path) -> None:
    read(tmp_path, SOUND)
    (file,) = tmp_path.glob("*.jsonl")
    _, faults = read_lines([file, file], None, ["tilt"])
    assert "has the same id" in faults[0]
