"""Which numbers the trainer takes."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["check_options"]


def check_options(
    *,
    max_rounds: int,
    check_val_every_n_rounds: int,
    limits: tuple[int | None, ...],
    client_fraction: float,
    min_clients: int,
    save_top_k: int,
    above_zero: Mapping[str, float | None],
) -> None:
    """Check the ranges of a trainer's options.

    Args:
        max_rounds: At least 1.
        check_val_every_n_rounds: At least 0.
        limits: Of the batches to train, validate and test on; at least 0, or none.
        client_fraction: In (0, 1].
        min_clients: At least 0.
        save_top_k: At least -1.
        above_zero: Others, by name; none is no limit.

    Raises:
        ValueError: If one is out of range; it names the key.
    """
    if max_rounds < 1 or min(check_val_every_n_rounds, *(n or 0 for n in limits)) < 0:
        raise ValueError(
            "trainer.max_rounds must be at least 1, check_val_every_n_rounds and "
            "limit_{train,val,test}_batches at least 0, got "
            f"{max_rounds}, {check_val_every_n_rounds} and {limits}"
        )
    if not 0 < client_fraction <= 1:
        raise ValueError(f"trainer.client_fraction must lie in (0, 1], got {client_fraction}")
    if min_clients < 0 or save_top_k < -1:
        raise ValueError(
            "trainer.min_clients must be at least 0 and save_top_k at least -1, got "
            f"{min_clients} and {save_top_k}"
        )
    for key, limit in above_zero.items():
        if limit is not None and not limit > 0:
            raise ValueError(f"trainer.{key} must be above 0, got {limit}")
