from pathlib import Path

import pytest

from mlecs_lightning.storage.text_files import EncodingError, read_text, utf8

TEXT = "a: 1\nküche: [日本]\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_is_read_with_and_without_a_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(TEXT, encoding=encoding)
    assert read_text(path) == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("utf-16"), "in UTF-16: save it anew: iconv -f UTF-16 -t UTF-8"),
        (TEXT.encode("utf-16-be"), "in UTF-16: save it anew"),
        (TEXT.encode("utf-32"), "in UTF-32: save it anew"),
        ("a: 1\nküche".encode("latin-1"), r"line 2, byte 2 is 0xfc; .* iconv -f WINDOWS-1252"),
        ("€".encode("cp1252"), "line 1, byte 1 is 0x80"),
        (b"\xef\xbb\xbfab\xff", "line 1, byte 3 is 0xff"),
        ("a\n\nü".encode()[:-1], "line 3, byte 1 is 0xc3"),
    ],
    ids=["utf-16", "utf-16 without mark", "utf-32", "latin-1", "cp1252", "behind a mark", "cut"],
)
def test_another_encoding_is_named_with_place_and_remedy(data: bytes, message: str) -> None:
    with pytest.raises(EncodingError, match=f"is no text in UTF-8.*{message}"):
        utf8(data)


def test_lines_count_on_from_the_first() -> None:
    with pytest.raises(EncodingError, match="line 8, byte 1 is 0xff"):
        utf8(b"a\n\xff", line=7)
