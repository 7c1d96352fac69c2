"""Pocket backbones that copy: training data where inputs are texts that are read as tokens.

A model that has only seen a task's sentences says them again, whatever its inputs say. So these are
trained to say a sentence whose parts stand in the texts before it, as in denoising (arXiv
1910.13461), with random tokens in place of some words: what cannot be known has to be copied. The
vocabulary is byte pairs (arXiv 1508.07909), so any text can be read and said. Our choice.

Training starts with random tokens, parts of which are repeated several times at random distances.
There, copying is all that can be learnt, and a small model learns it within 300 steps; from the
sentences alone the same loss takes twice the time. Then come passages: most are labelled public
samples in the form that training gives them, with other words in place of the rare ones, the same
in texts and target. So a model learns where in a text to begin and when to end, but not which words
to say. Without labelled samples (``pretrain_on: other``) that is left to the adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.nn.texts import TextCoder
from mlecs_lightning.nn.words import ABSENT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Passages", "Words", "byte_pair_tokenizer", "trimmed"]

_VOCABULARY = 1024
_MAX_WORDS = 24
"""Of a sentence that is copied."""
_SWAPPED = 0.4
"""Probability that a word becomes random tokens."""
_KEPT = 0.85
"""Probability that a span of the sentence stands in one of the texts."""

_ECHOED = 0.5
"""Probability that all texts are said again instead, which teaches to copy at all."""
_SHOWN = 0.8
"""Probability of a labelled sample, where there are any."""
_RARE = 0.1
"""Words in a larger part of the labelled samples are never exchanged: they say what is where."""
_UNLISTED = 0.5
"""Probability that absent texts of a labelled sample have no line, as for a client without them."""
_DRILL = 96
"""Tokens of a sample of random tokens; the second half repeats parts of what is before it."""
_REPEATED = (3, 15)
"""Fewest and most tokens of a part that is repeated."""


class Example(NamedTuple):
    """A labelled public sample.

    Attributes:
        texts: Those of the modalities that are read as tokens; ``None`` for an absent one.
        instruction: What is asked.
        target: The answer.
    """

    texts: tuple[str | None, ...]
    instruction: str
    target: str


class Words(NamedTuple):
    """What a copying model is trained on; all of it public.

    Attributes:
        sentences: Targets and texts of the inputs.
        names: The modalities whose texts are read as tokens.
        examples: Samples with a target, which show what of the inputs it repeats; may be empty.
    """

    sentences: tuple[str, ...]
    names: tuple[str, ...]
    examples: tuple[Example, ...] = ()

    def all_texts(self, instructions: Sequence[str]) -> list[str]:
        """Return everything that the vocabulary is made of."""
        markers = [f"{name}:" for name in self.names]
        return [*self.sentences, *sorted(set(instructions)), *markers, ABSENT]

    def content(self) -> tuple[list[str], list[str], list[Example]]:
        """Return all of it in an order that depends on nothing but the content."""
        return sorted(self.sentences), list(self.names), sorted(self.examples, key=str)


def byte_pair_tokenizer(
    texts: Sequence[str], *, special: Sequence[str], end: str
) -> PreTrainedTokenizerBase:
    """Train a byte-pair tokenizer; its vocabulary holds all 256 bytes, so nothing is unknown.

    A blank is put before a text, so that a word has the same tokens wherever it stands.

    Args:
        texts: The texts; the order does not matter.
        special: Special tokens, the first ones of the vocabulary.
        end: The one that ends a text, and pads.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        min_frequency=2,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=end, pad_token=end
    )


class Passages(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Random samples: empty slots, texts with parts of a sentence among others, the sentence.

    The first ones are random tokens with repetitions. Sample i depends on i and the seed only.
    """

    def __init__(
        self,
        words: Words,
        instructions: Sequence[str],
        coder: TextCoder,
        *,
        filler: int,
        slots: int,
        draws: int,
        drills: int,
        length: int,
        seed: int,
    ) -> None:
        """Encode the sentences.

        Args:
            words: Sentences, and names of the modalities that are read as tokens.
            instructions: Instructions of the data set.
            coder: The tokenizer.
            filler: The token that stands for the soft prompt.
            slots: Number of fillers before the texts.
            draws: Number of samples.
            drills: How many of them, the first ones, are random tokens.
            length: Tokens of a sample; longer ones are cut.
            seed: Seed of all samples.
        """
        self.draws, self.drills, self.length, self.seed = draws, drills, length, seed
        encode = coder.encode
        self.sentences = [
            [encode(word) for word in text.split()[:_MAX_WORDS]]
            for text in sorted(set(words.sentences))
        ]
        self.markers = [encode(f"{name}:") for name in words.names]
        self.absent, self.line, self.end = encode(ABSENT), encode("\n"), coder.end
        self.instructions = [encode(text) for text in instructions]
        self.slots = [filler] * slots
        self.encode = encode
        self.examples = sorted(words.examples, key=str)
        found_in = Counter(w for e in self.examples for w in {*_words_of(e)})
        self.rare = {w for w, n in found_in.items() if n <= max(1, _RARE * len(self.examples))}
        begins: list[int] = []
        inside: list[int] = []
        for token, number in sorted(coder.tokenizer.get_vocab().items()):
            if number not in coder.tokenizer.all_special_ids:
                (begins if token.startswith("Ġ") else inside).append(number)
        self.begins, self.inside = begins, inside

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        dice = _Dice(self.seed * 1_000_003 + index)
        tokens, labels = self._drill(dice) if index < self.drills else self._passage(dice)
        tokens, labels = tokens[: self.length], labels[: self.length]
        pad = self.length - len(tokens)
        return torch.tensor(tokens + [self.end] * pad), torch.tensor(labels + [-100] * pad)

    def _drill(self, dice: _Dice) -> tuple[list[int], list[int]]:
        """Return random tokens and parts of them; of each part, all but the first token count."""
        anything = [*self.begins, *self.inside]
        tokens = [anything[dice.below(len(anything))] for _ in range(_DRILL // 2)]
        labels = [-100] * len(tokens)
        shortest, longest = _REPEATED
        while len(tokens) < _DRILL:
            size = shortest + dice.below(longest - shortest + 1)
            first = dice.below(len(tokens) - size + 1)
            part = tokens[first : first + size]
            tokens += part
            labels += [-100, *part[1:]]
        return tokens[:_DRILL], labels[:_DRILL]

    def _passage(self, dice: _Dice) -> tuple[list[int], list[int]]:
        """Return slots, texts, instruction and sentence; only the sentence counts."""
        if self.examples and dice.chance(_SHOWN):
            return self._example(dice)
        sentence = [
            self._random_word(dice) if dice.chance(_SWAPPED) else word
            for word in self.sentences[dice.below(len(self.sentences))]
        ]
        texts: list[list[tuple[int, ...]]] = [[] for _ in self.markers]
        for span in dice.spans(sentence):
            text = texts[dice.below(len(texts))]
            if dice.chance(0.5):
                text += self._other_words(dice)
            if dice.chance(_KEPT):
                text += span
        head = list(self.slots)
        for marker, text in zip(self.markers, texts, strict=True):
            said = [token for word in text for token in word] or self.absent
            head += [*marker, *said, *self.line]
        if self.instructions and dice.chance(0.8):
            head += self.instructions[dice.below(len(self.instructions))]
        if dice.chance(_ECHOED):
            sentence = [word for text in texts for word in text]
        tail = [*(token for word in sentence for token in word), self.end]
        return [*head, *tail], [*[-100] * len(head), *tail]

    def _example(self, dice: _Dice) -> tuple[list[int], list[int]]:
        """Return a labelled sample with other words, the same ones in texts and target."""
        example = self.examples[dice.below(len(self.examples))]
        other = {
            word: self._random_word(dice)
            for word in dict.fromkeys(_words_of(example))
            if word in self.rare and dice.chance(_SWAPPED)
        }

        def said(text: str) -> list[int]:
            return [t for word in text.split() for t in other.get(word) or self.encode(word)]

        asked = self.encode(example.instruction)[: self.length // 4]
        tail = [*said(example.target), self.end]
        head = list(self.slots)
        each = (self.length - len(head) - len(asked) - len(tail)) // len(self.markers)
        unlisted = dice.chance(_UNLISTED)
        for marker, text in zip(self.markers, example.texts, strict=True):
            if text is None and unlisted:
                continue
            tokens = self.absent if text is None else said(text)
            room = max(0, each - len(marker) - len(self.line))
            head += [*marker, *tokens[:room], *self.line]
        head += asked
        return [*head, *tail], [*[-100] * len(head), *tail]

    def _random_word(self, dice: _Dice) -> tuple[int, ...]:
        more = [self.inside[dice.below(len(self.inside))] for _ in range(dice.below(4))]
        return (self.begins[dice.below(len(self.begins))], *more)

    def _other_words(self, dice: _Dice) -> list[tuple[int, ...]]:
        """Return up to three words of another sentence, which the target does not repeat."""
        other = self.sentences[dice.below(len(self.sentences))]
        first = dice.below(len(other))
        return other[first : first + 1 + dice.below(3)]


def _words_of(example: Example) -> list[str]:
    """Return the words of texts and target, in order."""
    return [w for text in (*example.texts, example.target) for w in (text or "").split()]


def trimmed(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return a batch of samples without the padding at the end of the longest one."""
    tokens, labels = (torch.stack(column) for column in zip(*rows, strict=True))
    used = int((labels >= 0).any(dim=0).nonzero().max()) + 1
    return tokens[:, :used], labels[:, :used]


class _Dice:
    """Random choices from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, high: int) -> int:
        return int(torch.randint(high, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < probability

    def spans(self, words: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """Cut a sentence into spans of one to six words."""
        spans, first = [], 0
        while first < len(words):
            size = 1 + self.below(6)
            spans.append(words[first : first + size])
            first += size
        return spans
