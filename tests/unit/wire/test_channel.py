import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from mlecs_lightning.wire import Channel, ChannelError, Message, ScalarField, Schema, TensorField
from mlecs_lightning.wire.channel import Direction, MessageLimits, ReceivedMessage
from mlecs_lightning.wire.encoding import decode, encode
from mlecs_lightning.wire.ledger import Ledger

SCHEMA = Schema(
    {"adapter/a": TensorField((2, 3)), "fused/anchors": TensorField((None, 5))},
    {
        name: ScalarField(kind)
        for name, kind in (("ids", tuple), ("samples", int), ("share", float), ("kind", str))
    },
)
TENSORS = {"adapter/a": torch.arange(6.0).view(2, 3), "fused/anchors": torch.ones(4, 5)}
SCALARS: dict[str, Any] = {"ids": ("x", "y"), "samples": 3, "share": 0.5, "kind": "k"}
VALID = encode(Message(TENSORS, SCALARS), {"client": "hall", "round": 0})


def without(table: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k != name}


def carried(
    message: Message, border: Channel | None = None, *, direction: Direction = "uplink"
) -> ReceivedMessage:
    """Carry a message of hall in round 0 over a border."""
    border = border or Channel()
    data = border.send(message, client="hall", round=0)
    return border.receive(data, SCHEMA, direction=direction, client="hall", round=0)


def refusal(
    tensors: dict[str, Tensor], scalars: dict[str, Any], *, max_norm: float | None = None
) -> str:
    """Return why a message of the right envelope was refused; the reason names both its ends."""
    # Written past `send`, which would refuse some of them already.
    data = encode(Message(tensors, scalars), {"client": "hall", "round": 0})
    return refusal_of(data, Channel(MessageLimits(max_norm=max_norm)))


def refusal_of(data: bytes, border: Channel) -> str:
    with pytest.raises(ChannelError) as caught:
        border.receive(data, SCHEMA, direction="uplink", client="hall", round=0)
    start, _, reason = str(caught.value).partition(" refused: ")
    assert start == "uplink of client 'hall'"
    return reason


# What arrives ---------------------------------------------------------------------------------


def test_what_arrives_equals_what_was_sent_and_shares_nothing_with_it() -> None:
    received = carried(Message(TENSORS, SCALARS), direction="downlink").message
    assert received.scalars == SCALARS
    assert received.tensors.keys() == TENSORS.keys()
    for name, tensor in received.tensors.items():
        assert torch.equal(tensor, TENSORS[name])
        assert tensor.data_ptr() != TENSORS[name].data_ptr()


def test_bytes_are_a_safetensors_file_with_the_scalars_beside() -> None:
    length = int.from_bytes(VALID[:8], "little")
    header = json.loads(VALID[8 : 8 + length])
    assert header["__metadata__"].keys() == {"message"}
    assert json.loads(header["__metadata__"]["message"]) == {
        "scalars": {**SCALARS, "ids": ["x", "y"]},
        "envelope": {"client": "hall", "round": 0},
    }
    assert load(VALID).keys() == TENSORS.keys()


def test_a_tensor_with_gradient_and_strides_arrives_as_its_values() -> None:
    sent = torch.arange(6.0, requires_grad=True).view(3, 2).T
    received, _ = decode(encode(Message({"adapter/a": sent})))
    assert received.tensors["adapter/a"].tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    assert not received.tensors["adapter/a"].requires_grad


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "scalars", "reason"),
    [
        ({**TENSORS, "sample/x": torch.ones(1)}, SCALARS, "undeclared tensor 'sample/x'"),
        (without(TENSORS, "adapter/a"), SCALARS, "missing tensor 'adapter/a'"),
        (TENSORS, {**SCALARS, "label": 1}, "undeclared scalar 'label'"),
        (TENSORS, without(SCALARS, "ids"), "missing scalar 'ids'"),
        (
            {**TENSORS, "adapter/a": torch.ones(3, 2)},
            SCALARS,
            "tensor 'adapter/a': shape (3, 2), declared (2, 3)",
        ),
        (
            {**TENSORS, "adapter/a": torch.ones(2, 3).bfloat16()},
            SCALARS,
            "tensor 'adapter/a': dtype torch.bfloat16, declared torch.float32",
        ),
        (TENSORS, {**SCALARS, "samples": 3.0}, "scalar 'samples': 3.0, declared int"),
        (TENSORS, {**SCALARS, "share": 1}, "scalar 'share': 1, declared float"),
        (TENSORS, {**SCALARS, "ids": "x"}, "scalar 'ids': 'x', declared tuple"),
    ],
)
def test_refused(tensors: dict[str, Tensor], scalars: dict[str, Any], reason: str) -> None:
    assert refusal(tensors, scalars) == reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_value_that_is_not_finite_is_refused(value: float) -> None:
    spoilt = TENSORS["fused/anchors"].clone()
    spoilt[3, 4] = value
    assert refusal({**TENSORS, "fused/anchors": spoilt}, SCALARS) == (
        "tensor 'fused/anchors': not finite"
    )


def test_values_whose_squares_overflow_are_finite() -> None:
    tensors = {**TENSORS, "adapter/a": torch.full((2, 3), 3e38)}
    carried(Message(tensors, SCALARS))


def test_all_faults_are_named_at_once() -> None:
    reason = refusal({"adapter/a": torch.ones(1), "x": torch.ones(1)}, {"samples": "3"})
    assert reason.split("; ") == [
        "undeclared tensor 'x'",
        "missing tensor 'fused/anchors'",
        "missing scalar 'ids'",
        "missing scalar 'kind'",
        "missing scalar 'share'",
        "scalar 'samples': '3', declared int",
        "tensor 'adapter/a': shape (1,), declared (2, 3)",
    ]


def test_the_norm_is_that_of_all_tensors_together() -> None:
    tensors = {"adapter/a": torch.zeros(2, 3), "fused/anchors": torch.zeros(1, 5)}
    tensors["adapter/a"][0, 0], tensors["fused/anchors"][0, 4] = 3.0, 4.0
    carried(Message(tensors, SCALARS), Channel(MessageLimits(max_norm=5.0)))
    assert refusal(tensors, SCALARS, max_norm=4.99) == "norm 5 exceeds 4.99"


@pytest.mark.parametrize(
    "scalars",
    [
        *({"ids": {"x"}}, {"ids": torch.ones(1)}, {"ids": b"x"}),
        *({"share": math.nan}, {"share": math.inf}, {"share": -math.inf}),
    ],
)
def test_a_scalar_that_cannot_be_written_is_refused(scalars: dict[str, Any]) -> None:
    with pytest.raises(ChannelError, match="unwritable message: "):
        carried(Message(TENSORS, {**SCALARS, **scalars}))


@pytest.mark.parametrize("value", [None, True, {"x": 1}, [1], ["x", ["y"]]])
def test_a_scalar_of_another_kind_is_refused(value: object) -> None:
    reason = refusal(TENSORS, {**SCALARS, "ids": value})
    assert f"scalar 'ids' is {type(value).__name__}" in reason


@pytest.mark.parametrize("data", [b"", b"\0" * 8, VALID[:-1], VALID[:100], VALID + b"x", b"x" * 99])
def test_spoilt_bytes_are_refused(data: bytes) -> None:
    reason = refusal_of(data, Channel())
    assert reason.startswith(f"unreadable message of {len(data)} bytes: ")


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        ({"client": "study", "round": 0}, "client is 'study', expected 'hall'"),
        ({"client": "hall", "round": 3}, "round is 3, expected 0"),
        ({"round": 0}, "client is None, expected 'hall'"),
        ({}, "client is None, expected 'hall'; round is None, expected 0"),
    ],
)
def test_a_message_of_another_client_or_round_is_refused(
    envelope: dict[str, int | str], reason: str
) -> None:
    assert refusal_of(encode(Message(TENSORS, SCALARS), envelope), Channel()) == reason


def test_a_message_over_the_limit_is_refused_unread() -> None:
    size = len(encode(Message(TENSORS, SCALARS), {"client": "hall", "round": 0}))
    carried(Message(TENSORS, SCALARS), Channel(MessageLimits(max_bytes=size)))
    assert refusal_of(b"x" * (size + 1), Channel(MessageLimits(max_bytes=size))) == (
        f"{size + 1} bytes exceed {size}"
    )


def test_a_safetensors_file_without_scalars_is_refused() -> None:
    for metadata in (None, {"other": "1"}, {"message": "{"}, {"message": "[1]"}):
        with pytest.raises(ChannelError, match="unreadable message"):
            decode(save(TENSORS, metadata=metadata))


def read_or_refuse(data: bytes) -> None:
    """Decode hostile bytes: nothing but a message of plain values or a ChannelError comes out."""
    try:
        message, envelope = decode(data)
    except ChannelError:
        return
    assert all(isinstance(t, Tensor) for t in message.tensors.values())
    values = [*message.scalars.values(), *envelope.values()]
    assert {type(v) for v in values} <= {int, float, str, tuple}


@settings(max_examples=150, deadline=None, database=None)
@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: VALID[:40] + tail))
def test_fuzzed_bytes_never_get_through(data: bytes) -> None:
    read_or_refuse(data)


@settings(max_examples=200, deadline=None, database=None)
@given(st.integers(0, len(VALID) - 1), st.integers(0, 255), st.integers(0, len(VALID)))
def test_a_valid_message_with_one_byte_changed_or_cut(place: int, value: int, length: int) -> None:
    read_or_refuse(VALID[:place] + bytes([value]) + VALID[place + 1 :])
    read_or_refuse(VALID[:length])


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, database=None)
@given(ANY_JSON)
def test_any_json_in_place_of_the_scalars(value: object) -> None:
    for part, other in (("scalars", "envelope"), ("envelope", "scalars")):
        for written in (value, {"ids": value}):
            about = json.dumps({part: written, other: {}})
            read_or_refuse(save(TENSORS, metadata={"message": about}))


def test_scalars_nested_too_deeply_to_be_read_are_refused() -> None:
    with pytest.raises(ChannelError, match="unreadable message"):
        decode(save(TENSORS, metadata={"message": "[" * 100_000}))


# What is counted ------------------------------------------------------------------------------


def test_ledger_splits_the_bytes_by_component() -> None:
    ledger, delivery = Ledger(), carried(Message(TENSORS, SCALARS))
    size = len(encode(Message(TENSORS, SCALARS), {"client": "hall", "round": 0}))
    for client in ("hall", "hall", "study"):
        ledger.add("uplink", client, delivery.sizes)
    ledger.add("downlink", "study", delivery.sizes)
    header = size - 4 * (2 * 3 + 4 * 5)
    assert ledger.by_component() == {
        "uplink": {"adapter": 3 * 24, "fused": 3 * 80, "header": 3 * header},
        "downlink": {"adapter": 24, "fused": 80, "header": header},
    }
    assert ledger.total("uplink") == 3 * size
    assert ledger.total("uplink", client="hall") == 2 * size
    assert ledger.total("downlink", client="hall") == 0
    assert ledger.messages("uplink") == 3
    assert ledger.messages("uplink", client="hall") == 2
    assert ledger.mean_sizes("uplink")["hall"] == size
    assert "hall" not in ledger.mean_sizes("downlink")
    assert ledger.per_message("uplink") == size


def test_a_ledger_goes_on_from_its_state() -> None:
    ledger, other = Ledger(), Ledger()
    ledger.add("uplink", "a", {"adapter": 5, "header": 2})
    other.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    for each in (ledger, other):
        each.add("uplink", "a", {"adapter": 7})
    assert other.state_dict() == ledger.state_dict()
    assert (other.total("uplink"), other.per_message("uplink")) == (14, 7.0)
    assert Ledger().per_message("uplink") == 0.0


def test_ledger_of_a_run_is_the_sum_of_the_bytes_on_the_wire(mlecs_run: SimpleNamespace) -> None:
    by_hand: dict[str, dict[str, int]] = {"uplink": {}, "downlink": {}}
    for direction, _, data in mlecs_run.messages:
        parts = by_hand[direction]
        tensors = load(data)
        for name, tensor in tensors.items():
            component = name.split("/")[0]
            width = 8 if component == "report" else 4
            parts[component] = parts.get(component, 0) + width * math.prod(tensor.shape)
        body = sum(t.nbytes for t in tensors.values())
        parts["header"] = parts.get("header", 0) + len(data) - body
    wire = mlecs_run.summary["communication"]
    assert wire["by_component"] == by_hand
    for direction in ("uplink", "downlink"):
        total = sum(len(data) for way, _, data in mlecs_run.messages if way == direction)
        assert wire[f"{direction}_bytes"] == total == sum(by_hand[direction].values())


def test_ledger_in_the_checkpoint_holds_every_client_apart(mlecs_run: SimpleNamespace) -> None:
    path = mlecs_run.folder / "checkpoints" / "round=0001.ckpt"
    ledger = Ledger()
    ledger.load_state_dict(torch.load(path, weights_only=True)["ledger"])
    for client in ("kitchen", "hall", "study"):
        for direction in ("uplink", "downlink"):
            sent = [len(d) for w, c, d in mlecs_run.messages if (w, c) == (direction, client)]
            assert ledger.total(direction, client=client) == sum(sent) > 0
            assert ledger.messages(direction, client=client) == len(sent) == 2
