"""Whether the clients' representations lie where the server's are, read from the figures of a run.

A volume says whether the anchor lies in the span of a sample's vectors, so it is small as well for
vectors that are opposite to the anchor, or of which only a combination meets it. f alone feeds the
prompt; whether it lies at the anchor is told by its cosine, next to that with other samples'
anchors: where all vectors have one direction, every cosine is 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["alignment_of", "unaligned"]

SMALL_VOLUME, LARGE_COSINE = 0.3, 0.5
"""Our choice: an anchor at 17 degrees to the span, and an f at 60 degrees to the anchor."""
SMALL_MARGIN = 0.1
"""How much larger the cosine with the own anchor has to be than with others. Our choice."""

_CLIENT = re.compile(r"clients/(?P<client>.+)/ccl/cosine")
_OTHERS = re.compile(r"clients/(?P<client>.+)/ccl/cosine_off_diagonal")
_SERVER = re.compile(r"server/public/cosine_(?P<tower>.+)")


def alignment_of(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the last logged cosines as an entry ``alignment``; empty if none was logged.

    Args:
        history: The figures of each round.
    """
    last = _last(history)
    clients = {m["client"]: v for k, v in last.items() if (m := _CLIENT.fullmatch(k))}
    others = {m["client"]: v for k, v in last.items() if (m := _OTHERS.fullmatch(k))}
    server = {m["tower"]: v for k, v in last.items() if (m := _SERVER.fullmatch(k))}
    if not clients and not server:
        return {}
    return {"alignment": {"clients": clients, "clients_off_diagonal": others, "server": server}}


def unaligned(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what is wrong with the alignment of clients, at most a line for each kind.

    Args:
        history: The figures of each round.
    """
    last = _last(history)
    apart, collapsed = list[str](), list[str]()
    for key, cosine in last.items():
        match = _CLIENT.fullmatch(key)
        if not match:
            continue
        client = match["client"]
        volume = last.get(f"clients/{client}/ccl/volume_diagonal", 1.0)
        others = last.get(f"clients/{client}/ccl/cosine_off_diagonal", -1.0)
        if cosine < LARGE_COSINE and volume < SMALL_VOLUME:
            apart.append(f"{client} (volume {volume:.2f}, cosine {cosine:.2f})")
        if cosine >= LARGE_COSINE and cosine - others < SMALL_MARGIN:
            collapsed.append(f"{client} (cosine {cosine:.2f}, with others {others:.2f})")
    remarks = []
    if apart:
        remarks.append(
            "the volume is small and yet f does not lie at the server's anchor: "
            f"{', '.join(apart)}; the shared latent space is not built for them. Set "
            "algorithm.init_args.fused_weight to 0.1 or more, which draws f itself"
        )
    if collapsed:
        remarks.append(
            "f lies as near to the anchors of other samples as to its own, so all point the same "
            f"way: {', '.join(collapsed)}. Lower algorithm.init_args.fused_weight and "
            "representations.weight, or raise contrast_weight"
        )
    return remarks


def _last(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the last value of every figure: a client may have missed the last round."""
    return {key: value for row in history for key, value in row.items()}
