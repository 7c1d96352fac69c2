"""Extractors from transformers: vision, audio and text encoders by hub id or directory."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
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
"""Of the preparation below, as a part of what cached features depend on."""
_READS = {
    "pixel_values": "image",
    "input_values": "series",
    "input_features": "series",
    "input_ids": "text",
}
_ATTENTION = (("q_proj", "v_proj"), ("query", "value"))
"""What LoRA adapts where nothing is said: query and value, as in the paper (arXiv 2106.09685)."""


class Encoder(NamedTuple):
    """An encoder as it was loaded.

    Attributes:
        model: The vision, audio or text part of the checkpoint, in evaluation mode.
        weights: SHA-256 of the weights; empty on the meta device.
        part: Name of the part; empty if it is the whole model.
    """

    model: PreTrainedModel
    weights: str
    part: str = ""


def load_encoder(
    model: str, *, kind: ModalityKind, revision: str | None, dtype: str, local_files_only: bool
) -> Encoder:
    """Load the vision, audio or text encoder of a checkpoint.

    Of a model of two towers (CLIP, SigLIP, Whisper) the other one is dropped. So is a pooling
    layer that the checkpoint has no weights for, and the mask of pre-training.

    Args:
        model: Hub id or directory for `AutoModel.from_pretrained`.
        kind: What it is to read: it decides on the tower.
        revision: Branch, tag or commit on the hub.
        dtype: As in `BackboneSettings`.
        local_files_only: Never ask the hub.

    Raises:
        ConfigurationError: If transformers cannot load it, or weights are missing in it.
    """
    from transformers import AutoModel

    try:
        # Weights that a checkpoint lacks are drawn: whoever loads first must not draw others for
        # its own layers than who finds the encoder loaded.
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
    parts = [
        *(["text_model"] if kind == "text" else ["vision_model", "audio_model"]),
        *(["encoder"] if getattr(whole.config, "is_encoder_decoder", False) else []),
    ]
    part = next((name for name in parts if hasattr(whole, name)), "")
    encoder = getattr(whole, part) if part else whole
    missing = [
        name.removeprefix(f"{part}.")
        for name in sorted(report["missing_keys"])
        if name.startswith(f"{part}." if part else "")
    ]
    random = [name for name in missing if not name.startswith(("pooler.", "masked_spec_embed"))]
    if random:
        raise ConfigurationError(
            f"model {model!r} ({whole.config.model_type}): the checkpoint lacks {len(random)} "
            f"weights, {random[:3]} among them"
        )
    if any(name.startswith("pooler.") for name in missing):
        encoder.pooler = None
    if hasattr(encoder, "masked_spec_embed"):
        encoder.masked_spec_embed = None
    weights = [v for _, v in sorted(encoder.state_dict().items())]
    meta = any(v.is_meta for v in weights)
    return Encoder(encoder.eval(), "" if meta else fingerprint(weights).hex(), part)


@functools.cache
def load_frozen_encoder(
    model: str, *, kind: ModalityKind, revision: str | None, dtype: str, local_files_only: bool
) -> Encoder:
    """Load an encoder once in a process; shared by all who ask for it, so never change it."""
    where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    encoder = load_encoder(model, kind=kind, dtype=dtype, **where)
    encoder.model.requires_grad_(False)
    return encoder


class PretrainedExtractor(nn.Module):
    """A vision, audio or text encoder of transformers, pooled to one vector a sample.

    A modality of kind ``image`` goes with CLIP, SigLIP, ViT, DINOv2 and the like, see
    `ImageReader`. A ``series`` (1, samples) is audio, for Wav2Vec2, HuBERT, AST or Whisper, see
    `AudioReader`. A ``text`` goes with BERT, RoBERTa, MiniLM and the like, with the text tower of
    CLIP or SigLIP, the encoder of T5, or a causal language model, see `TextReader`.

    Pooling: the model's own ``pooler_output`` if it has one with weights in the checkpoint (CLIP,
    SigLIP, ViT, AST); otherwise the first token of an image model, and the mean over the frames of
    an audio model or the tokens of a text model, those of padding left out. Our choice.

    The encoder is in evaluation mode whatever its weights do: dropout, layer drop and masking of
    its pre-training are off. Only the dropout of LoRA is on in training.

    ``frozen``
        No gradient; one copy of the weights for all in a process; features are kept on disk
        (`cached_features`), which pays if the encoder takes longer than the hash of its input,
        about 1 ms for a float image of 224 x 224 pixels. With inputs that never come back (drawn
        augmentations) set ``cache_gb: 0``: then whole batches are encoded at once.
    ``lora``
        As frozen, with an adapter by PEFT that trains. It is a part of the extractor: it never
        leaves the client.
    ``full``
        All weights train, in float32, each extractor with a copy of its own.
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
        """Load the encoder, or share the one that is loaded already.

        Args:
            spec: Kind and shape of the modality.
            model: Hub id or directory.
            tune: What trains.
            revision: Branch, tag or commit on the hub.
            dtype: Storage of the weights; ``auto`` keeps the checkpoint's own.
            local_files_only: Never ask the hub.
            lora_r: Rank, with ``tune: lora``.
            lora_alpha: Scale; the update is alpha / r * B A.
            lora_dropout: Dropout on the adapter's input.
            lora_target_modules: Names of the layers to adapt; query and value by default.
            value_range: Values of black and white in an image modality. ``None`` (null in YAML) if
                the data set has standardised its images already: they are resized alone.
            sampling_rate: Samples a second of a series modality; that of the model by default.
            cache_gb: Largest file of cached features; 0 keeps none.

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
        match spec.kind:
            case "image":
                self.reader = ImageReader(
                    encoder, spec, model=model, where=where, range=value_range
                )
            case "text":
                self.reader = TextReader(encoder, model=model, where=where, pools=bool(part))
            case _:
                self.reader = AudioReader(
                    encoder, spec, model=model, where=where, rate=sampling_rate
                )
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
        """Return the names of the tensors that loading restores: a checkpoint needs none."""
        return frozen_tensors(self)

    def frozen_contents(self) -> dict[str, str]:
        """Return the name ``model`` and the SHA-256 of weights and preparation.

        Nothing where all weights train, or have none yet.
        """
        return self._contents

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, ...) to (B, out_features), in the type of ``x``."""
        if self.tune != "frozen":
            return self._encode(x).to(x.dtype)
        with torch.no_grad():
            if not self._limit:
                return self._encode(x).to(x.dtype)
            # The bits of a feature depend on these, too.
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
    said = known[reads] if reads else f"{encoder.main_input_name!r}"
    raise ConfigurationError(
        f"model {model!r} ({encoder.config.model_type}) reads {said}, and the modality is of kind "
        f"{spec.kind!r} and shape {spec.shape}; image models go with 'image', audio models with "
        "'series', text models with 'text'"
    )


def _width(encoder: PreTrainedModel) -> int:
    config = encoder.config
    if getattr(config, "add_adapter", False):  # of Wav2Vec2, none of ours
        return int(config.output_hidden_size)
    return int(config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1])


def _attention(encoder: PreTrainedModel) -> list[str] | None:
    layers = set(linear_layers(encoder))
    return next((list(names) for names in _ATTENTION if layers >= set(names)), None)
