"""Sparse and quantised updates: the dynamic weight update compression (DWC) of CD-CCA.

Source: arXiv 2312.16279 selects and quantises the weight updates that the server sends. Its
abstract gives no formulas, so the parts are our choice, each of them a known one: the largest
magnitudes of each tensor, one scale per block of values, and error feedback, which adds what was
left out to the next update (arXiv 1809.07599).
"""

from collections.abc import Callable

import torch
from torch import Tensor

BITS = (2, 4, 8, 16, 32)
"""Bits per value; 32 stands for float32."""


def count_kept(size: int, fraction: float) -> int:
    """Return the number of values to keep of ``size``: at least one, if there are any.

    Args:
        size: Number of values.
        fraction: Fraction to keep, in (0, 1].

    Raises:
        ValueError: If ``fraction`` is outside (0, 1].

    Example:
        >>> [count_kept(10, q) for q in (1.0, 0.25, 0.001)]
        [10, 3, 1]
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    return min(size, max(1, int(fraction * size + 0.5)))


def largest(values: Tensor, fraction: float) -> Tensor:
    """Return the positions of the largest magnitudes.

    Args:
        values: N values of any shape.
        fraction: Fraction to keep, in (0, 1]; see :func:`count_kept`.

    Returns:
        Ascending int64 indices into the flattened values; of equal magnitudes, the first ones.

    Example:
        >>> largest(torch.tensor([[0.1, -3.0], [2.0, 0.0]]), 0.5)
        tensor([1, 2])
    """
    flat = values.flatten().abs()
    kept = count_kept(len(flat), fraction)
    # Stable: client and server must agree on ties when they sort the same values.
    return flat.sort(descending=True, stable=True).indices[:kept].sort().values


def quantise_blocks(values: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Quantise a vector uniformly, with one step size per block of values.

    The 2^b levels are evenly spaced and symmetric about zero: (c - 2^(b-1) + 1/2) step for
    c = 0 .. 2^b - 1, with step = 2 max|x| / (2^b - 1). The error is at most half a step,
    max|x| / (2^b - 1), except for subnormal numbers (below 1e-38), whose steps lose precision or
    become zero; values with a step of zero become zero. Zero itself is not a level, unless the
    whole block is zero. Our choice: only the largest values are sent, and few of them are near
    zero.

    Args:
        values: (N,) float.
        bits: Bits b per value: 2, 4, 8 or 16.
        block: Number of values that share a step; the last block may be shorter.

    Returns:
        Codes (N,) int32, and steps (ceil(N / block),) float32.

    Raises:
        ValueError: If ``bits`` is another number, or ``block`` is below 1.

    Example:
        >>> quantise_blocks(torch.tensor([3.0, -1.0, 1.0, -3.0]), 2, 4)
        (tensor([3, 1, 2, 0], dtype=torch.int32), tensor([2.]))
    """
    _check(bits, block)
    blocks = _blocks(values.float(), block)
    top = 2**bits - 1
    steps = 2 * blocks.abs().amax(dim=1) / top
    # The steps of the smallest subnormal numbers underflow to zero.
    divisor = torch.where(steps > 0, steps, 1.0).unsqueeze(1)
    codes = (blocks / divisor + 2 ** (bits - 1)).floor().clamp(0, top)
    return codes.to(torch.int32).flatten()[: len(values)], steps


def dequantise_blocks(codes: Tensor, steps: Tensor, bits: int, block: int) -> Tensor:
    """Invert :func:`quantise_blocks`, up to half a step.

    Args:
        codes: (N,) integers.
        steps: (ceil(N / block),) float32.
        bits: As in :func:`quantise_blocks`.
        block: As in :func:`quantise_blocks`.

    Returns:
        (N,) float32.

    Raises:
        ValueError: As :func:`quantise_blocks`.

    Example:
        >>> dequantise_blocks(torch.tensor([3, 1, 2, 0]), torch.tensor([2.0]), 2, 4)
        tensor([ 3., -1.,  1., -3.])
    """
    _check(bits, block)
    levels = _blocks(codes.float() - (2 ** (bits - 1) - 0.5), block)
    return (levels * steps.unsqueeze(1)).flatten()[: len(codes)]


def _check(bits: int, block: int) -> None:
    if bits not in BITS[:-1] or block < 1:
        raise ValueError(
            f"bits must be one of {BITS[:-1]} and block at least 1, got {bits}, {block}"
        )


def _blocks(values: Tensor, block: int) -> Tensor:
    """Reshape (..., N) to (..., blocks, block); the last block is padded with zeros."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % block))
    return padded.view(*values.shape[:-1], padded.shape[-1] // block, block)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into bytes, the first code in the lowest bits.

    Args:
        codes: (..., N) integers in 0 .. 2^bits - 1.
        bits: Bits per code: 1, 2, 4, 8 or 16.

    Returns:
        (..., ceil(N bits / 8)) uint8; unused bits are zero.

    Example:
        >>> pack_bits(torch.tensor([1, 0, 3]), 2)
        tensor([49], dtype=torch.uint8)
    """
    if bits == 16:
        return torch.stack([codes & 255, codes >> 8], dim=-1).flatten(-2).to(torch.uint8)
    each = 8 // bits
    shifts = torch.arange(each, dtype=torch.int32) * bits
    return (_blocks(codes.to(torch.int32), each) << shifts).sum(dim=-1).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Invert :func:`pack_bits`.

    Args:
        packed: (..., ceil(count bits / 8)) uint8.
        bits: Bits per code: 1, 2, 4, 8 or 16.
        count: Number of codes N.

    Returns:
        (..., N) int32.

    Raises:
        ValueError: If the number of bytes does not fit, or unused bits are not zero.

    Example:
        >>> unpack_bits(torch.tensor([49], dtype=torch.uint8), 2, 3)
        tensor([1, 0, 3], dtype=torch.int32)
    """
    if packed.shape[-1] != packed_bytes(count, bits):
        raise ValueError(f"{packed.shape[-1]} bytes for {count} codes of {bits} bits")
    whole = packed.to(torch.int32)
    if bits == 16:
        pairs = whole.view(*whole.shape[:-1], count, 2)
        return pairs[..., 0] + (pairs[..., 1] << 8)
    shifts = torch.arange(8 // bits, dtype=torch.int32) * bits
    codes: Tensor = ((whole.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)
    if bool(codes[..., count:].any()):
        raise ValueError("the bits after the last code must be zero")
    return codes[..., :count]


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes take."""
    return -(-count * bits // 8)


def with_error_feedback(
    update: Tensor, residual: Tensor | None, compress: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Compress an update plus the residual of earlier ones (error feedback, arXiv 1809.07599).

    With updates u_t and compressed updates c_t, c_1 + .. + c_t = u_1 + .. + u_t - e_t: the sum of
    the compressed updates differs from that of the true ones only by the last residual e_t.

    Args:
        update: u_t, any shape.
        residual: e_(t-1), of the same shape; ``None`` at the start.
        compress: Maps a tensor to its value after compression and decompression.

    Returns:
        c_t and e_t.

    Example:
        >>> half = lambda x: torch.where(x.abs() == x.abs().max(), x, 0.0)
        >>> with_error_feedback(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 0.0]), half)
        (tensor([4., 0.]), tensor([0., 3.]))
    """
    wanted = update if residual is None else update + residual
    applied = compress(wanted)
    return applied, wanted - applied
