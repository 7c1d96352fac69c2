"""Volume of the parallelotope that an anchor spans together with a sample's own vectors.

For unit vectors ``a, v_1 .. v_k`` the volume is ``V(a; v) = sqrt(det(A^T A))`` with
``A = [a, v_1, .., v_k]``: 0 when all point the same way (or opposite ways: V is blind to sign), 1
when all are orthogonal. Source: GRAM (arXiv 2412.11959).

How it is evaluated is our choice: the Schur complement ``det G = det K * dist^2(a, span v)``, with
K the Gram matrix of the vectors alone, needs one small factorisation a sample, not one for every
pair, and has finite gradients where vectors coincide. ``sqrt(abs(det))`` has none: the derivative
of the root at zero is infinite.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gram_log_volume(anchors: Tensor, vectors: Tensor, present: Tensor | None = None) -> Tensor:
    """Log volume ``log V(a_i; v_j)`` of every anchor with every sample's set of vectors.

    Inputs are normalised here. An absent vector leaves the volume as if it were not in the set
    (identity padding); one of norm zero has no direction and is treated alike. The volumes of
    samples with different numbers of vectors present are not comparable.

    The Gram matrix is shrunk towards the identity by 16 machine epsilons, which bounds V from below
    (by about ``6e-8 ** k``) and moves it by less than 1e-7.

    Args:
        anchors: One anchor a row, shape (N, D), floating point.
        vectors: K vectors a sample, shape (M, K, D), floating point.
        present: Which of the vectors exist, bool, shape (M, K); all of them if None. The values
            of absent vectors are never read, and get a gradient of zero.

    Returns:
        Natural logarithm of the volume, at most 0, shape (N, M), float32, or float64 if either
        input is. Computed in float64 (on MPS, which has none, in float32: V is then no
        less than 1.4e-3 ** k), with autocast off.

    Raises:
        ValueError: If shapes disagree, K is zero, or ``present`` is not boolean.

    Example:
        >>> anchors = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> vectors = torch.tensor([[[0.0, 2.0]]])
        >>> gram_log_volume(anchors, vectors).exp()  # the sines of 90 and of 45 degrees
        tensor([[1.0000],
                [0.7071]])
    """
    _check_vectors(vectors, present)
    if anchors.ndim != 2 or anchors.shape[1] != vectors.shape[2]:
        raise ValueError(
            f"anchors must have shape (N, D) with the vectors' D = {vectors.shape[2]}, "
            f"got {tuple(anchors.shape)}"
        )
    # bf16 products are off by 11 to 59 % in V once V < 0.1, so the cast comes before all else; and
    # float32 ones by 1e-4 where V is near 0, more than the determinant of an assembled matrix.
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        result_dtype = _result_dtype(anchors, vectors)
        dtype = _working_dtype(vectors.device)
        shrink = _shrinkage(dtype)
        units = _present_units(vectors.to(dtype), present)
        factor = _gram_cholesky(units)
        anchors = F.normalize(anchors.to(dtype), dim=-1)
        cosines = (1 - shrink) * torch.einsum("mkd,nd->mkn", units, anchors)
        within_span: Tensor = torch.linalg.solve_triangular(factor, cosines, upper=False)
        # No less than the shrinkage in exact arithmetic: the clamp only catches rounding.
        distance_sq = (1 - within_span.square().sum(dim=1)).clamp_min(shrink)
        log_volume = 0.5 * (_log_det(factor)[:, None] + distance_sq.log())
        return log_volume.T.to(result_dtype)


def gram_log_det(vectors: Tensor, present: Tensor | None = None) -> Tensor:
    """Log determinant of every sample's own Gram matrix, ``log det K_j``, for diagnostics.

    Falls without bound (to the shrinkage, see :func:`gram_log_volume`) when a sample's vectors
    collapse onto one another, which the contrastive loss alone does not show.

    Args:
        vectors: K vectors a sample, shape (M, K, D), floating point.
        present: Which of them exist, bool, shape (M, K); all of them if None.

    Returns:
        Natural logarithm of the determinant, at most 0, shape (M,), dtype as in
        :func:`gram_log_volume`.

    Raises:
        ValueError: If shapes disagree, K is zero, or ``present`` is not boolean.

    Example:
        >>> gram_log_det(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])).exp()  # 1 - cos^2(45 degrees)
        tensor([0.5000])
    """
    _check_vectors(vectors, present)
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        result_dtype = _result_dtype(vectors)
        dtype = _working_dtype(vectors.device)
        factor = _gram_cholesky(_present_units(vectors.to(dtype), present))
        return _log_det(factor).to(result_dtype)


def _check_vectors(vectors: Tensor, present: Tensor | None) -> None:
    if vectors.ndim != 3 or vectors.shape[1] == 0:
        raise ValueError(
            f"vectors must have shape (M, K, D) with K of at least 1, got {tuple(vectors.shape)}"
        )
    if present is None:
        return
    if present.dtype != torch.bool or present.shape != vectors.shape[:2]:
        raise ValueError(
            f"present must be bool of shape (M, K) = {tuple(vectors.shape[:2])}, "
            f"got {present.dtype} of shape {tuple(present.shape)}"
        )


def _result_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _working_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _shrinkage(dtype: torch.dtype) -> float:
    """Share of the identity in the Gram matrix: several times the rounding error of its entries."""
    return 16 * torch.finfo(dtype).eps


def _present_units(vectors: Tensor, present: Tensor | None) -> Tensor:
    """Unit vectors (M, K, D), zero where absent or of norm zero: their products vanish."""
    if present is not None:
        vectors = torch.where(present[..., None], vectors, 0.0)
    return F.normalize(vectors, dim=-1)


def _gram_cholesky(units: Tensor) -> Tensor:
    """Cholesky factor (M, K, K) of the shrunk Gram matrices of unit vectors (M, K, D).

    The diagonal is written as 1, not computed: a zero vector then becomes a row of the identity,
    and det K <= 1 holds to the last bit.
    """
    gram = (1 - _shrinkage(units.dtype)) * torch.einsum("mkd,mld->mkl", units, units)
    identity = torch.eye(units.shape[1], dtype=units.dtype, device=units.device)
    # The `_ex` form never raises: a NaN in one sample comes out as NaN in its volumes alone.
    factor: Tensor = torch.linalg.cholesky_ex(torch.where(identity.bool(), identity, gram)).L
    return factor


def _log_det(factor: Tensor) -> Tensor:
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
