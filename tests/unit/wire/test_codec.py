"""DWC on the wire: exact bytes, what both ends make of them, and messages that lie."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlecs_lightning import MLECS
from mlecs_lightning.algorithms import FedAvg
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.rounds import FailureTrace, Interrupted
from mlecs_lightning.rounds.failures import Fate
from mlecs_lightning.wire import (
    DWC,
    Channel,
    ChannelError,
    Message,
    ScalarField,
    Schema,
    TensorField,
)
from mlecs_lightning.wire.channel import ReceivedMessage, SerialisedMessage
from mlecs_lightning.wire.encoding import decode, encode
from mlecs_lightning.wire.messages import adapter_fields

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]
ABOUT: dict[str, Any] = {"client": "hall", "round": 3}
BITS = (2, 4, 8, 16, 32)


def adapter(seed: int = 0, *, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 24), "b": (9, 4), "c": (1,)}
    return {n: scale * torch.randn(s, generator=generator) for n, s in shapes.items()}


def named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"adapter/{name}": tensor for name, tensor in tensors.items()}


SCHEMA = Schema(
    {**adapter_fields(adapter()), "tokens/x": TensorField((None, 6)), "tokens/at": TensorField(
        (None,), torch.int64
    )},
    {"samples": ScalarField(int)},
)  # fmt: skip
OLD = named(adapter(1))
NEW = {name: OLD[name] + 0.1 * t for name, t in named(adapter(2)).items()}
OTHERS = {
    "tokens/x": torch.randn(5, 6, generator=torch.Generator().manual_seed(3)),
    "tokens/at": torch.arange(5),
}
MESSAGE = Message({**NEW, **OTHERS}, {"samples": 7})


def carried(
    codec: DWC, message: Message = MESSAGE, **more: Any
) -> tuple[SerialisedMessage, ReceivedMessage]:
    channel = Channel(codec=codec)
    way: dict[str, Any] = {"direction": "uplink", "known": OLD, **ABOUT}
    parcel = channel.pack(message, SCHEMA, **way, **more)
    return parcel, channel.receive(parcel.data, SCHEMA, **way)


# What arrives -------------------------------------------------------------------------------------


def test_bytes_by_hand() -> None:
    """Eight values of which two move: a byte for their places, their codes, one step."""
    old = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    new = old + torch.tensor([0.0, 0.01, -3.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    schema = Schema({"adapter/w": TensorField((8,))})
    channel = Channel(codec=DWC(fraction=0.25, bits=2))
    way: dict[str, Any] = {"direction": "downlink", "known": {"adapter/w": old}, **ABOUT}
    parcel = channel.pack(Message({"adapter/w": new}), schema, **way)
    sent, _ = decode(parcel.data)
    assert sent.tensors.keys() == {"adapter/packed"}
    step = torch.tensor([2.0]).view(torch.uint8).tolist()
    # Places 2 and 7; levels -3, -1, 1, 3: -3 is code 0, 1 is code 2.
    assert sent.tensors["adapter/packed"].tolist() == [0b10000100, 0b1000, *step]
    read = channel.receive(parcel.data, schema, **way).message.tensors["adapter/w"]
    assert read.tolist() == [1, 2, 0, 4, 5, 6, 7, 9]
    assert parcel.error == pytest.approx(0.01 / (9 + 1 + 0.0001) ** 0.5, rel=1e-3)
    assert parcel.memory == {}


def test_all_values_in_32_bits_are_the_message_itself() -> None:
    parcel, delivery = carried(DWC(fraction=1.0, bits=32))
    assert delivery.message.scalars == MESSAGE.scalars
    assert delivery.message.tensors.keys() == MESSAGE.tensors.keys()
    for name, tensor in MESSAGE.tensors.items():
        assert torch.equal(delivery.message.tensors[name], tensor), name
    assert parcel.error == 0
    assert all(not rest.any() for rest in parcel.memory.values())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_what_arrives_and_what_is_remembered_come_to_the_truth(fraction: float, bits: int) -> None:
    before = {name: 0.01 * t for name, t in named(adapter(9)).items()}
    memory = {name: t.flatten() for name, t in before.items()}
    parcel, delivery = carried(DWC(fraction=fraction, bits=bits, block=7), memory=memory)
    missed = moved = 0.0
    for name, tensor in NEW.items():
        aim = tensor + before[name]
        read = delivery.message.tensors[name]
        assert read.shape == tensor.shape
        torch.testing.assert_close(read.flatten() + parcel.memory[name], aim.flatten())
        changed = int((read != OLD[name]).sum())
        assert changed <= max(1, int(fraction * tensor.numel() + 0.5))
        missed += float((aim - read).square().sum())
        moved += float((aim - OLD[name]).square().sum())
    assert parcel.error == pytest.approx((missed / moved) ** 0.5, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("fraction", "bits", "size"), [(0.25, 4, 40), (0.01, 8, 16), (1.0, 2, 46)])
def test_the_ledger_counts_what_crosses(fraction: float, bits: int, size: int) -> None:
    """133 values. At 0.25: 12 + 24 / 2 + 4, 5 + 9 / 2 + 4 and 0 + 1 + 4 bytes less one place."""
    parcel, delivery = carried(DWC(fraction=fraction, bits=bits))
    packed = decode(parcel.data)[0].tensors["adapter/packed"]
    assert delivery.sizes["adapter"] == len(packed)
    by_hand = 0
    for values in (96, 36, 1):
        kept = min(values, max(1, int(fraction * values + 0.5)))
        places = 0 if kept == values else min(-(-values // 8), 2 * kept)
        by_hand += places + -(-kept * bits // 8) + 4
    assert len(packed) == by_hand
    assert abs(by_hand - size) < 12
    assert sum(delivery.sizes.values()) == len(parcel.data)


def test_a_large_tensor_names_places_by_four_bytes() -> None:
    size = 2**16 + 100
    new = torch.zeros(size).index_fill(0, torch.tensor([5, size - 1]), 2.0)
    schema = Schema({"adapter/w": TensorField((size,))})
    channel = Channel(codec=DWC(fraction=2 / size, bits=32))
    parcel = channel.pack(Message({"adapter/w": new}), schema, direction="uplink", **ABOUT)
    read = channel.receive(parcel.data, schema, direction="uplink", **ABOUT)
    assert read.sizes["adapter"] == 2 * (4 + 4)
    assert torch.equal(read.message.tensors["adapter/w"], new)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_features_are_quantised_row_by_row(bits: int) -> None:
    rows = OTHERS["tokens/x"] * torch.tensor([1.0, 1e-3, 1e3, 1.0, 0.0]).unsqueeze(1)
    message = Message({**MESSAGE.tensors, "tokens/x": rows}, MESSAGE.scalars)
    _, delivery = carried(DWC(feature_bits=bits), message)
    read = delivery.message.tensors["tokens/x"]
    bound = rows.abs().amax(dim=1, keepdim=True) / (2**bits - 1)
    assert ((read - rows).abs() <= bound * (1 + 1e-5)).all()
    assert (read[4] == 0).all()
    assert torch.equal(delivery.message.tensors["tokens/at"], OTHERS["tokens/at"])
    assert delivery.sizes["tokens"] == 5 * (-(-6 * bits // 8) + 4) + 5 * 8


def test_no_rows_are_rows_too() -> None:
    none = {"tokens/x": torch.empty(0, 6), "tokens/at": torch.empty(0, dtype=torch.int64)}
    _, delivery = carried(DWC(feature_bits=4), Message({**NEW, **none}, MESSAGE.scalars))
    assert delivery.message.tensors["tokens/x"].shape == (0, 6)


def test_a_direction_that_is_not_named_stays_as_it_is() -> None:
    codec = DWC(directions=["downlink"])
    parcel, delivery = carried(codec)
    assert parcel.data == encode(MESSAGE, ABOUT)
    assert torch.equal(delivery.message.tensors["adapter/a"], NEW["adapter/a"])
    assert codec.declare(SCHEMA, "downlink") != codec.declare(SCHEMA, "uplink") == SCHEMA


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@example(fraction=1.0, bits=8, block=1, scales=[0.0, 1.0])
@given(
    fraction=st.floats(0.02, 1.0),
    bits=st.sampled_from(BITS),
    block=st.integers(1, 40),
    scales=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=5),
)
def test_a_receiver_that_is_told_again_and_again_gets_there(
    fraction: float, bits: int, block: int, scales: list[float]
) -> None:
    """Down, what was left out is in the next difference: a still target is reached."""
    codec, known = DWC(fraction=fraction, bits=bits, block=block), dict(OLD)
    schema = Schema(adapter_fields(adapter()))
    channel = Channel(codec=codec)
    targets = [named(adapter(i, scale=s)) for i, s in enumerate(scales)]
    for target in [*targets, *[targets[-1]] * (6 * 96)]:
        way: dict[str, Any] = {"direction": "downlink", "known": known, **ABOUT}
        parcel = channel.pack(Message(target), schema, **way)
        known = dict(channel.receive(parcel.data, schema, **way).message.tensors)
        # Not an earlier target: some, all zeros for one, are reached at once.
        if all(torch.equal(known[k], targets[-1][k]) for k in known):
            break
    for name, tensor in targets[-1].items():
        torch.testing.assert_close(known[name], tensor, rtol=1e-3, atol=1e-3 * (1 + scales[-1]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fraction": 0.0}, "fraction must lie in (0, 1], got 0.0"),
        ({"fraction": 1.5}, "fraction must lie in (0, 1], got 1.5"),
        ({"bits": 3}, "bits must be one of [2, 4, 8, 16, 32], got 3"),
        ({"feature_bits": 1}, "feature_bits must be one of [2, 4, 8, 16, 32], got 1"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"directions": []}, "directions: some of uplink and downlink, got []"),
        ({"directions": ["up"]}, "directions: some of uplink and downlink, got ['up']"),
    ],
)
def test_settings_without_sense_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="init_args") as caught:
        DWC(**values)
    assert str(caught.value) == f"trainer.codec.init_args.{words}"


# Messages that lie --------------------------------------------------------------------------------

Change = Callable[[dict[str, Tensor], dict[str, Any]], None]


def rewritten(parcel: SerialisedMessage, change: Change) -> bytes:
    message, _ = decode(parcel.data)
    tensors, scalars = dict(message.tensors), dict(message.scalars)
    change(tensors, scalars)
    return encode(Message(tensors, scalars), ABOUT)


def packed(change: Callable[[Tensor], Tensor]) -> Change:
    def apply(tensors: dict[str, Tensor], _: object) -> None:
        tensors["adapter/packed"] = change(tensors["adapter/packed"].clone())

    return apply


def at(place: int, *values: int) -> Change:
    def put(data: Tensor) -> Tensor:
        data[place : place + len(values)] = torch.tensor(values, dtype=torch.uint8)
        return data

    return packed(put)


NAN, INF, MINUS = ([0, 0, 192, 127], [0, 0, 128, 127], [0, 0, 128, 191])
# Of 96 values 24 are kept: 12 bytes of places, 12 of values in 4 bits, 4 of the step.
LIES: dict[str, tuple[dict[str, Any], Change, str]] = {
    "step nan": ({}, at(24, *NAN), "'adapter/a': a step that is negative or not finite"),
    "step inf": ({}, at(24, *INF), "'adapter/a': a step that is negative or not finite"),
    "step minus": ({}, at(24, *MINUS), "'adapter/a': a step that is negative or not finite"),
    "step minus zero": ({}, at(24, 0, 0, 0, 128), "a step that is negative or not finite"),
    "codes of nothing": ({}, at(24, 0, 0, 0, 0), "'adapter/a': a code under a step of zero"),
    "short": ({}, packed(lambda d: d[:-1].clone()), "'adapter/packed': shape"),
    "long": ({}, packed(lambda d: torch.cat([d, d])), "'adapter/packed': shape"),
    "dtype": ({}, packed(lambda d: d.to(torch.int8)), "'adapter/packed': dtype"),
    "few places": ({}, at(0, *[0] * 12), "'adapter/a': 0 places, 24 are to be sent"),
    "many places": ({}, at(0, *[255] * 12), "'adapter/a': 96 places, 24 are to be sent"),
    # Of 36 values 9: 5 bytes of places, of which the last has 4 bits too many.
    "places behind": (
        {},
        at(28 + 4, 0xF0),
        "'adapter/b': the bits after the last code must be zero",
    ),
    # One place in two bytes, at most 35.
    "place beyond": ({"fraction": 0.01}, at(2 + 1 + 4, 36, 0), "rise from 0 to 35"),
    "place twice": ({"fraction": 0.02}, at(0, 7, 0, 7, 0), "rise from 0 to 95"),
    "codes behind": (
        {"fraction": 0.01},
        at(2, 0xF0),
        "'adapter/a': the bits after the last code must be zero",
    ),
    "value nan": ({"fraction": 0.01, "bits": 32}, at(2, *NAN), "'adapter/a': not finite"),
    "overflow": ({"bits": 8}, at(36, 255, 255, 127, 127), "'adapter/a': not finite"),
    "bits": ({}, lambda t, s: s.update({"dwc/bits": 3}), "scalar 'dwc/bits': 3, declared 4"),
    "fraction": ({}, lambda t, s: s.update({"dwc/fraction": 1.0}), "scalar 'dwc/fraction'"),
    "no settings": ({}, lambda t, s: s.pop("dwc/bits"), "missing scalar 'dwc/bits'"),
    "plain": ({}, lambda t, s: t.update(NEW), "undeclared tensor 'adapter/a'"),
    "rows": (
        {"feature_bits": 4},
        lambda t, s: t.update({"tokens/x.steps": torch.ones(4)}),
        "'tokens/x': 5 rows, 4 steps",
    ),
    "row step": (
        {"feature_bits": 4},
        lambda t, s: t.update({"tokens/x.steps": -torch.ones(5)}),
        "'tokens/x': a step that is negative",
    ),
    "row of nothing": (
        {"feature_bits": 4},
        lambda t, s: t.update({"tokens/x.steps": torch.zeros(5)}),
        "'tokens/x': a code under a step of zero",
    ),
    "row width": (
        {"feature_bits": 4},
        lambda t, s: t.update({"tokens/x.codes": torch.zeros(5, 4, dtype=torch.uint8)}),
        "'tokens/x.codes': shape (5, 4), declared (None, 3)",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_packed_message_that_lies_is_refused(name: str) -> None:
    values, change, words = LIES[name]
    codec = DWC(**{"fraction": 0.25, "bits": 4, **values})
    parcel, _ = carried(codec)
    with pytest.raises(ChannelError) as caught:
        Channel(codec=codec).receive(
            rewritten(parcel, change), SCHEMA, direction="uplink", known=OLD, **ABOUT
        )
    start, _, reason = str(caught.value).partition(" refused: ")
    assert start == "uplink of client 'hall'"
    assert words in reason


@pytest.mark.parametrize("values", [{}, {"fraction": 0.02}, {"bits": 32}, {"feature_bits": 2}])
def test_noise_in_place_of_the_bytes_gives_finite_values_or_an_error(
    values: dict[str, Any],
) -> None:
    codec = DWC(**{"fraction": 0.25, "bits": 8, **values})
    parcel, _ = carried(codec)
    random, read = Random(4), 0
    for _ in range(400):

        def spoil(tensors: dict[str, Tensor], _: object) -> None:
            name = random.choice(sorted(k for k, t in tensors.items() if t.dtype == torch.uint8))
            data = tensors[name].clone().flatten()
            for _ in range(random.randint(1, 12)):
                data[random.randrange(len(data))] = random.randrange(256)
            tensors[name] = data.view(tensors[name].shape)

        data = rewritten(parcel, spoil)
        try:
            message = (
                Channel(codec=codec)
                .receive(data, SCHEMA, direction="uplink", known=OLD, **ABOUT)
                .message
            )
        except ChannelError:
            continue
        read += 1
        for name, tensor in message.tensors.items():
            assert SCHEMA.tensors[name].fault(tensor) is None
            assert torch.isfinite(tensor).all()
    assert 0 < read < 400


# In a run -----------------------------------------------------------------------------------------


def last(root: Path, number: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(
        root / f"tiny/version_0/checkpoints/round={number:04d}.ckpt", weights_only=True
    )
    return state


def alike(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def models(state: dict[str, Any]) -> dict[str, Any]:
    return {c: {k: s[k] for k in ("model", "optimizer")} for c, s in state["clients"].items()}


def wire_name(key: str) -> str:
    """Return the name on the wire of a tensor of a client's adapter."""
    return "adapter/" + key.partition("backbone.lm.")[2].replace(".default.", ".")


def total_norm(tensors: list[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm([t.double() for t in tensors]))


def test_a_codec_that_keeps_all_gives_the_run_without_one(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    algorithm = MLECS(steps=tiny.steps(warmup=1))
    runs = {}
    for name, codec in (("plain", None), ("kept", DWC(fraction=1.0, bits=32))):
        tiny.fit(algorithm, tmp_path / name, max_rounds=2, codec=codec, enable_checkpointing=True)
        runs[name] = last(tmp_path / name, 1)
    assert alike(runs["plain"]["server"], runs["kept"]["server"])
    assert alike(models(runs["plain"]), models(runs["kept"]))
    assert "wire" not in runs["plain"]["clients"]["hall"]


def test_both_ends_go_by_the_same_adapter_and_less_crosses(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    codec, algorithm = DWC(fraction=0.25, bits=4), FedAvg(steps=tiny.steps())
    with tapped() as log:
        summary = tiny.fit(
            algorithm, tmp_path, max_rounds=2, codec=codec, enable_checkpointing=True, logger=True
        )
    shipped = algorithm.shipped(tiny.build(algorithm).server, "hall")
    federation = tiny.build(algorithm)
    known = dict(shipped)
    schema = algorithm.downlink(federation.module("hall"))
    downs = [data for way, client, data in log.messages if (way, client) == ("downlink", "hall")]
    for data in downs:
        known = dict(codec.unpack(decode(data)[0], schema, "downlink", known=known).tensors)
    wire = last(tmp_path, 1)["clients"]["hall"]["wire"]
    assert alike(wire["received"], known)
    # Nothing has been trained before the first message: it is all zeros, and so is its error.
    first = last(tmp_path, 0)
    assert alike(first["clients"]["hall"]["wire"]["received"], dict(shipped))
    assert first["history"][0]["channel/downlink_error"] == 0
    # What a client left out, as a share of the way that its adapter has gone in the round.
    left, names = {c: s["wire"]["left"] for c, s in first["clients"].items()}, sorted(shipped)
    shares = []
    for client, state in first["clients"].items():
        trained = {wire_name(k): t for k, t in state["model"].items() if ".lora_" in k}
        moved = [trained[k] - state["wire"]["received"][k] for k in names]
        shares.append(total_norm([left[client][k] for k in names]) / total_norm(moved))
    error = first["history"][0]["channel/uplink_error"]
    assert error == pytest.approx(sum(shares) / len(shares), rel=1e-4)
    assert any(rest.any() for rest in wire["left"].values())
    traffic = summary["communication"]
    plain = 4 * sum(t.numel() for t in shipped.values()) * 3 * 2
    assert traffic["by_component"]["uplink"]["adapter"] * 10 < plain
    assert traffic["codec"] == {"class_path": "DWC", **vars(codec)}
    assert len(traffic["reconstruction_error"]["uplink"]) == 2


class Breaks(FailureTrace):
    """Hall crashes in round 1, in its second step."""

    def fate(self, round: int, client: str) -> Fate:
        return Fate(crash=1) if (round, client) == (1, "hall") else Fate()


def test_a_client_that_fails_is_told_the_difference_from_what_it_still_knows(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    codec, algorithm = DWC(fraction=0.25, bits=4), FedAvg(steps=tiny.steps())
    with tapped() as log:
        summary = tiny.fit(
            algorithm,
            tmp_path,
            max_rounds=3,
            codec=codec,
            faults=Breaks(),
            enable_checkpointing=True,
        )
    assert (summary["faults"]["crash"], summary["faults"]["refused"]) == (1, 0)
    wires = [last(tmp_path, r)["clients"]["hall"]["wire"] for r in range(3)]
    assert alike(wires[0], wires[1])
    federation = tiny.build(algorithm)
    schema = algorithm.downlink(federation.module("hall"))
    data = [d for way, client, d in log.messages if (way, client) == ("downlink", "hall")][2]
    read = codec.unpack(decode(data)[0], schema, "downlink", known=wires[0]["received"])
    assert alike(wires[2]["received"], dict(read.tensors))


class Stops(FederatedCallback):
    """Asks the run to stop when the first client of round 1 has been served."""

    def on_client_end(self, *, round: int, client: str, metrics: Mapping[str, float]) -> None:
        if (round, client) == (1, "kitchen"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("store", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
def test_a_run_stopped_in_the_middle_of_a_round_ends_in_the_same_bits(
    tiny: SimpleNamespace, tmp_path: Path, store: str
) -> None:
    algorithm = FedAvg(steps=tiny.steps())
    options = {"codec": DWC(fraction=0.1, bits=2), "enable_checkpointing": True, "store": store}
    tiny.fit(algorithm, tmp_path / "whole", max_rounds=2, **options)
    with pytest.raises(Interrupted):
        tiny.fit(algorithm, tmp_path / "parts", max_rounds=2, callbacks=[Stops()], **options)
    partial = tmp_path / "parts/tiny/version_0/checkpoints/round=0001-partial.ckpt"
    assert list(torch.load(partial, weights_only=True)["partial"]) == ["kitchen"]
    trainer = tiny.trainer(tmp_path / "parts", max_rounds=2, **options)
    trainer.fit(algorithm, tiny.data(), tiny.parties(), "last")
    states = []
    for name in ("whole", "parts"):
        state = last(tmp_path / name, 1)
        del state["seconds"]
        if store == "disk":
            folder = tmp_path / name / "tiny/version_0/checkpoints/clients"
            state["clients"] = {
                c: torch.load(folder / file, weights_only=True)
                for c, file in state["clients"].items()
            }
        states.append(state)
    assert states[0]["clients"]["hall"]["wire"]["left"]
    assert alike(*states)
