"""Readers that prepare images, audio and text for pretrained encoders."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.extras import Need, require
from mlecs_lightning.functional import bytes_to_text
from mlecs_lightning.types import ModalitySpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AudioReader", "ImageReader", "Reader", "TextReader"]


class Reader(Protocol):
    """Prepares a batch of one modality for an encoder, and pools its hidden states."""

    pools: bool
    """Whether to use the model's own pooler, if it has one."""

    @property
    def parts(self) -> int:
        """Number of vectors per sample, which are concatenated."""

    def describe(self) -> str:
        """Return everything that the preparation depends on, as a string."""

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return the encoder's inputs by argument name."""

    def pool(self, hidden: Tensor, x: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        """Pool the last hidden states to vectors (B * parts, width).

        Args:
            hidden: (B * parts, positions, width) last hidden states.
            x: The raw inputs.
            read: The encoder's inputs.
        """


class ImageReader:
    """Prepares images like an image processor, but without PIL or torchvision.

    The whole image is resized to the model's size, bicubic with antialiasing. Nothing is cropped,
    since a fixed sensor may see what matters anywhere (our choice; CLIP's processor crops the
    longer side). Then the image is normalised with ``image_mean`` and ``image_std`` of the
    checkpoint's preprocessor_config.json, or with 0.5 and 0.5, as in ViT and SigLIP, if there are
    none.

    A single channel is repeated for a model of three. A multiple of the model's channels is read as
    several frames, whose features are concatenated.
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
        """Read the size and normalisation that the model expects.

        Raises:
            ConfigurationError: If the number of channels or ``range`` does not fit.
        """
        from transformers.image_processing_base import ImageProcessingMixin

        self.channels = int(getattr(encoder.config, "num_channels", 3))
        depth = spec.shape[0]
        if depth != 1 and depth % self.channels:
            raise ConfigurationError(
                f"model {model!r} reads images of {self.channels} channels, one channel, or "
                f"{self.channels} for each of several frames; the modality has {depth}"
            )
        self.parts = max(1, depth // self.channels)
        """Frames per sample."""
        self._range = (0.0, 1.0) if range is None else _checked_range(range)
        try:
            own, _ = ImageProcessingMixin.get_image_processor_dict(model, **where)
        except OSError:
            own = {}
        # Plain numbers: buffers would be rounded with the weights of a half-precision run.
        self._scale: tuple[Any, Any] = (0.0, 1.0)
        if range is not None and own.get("do_normalize", True):
            self._scale = (own.get("image_mean") or 0.5, own.get("image_std") or 0.5)
        self.size = _side(getattr(encoder.config, "image_size", None) or own.get("size", 224))

    def describe(self) -> str:
        """Return everything that the preparation depends on."""
        return json.dumps([self.size, self._range, self._scale, self.channels])

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Turn images (B, C, height, width) into (B * frames, channels, side, side)."""
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
        """Return the first token of hidden states (B * frames, tokens, width)."""
        return hidden[:, 0]


class AudioReader:
    """Prepares audio (B, 1, samples) with the model's own feature extractor, on the CPU.

    Wav2Vec2 and HuBERT read the normalised waveform; AST and Whisper read log-mel spectrograms,
    padded to the length that they were trained with. Values are in [-1, 1], as in a wav file read
    as floats.
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
        """Load the feature extractor, and check that the series fits the model.

        Raises:
            ConfigurationError: If there is no feature extractor, or channels, sampling rate or
                duration do not fit.
        """
        from transformers import AutoFeatureExtractor

        channels, samples = spec.shape
        if channels != 1:
            raise ConfigurationError(
                f"model {model!r} reads audio, a series of shape (1, samples), but the modality "
                f"has {channels} channels; a modality with `features` must do without them, since "
                "the model computes its own"
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
        # All these models have a window of 25 ms.
        if not 0.025 <= seconds <= longest:
            raise ConfigurationError(
                f"model {model!r} reads 0.025 to {longest:g} s of audio, but the modality's "
                f"{samples} samples are {seconds:g} s at {rate or own} Hz (sampling_rate)"
            )

    def describe(self) -> str:
        """Return everything that the preparation depends on."""
        own = json.dumps(self.extract.to_dict(), sort_keys=True, default=str)
        return f"{own}{self.up}/{self.down}"

    def _waves(self, x: Tensor) -> Any:  # noqa: ANN401 - a numpy array
        waves = x[:, 0].detach().float().cpu().numpy()
        if self.up == self.down:
            return waves
        require(Need("sound at another rate than the extractor's", "audio", ("scipy",)))
        from scipy.signal import resample_poly

        return resample_poly(waves, self.up, self.down, axis=-1).astype("float32")

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Turn audio (B, 1, samples) into the model's input."""
        waves = list(self._waves(x))
        inputs = self.extract(waves, sampling_rate=self.extract.sampling_rate, return_tensors="pt")
        return {self._key: inputs[self._key]}

    def pool(self, hidden: Tensor, x: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of (B, frames, width) over the frames that contain audio."""
        frames = hidden.shape[1]
        padded = getattr(self.extract, "n_samples", None)
        if padded:
            length = math.ceil(x.shape[-1] * self.up / self.down)
            frames = min(frames, math.ceil(frames * length / padded))
        return hidden[:, :frames].mean(dim=1)


class TextReader:
    """Tokenizes texts with the model's own tokenizer.

    Pooling: the text part of CLIP or SigLIP has its own pooler. For all other models it is the mean
    over the tokens, as in sentence encoders (arXiv 1908.10084), since BERT's pooler is not trained
    to represent the meaning of a sentence. Our choice.
    """

    parts = 1

    def __init__(
        self, encoder: PreTrainedModel, *, model: str, where: Mapping[str, Any], pools: bool
    ) -> None:
        """Load the tokenizer.

        Raises:
            ConfigurationError: If there is none, or it has no padding token.
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
            raise ConfigurationError(f"model {model!r}: its tokenizer has no padding token")
        # RoBERTa has fewer usable positions than its configuration says; its tokenizer knows.
        positions = getattr(encoder.config, "max_position_embeddings", None) or math.inf
        longest = min(self.tokenizer.model_max_length, positions)
        self._length = int(longest) if longest < 10**6 else None
        # SigLIP was trained on padded texts without a mask, and pools the last position.
        self._masks = "siglip" not in encoder.config.model_type
        self._padding = "longest" if self._masks else "max_length"

    def describe(self) -> str:
        """Return everything that the preparation depends on."""
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        own = fast.to_str() if fast is not None else json.dumps(words)
        return f"{own}{self._length}{self._padding}{self.pools}split"

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Turn texts (B, bytes) into tokens and an attention mask."""
        tokens = self.tokenizer(
            bytes_to_text(x),
            # A string that looks like a special token is ordinary text.
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
            # A tokenizer of words or word pieces may still encode it as the special token.
            own = tokens["special_tokens_mask"].bool()
            taken = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids)) & ~own
            ids[taken] = self.tokenizer.unk_token_id
        if not ids.shape[1]:  # only empty texts, and the tokenizer adds no special tokens
            ids = ids.new_full((len(x), 1), self.tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
        if not self._masks:
            return {"input_ids": ids}
        # Attention over no position would give NaN.
        empty = mask.sum(1) == 0
        mask[empty, 0] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def pool(self, hidden: Tensor, x: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of (B, tokens, width) over the tokens that are not padding."""
        mask = read["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


def _checked_range(limits: Sequence[float]) -> tuple[float, float]:
    if len(limits) != 2 or not limits[0] < limits[1]:
        raise ConfigurationError(
            f"value_range: expected [black, white] with black < white, got {list(limits)}"
        )
    return float(limits[0]), float(limits[1])


def _side(size: Any) -> tuple[int, int]:  # noqa: ANN401 - as transformers writes it
    """Return (height, width) of a size in a configuration: a number, a list or a dictionary."""
    sides: list[Any] = list(size) if isinstance(size, list | tuple) else [size]
    if isinstance(size, dict):
        square = size.get("shortest_edge", 224)
        sides = [size.get("height", square), size.get("width", square)]
    return int(sides[0]), int(sides[-1])


def _longest(extract: Any) -> float:  # noqa: ANN401 - a feature extractor
    """Return the maximum duration that a feature extractor keeps, in seconds."""
    if hasattr(extract, "n_samples"):  # Whisper
        return float(extract.n_samples) / float(extract.sampling_rate)
    if hasattr(extract, "max_length"):  # AST: frames of 25 ms every 10 ms
        return 0.01 * (int(extract.max_length) - 1) + 0.025
    return math.inf
