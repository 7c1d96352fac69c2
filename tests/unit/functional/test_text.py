import pytest
import torch

from mlecs_lightning.functional import bytes_to_text, text_to_bytes


@pytest.mark.parametrize("text", ["", "a", "two words", "größer", "日本語", "🙂🙃"])
def test_a_text_comes_back(text: str) -> None:
    row = text_to_bytes(text, 16)
    assert (row.shape, row.dtype) == ((16,), torch.float32)
    assert bytes_to_text(row[None]) == [text]


def test_a_long_text_is_cut_between_characters() -> None:
    # 3 bytes each: the fourth does not fit into 10 bytes, nor does a part of it.
    assert bytes_to_text(text_to_bytes("日本語日", 10)[None]) == ["日本語"]
    assert text_to_bytes("日本語日", 10)[9] == 0
    assert bytes_to_text(text_to_bytes("abcdef", 3)[None]) == ["abc"]


def test_a_null_character_is_refused() -> None:
    with pytest.raises(ValueError, match="null"):
        text_to_bytes("a\0b", 8)


def test_rows_that_are_no_text_do_not_stop_a_batch() -> None:
    assert bytes_to_text(torch.tensor([[255.0, 97.0]])) == ["\ufffda"]
