"""Texts for a summary task: three texts in, one sentence out that repeats their words.

Names and things are made of syllables, so that there are more than anyone can learn by heart: those
of test samples occur nowhere else.
"""

from __future__ import annotations

import random
from typing import TypedDict

__all__ = ["Sample", "task"]

_FIRST = (*"bdfghjklmnprstvwz", "br", "dr", "gr", "kl", "pl", "st", "tr")
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ee", "oo"]
_LAST = ["", "l", "m", "n", "r", "s", "t", "nd", "rk", "x"]
_DOES = ["lifts", "washes", "paints", "cuts", "throws", "opens", "carries", "hides"]
_PLACES = ["kitchen", "garden", "street", "workshop", "harbour", "forest"]
_SOUNDS = ["bells", "music", "rain", "laughter", "engines", "birds"]
_HOW = ["softly", "loudly", "far", "away", "nearby"]
_SAYS = ["explains", "praises", "regrets", "mentions"]


class Sample(TypedDict):
    """One sample: its texts by modality, the sentence to say, and the place, its domain."""

    texts: dict[str, str]
    target: str
    domain: str


def _word(dice: random.Random) -> str:
    return "".join(
        dice.choice(_FIRST) + dice.choice(_VOWELS) + dice.choice(_LAST)
        for _ in range(dice.choice((1, 2, 2)))
    )


def _pool(part: str, count: int) -> list[str]:
    """Return the words of one part; no other part has one of them."""
    taken: set[str] = set()
    pools: dict[str, list[str]] = {}
    dice = random.Random(1729)
    for each in ("public", "train", "val", "test"):
        pools[each] = []
        while len(pools[each]) < count:
            word = _word(dice)
            if word not in taken and len(word) > 3:
                taken.add(word)
                pools[each].append(word)
    return pools[part]


def task(count: int, *, part: str, seed: int) -> list[Sample]:
    """Return ``count`` samples of a part: ``public``, ``train``, ``val`` or ``test``.

    What is seen, heard and said have no word in common but function words.
    """
    dice, words, samples = random.Random(f"{part}/{seed}"), _pool(part, 400), []
    for _ in range(count):
        who, thing, source, said, about = dice.sample(words, 5)
        place = dice.choice(_PLACES)
        seen = f"{who} {dice.choice(_DOES)} a {thing} in the {place}"
        heard = f"{dice.choice(_SOUNDS)} and a {source} sound {dice.choice(_HOW)}"
        speech = f"{said} {dice.choice(_SAYS)} the {about}"
        samples.append(
            Sample(
                texts={
                    "vision": f"the camera shows that {seen}",
                    "audio": f"{heard} on the recording",
                    "subtitle": f"well , {speech} as we all know",
                },
                target=f"{seen} while {heard} and {speech} .",
                domain=place,
            )
        )
    return samples
