"""Pure tensor functions: the mathematics of the methods, with torch alone and without state."""

from mlecs_lightning.functional.compression import (
    dequantise_blocks,
    largest,
    pack_bits,
    quantise_blocks,
    unpack_bits,
    with_error_feedback,
)
from mlecs_lightning.functional.contrastive import VolumeContrast, volume_contrastive_loss
from mlecs_lightning.functional.distillation import (
    common_columns,
    distillation_loss,
    hidden_distance,
    position_distance,
)
from mlecs_lightning.functional.lora import (
    LoraFactors,
    compress,
    stack_factors,
)
from mlecs_lightning.functional.privacy import clip_to_norm, gaussian_noise
from mlecs_lightning.functional.robust import coordinate_median, trimmed_mean
from mlecs_lightning.functional.sharding import gather_rows, sum_over_ranks, world_size
from mlecs_lightning.functional.text import bytes_to_text, text_to_bytes
from mlecs_lightning.functional.volume import gram_log_det, gram_log_volume

__all__ = [
    "LoraFactors",
    "VolumeContrast",
    "bytes_to_text",
    "clip_to_norm",
    "common_columns",
    "compress",
    "coordinate_median",
    "dequantise_blocks",
    "distillation_loss",
    "gather_rows",
    "gaussian_noise",
    "gram_log_det",
    "gram_log_volume",
    "hidden_distance",
    "largest",
    "pack_bits",
    "position_distance",
    "quantise_blocks",
    "stack_factors",
    "sum_over_ranks",
    "text_to_bytes",
    "trimmed_mean",
    "unpack_bits",
    "volume_contrastive_loss",
    "with_error_feedback",
    "world_size",
]
