"""Loads frozen language models and their tokenizers, each once per process."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.frozen import fuse_activations
from mlecs_lightning.nn.texts import TextCoder, positions_of
from mlecs_lightning.settings import BackboneSettings, cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_coder", "load_frozen"]


def load_frozen(settings: BackboneSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, once per process.

    Args:
        settings: Hub id or directory, and how to load it.

    Returns:
        The model, in evaluation mode and without gradients, and its tokenizer. All calls with the
        same settings share them, so never change them; use a `Backbone`.

    Raises:
        ConfigurationError: If transformers cannot load the model (it is neither a directory nor on
            the hub, or its files are damaged), or this machine cannot quantise it.
    """
    # Gradient checkpointing changes how a copy trains, not what is loaded.
    return _load(replace(settings, gradient_checkpointing=False))


def load_coder(settings: BackboneSettings) -> TextCoder:
    """Return the `TextCoder` of a causal language model, one per model and process.

    Raises:
        ConfigurationError: As `load_frozen`, or if model and tokenizer do not fit together.
    """
    return _load_coder(replace(settings, gradient_checkpointing=False))


@functools.cache
def _load_coder(settings: BackboneSettings) -> TextCoder:
    model, tokenizer = load_frozen(settings)
    return TextCoder(
        tokenizer,
        embedded=model.get_input_embeddings().num_embeddings,  # type: ignore[arg-type]
        positions=positions_of(model.config),
        model=settings.model,
    )


@functools.cache
def _load(settings: BackboneSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where: dict[str, Any] = {
        "revision": settings.revision,
        "local_files_only": settings.local_files_only,
    }
    options = _quantized(settings)
    if settings.attn_implementation:
        options["attn_implementation"] = settings.attn_implementation
    causal: Any = AutoModelForCausalLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model, **where)
        model, found = causal.from_pretrained(
            settings.model, dtype=settings.dtype, output_loading_info=True, **where, **options
        )
        if missing := sorted(found["missing_keys"]):  # transformers initialises them at random
            raise LookupError(f"there are no weights for {missing[:5]}")
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # json, safetensors, tokenizers and pickle raise their own kinds
        raise ConfigurationError(_why_not(settings, error)) from error
    packed = settings.quantization or getattr(model, "is_quantized", False)
    if settings.dtype == "auto" and model.dtype == torch.float16 and not packed:
        model = model.float()  # exact; gradients in float16 would need a loss scale
    model.requires_grad_(False).eval()
    fuse_activations(model)
    # `generate` would use the model's own settings (sampling, penalties, forbidden words) for all
    # that a `GenerationConfig` leaves open. They are meant for other uses.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return model, tokenizer


def _why_not(settings: BackboneSettings, error: Exception) -> str:
    """Explain why a model cannot be loaded; if its files are damaged, with their folder and remedy.

    Errors of transformers explain themselves.
    """
    text = f"backbone.model {settings.model!r}: {str(error).strip() or type(error).__name__}"
    own = isinstance(error, OSError | ValueError | ImportError)
    if own and not isinstance(error, json.JSONDecodeError) and "valid JSON" not in str(error):
        return text
    folder, remedy = Path(settings.model), "copy its files there again"
    if not folder.is_dir():
        known = try_to_load_from_cache(settings.model, "config.json", revision=settings.revision)
        if not isinstance(known, str):
            return text
        folder, remedy = Path(known).parent, "delete the folder to download them again"
    elif cache_dir() / "pocket" in folder.parents:
        remedy = "delete the folder to train the model again"
    return f"{text}\n  the files in {str(folder)!r} are damaged, or of another model: {remedy}"


def _quantized(settings: BackboneSettings) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for quantised weights; empty without quantization.

    Raises:
        ConfigurationError: If there is no GPU or no bitsandbytes; the message names all that lacks.
    """
    if settings.quantization is None:
        return {}
    from transformers import BitsAndBytesConfig
    from transformers.utils.import_utils import is_bitsandbytes_available

    missing = []
    if not torch.cuda.is_available():
        missing.append("a CUDA GPU (there is none here)")
    if not is_bitsandbytes_available():
        missing.append("bitsandbytes (pip install 'mlecs_lightning[quantized]')")
    if missing:
        raise ConfigurationError(
            f"backbone.quantization {settings.quantization!r} needs {' and '.join(missing)}; leave "
            "it out, or save memory with backbone.dtype: bfloat16"
        )
    # NF4, double quantization and arithmetic in bfloat16, as in QLoRA (arXiv 2305.14314).
    arithmetic = "bfloat16" if settings.dtype == "auto" else settings.dtype
    options: dict[str, Any] = {"load_in_8bit": True}
    if settings.quantization == "4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": arithmetic,
        }
    config = BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}
