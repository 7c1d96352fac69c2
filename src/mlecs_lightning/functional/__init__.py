"""Pure tensor functions: the mathematics of the methods, on torch alone, without state."""

from mlecs_lightning.functional.averaging import (
    modality_aware_weights,
    normalise_weights,
    weighted_mean,
)
from mlecs_lightning.functional.contrastive import VolumeContrast, volume_contrastive_loss
from mlecs_lightning.functional.gating import load_balance, top_k_gates
from mlecs_lightning.functional.lora import (
    LoraFactors,
    aggregate_freeze_a,
    aggregate_separate,
    aggregate_stack,
    aggregate_svd,
    aggregation_error,
    compress,
    stack_factors,
)
from mlecs_lightning.functional.robust import coordinate_median, trimmed_mean
from mlecs_lightning.functional.sharding import gather_rows, sum_over_ranks, world_size
from mlecs_lightning.functional.volume import gram_log_det, gram_log_volume

__all__ = [
    "LoraFactors",
    "VolumeContrast",
    "aggregate_freeze_a",
    "aggregate_separate",
    "aggregate_stack",
    "aggregate_svd",
    "aggregation_error",
    "compress",
    "coordinate_median",
    "gather_rows",
    "gram_log_det",
    "gram_log_volume",
    "load_balance",
    "modality_aware_weights",
    "normalise_weights",
    "stack_factors",
    "sum_over_ranks",
    "top_k_gates",
    "trimmed_mean",
    "volume_contrastive_loss",
    "weighted_mean",
    "world_size",
]
