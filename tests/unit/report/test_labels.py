import pytest

from mlecs_lightning.report.labels import heading, seeds, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 kB"),
        (60_448, "60.4 kB"),
        (999_999, "1 MB"),
        (1.5e9, "1.5 GB"),
    ],
)
def test_bytes_have_three_digits_and_never_an_exponent(count: float, text: str) -> None:
    assert size(count) == text


def test_headings() -> None:
    assert heading("mean.own.rouge_lsum") == "clients, own: Rouge-Lsum"
    assert heading("server.exact_match") == "server: exact_match"
    assert heading("communication.downlink_bytes") == "bytes down"
    assert heading("aggregation_error") == "aggregation_error"


@pytest.mark.parametrize(("count", "text"), [(1, "1 seed, no spread"), (2, "2"), (5, "5")])
def test_one_seed_says_that_it_has_no_spread(count: int, text: str) -> None:
    assert seeds(count) == text
