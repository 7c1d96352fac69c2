"""Texts of data as the tokens that a language model reads, and its tokens as texts again."""

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
    """Return how many tokens a language model can read, ``None`` if its configuration sets no end.

    One with rotary positions can be made to read more, and is not at its best there: the
    configuration counts.
    """
    length = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return None if length is None else int(length)


class TextCoder:
    """The tokenizer of a language model, used for data.

    Data hold no special tokens. What looks like one in them ("<|endoftext|>" in a target) is text:
    it is spelt out as other words are, or it would be trained as the end of the sentence. Where a
    tokenizer makes a special token of it all the same (its vocabulary is of whole words, and that
    is one), it is the unknown token, or nothing if there is none. Our choice.

    Attributes:
        tokenizer: The tokenizer itself.
        model: The name of its language model, for messages.
        start: What the tokenizer puts in front of a text by itself: the beginning-of-sequence token
            in Llama and Gemma, nothing in GPT-2 and Qwen. Models that have been trained with one
            expect it at the very front.
        end: The end-of-sequence token.
        pad: What fills rows up; it is masked.
        positions: How many tokens the model can read; ``None`` for any number.
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
            embedded: How many tokens the model embeds. Tokenizers may know more, the padding token
                among them.
            positions: How many tokens the model can read.
            model: Its name.

        Raises:
            ConfigurationError: If there is no end-of-sequence token, or the model does not embed
                what every text begins with.
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
        # GPT-2 names its end-of-sequence token as unknown token, too.
        self._unknown: list[int] = [] if unknown is None or unknown == end else [unknown]
        self._special = {end, *tokenizer.all_special_ids} - {*self._unknown}
        self.start = self._checked(_put_in_front(tokenizer), "the beginning of a text")
        self.encode = functools.lru_cache(maxsize=_CACHED)(self._encode)
        """Return the tokens of a text; the same ones are asked for in each round."""

    def _encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text of the data, none of them a special one but the unknown.

        Raises:
            ConfigurationError: If the model does not embed one of them.
        """
        # Said in every call: the tokenizer remembers what the last one asked for.
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        tokens: list[int] = found["input_ids"]
        if not self._special.isdisjoint(tokens):
            plain = ([token] if token not in self._special else self._unknown for token in tokens)
            tokens = [token for part in plain for token in part]
        return self._checked(tokens, repr(text))

    def _checked(self, tokens: Sequence[int], what: str) -> tuple[int, ...]:
        if max(tokens, default=0) >= self._embedded:
            raise ConfigurationError(
                f"backbone.model {self.model!r}: its tokenizer makes token {max(tokens)} of "
                f"{what}, but the model embeds {self._embedded}: they do not belong together"
            )
        return tuple(tokens)

    def decode(self, rows: Tensor | list[list[int]]) -> list[str]:
        """Return what rows of tokens say: without special tokens, words apart by one blank."""
        texts = self.tokenizer.batch_decode(
            rows,
            skip_special_tokens=True,
            # It would take blanks away that the model has said.
            clean_up_tokenization_spaces=False,
        )
        return [" ".join(text.split()) for text in texts]

    def survives(self, text: str) -> bool:
        """Return whether a text is the same once it has been encoded and decoded.

        If not, the model can never say it.
        """
        return self.decode([list(self.encode(text))]) == [" ".join(text.split())]


def _put_in_front(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a tokenizer puts before those of a text."""
    # Any text will do, but one of whole words may know no other than its own.
    text = next((word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii()), "x")
    plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(text, add_special_tokens=True)["input_ids"]
    for first in range(len(whole) - len(plain) + 1):
        if whole[first : first + len(plain)] == plain:
            return whole[:first]
    return []


def coder_of_files(settings: BackboneSettings) -> TextCoder:
    """Return the tokenizer of a language model without loading its weights.

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
    """What a sequence [start ; S ; instruction ; target ; end] has room for.

    Attributes:
        coder: The tokenizer and its model.
        prompt: P, positions of the soft prompt S.
        answer: Most tokens of an answer that is generated.
    """

    coder: TextCoder
    prompt: int
    answer: int

    def needed(self, instruction: str, target: str) -> int:
        """Return the positions of the longer of the two: reading the target, and answering."""
        fixed = len(self.coder.start) + self.prompt + len(self.coder.encode(instruction))
        return fixed + max(len(self.coder.encode(target)) + 1, self.answer)

    def asked(self) -> int | None:
        """Return the most tokens that an instruction may have; ``None`` for any number."""
        if self.coder.positions is None:
            return None
        return self.coder.positions - len(self.coder.start) - self.prompt - self.answer
