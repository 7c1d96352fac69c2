"""Encodes texts as the tokens of a language model, and decodes its tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.settings import BackboneSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["Room", "TextCoder", "coder_of_files", "positions_of"]

_CACHED = 65536


def positions_of(config: PretrainedConfig) -> int | None:
    """Return the maximum number of tokens that a language model can read; ``None`` if unlimited.

    A model with rotary positions could read more than its configuration says, but not well, so the
    configuration counts.
    """
    length = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return None if length is None else int(length)


class TextCoder:
    """Encodes the texts of a data set for a language model, and decodes its answers.

    The data contain no special tokens. A string that looks like one ("<|endoftext|>" in a target)
    is encoded as ordinary text: otherwise a model would be trained to end its sentence there. If a
    tokenizer can only encode it as a special token (because its vocabulary consists of whole
    words), it becomes the unknown token, or is left out if there is none. Our choice.

    Attributes:
        tokenizer: The tokenizer itself.
        model: Name of the language model, for messages.
        start: The tokens that the tokenizer puts before every text: the beginning-of-sequence token
            in Llama and Gemma, none in GPT-2 and Qwen. Models that were trained with one expect it
            at the very beginning.
        end: The end-of-sequence token.
        pad: The padding token; it is masked.
        positions: Maximum number of tokens that the model can read; ``None`` if unlimited.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        embedded: int,
        positions: int | None,
        model: str,
    ) -> None:
        """Find the special tokens.

        Args:
            tokenizer: The tokenizer.
            embedded: Number of tokens that the model has embeddings for. The tokenizer may have
                more, such as a padding token.
            positions: Maximum number of tokens that the model can read.
            model: Name of the model.

        Raises:
            ConfigurationError: If there is no end-of-sequence token, or the model has no embedding
                for a token that every text begins with.
        """
        self.tokenizer, self.model, self.positions = tokenizer, model, positions
        self._embedded = embedded
        end, pad, unknown = (
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            tokenizer.unk_token_id,
        )
        if end is None:
            raise ConfigurationError(
                f"backbone.model {model!r}: its tokenizer has no end-of-sequence token"
            )
        self.end: int = end
        self.pad: int = end if pad is None or pad >= embedded else pad
        # In GPT-2 the end-of-sequence token is also the unknown token.
        self._unknown: list[int] = [] if unknown is None or unknown == end else [unknown]
        self._special = {end, *tokenizer.all_special_ids} - {*self._unknown}
        self.start = self._checked(_put_in_front(tokenizer), "the beginning of a text")
        self.encode = functools.lru_cache(maxsize=_CACHED)(self._encode)
        """Return the tokens of a text, cached, since each round encodes the same texts."""

    def _encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text, without special tokens except the unknown one.

        Raises:
            ConfigurationError: If the model has no embedding for one of them.
        """
        # Set in every call, because the tokenizer keeps the options of the last one.
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        tokens: list[int] = found["input_ids"]
        if not self._special.isdisjoint(tokens):
            plain = ([token] if token not in self._special else self._unknown for token in tokens)
            tokens = [token for part in plain for token in part]
        return self._checked(tokens, repr(text))

    def _checked(self, tokens: Sequence[int], what: str) -> tuple[int, ...]:
        if max(tokens, default=0) >= self._embedded:
            raise ConfigurationError(
                f"backbone.model {self.model!r}: its tokenizer encodes {what} with token "
                f"{max(tokens)}, but the model embeds only {self._embedded}: they do not fit"
            )
        return tuple(tokens)

    def decode(self, rows: Tensor | list[list[int]]) -> list[str]:
        """Return the texts of rows of tokens, without special tokens, with single blanks."""
        texts = self.tokenizer.batch_decode(
            rows,
            skip_special_tokens=True,
            # It would remove blanks that the model has generated.
            clean_up_tokenization_spaces=False,
        )
        return [" ".join(text.split()) for text in texts]

    def survives(self, text: str) -> bool:
        """Return whether a text is the same after encoding and decoding.

        If not, the model can never generate it.
        """
        return self.decode([list(self.encode(text))]) == [" ".join(text.split())]


def _put_in_front(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a tokenizer puts before every text."""
    # Any text will do, but a tokenizer of whole words may know only its own.
    text = next((word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii()), "x")
    plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(text, add_special_tokens=True)["input_ids"]
    for first in range(len(whole) - len(plain) + 1):
        if whole[first : first + len(plain)] == plain:
            return whole[:first]
    return []


def coder_of_files(settings: BackboneSettings) -> TextCoder:
    """Return the `TextCoder` of a language model without loading its weights.

    Raises:
        ConfigurationError: If transformers cannot load configuration or tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer

    where: dict[str, Any] = {
        "revision": settings.revision,
        "local_files_only": settings.local_files_only,
    }
    try:
        config = AutoConfig.from_pretrained(settings.model, **where)
        tokenizer = AutoTokenizer.from_pretrained(settings.model, **where)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigurationError(f"backbone.model {settings.model!r}: {error}") from error
    return TextCoder(
        tokenizer,
        embedded=config.get_text_config(decoder=True).vocab_size,
        positions=positions_of(config),
        model=settings.model,
    )


class Room(NamedTuple):
    """Counts the positions of a sequence [start ; S ; words ; instruction ; target ; end].

    Attributes:
        coder: The tokenizer and its model.
        prompt: Length P of the soft prompt S.
        answer: Maximum number of tokens of a generated answer.
        words: Maximum number of tokens of all text modalities together, with their markers.
    """

    coder: TextCoder
    prompt: int
    answer: int
    words: int = 0

    def needed(self, instruction: str, target: str) -> int:
        """Return the positions that a sample needs.

        The maximum of reading its target and of reading an own answer of the maximum length again,
        each with the end. Generation alone would need one less: no answer is followed by anything.
        """
        fixed = len(self.coder.start) + self.prompt + self.words
        fixed += len(self.coder.encode(instruction))
        return fixed + max(len(self.coder.encode(target)), self.answer) + 1

    def holds(self, instruction: str, target: str) -> bool:
        """Return whether the model can read a sample: it has positions and embeddings for it."""
        try:
            needed = self.needed(instruction, target)
        except ConfigurationError:  # a token that the model does not embed
            return False
        return self.coder.positions is None or needed <= self.coder.positions

    def asked(self) -> int | None:
        """Return the maximum number of tokens of an instruction; ``None`` if unlimited.

        Any answer can be generated then, and be read again with its end.
        """
        if self.coder.positions is None:
            return None
        before = len(self.coder.start) + self.prompt + self.words
        return self.coder.positions - before - self.answer - 1
