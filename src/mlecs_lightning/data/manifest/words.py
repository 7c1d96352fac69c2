"""Key words of sentences, to pretrain the pocket models of a data set of one's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

__all__ = ["keyword_pairs"]

# Half of a pocket model's slots for key words; with the others empty, it learns to read key words
# in any slot.
_MAX_KEYS = 8
# In words. A pocket model has 256 positions, and instruction and slots take some of them.
_MAX_LENGTH = 160
# A pocket model is trained on 9,600 draws.
_MAX_SENTENCES = 4096


def keyword_pairs(sentences: Iterable[str]) -> list[tuple[str, str]]:
    """Return (key words, sentence) pairs.

    The key words of a sentence are its up to eight rarest words, without those that occur in more
    than two thirds of the distinct sentences. A key word that occurs in no other sentence also
    makes a pair of its own. Words are separated by blanks, as in the pocket tokenizer. Our choice.

    Args:
        sentences: If there are more than 4,096 distinct ones, the most frequent are used; of each,
            the first 160 words.

    Example:
        >>> keyword_pairs(["a cat sleeps .", "a cat runs .", "a dog runs ."])[-2:]
        [('dog runs', 'a dog runs .'), ('dog', 'a dog runs .')]
    """
    common = Counter(" ".join(s.split()[:_MAX_LENGTH]) for s in sentences)
    distinct = [sentence.split() for sentence, _ in common.most_common(_MAX_SENTENCES)]
    found_in = Counter(word for words in distinct for word in set(words))
    pairs: dict[tuple[str, str], None] = {}  # a set that keeps its order
    for words in distinct:
        keys = _key_words(words, found_in, sentences=len(distinct))
        pairs[" ".join(keys), " ".join(words)] = None
        for word in keys:
            if found_in[word] == 1:
                pairs[word, " ".join(words)] = None
    return list(pairs)


def _key_words(words: list[str], found_in: Mapping[str, int], *, sentences: int) -> list[str]:
    """Return the key words of a sentence, in its order."""
    # A sentence of common words only has the rarest of them as key words.
    limit = max(sentences * 2 / 3, min(found_in[word] for word in words))
    candidates = [word for word in dict.fromkeys(words) if found_in[word] <= limit]
    rarest = set(sorted(candidates, key=found_in.__getitem__)[:_MAX_KEYS])
    return [word for word in candidates if word in rarest]
