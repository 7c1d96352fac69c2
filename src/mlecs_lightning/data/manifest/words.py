"""Key words of sentences, for the pocket models of a data set whose language nobody wrote down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

__all__ = ["keyword_pairs"]

# Half of the slots that a pocket model has for key words: the others stay empty, so that it learns
# to read them at any place.
_MOST_KEYS = 8
# A pocket model has 256 positions, and instruction and slots need some.
_LONGEST = 160
# It takes 9,600 draws in its training.
_MOST_SENTENCES = 4096


def keyword_pairs(sentences: Iterable[str]) -> list[tuple[str, str]]:
    """Return "key words => sentence" pairs.

    Key words are those that tell a sentence from the others: the words that at most two thirds of
    the distinct sentences have, the rarest eight of them. A key word that no other sentence has
    also stands alone. Our choice; words are what blanks part, as the pocket tokenizer sees them.

    Args:
        sentences: The more frequent ones come first where there are too many; the end of a very
            long one is left out.

    Example:
        >>> keyword_pairs(["a cat sleeps .", "a cat runs .", "a dog runs ."])[-2:]
        [('dog runs', 'a dog runs .'), ('dog', 'a dog runs .')]
    """
    common = Counter(" ".join(s.split()[:_LONGEST]) for s in sentences)
    distinct = [sentence.split() for sentence, _ in common.most_common(_MOST_SENTENCES)]
    found_in = Counter(word for words in distinct for word in set(words))
    pairs: dict[tuple[str, str], None] = {}
    for words in distinct:
        rarest = min(found_in[word] for word in words)
        most = max(len(distinct) * 2 / 3, rarest)  # a sentence of common words alone has those
        keys = [word for word in dict.fromkeys(words) if found_in[word] <= most]
        kept = set(sorted(keys, key=found_in.__getitem__)[:_MOST_KEYS])
        chosen = [word for word in keys if word in kept]
        pairs[" ".join(chosen), " ".join(words)] = None
        pairs |= {(word, " ".join(words)): None for word in chosen if found_in[word] == 1}
    return list(pairs)
