"""Text of every script: tokens against rouge-score's own, and what counts as the same text."""

# ruff: noqa: RUF001 - letters of other scripts are meant

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from mlecs_lightning.metrics import RougeLsum, UnicodeTokenizer, normalise
from mlecs_lightning.metrics.text import _rouge_lsum

TOKENS = UnicodeTokenizer().tokenize
ASCII = st.text(st.characters(max_codepoint=127))
ANY = st.text(max_size=20)
ENGLAND, WALES = (
    "🏴" + "".join(chr(0xE0000 + ord(c)) for c in code) + "\U000e007f"
    for code in ("gbeng", "gbwls")
)


@given(ASCII)
@example("two dogs' walking_sticks, 3.5 km!")
def test_ascii_has_the_tokens_of_rouge_score(text: str) -> None:
    assert TOKENS(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@given(ASCII, ASCII)
@example("the dogs\nwalk", "walk\x0bthe dog\r\nwalking\x1fdogs")
def test_ascii_has_the_scores_of_rouge_score(prediction: str, target: str) -> None:
    expected = RougeScorer(["rougeLsum"], use_stemmer=True).score(target, prediction)["rougeLsum"]
    ours = _rouge_lsum(prediction, target)
    assert ours == expected.fmeasure if TOKENS(target) else ours != ours


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Он ПАДАЕТ на пол.", ["он", "падает", "на", "пол"]),
        ("Ο Σίσυφος / ΣΊΣΥΦΟΣ", ["ο", "σίσυφοσ", "σίσυφοσ"]),
        ("那个人跌倒了。", ["那", "个", "人", "跌", "倒", "了"]),
        ("データ ﾃﾞｰﾀ、ひと", ["デ", "ー", "タ", "デ", "ー", "タ", "ひ", "と"]),
        ("คนล้ม", ["ค", "น", "ล้", "ม"]),
        ("ຄົນ ក្មេង", ["ຄົ", "ນ", "ក្", "មេ", "ង"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("مَرْحَبًا بالعالم", ["مَرْحَبًا", "بالعالم"]),
        ("שָׁלוֹם", ["שָׁלוֹם"]),
        ("我有3只dogs", ["我", "有", "3", "只", "dog"]),
        ("dogs Hündinnen falling", ["dog", "hündinnen", "fall"]),
        ("ＤＯＧＳ ﬁre ½ m²", ["dog", "fire", "1", "⁄", "2", "m2"]),
        ("5 € 5$ a+b", ["5", "€", "5", "a", "b"]),
        ("👍🏽👍 👨‍👩‍👧 🇩🇪🇫🇷", ["👍🏽", "👍", "👨\u200d👩\u200d👧", "🇩🇪", "🇫🇷"]),
        (ENGLAND + WALES, [ENGLAND, WALES]),
        ("…!? \u200b\ufe0f", []),
    ],
)
def test_words_of_many_scripts(text: str, tokens: list[str]) -> None:
    assert TOKENS(text) == [unicodedata.normalize("NFKC", token) for token in tokens]


@settings(max_examples=300)
@given(ANY, ANY)
def test_a_text_scores_one_against_itself_and_any_other_between_nought_and_one(
    one: str, other: str
) -> None:
    if TOKENS(one):
        assert _rouge_lsum(one, one) == 1.0
        assert 0 <= _rouge_lsum(other, one) <= 1


@given(st.characters(min_codepoint=128, categories=["L", "N", "S"]))
@example("´")
def test_every_letter_digit_and_symbol_is_a_token(character: str) -> None:
    # Symbols of ASCII are none, in whatever width they are written.
    assert TOKENS(character) or normalise(character).isascii()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("fällt", "füllt"),
        ("跌倒", "站立"),
        ("падает", "стоит"),
        ("👍", "👎"),
        (ENGLAND, WALES),
        ("ล้ม", "นอน"),
    ],
)
def test_other_words_of_a_script_are_others(one: str, other: str) -> None:
    assert _rouge_lsum(one, other) == 0
    assert _rouge_lsum(one, one) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x85", "\u2028", "\u2029"])
def test_each_line_is_a_sentence_whatever_ends_it(end: str) -> None:
    metric = RougeLsum()
    # Within one line the order of the words would matter.
    metric.update([f"он лежит{end}она стоит"], [f"она стоит{end}он лежит"])
    assert metric.compute().item() == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" The  person\nFALLS ", "the person falls"),
        ("fa\u0308llt", "Fällt"),
        ("ＦＡＬＬＳ ﬁve", "falls five"),
        ("STRASSE", "Straße"),
        ("❤\ufe0f", "❤"),
        ("می‌خواهم", "میخواهم"),
        ("ﾃﾞｰﾀ", "データ"),
    ],
)
def test_what_people_do_not_take_for_a_difference_is_none(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@given(ANY)
def test_what_is_normalised_stays_as_it_is(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(ASCII)
def test_ascii_is_put_in_lower_case_with_single_spaces(text: str) -> None:
    assert normalise(text) == " ".join(text.split()).lower()
