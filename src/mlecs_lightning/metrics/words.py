"""Normalises texts of any script and splits them into words, for all metrics.

Characters are classified by their Unicode properties, so that no lists have to be maintained. This
needs `regex`, because `re` knows neither scripts nor grapheme clusters.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from rouge_score.tokenizers import DefaultTokenizer

__all__ = ["UnicodeTokenizer", "has_words", "normalise", "whole_words"]

# Letters of scripts without blanks between words: East Asian ones, and those of class SA in
# Unicode's line breaking (UAX 14), such as Thai, Lao, Khmer and Myanmar.
_SPACELESS = r"[[\p{L}\p{N}]&&[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{lb=SA}]]"
_SPACED = rf"[[\p{{L}}\p{{N}}]--{_SPACELESS}]"

# ASCII symbols such as + and $ are not words; rouge-score drops them too.
_SYMBOL = r"[\p{S}--\p{ASCII}]"

# Variation selectors change how a character looks, but not its meaning.
_SELECTORS = regex.compile(r"\p{Variation_Selector}+")
# Invisible formatting characters, except within symbols: a joiner merges several emoji into one,
# and tags make the flag of a country.
_UNSEEN = regex.compile(r"((?=\p{S})\X)|\p{Cf}")

# In this order: a symbol, a character of a script without blanks, a word, a mark without a letter.
_TOKENS = regex.compile(
    rf"(?V1)(?={_SYMBOL})\X"
    rf"|{_SPACELESS}\p{{M}}*"
    rf"|{_SPACED}[{_SPACED}\p{{M}}]*"
    r"|\p{M}+"
)


def normalise(text: str) -> str:
    """Normalise a text, so that texts that readers take for equal become equal.

    This is Unicode's NFKC_Casefold (The Unicode Standard, section 3.13, definition R5), which turns
    "ﬁ" into "fi" and full-width letters into ordinary ones, and removes letter case. Unlike there,
    joiners and tags within symbols are kept: otherwise the flags of England and Wales would be
    equal. Words are separated by single spaces.

    Example:
        >>> normalise("  Straße\u3000FÄLLT "), normalise("fa\u0308llt") == normalise("Fällt")
        ('strasse fällt', True)
    """
    for form in ("NFD", "NFKC"):
        text = unicodedata.normalize(form, text).casefold()
    text = _UNSEEN.sub(r"\1", _SELECTORS.sub("", text))
    return " ".join(unicodedata.normalize("NFKC", text).split())


class UnicodeTokenizer:
    """Splits a text of any script into words, for `rouge_score.rouge_scorer.RougeScorer`.

    rouge-score's own tokenizer drops everything except a to z and 0 to 9. Here a token is a word of
    letters and digits with its combining marks, a single character in scripts without blanks, or a
    symbol (also an emoji of several code points). ASCII words are stemmed, so that tokens of ASCII
    text are those of rouge-score with stemming; other words are not changed. Our choice, as ROUGE
    was defined for English (Lin 2004).
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text.

        Example:
            >>> UnicodeTokenizer().tokenize("Zwei Hunde fällt 猫跑 👍🏽 walking!")
            ['zwei', 'hund', 'fällt', '猫', '跑', '👍🏽', 'walk']
        """
        return [
            "".join(_ascii().tokenize(token)) if token.isascii() else token
            for token in _TOKENS.findall(normalise(text))
        ]


@functools.cache
def _ascii() -> DefaultTokenizer:
    from rouge_score.tokenizers import DefaultTokenizer  # imports nltk, which takes a second

    return DefaultTokenizer(use_stemmer=True)


def has_words(text: str) -> bool:
    """Return whether a text has a word, as `UnicodeTokenizer` counts them.

    Example:
        >>> has_words("..."), has_words("\u732b"), has_words("a ?")
        (False, True, True)
    """
    return _TOKENS.search(normalise(text)) is not None


def whole_words(phrases: Iterable[str]) -> regex.Pattern[str]:
    """Return a pattern that finds phrases in a normalised text, earlier phrases preferred.

    A phrase matches only if it does not begin or end within a word, or within a character of
    several code points. Scripts without blanks do not mark the ends of words, so next to their
    characters anything may stand.

    Args:
        phrases: Normalised texts.
    """
    word, alone = rf"[{_SPACED}_]", rf"[{_SPACELESS}{_SYMBOL}]"
    before = rf"(?<!\u200d)(?:(?<!{word}\p{{M}}*)|(?={alone}))"
    after = rf"(?![\p{{M}}\p{{EMod}}\u200d])(?:(?!{word})|(?<={alone}[\p{{M}}\p{{Cf}}]*))"
    return regex.compile(rf"(?V1){before}(?:{'|'.join(map(regex.escape, phrases))}){after}")
