"""Whether the clients' representations lie where the server's are, read from the figures of a run.

A volume says whether the anchor lies in the span of a sample's vectors, so it is small as well for
vectors that are opposite to the anchor, or of which only a combination meets it. f alone feeds the
prompt; whether it lies at the anchor is told by its cosine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["alignment_of", "unaligned"]

SMALL_VOLUME, LARGE_COSINE = 0.3, 0.5
"""Our choice: an anchor at 17 degrees to the span, and an f at 60 degrees to the anchor."""

_CLIENT = re.compile(r"clients/(?P<client>.+)/ccl/cosine")
_SERVER = re.compile(r"server/public/cosine_(?P<tower>.+)")


def alignment_of(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the last logged cosines as an entry ``alignment``; empty if none was logged.

    Args:
        history: The figures of each round.
    """
    last = _last(history)
    clients = {m["client"]: v for k, v in last.items() if (m := _CLIENT.fullmatch(k))}
    server = {m["tower"]: v for k, v in last.items() if (m := _SERVER.fullmatch(k))}
    if not clients and not server:
        return {}
    return {"alignment": {"clients": clients, "server": server}}


def unaligned(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Return a warning if volumes are small and cosines are not large; at most one line.

    Args:
        history: The figures of each round.
    """
    last = _last(history)
    found = []
    for key, cosine in last.items():
        match = _CLIENT.fullmatch(key)
        volume = last.get(f"clients/{match['client']}/ccl/volume_diagonal") if match else None
        if match and volume is not None and volume < SMALL_VOLUME and cosine < LARGE_COSINE:
            found.append(f"{match['client']} (volume {volume:.2f}, cosine {cosine:.2f})")
    if not found:
        return []
    return [
        f"the volume is small and yet f does not lie at the server's anchor: {', '.join(found)}; "
        "the shared latent space is not built for them. Set algorithm.init_args.fused_weight to "
        "0.1 or more, which draws f itself"
    ]


def _last(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the last value of every figure: a client may have missed the last round."""
    return {key: value for row in history for key, value in row.items()}
