"""Volume of the parallelotope that an anchor spans together with a sample's own vectors.

For unit vectors ``a, v_1 .. v_k`` the volume is ``V(a; v) = sqrt(det(A^T A))`` with
``A = [a, v_1, .., v_k]``: 0 if they are linearly dependent, for example if two are parallel or
opposite, and 1 if all are orthogonal. Source: GRAM (arXiv 2412.11959).

It is computed with the Schur complement ``det G = det K * dist^2(a, span v)``, where K is the Gram
matrix of the vectors without the anchor (our choice). This needs one small factorisation per
sample, not one per pair, and has finite gradients where vectors coincide, unlike
``sqrt(abs(det))``, since the derivative of the root at zero is infinite.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_LENGTH = 1e-12


def gram_log_volume(anchors: Tensor, vectors: Tensor, present: Tensor | None = None) -> Tensor:
    """Log volume ``log V(a_i; v_j)`` of every anchor with the vectors of every sample.

    The inputs are normalised. Absent vectors, and vectors of norm zero, do not change the volume
    (identity padding). Volumes of samples with different numbers of present vectors are not
    comparable.

    The Gram matrix is shrunk towards the identity by 16 machine epsilons, which bounds V from below
    (by about ``6e-8 ** k``) and changes it by less than 1e-7.

    Args:
        anchors: One anchor per row, shape (N, D), floating point.
        vectors: K vectors per sample, shape (M, K, D), floating point.
        present: Which of the vectors exist, bool, shape (M, K); all if None. The values of absent
            vectors are not used, and get a gradient of zero.

    Returns:
        Natural logarithm of the volume, at most 0, shape (N, M), float32, or float64 if either
        input is. It is computed in float64 with autocast off (on MPS, which lacks float64, in
        float32: then V is at least 1.4e-3 ** k).

    Raises:
        ValueError: If shapes disagree, K is zero, or ``present`` is not boolean.

    Example:
        >>> anchors = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> vectors = torch.tensor([[[0.0, 2.0]]])
        >>> gram_log_volume(anchors, vectors).exp()  # the sines of 90 and of 45 degrees
        tensor([[1.0000],
                [0.7071]])
    """
    return log_volume_and_det(anchors, vectors, present)[0]


def gram_log_det(vectors: Tensor, present: Tensor | None = None) -> Tensor:
    """Log determinant ``log det K_j`` of every sample's own Gram matrix, for diagnostics.

    It falls to the bound of the shrinkage (see :func:`gram_log_volume`) when the vectors of a
    sample collapse onto each other, which the contrastive loss does not show.

    Args:
        vectors: K vectors per sample, shape (M, K, D), floating point.
        present: Which of the vectors exist, bool, shape (M, K); all if None.

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
        _, _, factor = _factorised(vectors, present)
        return _log_det(factor).to(_result_dtype(vectors))


def log_volume_and_det(
    anchors: Tensor, vectors: Tensor, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return :func:`gram_log_volume`, (N, M), and :func:`gram_log_det`, (M,), computed once."""
    _check_vectors(vectors, present)
    if anchors.ndim != 2 or anchors.shape[1] != vectors.shape[2]:
        raise ValueError(
            f"anchors must have shape (N, D) with the vectors' D = {vectors.shape[2]}, "
            f"got {tuple(anchors.shape)}"
        )
    # The cast comes first: for V < 0.1, products in bf16 change V by 11 to 59 %, and near V = 0
    # those in float32 by 1e-4, more than the determinant of an assembled matrix.
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        wide, lengths, factor = _factorised(vectors, present)
        shrink = _shrinkage(wide.dtype)
        directions = (1 - shrink) * F.normalize(anchors.to(wide.dtype), dim=-1)
        # The lengths of the vectors are divided out by the small factor, (M, K, K): what is as
        # large as the vectors is read by products only, which costs half of what normalising does.
        within_span: Tensor = torch.linalg.solve_triangular(
            lengths[..., None] * factor,
            torch.einsum("mkd,nd->mkn", wide, directions),
            upper=False,
        )
        # In exact arithmetic it is at least the shrinkage: the clamp only corrects rounding.
        distance_sq = (1 - torch.linalg.vecdot(within_span, within_span, dim=1)).clamp_min(shrink)
        log_det = _log_det(factor)
        log_volume = 0.5 * (log_det[:, None] + distance_sq.log())
        dtype = _result_dtype(anchors, vectors)
        return log_volume.T.to(dtype), log_det.to(_result_dtype(vectors))


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
    """Weight of the identity in the Gram matrix, a multiple of the rounding error of entries."""
    return 16 * torch.finfo(dtype).eps


def _factorised(vectors: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors (M, K, D), lengths (M, K), and the factors of the Gram matrices (M, K, K).

    Absent vectors are zero. The lengths are at least 1e-12, those of F.normalize. The Gram matrices
    are those of the unit vectors, shrunk, and the factors are Cholesky's, lower triangular.

    The diagonal is set to 1 rather than computed, so that a zero vector becomes a row of the
    identity, and det K <= 1 holds to the last bit.
    """
    if present is not None:
        vectors = torch.where(present[..., None], vectors, 0.0)
    wide = vectors.to(_working_dtype(vectors.device))
    products = torch.einsum("mkd,mld->mkl", wide, wide)
    lengths = products.diagonal(dim1=-2, dim2=-1).clamp_min(_LEAST_LENGTH**2).sqrt()
    cosines = products / (lengths[..., None] * lengths[..., None, :])
    identity = torch.eye(vectors.shape[1], dtype=wide.dtype, device=vectors.device)
    gram = torch.where(identity.bool(), identity, (1 - _shrinkage(wide.dtype)) * cosines)
    # `cholesky_ex` does not raise: a NaN in one sample becomes NaN in its volumes only.
    factor: Tensor = torch.linalg.cholesky_ex(gram).L
    return wide, lengths, factor


def _log_det(factor: Tensor) -> Tensor:
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
