"""How pretrained encoders want their input: images, features of a waveform, tokens of a text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.functional import bytes_to_text
from mlecs_lightning.types import ModalitySpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AudioReader", "ImageReader", "Reader", "TextReader"]


class Reader(Protocol):
    """Prepares a batch of one modality, and pools what an encoder without a pooler makes of it."""

    pools: bool
    """Whether the model's own pooler is used, where it has one."""

    @property
    def parts(self) -> int:
        """Vectors of one sample, to be concatenated."""

    def describe(self) -> str:
        """Return all that the preparation depends on."""

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the encoder reads, by argument."""

    def pool(self, hidden: Tensor, x: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        """Return one vector (B * parts, width) of the last hidden states of ``x``.

        Args:
            hidden: The last hidden states.
            x: The inputs.
            read: What was made of them.
        """


class ImageReader:
    """Prepares images as an image processor would, without PIL or torchvision.

    The whole image is resized to the model's square, bicubic with antialiasing: no part is cut
    off, since sensors look where they look (our choice; CLIP's own processor cuts the longer side).
    Then it is normalised with ``image_mean`` and ``image_std`` of the checkpoint's
    preprocessor_config.json, or 0.5 and 0.5 where it has none, as ViT and SigLIP are trained.

    One channel is repeated for a model of three. A multiple of the model's channels is read as
    frames, one after the other, and their features are concatenated.
    """

    pools = True

    def __init__(
        self,
        encoder: PreTrainedModel,
        spec: ModalitySpec,
        *,
        model: str,
        where: Mapping[str, Any],
        range: Sequence[float] | None,
    ) -> None:
        """Read how the model wants its images."""
        from transformers.image_processing_base import ImageProcessingMixin

        self.channels = int(getattr(encoder.config, "num_channels", 3))
        depth = spec.shape[0]
        if depth != 1 and depth % self.channels:
            raise ConfigurationError(
                f"model {model!r} reads images of {self.channels} channels, one channel, or "
                f"{self.channels} for each of several frames; the modality has {depth}"
            )
        self.parts = max(1, depth // self.channels)
        """Frames of a sample."""
        if range is not None and (len(range) != 2 or not range[0] < range[1]):
            raise ConfigurationError(
                f"value_range: expected [black, white], the first smaller, got {list(range)}"
            )
        self._range = (0.0, 1.0) if range is None else (float(range[0]), float(range[1]))
        try:
            own, _ = ImageProcessingMixin.get_image_processor_dict(model, **where)
        except OSError:
            own = {}
        plain = range is None or not own.get("do_normalize", True)
        mean = 0.0 if plain else own.get("image_mean") or 0.5
        deviation = 1.0 if plain else own.get("image_std") or 0.5
        # Plain numbers: buffers would be rounded with the weights of a half-precision run.
        self._scale = (mean, deviation)
        self.size = _side(getattr(encoder.config, "image_size", None) or own.get("size", 224))

    def describe(self) -> str:
        """Return all that the preparation depends on."""
        return json.dumps([self.size, self._range, self._scale, self.channels])

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Prepare (B, C, height, width): (B * frames, channels, side, side)."""
        low, high = self._range
        x = (x.float() - low) / (high - low)
        x = x.expand(-1, self.channels, -1, -1) if x.shape[1] == 1 else x
        x = x.reshape(-1, self.channels, *x.shape[2:])
        if tuple(x.shape[-2:]) != self.size:
            darkest, lightest = (f(x, (1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
            x = nn.functional.interpolate(
                x, self.size, mode="bicubic", antialias=True, align_corners=False
            )
            # Bicubic interpolation overshoots at edges.
            x = x.clamp(darkest, lightest)
        mean, deviation = (x.new_tensor(value).view(-1, 1, 1) for value in self._scale)
        return {"pixel_values": (x - mean) / deviation}

    def pool(self, hidden: Tensor, x: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        """Return the first token of (B * frames, tokens, width)."""
        return hidden[:, 0]


class AudioReader:
    """Computes what an audio model reads from (B, 1, samples), by its own feature extractor.

    Wav2Vec2 and HuBERT read the waveform itself, normalised; AST and Whisper read log-mel
    spectrograms, padded to the length that they were trained with. Values are as in a wav file
    read as floats, in [-1, 1]. The transform runs on the CPU.
    """

    parts = 1
    pools = True

    def __init__(
        self,
        encoder: PreTrainedModel,
        spec: ModalitySpec,
        *,
        model: str,
        where: Mapping[str, Any],
        rate: int | None,
    ) -> None:
        """Load the feature extractor and check that the series fits the model."""
        from transformers import AutoFeatureExtractor

        channels, samples = spec.shape
        if channels != 1:
            raise ConfigurationError(
                f"model {model!r} reads audio, a series of shape (1, samples); the modality has "
                f"{channels} channels"
            )
        try:
            load: Any = AutoFeatureExtractor.from_pretrained
            self.extract = load(model, **where)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigurationError(
                f"model {model!r}: no feature extractor for audio: {error}"
            ) from error
        own = int(self.extract.sampling_rate)
        if rate is not None and rate < 1:
            raise ConfigurationError(f"sampling_rate must be positive, got {rate}")
        common = math.gcd(rate or own, own)
        self.up, self.down = own // common, (rate or own) // common
        self._key = encoder.main_input_name
        seconds = samples * self.up / self.down / own
        longest = _longest(self.extract)
        # 25 ms is the window of all these models.
        if not 0.025 <= seconds <= longest:
            raise ConfigurationError(
                f"model {model!r} reads 0.025 to {longest:g} s of audio; the modality's {samples} "
                f"samples are {seconds:g} s at {rate or own} samples a second (sampling_rate)"
            )

    def describe(self) -> str:
        """Return all that the preparation depends on."""
        own = json.dumps(self.extract.to_dict(), sort_keys=True, default=str)
        return f"{own}{self.up}/{self.down}"

    def _waves(self, x: Tensor) -> Any:  # noqa: ANN401 - a numpy array
        waves = x[:, 0].detach().float().cpu().numpy()
        if self.up == self.down:
            return waves
        from scipy.signal import resample_poly

        return resample_poly(waves, self.up, self.down, axis=-1).astype("float32")

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the model reads of (B, 1, samples)."""
        waves = list(self._waves(x))
        inputs = self.extract(waves, sampling_rate=self.extract.sampling_rate, return_tensors="pt")
        return {self._key: inputs[self._key]}

    def pool(self, hidden: Tensor, x: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of (B, frames, width) over the frames that hold some of the waveform."""
        frames = hidden.shape[1]
        padded = getattr(self.extract, "n_samples", None)
        if padded:
            length = math.ceil(x.shape[-1] * self.up / self.down)
            frames = min(frames, math.ceil(frames * length / padded))
        return hidden[:, :frames].mean(dim=1)


class TextReader:
    """Makes tokens of texts, by the model's own tokenizer.

    Pooling: the text tower of CLIP or SigLIP has a pooler of its own; of all others the mean over
    the tokens is taken, as sentence encoders do (arXiv 1908.10084), since the pooler of BERT is not
    made for the meaning of a sentence. Our choice.
    """

    parts = 1

    def __init__(
        self, encoder: PreTrainedModel, *, model: str, where: Mapping[str, Any], pools: bool
    ) -> None:
        """Load the tokenizer.

        Raises:
            ConfigurationError: If there is none, or it has no token to pad with.
        """
        from transformers import AutoTokenizer

        self.pools = pools
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, **where)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigurationError(f"model {model!r}: no tokenizer: {error}") from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        if self.tokenizer.pad_token is None:
            raise ConfigurationError(f"model {model!r}: its tokenizer has no token to pad with")
        # Positions of RoBERTa begin behind the padding token; its tokenizer knows.
        positions = getattr(encoder.config, "max_position_embeddings", None) or math.inf
        longest = min(self.tokenizer.model_max_length, positions)
        self._length = int(longest) if longest < 10**6 else None
        # SigLIP was trained on padded texts without a mask, and reads the last position.
        self._masks = "siglip" not in encoder.config.model_type
        self._padding = "longest" if self._masks else "max_length"

    def describe(self) -> str:
        """Return all that the preparation depends on."""
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        own = fast.to_str() if fast is not None else json.dumps(words)
        return f"{own}{self._length}{self._padding}{self.pools}split"

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return the tokens of (B, bytes), and which of them are padding."""
        tokens = self.tokenizer(
            bytes_to_text(x),
            # What looks like a special token in a text of the data is text.
            split_special_tokens=True,
            padding=self._padding,
            truncation=self._length is not None,
            max_length=self._length,
            return_attention_mask=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        ids, mask = tokens["input_ids"].long(), tokens["attention_mask"].long()
        if self.tokenizer.unk_token_id is not None:
            # A vocabulary of whole words, or pieces of one, may know a special token as such.
            own = tokens["special_tokens_mask"].bool()
            taken = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids)) & ~own
            ids[taken] = self.tokenizer.unk_token_id
        if not ids.shape[1]:  # nothing but empty texts, and a tokenizer that adds no token
            ids = ids.new_full((len(x), 1), self.tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
        if not self._masks:
            return {"input_ids": ids}
        # Attention over nothing is not a number.
        empty = mask.sum(1) == 0
        mask[empty, 0] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def pool(self, hidden: Tensor, x: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of (B, tokens, width) over the tokens that are no padding."""
        spoken = read["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * spoken).sum(dim=1) / spoken.sum(dim=1)


def _side(size: Any) -> tuple[int, int]:  # noqa: ANN401 - as transformers writes it
    """Return (height, width) of a size as configurations write it."""
    sides: list[Any] = list(size) if isinstance(size, list | tuple) else [size]
    if isinstance(size, dict):
        square = size.get("shortest_edge", 224)
        sides = [size.get("height", square), size.get("width", square)]
    return int(sides[0]), int(sides[-1])


def _longest(extract: Any) -> float:  # noqa: ANN401 - a feature extractor
    """Return the seconds of audio that a feature extractor keeps."""
    if hasattr(extract, "n_samples"):  # Whisper
        return float(extract.n_samples) / float(extract.sampling_rate)
    if hasattr(extract, "max_length"):  # AST: frames of 25 ms every 10 ms
        return 0.01 * (int(extract.max_length) - 1) + 0.025
    return math.inf
