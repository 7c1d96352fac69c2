"""Checks of our additions to ML-ECS."""

from __future__ import annotations

from collections.abc import Set

__all__ = ["addition_faults"]


def addition_faults(
    components: Set[str],
    *,
    alignment: str,
    fused_weight: float,
    sensor_dropout: float,
    represents: bool,
) -> list[str]:
    """List the options that are out of range or do not fit together.

    Args:
        components: The components in use.
        alignment: As in `MLECS`.
        fused_weight: As in `MLECS`.
        sensor_dropout: As in `MLECS`.
        represents: Whether clients send representations.
    """
    faults = []
    if not fused_weight >= 0:
        faults.append(f"algorithm.init_args.fused_weight must not be negative, got {fused_weight}")
    if fused_weight and alignment == "cosine":
        faults.append(
            "algorithm.init_args: alignment 'cosine' has no volume that fused_weight could stand "
            "beside; the weight of its cosine is contrast_weight"
        )
    if not 0 <= sensor_dropout < 1:
        faults.append(
            f"algorithm.init_args.sensor_dropout must lie in [0, 1), got {sensor_dropout}"
        )
    lacking = sorted({"ccl", "se_ccl"} - components)
    if represents and lacking:
        faults.append(
            f"algorithm.init_args.components lacks {lacking}, which representations need: ccl "
            "draws the clients to the server's space, and se_ccl learns from what they send"
        )
    return faults
