import pytest

from mlecs_lightning.report.labels import heading, size


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
