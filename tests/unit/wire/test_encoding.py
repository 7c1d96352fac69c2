"""One message, one string of bytes: whatever else says the same is refused."""

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mlecs_lightning.wire import Channel, ChannelError, Message, ScalarField, Schema, TensorField
from mlecs_lightning.wire.encoding import decode, encode

TENSORS = {
    "adapter/a": torch.linspace(-1, 1, 6).view(2, 3),
    "adapter/b": torch.arange(4.0),
    "submodel/mask": torch.tensor([True, False, True]),
}
SCALARS: dict[str, Any] = {"ids": ("x", "y"), "kind": "k", "samples": 3, "share": 0.5}
SCHEMA = Schema(
    {name: TensorField(tuple(t.shape), t.dtype) for name, t in TENSORS.items()},
    {name: ScalarField(type(value)) for name, value in SCALARS.items()},
)
VALID = encode(Message(TENSORS, SCALARS), {"client": "hall", "round": 1})
(LENGTH,) = struct.unpack_from("<Q", VALID)
HEADER, BODY = VALID[8 : 8 + LENGTH].decode(), VALID[8 + LENGTH :]
MEGABYTE = "x" * 2**20


def test_the_bytes_are_those_of_safetensors() -> None:
    tensors = {
        **{str(kind): torch.ones(3, 1).to(kind) for kind in (torch.float16, torch.bfloat16)},
        **TENSORS,
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.5),
        'ä "\\\n': torch.arange(3, dtype=torch.int64),
    }
    about = {"scalars": {"k": "ü\x01"}, "envelope": {}}
    text = json.dumps(about, sort_keys=True)
    written = encode(Message(tensors, {"k": "ü\x01"}))
    assert written == save(tensors, metadata={"message": text})


def test_tensors_that_share_their_memory_are_written_apart() -> None:
    whole = torch.arange(6.0)
    sent = {"a": whole, "b": whole[5:], "c": whole.view(2, 3).T}
    received = decode(encode(Message(sent)))[0].tensors
    assert all(torch.equal(received[name], tensor) for name, tensor in sent.items())
    assert len({tensor.untyped_storage().data_ptr() for tensor in received.values()}) == 3


def test_a_tensor_of_a_type_that_no_file_has_is_refused() -> None:
    with pytest.raises(ChannelError, match=r"'b' is of type torch\.complex64"):
        encode(Message({"a": torch.ones(1), "b": torch.ones(1, dtype=torch.complex64)}))


def test_tensors_lie_where_those_of_torch_do() -> None:
    """Kernels of several threads give other last bits at other addresses."""
    for size in range(1, 40):
        message, _ = decode(encode(Message({"adapter/a": torch.ones(size), "b": torch.ones(3)})))
        assert all(t.data_ptr() % 64 == 0 for t in message.tensors.values())


def file_of(header: str, body: bytes = BODY) -> bytes:
    data = header.encode()
    data += b" " * (-len(data) % 8)
    return struct.pack("<Q", len(data)) + data + body


def header_with(change: Callable[[dict[str, Any]], object]) -> bytes:
    header = json.loads(HEADER)
    change(header)
    return file_of(json.dumps(header, separators=(",", ":")))


def about_with(text: str) -> bytes:
    return header_with(lambda header: header["__metadata__"].update(message=text))


def said(old: str, new: str) -> bytes:
    """Return the file with another text in the JSON of scalars and envelope."""
    text = json.loads(HEADER)["__metadata__"]["message"]
    assert text.count(old) == 1
    return about_with(text.replace(old, new))


def envelope_with(**more: Any) -> bytes:
    return encode(Message(TENSORS, SCALARS), {"client": "hall", "round": 1} | more)


def moved(header: dict[str, Any]) -> None:
    """Let two tensors lie at one place: the other place is free for anything."""
    header["adapter/b"]["data_offsets"] = [0, 16]


def reordered(header: dict[str, Any]) -> None:
    header["adapter/a"] = header.pop("adapter/a")


HIDDEN: dict[str, bytes] = {
    "envelope key": envelope_with(note=MEGABYTE),
    "envelope name": envelope_with(**{MEGABYTE: 1}),
    "part beside scalars": said('{"envelope"', f'{{"a": "{MEGABYTE}", "envelope"'),
    "metadata": header_with(lambda h: h["__metadata__"].update(note=MEGABYTE)),
    "tensor key": header_with(lambda h: h["adapter/a"].update(note=MEGABYTE)),
    "undeclared scalar": encode(
        Message(TENSORS, SCALARS | {"note": MEGABYTE}), {"client": "hall", "round": 1}
    ),
    "empty tensor": encode(
        Message(TENSORS | {MEGABYTE: torch.ones(0)}, SCALARS), {"client": "hall", "round": 1}
    ),
    "spaces of the header": struct.pack("<Q", LENGTH + 2**20)
    + HEADER.encode()
    + b" " * 2**20
    + BODY,
    "spaces before it": file_of(" " + HEADER),
    "spaces in it": file_of(HEADER.replace(",", ", ")),
    "order of the tensors": header_with(reordered),
    "order of the scalars": said('"kind": "k", "samples": 3', '"samples": 3, "kind": "k"'),
    "spaces of the scalars": said('"kind": "k"', '"kind":  "k"'),
    "twice in the scalars": said('"kind": "k"', '"kind": "secret", "kind": "k"'),
    "twice in the envelope": said('"round": 1', '"round": 7, "round": 1'),
    "twice in the header": file_of(
        HEADER.replace('"adapter/a":', '"adapter/a":{"dtype":"F32"},"adapter/a":', 1)
    ),
    "digits": said("0.5", "0.50000"),
    "exponent": said("0.5", "5e-1"),
    "escapes": said('"k"', '"\\u006b"'),
    "encoding": about_with(json.loads(HEADER)["__metadata__"]["message"] + "\n"),
    "one place for two tensors": header_with(moved),
    "rest of the file": VALID + MEGABYTE.encode(),
    "seven bits of a bool": VALID[:-1] + b"\x85",
    "round that is a float": said('"round": 1', '"round": 1.0'),
    "round that is true": said('"round": 1', '"round": true'),
    "client that is a list": said('"client": "hall"', '"client": ["hall"]'),
    "NaN": said("0.5", "NaN"),
    "infinity": said("0.5", "1e999"),
    "half a character": said('"k"', '"\\ud800"'),
    "null": said('"k"', "null"),
    "a dict": said('"k"', '{"k": 1}'),
    "a list of numbers": said('["x", "y"]', "[1, 2]"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_nothing_hides_beside_a_message(name: str) -> None:
    with pytest.raises(ChannelError, match=r"^uplink of client 'hall' refused: "):
        Channel().receive(HIDDEN[name], SCHEMA, direction="uplink", client="hall", round=1)


def test_the_message_itself_passes_and_is_written_in_one_way() -> None:
    delivery = Channel().receive(VALID, SCHEMA, direction="uplink", client="hall", round=1)
    assert delivery.message.scalars == SCALARS
    assert all(torch.equal(delivery.message.tensors[k], t) for k, t in TENSORS.items())
    turned = (dict(reversed(TENSORS.items())), dict(reversed(SCALARS.items())))
    assert encode(Message(*turned), {"round": 1, "client": "hall"}) == VALID


EDITS = st.lists(
    st.tuples(st.integers(0, len(VALID)), st.integers(0, 6), st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)
PRINTED = st.lists(
    st.tuples(
        st.integers(8, 8 + LENGTH), st.integers(0, 3), st.sampled_from([b" ", b'"', b"0", b","])
    ),
    min_size=1,
    max_size=3,
)
SWAPPED = st.permutations(sorted(SCALARS)).map(
    lambda names: about_with(
        json.dumps({"envelope": {"client": "hall", "round": 1}, "scalars": dict.fromkeys(names, 1)})
    )
)


def edited(edits: list[tuple[int, int, bytes]]) -> bytes:
    data = VALID
    for place, length, new in edits:
        data = data[:place] + new + data[place + length :]
    return data


@settings(max_examples=400, deadline=None, database=None)
@given(EDITS.map(edited) | PRINTED.map(edited) | SWAPPED)
def test_changed_bytes_are_refused_or_are_the_one_form_of_another_message(data: bytes) -> None:
    try:
        message, envelope = decode(data)
    except ChannelError:
        return
    assert encode(message, envelope) == data  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        max_size=4,
    ),
    st.dictionaries(
        st.text(st.characters(codec="ascii", exclude_characters="_"), min_size=1, max_size=5),
        st.lists(st.floats(width=32), max_size=3),
        max_size=3,
    ),
)
def test_every_message_comes_out_as_it_was_written(
    scalars: dict[str, Any], values: dict[str, list[float]]
) -> None:
    tensors = {name: torch.tensor(row) for name, row in values.items()}
    data = encode(Message(tensors, scalars))
    message, envelope = decode(data)
    assert envelope == {}
    assert message.scalars == scalars
    assert {k: type(v) for k, v in message.scalars.items()} == {
        k: type(v) for k, v in scalars.items()
    }
    assert message.tensors.keys() == tensors.keys()
    assert encode(message) == data
