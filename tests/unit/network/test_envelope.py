"""Envelopes come back as they were, and nothing else is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlecs_lightning.network.envelope import Envelope, EnvelopeError

VALUES = st.none() | st.integers() | st.text() | st.lists(st.text(), max_size=3)
ENVELOPES = st.builds(
    Envelope,
    st.text(),
    st.dictionaries(st.text().filter(lambda k: k not in ("kind", "sizes")), VALUES, max_size=4),
    st.lists(st.binary(max_size=20), max_size=3),
)


@given(ENVELOPES)
def test_an_envelope_comes_back_as_it_was(envelope: Envelope) -> None:
    assert Envelope.of(envelope.to_bytes()) == envelope


@given(ENVELOPES, st.data())
def test_what_is_cut_or_longer_is_refused(envelope: Envelope, data: st.DataObject) -> None:
    whole = envelope.to_bytes()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for wrong in (cut, whole + b"x"):
        with pytest.raises(EnvelopeError):
            Envelope.of(wrong)


@pytest.mark.parametrize("size", ["Infinity", "1e999", "-1", "NaN", '"a"', "null"])
def test_a_size_that_is_no_number_of_bytes_is_refused(size: str) -> None:
    header = f'{{"kind": "update", "sizes": [{size}]}}'.encode()
    with pytest.raises(EnvelopeError):
        Envelope.of(len(header).to_bytes(4, "little") + header)
