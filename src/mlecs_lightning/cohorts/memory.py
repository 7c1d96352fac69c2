"""How many clients fit into a cohort."""

from __future__ import annotations

import os

import torch

from mlecs_lightning.modules import EdgeModule

__all__ = ["MOST", "cohort_size"]

MOST = 16
"""Maximum size of a cohort that is chosen here: beyond it, little is gained (docs/results.md)."""
_COPIES = 9
"""A client's weights, gradients, moments, update and kept state, as measured: docs/scale.md."""
_SHARE = 4
"""One of so many parts of the free memory is for these; the rest is for activations and others."""


def cohort_size(module: EdgeModule) -> int:
    """Return the size of a cohort of clients with a module, by the memory that is free now."""
    own = sum(p.numel() * p.element_size() for p in module.trainable_parameters())
    return max(1, min(MOST, _free(module.device) // _SHARE // max(1, _COPIES * own)))


def _free(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return 2**30
