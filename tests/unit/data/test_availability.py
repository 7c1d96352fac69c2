import pytest
import torch

from mlecs_lightning.data.availability import draw_client_modalities, draw_sample_mask

MODALITIES = ("acc", "depth", "rgb")


def whole(rows: int, columns: int) -> torch.Tensor:
    return torch.ones(rows, columns, dtype=torch.bool)


@pytest.mark.parametrize(("columns", "rate"), [(3, 0.7), (3, 0.2), (2, 0.5), (5, 0.1)])
def test_rate_is_right_and_nobody_is_left_with_nothing(columns: int, rate: float) -> None:
    rows = 40_000
    mask = draw_sample_mask(whole(rows, columns), rate=rate, seed=0)
    assert mask.shape == (rows, columns)
    assert mask.dtype == torch.bool
    assert mask.any(dim=1).all()
    # A row that lost everything gets one of its columns back: (1 - rate)^K / K on top.
    expected = rate + (1 - rate) ** columns / columns
    deviation = (expected * (1 - expected) / rows) ** 0.5
    assert mask.float().mean(dim=0).tolist() == pytest.approx(
        [expected] * columns, abs=5 * deviation
    )


def test_modalities_are_drawn_independently() -> None:
    mask = draw_sample_mask(whole(40_000, 3), rate=0.7, seed=1)
    both = (mask[:, 0] & mask[:, 1]).float().mean()
    # The rows that got one column back hold no pair, so pairs keep their rate exactly.
    assert float(both) == pytest.approx(0.49, abs=5 * (0.49 * 0.51 / 40_000) ** 0.5)


def test_what_a_sample_lacks_is_not_drawn_and_one_of_the_others_is_left() -> None:
    rows, rate = 40_000, 0.3
    present = torch.tensor([[True, False, True]]).repeat(rows, 1)
    present[::2] = torch.tensor([False, True, False])
    present[0] = False
    mask = draw_sample_mask(present, rate=rate, seed=2)
    assert not (mask & ~present).any()
    assert torch.equal(mask.any(dim=1), present.any(dim=1))
    expected = rate + (1 - rate) ** 2 / 2  # of two, as in a sample that has no more columns
    found = mask[1::2].float().mean(dim=0)
    deviation = (expected * (1 - expected) / (rows / 2)) ** 0.5
    assert found[[0, 2]].tolist() == pytest.approx([expected] * 2, abs=5 * deviation)


def test_clients_hold_the_drawn_modalities_in_the_order_of_the_data() -> None:
    clients = draw_client_modalities(MODALITIES, 4000, rate=0.7, seed=3)
    assert len(clients) == 4000
    held = [m for has in clients.values() for m in has]
    expected = 0.7 + 0.3**3 / 3
    assert len(held) / 12_000 == pytest.approx(expected, abs=5 * (expected / 12_000) ** 0.5)
    for has in clients.values():
        assert has
        assert list(has) == [m for m in MODALITIES if m in has]


def test_draw_is_a_function_of_its_seed() -> None:
    first = draw_client_modalities(MODALITIES, 50, rate=0.5, seed=7)
    torch.manual_seed(0)
    assert draw_client_modalities(MODALITIES, 50, rate=0.5, seed=7) == first
    assert draw_client_modalities(MODALITIES, 50, rate=0.5, seed=8) != first


def test_with_rate_one_nothing_is_missing() -> None:
    assert draw_sample_mask(whole(100, 3), rate=1.0, seed=0).all()
    assert set(draw_client_modalities(MODALITIES, 9, rate=1.0, seed=0).values()) == {MODALITIES}


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [
        (1, "client_00", "client_00"),
        (100, "client_00", "client_99"),
        (101, "client_000", "client_100"),
    ],
)
def test_names_sort_like_numbers(count: int, first: str, last: str) -> None:
    names = list(draw_client_modalities(MODALITIES, count, rate=0.7, seed=0))
    assert (names[0], names[-1]) == (first, last)
    assert names == sorted(names)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got"):
        draw_sample_mask(whole(2, 2), rate=rate, seed=0)


def test_no_clients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clients\.count must be at least 1, got 0"):
        draw_client_modalities(MODALITIES, 0, rate=0.7, seed=0)
