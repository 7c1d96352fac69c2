"""Extractors with pretrained vision, audio or text encoders of transformers."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.extractors.readers import AudioReader, ImageReader, Reader, TextReader
from mlecs_lightning.nn.features import cached_features, fingerprint
from mlecs_lightning.nn.frozen import add_lora, frozen_tensors, linear_layers, share
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.storage.paths import expanded_name
from mlecs_lightning.types import ModalityKind, ModalitySpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PretrainedExtractor", "Tune"]

Tune = Literal["frozen", "lora", "full"]

_VERSION = 1
"""Version of the preparation of inputs; part of the identity of cached features."""
_READS = {
    "pixel_values": "image",
    "input_values": "series",
    "input_features": "series",
    "input_ids": "text",
}
_ATTENTION = (("q_proj", "v_proj"), ("query", "value"))
"""Layers that LoRA adapts by default: query and value, as in the paper (arXiv 2106.09685)."""


class Encoder(NamedTuple):
    """A loaded encoder.

    Attributes:
        model: The vision, audio or text part of the checkpoint, in evaluation mode.
        weights: SHA-256 of the weights; empty on the meta device.
        part: Name of that part; empty if it is the whole model.
    """

    model: PreTrainedModel
    weights: str
    part: str = ""


def load_encoder(
    model: str, *, kind: ModalityKind, revision: str | None, dtype: str, local_files_only: bool
) -> Encoder:
    """Load the vision, audio or text encoder of a checkpoint.

    The other half of a model with two parts (CLIP, SigLIP, Whisper) is dropped. So are a pooling
    layer without weights in the checkpoint, and the mask embedding of pretraining.

    Args:
        model: Hub id or directory for `AutoModel.from_pretrained`.
        kind: Kind of the modality; it selects the part.
        revision: Branch, tag or commit on the hub.
        dtype: As in `BackboneSettings`.
        local_files_only: Never access the hub.

    Raises:
        ConfigurationError: If transformers cannot load the model, or the checkpoint lacks weights.
    """
    from transformers import AutoModel

    try:
        # Missing weights are drawn at random: the caller's random state must not depend on whether
        # the encoder was already loaded.
        with torch.random.fork_rng(devices=[]):
            whole, report = AutoModel.from_pretrained(
                model,
                revision=revision,
                dtype=dtype,
                local_files_only=local_files_only,
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigurationError(
            f"model {model!r}: neither a directory nor on the hub, or not readable: {error}"
        ) from error
    part = _part_for(kind, whole)
    encoder = getattr(whole, part) if part else whole
    missing = _missing_weights(report["missing_keys"], part)
    random = [name for name in missing if not name.startswith(("pooler.", "masked_spec_embed"))]
    if random:
        raise ConfigurationError(
            f"model {model!r} ({whole.config.model_type}): the checkpoint lacks {len(random)} "
            f"weights, such as {random[:3]}"
        )
    if any(name.startswith("pooler.") for name in missing):
        encoder.pooler = None
    if hasattr(encoder, "masked_spec_embed"):
        encoder.masked_spec_embed = None
    weights = [v for _, v in sorted(encoder.state_dict().items())]
    meta = any(v.is_meta for v in weights)
    return Encoder(encoder.eval(), "" if meta else fingerprint(weights).hex(), part)


def _part_for(kind: ModalityKind, model: PreTrainedModel) -> str:
    """Return the name of the part that encodes a kind of modality; empty for the whole model."""
    parts = ["text_model"] if kind == "text" else ["vision_model", "audio_model"]
    if getattr(model.config, "is_encoder_decoder", False):
        parts.append("encoder")
    return next((name for name in parts if hasattr(model, name)), "")


def _missing_weights(names: Iterable[str], part: str) -> list[str]:
    """Return those of the missing weights that belong to a part, by their names in it."""
    prefix = f"{part}." if part else ""
    return [name.removeprefix(prefix) for name in sorted(names) if name.startswith(prefix)]


@functools.cache
def load_frozen_encoder(
    model: str, *, kind: ModalityKind, revision: str | None, dtype: str, local_files_only: bool
) -> Encoder:
    """Load an encoder once per process; all callers share it, so never change it."""
    where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    encoder = load_encoder(model, kind=kind, dtype=dtype, **where)
    encoder.model.requires_grad_(False)
    return encoder


class PretrainedExtractor(nn.Module):
    """A pretrained vision, audio or text encoder, pooled to one vector per sample.

    A modality of kind ``image`` works with CLIP, SigLIP, ViT, DINOv2 and similar models: see
    `ImageReader`. A ``series`` (1, samples) is audio, for Wav2Vec2, HuBERT, AST or Whisper: see
    `AudioReader`. A ``text`` works with BERT, RoBERTa, MiniLM and similar models, the text part of
    CLIP or SigLIP, the encoder of T5, or a causal language model: see `TextReader`.

    Pooling: the model's own ``pooler_output`` if the checkpoint has weights for it (CLIP, SigLIP,
    ViT, AST). Otherwise the first token of an image model, or the mean over the frames of an audio
    model or the tokens of a text model, without padding. Our choice.

    The encoder is always in evaluation mode, even when it trains: its dropout, layer drop and
    masking are off. Only the dropout of LoRA is active in training.

    ``frozen``
        No gradients; one copy of the weights per process. Features are cached on disk
        (`cached_features`), which pays off if the encoder takes longer than hashing its input,
        about 1 ms for a float image of 224 x 224 pixels. If inputs never repeat (random
        augmentations), set ``cache_gb: 0`` to encode whole batches at once.
    ``lora``
        As ``frozen``, with a trainable adapter. It is part of the extractor and stays on the
        client.
    ``full``
        All weights train, in float32; each extractor has its own copy.
    """

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        model: str,
        tune: Tune = "frozen",
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        local_files_only: bool = False,
        lora_r: int = 8,
        lora_alpha: int = 16,
        lora_dropout: float = 0.05,
        lora_target_modules: Sequence[str] | None = None,
        value_range: Sequence[float] | None = (0.0, 1.0),
        sampling_rate: int | None = None,
        cache_gb: float = 4.0,
    ) -> None:
        """Load the encoder, or share the one that is already loaded.

        Args:
            spec: Kind and shape of the modality.
            model: Hub id or directory.
            tune: What trains: ``frozen``, ``lora`` or ``full``.
            revision: Branch, tag or commit on the hub.
            dtype: Type of the stored weights; ``auto`` keeps that of the checkpoint.
            local_files_only: Never access the hub.
            lora_r: Rank r of the adapter, with ``tune: lora``.
            lora_alpha: Scale of the adapter: its update is alpha / r * B A.
            lora_dropout: Dropout on the adapter's input.
            lora_target_modules: Names of the layers to adapt; query and value by default.
            value_range: Values of black and white in an image modality. ``None`` (null in YAML) if
                the data set has standardised its images: then they are only resized.
            sampling_rate: Sampling rate of a series modality in Hz; that of the model by default.
            cache_gb: Maximum size of the file of cached features in GB; 0 disables the cache.

        Raises:
            ConfigurationError: If the model cannot be loaded or does not read this modality, or a
                value is out of range.
        """
        super().__init__()
        if tune not in get_args(Tune):
            raise ConfigurationError(f"tune must be one of {list(get_args(Tune))}, got {tune!r}")
        if not cache_gb >= 0:
            raise ConfigurationError(f"cache_gb must be at least 0, got {cache_gb}")
        self.tune, model = tune, expanded_name(model, key="model")
        load: Callable[..., Encoder] = load_encoder if tune == "full" else load_frozen_encoder
        where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
        encoder, weights, part = load(
            model, kind=spec.kind, dtype="float32" if tune == "full" else dtype, **where
        )
        _check_kind(encoder, spec, model=model)
        self.reader: Reader
        if spec.kind == "image":
            self.reader = ImageReader(encoder, spec, model=model, where=where, range=value_range)
        elif spec.kind == "text":
            self.reader = TextReader(encoder, model=model, where=where, pools=bool(part))
        else:
            self.reader = AudioReader(encoder, spec, model=model, where=where, rate=sampling_rate)
        self.out_features = _width(encoder) * self.reader.parts
        self.encoder: nn.Module = share(encoder)
        if tune == "lora":
            named = list(lora_target_modules) if lora_target_modules else _attention(encoder)
            self.encoder = add_lora(
                self.encoder,
                LoraSettings(lora_r, lora_alpha, lora_dropout, named),
                task=None,
                key="lora_target_modules",
                what=f"model {model!r}",
            )
        self._limit = int(cache_gb * 1e9)
        self._identity = [_VERSION, torch.__version__, weights, self.reader.describe()]
        preparation = hashlib.sha256(self.reader.describe().encode()).hexdigest()
        known = {"model": model, "weights": weights, "preparation": preparation}
        self._contents = {} if tune == "full" or not weights else known
        self.train()

    def train(self, mode: bool = True) -> PretrainedExtractor:
        """Set the mode of the adapter's dropout; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        for name, module in self.encoder.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def frozen_names(self) -> set[str]:
        """Return the names of the tensors that checkpoints omit, since loading restores them."""
        return frozen_tensors(self)

    def frozen_contents(self) -> dict[str, str]:
        """Return the model's name and the SHA-256 of its weights and preparation.

        Empty if all weights train, or on the meta device.
        """
        return self._contents

    def without_cache(self) -> None:
        """Compute features from now on, without looking for them on disk."""
        self._limit = 0

    @contextmanager
    def uncached(self) -> Iterator[None]:
        """Compute features within the context, without looking for them on disk."""
        limit, self._limit = self._limit, 0
        try:
            yield
        finally:
            self._limit = limit

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, ...) to (B, out_features), in the dtype of ``x``."""
        if self.tune != "frozen":
            return self._encode(x).to(x.dtype)
        with torch.no_grad():
            if not self._limit:
                return self._encode(x).to(x.dtype)
            # Features also depend on these, to the bit.
            kind = x.device.type
            cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            stored = next(self.encoder.parameters()).dtype
            identity = json.dumps([*self._identity, kind, str(cast), str(stored), str(x.dtype)])
            features = cached_features(self._encode, x, identity=identity, limit=self._limit)
            return features.to(x.dtype)

    def _encode(self, x: Tensor) -> Tensor:
        weight = next(self.encoder.parameters())
        read = {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for name, value in self.reader(x).items()
        }
        output = self.encoder(**read)
        pooled = getattr(output, "pooler_output", None) if self.reader.pools else None
        if pooled is None:
            pooled = self.reader.pool(output.last_hidden_state, x, read)
        # Convolutional models pool to (B, width, 1, 1).
        return pooled.float().reshape(len(x), self.out_features)


def _check_kind(encoder: PreTrainedModel, spec: ModalitySpec, *, model: str) -> None:
    reads = _READS.get(encoder.main_input_name)
    if reads == spec.kind:
        return
    known = {"image": "images", "series": "audio", "text": "text"}
    inputs = known[reads] if reads else f"{encoder.main_input_name!r}"
    raise ConfigurationError(
        f"model {model!r} ({encoder.config.model_type}) reads {inputs}, but the modality has kind "
        f"{spec.kind!r} and shape {spec.shape}; use image models for 'image', audio models for "
        "'series', text models for 'text'"
    )


def _width(encoder: PreTrainedModel) -> int:
    config = encoder.config
    if getattr(config, "add_adapter", False):  # a layer of Wav2Vec2, not a LoRA adapter
        return int(config.output_hidden_size)
    return int(config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1])


def _attention(encoder: PreTrainedModel) -> list[str] | None:
    layers = set(linear_layers(encoder))
    return next((list(names) for names in _ATTENTION if layers >= set(names)), None)
