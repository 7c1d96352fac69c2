"""Text of any script as words: the one place where a metric normalises or splits a text.

`re` knows neither scripts nor grapheme clusters, `regex` does: a set of characters is named by its
Unicode properties here, so that no list of ours has to be kept.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from rouge_score.tokenizers import DefaultTokenizer

__all__ = ["UnicodeTokenizer", "normalise", "whole_words"]

# Letters of the scripts that are written without blanks: East Asian ones, and those that Unicode
# calls complex in line breaking (UAX 14, class SA), as Thai, Lao, Khmer and Myanmar.
_SPACELESS = r"[[\p{L}\p{N}]&&[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{lb=SA}]]"
_SPACED = rf"[[\p{{L}}\p{{N}}]--{_SPACELESS}]"

# Those of ASCII, as + and $, are no words: rouge-score drops them, too.
_SYMBOL = r"[\p{S}--\p{ASCII}]"

# How a character looks, not which it is: variation selectors; and what formats without being seen.
_SELECTORS = regex.compile(r"\p{Variation_Selector}+")
# Symbols are kept whole: a joiner makes one emoji of several, and tags make a flag of a country.
_UNSEEN = regex.compile(r"((?=\p{S})\X)|\p{Cf}")

# In this order: a symbol, a character of a script without blanks, a word, a mark without a letter.
_TOKENS = regex.compile(
    rf"(?V1)(?={_SYMBOL})\X"
    rf"|{_SPACELESS}\p{{M}}*"
    rf"|{_SPACED}[{_SPACED}\p{{M}}]*"
    r"|\p{M}+"
)


def normalise(text: str) -> str:
    """Return a text without what people do not take for a difference.

    Unicode's NFKC_Casefold (The Unicode Standard, section 3.13, definition R5), in which "ﬁ" is
    "fi", full-width letters are letters and letter case is gone, but for one thing: joiners and
    tags within a symbol stay, or the flags of England and Wales would be one. Words stand a single
    space apart.

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

    On ASCII text the tokens are those of rouge-score's own tokenizer with stemming, which drops all
    but a to z and 0 to 9 of any text. Here a token is a word of letters and digits, with its
    combining marks; of scripts without blanks each character; and each symbol, an emoji of several
    code points being one. Words of ASCII alone are stemmed, words with other letters are left as
    they are. Our choice; ROUGE was defined on English (Lin 2004).
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


def whole_words(phrases: Iterable[str]) -> regex.Pattern[str]:
    """Return a pattern that finds phrases in a normalised text, of several at one place the first.

    A phrase does not begin or end within a word, nor within a character of several code points.
    What is written without blanks shows no ends of words: beside it anything may stand.

    Args:
        phrases: Normalised texts.
    """
    word, alone = rf"[{_SPACED}_]", rf"[{_SPACELESS}{_SYMBOL}]"
    before = rf"(?<!\u200d)(?:(?<!{word}\p{{M}}*)|(?={alone}))"
    after = rf"(?![\p{{M}}\p{{EMod}}\u200d])(?:(?!{word})|(?<={alone}[\p{{M}}\p{{Cf}}]*))"
    return regex.compile(rf"(?V1){before}(?:{'|'.join(map(regex.escape, phrases))}){after}")
