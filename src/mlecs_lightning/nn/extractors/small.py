"""Small extractors E_m that train from scratch, one for each kind of modality.

An extractor is any `torch.nn.Module` with an integer attribute ``out_features`` that maps (B, ...)
to (B, out_features). A class whose constructor has an argument ``spec`` gets the `ModalitySpec`.
One with an integer attribute ``tokens`` gives so many tokens of a sample, one after another: parts
of an input that CD-CCA may send or keep one by one. All others give one.

None of these uses batch statistics: with label skew and missing modalities, the statistics of one
client's batches do not fit another's, so they normalise each sample (GroupNorm). Our choice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mlecs_lightning.class_paths import ClassPath, build_class
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.extractors.pretrained import PretrainedExtractor
from mlecs_lightning.nn.words import TextInput
from mlecs_lightning.types import ModalityKind, ModalitySpec

__all__ = [
    "ImageCNN",
    "PretrainedExtractor",
    "SeriesCNN",
    "TextCNN",
    "VectorMLP",
    "build_extractor",
]


# Points that `_dilated_convolutions` see: a kernel of 3, dilated by 1, 2 and 4.
_REACH = 15
# In points. Of a series of up to this length the encoder sees enough without strided stages, as it
# always did: checkpoints of earlier versions fit. Our choice.
_SHORT = 64
# Of a longer series, pooled apart.
_PARTS = 4
_SPACE = ord(" ")


class VectorMLP(nn.Module):
    """A two-layer perceptron for vectors (B, F) -> (B, width)."""

    def __init__(self, spec: ModalitySpec, *, width: int = 64) -> None:
        """Build for vectors of ``spec.shape[0]`` features."""
        super().__init__()
        self.out_features = width
        self.layers = nn.Sequential(
            nn.Linear(spec.shape[0], width),
            nn.GELU(),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, F) to (B, out_features)."""
        return self.layers(x)  # type: ignore[no-any-return]


class ImageCNN(nn.Module):
    """A convolutional encoder for images (B, C, height, width) -> (B, width).

    Stages halve the resolution until it is at most 4 pixels; the last map is pooled to at most
    4 x 4, which preserves positions. With several tokens, each is a patch of that map.
    """

    def __init__(
        self, spec: ModalitySpec, *, channels: int = 16, width: int = 64, tokens: int = 1
    ) -> None:
        """Build for images of ``spec.shape``.

        Args:
            spec: Kind and shape of the modality.
            channels: Channels of the first stage, doubled in each further stage.
            width: Number of output features of each token.
            tokens: Number of tokens, row by row: 1, 4 or 16, the square of a divisor of the last
                map's side.

        Raises:
            ConfigurationError: If the map cannot be divided into so many patches.
        """
        super().__init__()
        self.tokens, self.out_features = tokens, tokens * width
        depth, size = spec.shape[0], min(spec.shape[1:])
        stages: list[nn.Module] = []
        while True:
            stages += [
                nn.Conv2d(depth, channels, 3, padding=1),
                nn.GroupNorm(4, channels),
                nn.GELU(),
            ]
            if size <= 4:
                break
            stages.append(nn.MaxPool2d(2))
            depth, channels, size = channels, channels * 2, size // 2
        side = min(4, size)
        allowed = {cut * cut: cut for cut in range(1, side + 1) if side % cut == 0}
        if tokens not in allowed:
            raise ConfigurationError(
                f"tokens of an image of shape {spec.shape} must be one of {list(allowed)}, got "
                f"{tokens}"
            )
        patch = side // allowed[tokens]
        self.layers = nn.Sequential(
            *stages,
            nn.AdaptiveAvgPool2d(side),
            nn.Flatten() if tokens == 1 else _Patches(patch),
            nn.Linear(channels * patch * patch, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, C, height, width) to (B, out_features)."""
        # Channels last: pooling is ten times as fast on a CPU, and tensor cores prefer it.
        x = x.contiguous(memory_format=torch.channels_last)
        return self.layers(x).flatten(1)  # type: ignore[no-any-return]


class _Patches(nn.Module):
    """Cuts maps (B, C, height, width) into patches (B, T, C * side * side), row by row."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.unfold(x, self.side, stride=self.side).transpose(1, 2)


class SeriesCNN(nn.Module):
    """A temporal convolutional encoder for time series (B, C, time) -> (B, width).

    Its dilated convolutions see 15 points. A series of more than 64 points passes strided stages
    first, each of which halves its length, until the convolutions see all of it. The features are
    pooled to their mean and maximum (an impact is a peak); those of a longer series in four parts
    of equal length, so that the order of its events counts (a word is a sequence of sounds).
    Statistics of the signal itself are added, because GroupNorm removes level and spread, which
    distinguish a lying body from a standing one: mean, deviation, minimum, maximum and last value.
    With several tokens, each is a stretch of the series, pooled and described by itself. Our
    choice.
    """

    def __init__(
        self, spec: ModalitySpec, *, channels: int = 32, width: int = 64, tokens: int = 1
    ) -> None:
        """Build for series of ``spec.shape``; others of its channels may have any length.

        Args:
            spec: Kind and shape of the modality.
            channels: Channels of the convolutions.
            width: Number of output features of each token.
            tokens: Number of tokens, stretches of equal length; at most the series' length.

        Raises:
            ConfigurationError: If the series is shorter than that.
        """
        super().__init__()
        self.tokens, self.out_features = tokens, tokens * width
        depth, length = spec.shape
        if not 1 <= tokens <= length:
            raise ConfigurationError(
                f"tokens of a series of shape {spec.shape} must be 1 to {length}, got {tokens}"
            )
        stages = _strided_convolutions(depth, channels, length=length)
        self.parts = _PARTS if stages and tokens == 1 else 1
        self.layers = _dilated_convolutions(channels if stages else depth, channels)
        if stages:
            self.layers = nn.Sequential(*stages, *self.layers)
        self.head = nn.Linear(2 * self.parts * channels + 5 * depth, width)

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, C, time) to (B, out_features)."""
        h = self.layers(x)
        if self.tokens > 1:
            # Cut after the convolutions, which see across the ends of a stretch.
            return self.head(self._stretches(h, x)).flatten(1)  # type: ignore[no-any-return]
        signal = [x.mean(-1), x.std(-1, correction=0), x.amin(-1), x.amax(-1), x[..., -1]]
        if self.parts == 1:
            pooled = [h.mean(-1), h.amax(-1)]
        else:
            pools = (nn.functional.adaptive_avg_pool1d, nn.functional.adaptive_max_pool1d)
            pooled = [pool(h, self.parts).flatten(1) for pool in pools]
        return self.head(torch.cat([*pooled, *signal], dim=-1))  # type: ignore[no-any-return]

    def _stretches(self, h: Tensor, x: Tensor) -> Tensor:
        """Describe the stretches of the series x by its maps h: (B, T, 2 channels + 5 C)."""
        pools = (nn.functional.adaptive_avg_pool1d, nn.functional.adaptive_max_pool1d)
        pooled = torch.cat([pool(h, self.tokens) for pool in pools], dim=1).transpose(1, 2)
        cut = torch.tensor_split(x, self.tokens, dim=-1)
        signal = [
            torch.cat([s.mean(-1), s.std(-1, correction=0), s.amin(-1), s.amax(-1), s[..., -1]], -1)
            for s in cut
        ]
        return torch.cat([pooled, torch.stack(signal, dim=1)], dim=-1)


class TextCNN(nn.Module):
    """A convolutional encoder for the bytes of a text (B, L) -> (B, width), see arXiv 1509.01626.

    It needs no tokenizer and has no unknown words, but for texts of arbitrary content a pretrained
    encoder is better. The features of the convolutions are pooled to their mean and maximum over
    the text. With several tokens, each is a word (bytes between spaces), pooled by itself; the last
    one is the rest of the text, and one that the text lacks has zeros. Our choice.
    """

    def __init__(
        self, spec: ModalitySpec, *, channels: int = 32, width: int = 64, tokens: int = 1
    ) -> None:
        """Build for texts of any length.

        Args:
            spec: Kind and shape of the modality.
            channels: Channels of the convolutions.
            width: Number of output features of each token.
            tokens: Number of tokens.

        Raises:
            ConfigurationError: If there is no token.
        """
        super().__init__()
        if tokens < 1:
            raise ConfigurationError(f"tokens of a text must be at least 1, got {tokens}")
        self.tokens, self.out_features = tokens, tokens * width
        self.letters = nn.Embedding(256, channels, padding_idx=0)
        self.layers = _dilated_convolutions(channels, channels)
        self.head = nn.Linear(2 * channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, L) to (B, out_features)."""
        is_text = (x > 0).unsqueeze(1)  # zero bytes are padding
        h = self.layers(self.letters(x.long()).transpose(1, 2)) * is_text
        if self.tokens > 1:
            return self.head(self._words(h, x)).flatten(1)  # type: ignore[no-any-return]
        mean = h.sum(-1) / is_text.sum(-1).clamp_min(1)
        return self.head(torch.cat([mean, h.amax(-1)], dim=-1))  # type: ignore[no-any-return]

    def _words(self, h: Tensor, x: Tensor) -> Tensor:
        """Pool the words of texts x from their maps h: (B, T, 2 channels)."""
        space = x == _SPACE
        number = space.cumsum(dim=1).clamp(max=self.tokens - 1)
        words = []
        for token in range(self.tokens):
            inside = ((number == token) & (x > 0) & ~space).unsqueeze(1)
            mean = (h * inside).sum(-1) / inside.sum(-1).clamp_min(1)
            words.append(torch.cat([mean, (h * inside).amax(-1)], dim=-1))
        return torch.stack(words, dim=1)


def _strided_convolutions(depth: int, channels: int, *, length: int) -> list[nn.Module]:
    """Return stages that halve the length until `_dilated_convolutions` see the whole series."""
    stages: list[nn.Module] = []
    step = 1
    while length > _SHORT and step * _REACH < length:
        stages += [
            nn.Conv1d(depth, channels, 5, stride=2, padding=2),
            nn.GroupNorm(4, channels),
            nn.GELU(),
        ]
        depth, step = channels, 2 * step
    return stages


def _dilated_convolutions(depth: int, channels: int) -> nn.Sequential:
    """Return three stages of temporal convolutions that keep the length."""
    stages: list[nn.Module] = []
    for dilation in (1, 2, 4):
        stages += [
            nn.Conv1d(depth, channels, 3, padding=dilation, dilation=dilation),
            nn.GroupNorm(4, channels),
            nn.GELU(),
        ]
        depth = channels
    return nn.Sequential(*stages)


_DEFAULT: dict[ModalityKind, type[nn.Module]] = {
    "vector": VectorMLP,
    "image": ImageCNN,
    "series": SeriesCNN,
    "text": TextCNN,
}


def build_extractor(
    modality: str, spec: ModalitySpec, *, extractors: Mapping[str, ClassPath], key: str
) -> nn.Module:
    """Build the extractor of one modality: the configured class, or the default of its kind.

    Args:
        modality: Name of the modality.
        spec: Its kind and shape.
        extractors: The configured classes by modality.
        key: The YAML key of ``extractors``, for error messages.

    Raises:
        ConfigurationError: If the class cannot be built or has no integer ``out_features``.
    """
    if spec.tokens:
        if modality in extractors:
            raise ConfigurationError(
                f"{key}.{modality}: the language model reads this modality as tokens, without an "
                "extractor: leave it out, or declare the modality with as: vector"
            )
        return TextInput()
    if modality not in extractors:
        return _DEFAULT[spec.kind](spec)
    where = f"{key}.{modality}"
    module = build_class(
        extractors[modality],
        home="mlecs_lightning.nn.extractors",
        key=where,
        offered={"spec": spec},
    )
    if not isinstance(getattr(module, "out_features", None), int):
        raise ConfigurationError(
            f"{where}: {extractors[modality]['class_path']} needs an integer attribute "
            "`out_features`"
        )
    return module  # type: ignore[no-any-return]
