"""Volume against determinants in float64, its invariances, gradients and dtypes."""

import pytest
import torch
from torch import Tensor

from mlecs_lightning.functional import gram_log_det, gram_log_volume


def naive_volume(anchors: Tensor, vectors: Tensor) -> Tensor:
    """The definition, pair by pair in float64: sqrt(det(A^T A)), A = [a, v_1, .., v_k]."""
    volumes = torch.zeros(len(anchors), len(vectors), dtype=torch.float64)
    for i, anchor in enumerate(anchors.double()):
        for j, own in enumerate(vectors.double()):
            columns = torch.stack([anchor, *own])
            columns = columns / columns.norm(dim=1, keepdim=True)
            volumes[i, j] = torch.linalg.det(columns @ columns.T).clamp_min(0).sqrt()
    return volumes


def random_input(
    k: int, *, n: int = 6, m: int = 5, d: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    scale = torch.logspace(-2, 2, k)[:, None]  # norms must not matter
    anchors = torch.randn(n, d, generator=generator)
    vectors = torch.randn(m, k, d, generator=generator) * scale
    return anchors.to(dtype), vectors.to(dtype)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_equals_the_determinant_in_float64(k: int) -> None:
    anchors, vectors = random_input(k)
    volume = gram_log_volume(anchors, vectors).exp()
    assert volume.shape == (6, 5)
    assert volume.dtype == torch.float32
    expected = naive_volume(anchors, vectors)
    torch.testing.assert_close(volume.double(), expected, atol=1e-5, rtol=0)
    exact = gram_log_volume(anchors.double(), vectors.double()).exp()
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, expected, atol=1e-12, rtol=0)


def test_is_the_sine_of_the_angle_for_one_vector_whatever_its_sign() -> None:
    angle = torch.tensor([0.01, 0.3, 1.0, torch.pi / 2, 3.0, 4.0])
    anchors = torch.stack([angle.cos(), angle.sin()], dim=1)
    vectors = torch.tensor([[[2.0, 0.0]], [[-3.0, 0.0]]])
    volume = gram_log_volume(anchors, vectors).exp()
    expected = angle.sin().abs()[:, None].expand(6, 2)
    torch.testing.assert_close(volume, expected, atol=2e-4, rtol=0)


def test_lies_between_zero_and_one() -> None:
    orthogonal = gram_log_volume(torch.eye(6)[:1], torch.eye(6)[None, 1:])
    assert orthogonal.item() == 0.0
    for k in range(1, 6):
        anchors, vectors = random_input(k, n=100, m=100, d=8)
        volume = gram_log_volume(anchors, vectors).exp()
        assert 0 < volume.min() < volume.max() <= 1
    same = torch.ones(1, 3, 8)
    assert 0 < gram_log_volume(same[:, 0], same).exp() < 1e-6


def test_is_invariant_to_rotation_and_to_the_order_of_vectors() -> None:
    anchors, vectors = random_input(4, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    log_volume = gram_log_volume(anchors, vectors)
    rotated = gram_log_volume(anchors @ rotation, vectors @ rotation)
    torch.testing.assert_close(rotated, log_volume, atol=1e-10, rtol=0)
    reordered = gram_log_volume(anchors, vectors[:, [2, 0, 3, 1]])
    torch.testing.assert_close(reordered, log_volume, atol=1e-10, rtol=0)


def test_does_not_depend_on_the_lengths() -> None:
    anchors, vectors = random_input(4)
    lengths = torch.logspace(-9, 9, 20).view(5, 4, 1)
    scaled = gram_log_volume(1e3 * anchors, lengths * vectors)
    torch.testing.assert_close(scaled, gram_log_volume(anchors, vectors))
    torch.testing.assert_close(gram_log_det(lengths * vectors), gram_log_det(vectors))


@pytest.mark.parametrize("padded", [False, True])
def test_gradient_is_that_of_finite_differences(padded: bool) -> None:
    anchors, vectors = random_input(3, n=3, m=2, d=6, dtype=torch.float64)
    present = torch.tensor([[True, False, True], [True, True, True]]) if padded else None
    inputs = anchors.requires_grad_(), vectors.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, v: gram_log_volume(a, v, present), inputs)
    assert torch.autograd.gradcheck(lambda v: gram_log_det(v, present), inputs[1:])


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-4])
def test_gradients_are_bounded_where_anchor_and_vectors_coincide(
    k: int, dtype: torch.dtype, spread: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.nn.functional.normalize(torch.randn(7, 1, 64, generator=generator), dim=-1)
    noise = spread * torch.randn(7, k + 1, 64, generator=generator)
    anchors, vectors = (centre + noise).to(dtype).split([1, k], dim=1)
    anchors, vectors = anchors[:, 0].clone().requires_grad_(), vectors.clone().requires_grad_()
    volume = gram_log_volume(anchors, vectors).exp()
    volume.sum().backward()
    assert volume.isfinite().all()
    for tensor in (anchors, vectors):
        # V is a product of sines, so its slope along any of the unit vectors is at most 1; every
        # one of them enters 7 volumes.
        assert tensor.grad is not None
        assert tensor.grad.norm(dim=-1).max() <= 7.1


@pytest.mark.parametrize("k", [1, 3, 5])
def test_gradients_are_finite_for_an_anchor_equal_to_one_of_the_vectors(k: int) -> None:
    anchors, vectors = random_input(k, n=5)
    anchors = vectors[:, k - 1].clone().requires_grad_()
    vectors = vectors.requires_grad_()
    volume = gram_log_volume(anchors, vectors).exp()
    volume.sum().backward()
    assert volume.diagonal().max() < 1e-6
    assert anchors.grad is not None
    assert anchors.grad.isfinite().all()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_bf16_input_is_computed_in_float64_also_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(8, 1, 64, generator=generator)
    together = (centre + 0.15 * torch.randn(8, 3, 64, generator=generator)).bfloat16()
    anchors, vectors = together[:, 0], together[:, 1:]
    expected = naive_volume(anchors, vectors).float()
    assert expected.diagonal().max() < 0.1  # the range where bf16 products are off by over 11 %
    plain = gram_log_volume(anchors, vectors).exp()
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = gram_log_volume(anchors, vectors)
        det = gram_log_det(vectors)
    assert autocast.dtype == det.dtype == torch.float32
    assert torch.equal(autocast.exp(), plain)
    assert torch.equal(det, gram_log_det(vectors))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_volume_keeps_its_precision_where_float32_products_are_rounded(precision: str) -> None:
    anchors = torch.tensor([[1.0, 1e-4]])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        log_volume = gram_log_volume(anchors, torch.tensor([[[1.0, 0.0]]]))
    finally:
        torch.set_float32_matmul_precision(before)
    assert log_volume.dtype == torch.float32
    assert log_volume.exp().item() == pytest.approx(1e-4, rel=1e-3)


def test_padding_equals_the_submatrix_in_value_and_gradient() -> None:
    anchors, vectors = random_input(4, dtype=torch.float64)
    present = torch.tensor([1, 0, 1, 1], dtype=torch.bool).expand(5, 4)
    vectors[:, 1] = torch.nan  # absent values are never read
    padded = anchors.clone().requires_grad_(), vectors.clone().requires_grad_()
    cut = anchors.clone().requires_grad_(), vectors[:, [0, 2, 3]].clone().requires_grad_()
    log_volume, expected = gram_log_volume(*padded, present), gram_log_volume(*cut)
    torch.testing.assert_close(log_volume, expected, atol=1e-12, rtol=0)
    log_volume.exp().sum().backward()
    expected.exp().sum().backward()
    assert padded[1].grad is not None
    assert cut[1].grad is not None
    torch.testing.assert_close(padded[0].grad, cut[0].grad)
    torch.testing.assert_close(padded[1].grad[:, [0, 2, 3]], cut[1].grad)
    assert torch.equal(padded[1].grad[:, 1], torch.zeros(5, 16, dtype=torch.float64))


def test_samples_of_one_batch_may_lack_different_vectors() -> None:
    anchors, vectors = random_input(3, m=3)
    present = torch.tensor([[True, True, True], [False, True, False], [False, False, False]])
    volume = gram_log_volume(anchors, vectors, present).exp()
    torch.testing.assert_close(volume[:, :1], gram_log_volume(anchors, vectors[:1]).exp())
    torch.testing.assert_close(volume[:, 1:2], gram_log_volume(anchors, vectors[1:2, 1:2]).exp())
    assert torch.equal(volume[:, 2], torch.ones(6))  # a lone anchor has a length of 1


def test_a_vector_of_norm_zero_counts_as_absent_and_gets_no_gradient() -> None:
    anchors, vectors = random_input(3)
    vectors[:, 2] = 0
    vectors.requires_grad_()
    anchors[0] = 0
    anchors.requires_grad_()
    log_volume = gram_log_volume(anchors, vectors)
    torch.testing.assert_close(log_volume, gram_log_volume(anchors, vectors[:, :2]))
    log_volume.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()
    assert vectors.grad[:, 2].abs().max() == 0
    assert anchors.grad is not None
    assert anchors.grad[0].abs().max() == 0
    assert anchors.grad[1].abs().max() > 0


def test_nan_in_a_present_vector_shows_in_the_volumes_of_its_sample_alone() -> None:
    anchors, vectors = random_input(3)
    expected = gram_log_volume(anchors, vectors)
    vectors[1, 2, 0] = torch.nan
    log_volume = gram_log_volume(anchors, vectors)
    assert log_volume[:, 1].isnan().all()
    assert torch.equal(log_volume[:, [0, 2, 3, 4]], expected[:, [0, 2, 3, 4]])


def test_log_det_equals_the_determinant_of_the_vectors_alone() -> None:
    _, vectors = random_input(4, dtype=torch.float64)
    units = vectors / vectors.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(gram_log_det(vectors).exp(), torch.linalg.det(units @ units.mT))
    present = torch.tensor([True, True, False, True]).expand(5, 4)
    kept = units[:, [0, 1, 3]]
    expected = torch.linalg.det(kept @ kept.mT)
    torch.testing.assert_close(gram_log_det(vectors, present).exp(), expected)


def test_errors_name_the_shape_expected() -> None:
    anchors, vectors = torch.ones(2, 4), torch.ones(3, 2, 4)
    with pytest.raises(ValueError, match=r"K of at least 1, got \(3, 0, 4\)"):
        gram_log_volume(anchors, vectors[:, :0])
    with pytest.raises(ValueError, match=r"\(M, K, D\)"):
        gram_log_det(anchors)
    with pytest.raises(ValueError, match=r"D = 4, got \(2, 3\)"):
        gram_log_volume(anchors[:, :3], vectors)
    with pytest.raises(ValueError, match=r"present must be bool .* \(3, 2\), got torch.float32"):
        gram_log_volume(anchors, vectors, torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"present must be bool .* of shape \(2, 3\)"):
        gram_log_det(vectors, torch.ones(2, 3, dtype=torch.bool))
