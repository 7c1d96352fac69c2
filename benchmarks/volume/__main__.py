"""The volume contrast: ours (Schur complements by Cholesky) against an assembled Gram matrix.

    python -m benchmarks.volume [--repeats 7] [--out FILE]

Loss and gradient of N samples with k vectors of width d each, on one thread. The other form builds
all N x N Gram matrices of [a_i, v_j] and takes their determinants, as the paper writes the volume.
Both take turns in one process and are measured in processor time, which other processes spoil
least; the ratio of the medians is what to look at. *Saved* are the bytes that autograd keeps for
the backward pass. *Error* is the largest absolute difference of the volumes from the root of the
determinant in float64, over samples that agree to different degrees.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import append_line
from mlecs_lightning.functional import gram_log_volume, volume_contrastive_loss

GRID = [(n, k, d) for n in (32, 128, 512) for k in (2, 4) for d in (64, 512)]
TAU = 0.1


def assembled_volumes(anchors: Tensor, vectors: Tensor, floor: float = 1e-12) -> Tensor:
    """Return V(a_i; v_j), (N, N), from the Gram matrices of [a_i, v_j].

    Args:
        anchors: (N, D).
        vectors: (N, k, D).
        floor: Least determinant. It keeps the gradient of the root finite where all vectors agree.
    """
    a, v = F.normalize(anchors, dim=-1), F.normalize(vectors, dim=-1)
    n, k, _ = v.shape
    gram = a.new_ones(n, n, k + 1, k + 1)
    across = torch.einsum("id,jkd->ijk", a, v)
    gram[:, :, 0, 1:] = across
    gram[:, :, 1:, 0] = across
    gram[:, :, 1:, 1:] = torch.einsum("jkd,jld->jkl", v, v)
    return torch.linalg.det(gram).abs().clamp(min=floor).sqrt()


def assembled_loss(anchors: Tensor, vectors: Tensor) -> Tensor:
    """Return the contrast of the assembled volumes."""
    logits = -assembled_volumes(anchors, vectors) / TAU
    target = torch.arange(len(anchors))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def our_loss(anchors: Tensor, vectors: Tensor) -> Tensor:
    """Return the contrast as the package computes it."""
    present = torch.ones(vectors.shape[:2], dtype=torch.bool)
    classes = torch.arange(len(anchors))
    return volume_contrastive_loss(
        anchors, vectors, present=present, classes=classes, temperature=TAU
    ).loss


def inputs(n: int, k: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return anchors (N, D) and vectors (N, k, D); the later samples agree ever more."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, k, d, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0.5, -2, n, dtype=torch.float64).view(n, 1, 1)
    vectors = anchors.unsqueeze(1) + spread * noise
    return anchors.to(dtype).requires_grad_(), vectors.to(dtype).requires_grad_()


def step(loss: Callable[[Tensor, Tensor], Tensor], anchors: Tensor, vectors: Tensor) -> float:
    """Take loss and gradient once; return the seconds of processor time."""
    began = time.process_time()
    loss(anchors, vectors).backward()
    return time.process_time() - began


def saved(loss: Callable[[Tensor, Tensor], Tensor], anchors: Tensor, vectors: Tensor) -> int:
    """Return the bytes that autograd keeps until the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(anchors, vectors)
    del value
    return sum(storages.values())


def error(volumes: Callable[[Tensor, Tensor], Tensor], n: int, k: int, d: int) -> float:
    """Return the largest error of the float32 volumes, which lie in 0..1."""
    with torch.no_grad():
        # Of the very numbers that the others get: rounding the input is no error of theirs.
        single = inputs(n, k, d)
        exact = assembled_volumes(*(each.double() for each in single), floor=0.0)
        return float((volumes(*single).double() - exact).abs().max())


def our_volumes(anchors: Tensor, vectors: Tensor) -> Tensor:
    """Return our volumes (N, N)."""
    return gram_log_volume(anchors, vectors).exp()


def measure(n: int, k: int, d: int, repeats: int) -> dict[str, Any]:
    """Measure one size."""
    forms = {"ours": our_loss, "assembled": assembled_loss}
    data = inputs(n, k, d)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 1):
        for name, loss in forms.items():
            taken = step(loss, *data)
            if turn:  # the first one warms up
                seconds[name].append(taken)
    row: dict[str, Any] = {"n": n, "k": k, "d": d, "repeats": repeats}
    for name, loss in forms.items():
        times = sorted(seconds[name])
        row[name] = {
            "ms": [1e3 * f for f in (statistics.median(times), times[0], times[-1])],
            "saved_mib": saved(loss, *data) / 2**20,
        }
    row["ours"]["error"] = error(our_volumes, n, k, d)
    row["assembled"]["error"] = error(assembled_volumes, n, k, d)
    row["speedup"] = row["assembled"]["ms"][0] / row["ours"]["ms"][0]
    return row


def main() -> None:
    """Measure the grid, print a Markdown table, and write JSON lines with ``--out``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| N | k | d | ours, ms (min-max) | assembled, ms | faster | saved, MiB | error |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for n, k, d in GRID:
        row = measure(n, k, d, args.repeats)
        ours, other = row["ours"], row["assembled"]
        times = ["{:.2f} ({:.2f}-{:.2f})".format(*each["ms"]) for each in (ours, other)]
        print(
            f"| {n} | {k} | {d} | {times[0]} | {times[1]} | {row['speedup']:.1f} x "
            f"| {ours['saved_mib']:.1f} / {other['saved_mib']:.1f} "
            f"| {ours['error']:.1e} / {other['error']:.1e} |",
            flush=True,
        )
        if args.out:
            append_line(args.out, row)


if __name__ == "__main__":
    main()
