"""Thousands of hostile byte strings for the decoder of the channel, the same in every run."""

import json
import resource
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
import torch
from torch import Tensor

from mlecs_lightning.wire import (
    DWC,
    Channel,
    ChannelError,
    Message,
    ScalarField,
    Schema,
    TensorField,
)
from mlecs_lightning.wire.encoding import decode, encode

EACH = 1_000
MEGABYTE = 2**20
TENSORS = {
    "adapter/a": torch.linspace(-1, 1, 6).view(2, 3),
    "adapter/b": torch.zeros(4, 2),
    "fused/anchors": torch.ones(3, 5),
}
SCALARS = {"ids": ("x", "y"), "samples": 3, "share": 0.5, "kind": "k"}
VALID = encode(Message(TENSORS, SCALARS), {"client": "hall", "round": 1})
(LENGTH,) = struct.unpack_from("<Q", VALID)
HEADER, BODY = json.loads(VALID[8 : 8 + LENGTH]), VALID[8 + LENGTH :]

GIANTS = (0, 1, -1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30)
DTYPES = (
    *("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL"),
    *("C64", "F4", "F6_E2M3", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "f32", "F128", ""),
)
JSON = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "true", "null", "0", "-0.0"),
    *(
        "9" * 300,
        "9" * 5_000,
        '""',
        '"\\ud800"',
        '"\\u0000"',
        '"' + "x" * 5_000 + '"',
        "",
        "{",
        "]",
    ),
    *("[]", "{}", '["x", 1]', "[null]", '["x", "y"]', "[[]]", '{"x": {}}', "0x1", "'x'", "1 2"),
)


def wrap(header: str | bytes, body: bytes = BODY) -> bytes:
    data = header.encode() if isinstance(header, str) else header
    data += b" " * (-len(data) % 8)  # as safetensors fills it up
    return struct.pack("<Q", len(data)) + data + body


def written(header: object) -> str:
    return json.dumps(header, separators=(",", ":"))


def deep(random: Random) -> str:
    """Return JSON nested up to 50,000 levels deep, closed or not."""
    depth = 10 ** random.randint(1, 4) * random.randint(1, 5)
    opening, closing = random.choice((("[", "]"), ('{"x":', "}"), ('[{"x":', "}]")))
    return opening * depth + ("1" + closing * depth if random.random() < 0.5 else "")


# One hostile string each ----------------------------------------------------------------------


def noise(random: Random) -> bytes:
    start = VALID[: random.choice((0, 8, 9, 40, 8 + LENGTH))]
    return start + random.randbytes(random.randrange(300))


def flipped(random: Random) -> bytes:
    data = bytearray(VALID)
    for _ in range(random.randint(1, 6)):
        data[random.randrange(len(data))] ^= random.randint(1, 255)
    return bytes(data)


def flipped_body(random: Random) -> bytes:
    data = bytearray(VALID)
    for _ in range(random.randint(1, 6)):
        data[random.randrange(8 + LENGTH, len(data))] ^= random.randint(1, 255)
    return bytes(data)


def cut(random: Random) -> bytes:
    first, last = sorted(random.sample(range(len(VALID) + 1), 2))
    return random.choice((VALID[:last], VALID[first:], VALID[:first] + VALID[last:]))


def inserted(random: Random) -> bytes:
    place = random.randrange(len(VALID) + 1)
    return VALID[:place] + random.randbytes(random.randint(1, 20)) + VALID[place:]


def duplicated(random: Random) -> bytes:
    first, last = sorted(random.sample(range(len(VALID) + 1), 2))
    return VALID[:last] + VALID[first:last] * random.randint(1, 4) + VALID[last:]


def header_length(random: Random) -> bytes:
    length = random.choice(
        (random.getrandbits(random.randint(1, 64)), LENGTH + random.randint(-9, 9))
    )
    return struct.pack("<Q", length) + VALID[8:]


def giant_tensor(random: Random) -> bytes:
    """A valid header in which one tensor names another shape, type or place."""
    header = json.loads(json.dumps(HEADER))
    form = header[random.choice(list(TENSORS))]
    shape = [random.choice(GIANTS) for _ in range(random.randint(0, 5))]
    change = random.randrange(5)
    if change == 0:
        form["shape"] = shape
    elif change == 1:
        form["dtype"] = random.choice(DTYPES)
    elif change == 2:
        form["data_offsets"] = [random.choice(GIANTS), random.choice(GIANTS)]
    elif change == 3:
        # Of no bytes, so that any shape with a zero agrees with its place.
        header["adapter/z"] = {
            "dtype": random.choice(DTYPES),
            "shape": [0, *shape] if random.random() < 0.8 else [0] * 10 ** random.randint(1, 4),
            "data_offsets": [len(BODY)] * 2,
        }
    else:
        form[random.choice(list(form))] = random.choice((None, True, "x", 1.5, {}, [[1]], ["1"]))
    return wrap(written(header))


def hostile_scalars(random: Random) -> bytes:
    """A valid header whose scalars or envelope are any JSON, at any level."""
    header = json.loads(json.dumps(HEADER))
    parts = dict.fromkeys(("envelope", "scalars"), "{}")
    value = random.choice(JSON) if random.random() < 0.9 else deep(random)
    forms = (value, f'{{"samples": {value}}}', f'{{"x": [{value}]}}')
    parts[random.choice(list(parts))] = random.choice(forms)
    about = ", ".join(f'"{name}": {text}' for name, text in parts.items())
    header["__metadata__"]["message"] = (
        f"{{{about}}}" if random.random() < 0.8 else random.choice(forms)
    )
    return wrap(written(header))


def hostile_header(random: Random) -> bytes:
    """A header that is any JSON, alone or as the metadata."""
    value = random.choice(JSON) if random.random() < 0.8 else deep(random)
    return wrap(random.choice((value, f'{{"__metadata__": {value}}}', f'{{"x": {value}}}')))


KINDS: tuple[Callable[[Random], bytes], ...] = (
    *(noise, flipped, flipped_body, cut, inserted, duplicated, header_length),
    *(giant_tensor, hostile_scalars, hostile_header),
)


def read(data: bytes) -> bool:
    """Decode; return whether a message came out.

    It is of plain and bounded values then, and nothing was in the bytes that is not in it.
    """
    try:
        message, envelope = decode(data)
    except ChannelError:
        return False
    assert encode(message, envelope) == data  # type: ignore[arg-type]
    assert all(isinstance(name, str) for name in message.tensors)
    assert all(type(tensor) is Tensor for tensor in message.tensors.values())
    assert sum(tensor.nbytes for tensor in message.tensors.values()) <= len(data)
    for value in (*message.scalars.values(), *envelope.values()):
        assert type(value) in (int, float, str, tuple)
        assert not isinstance(value, tuple) or all(type(item) is str for item in value)
    return True


@pytest.mark.slow
def test_ten_thousand_hostile_strings_give_a_message_or_a_channel_error() -> None:
    read(VALID)  # what is loaded on first use is no growth
    random, accepted = Random(20260214), Counter[str]()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    tracemalloc.start()
    try:
        for kind in KINDS:
            for number in range(EACH):
                data = kind(random)
                try:
                    accepted[kind.__name__] += read(data)
                except Exception as error:
                    text = f"{type(error).__name__}: {error}"
                    pytest.fail(f"{kind.__name__} {number}: {text[:300]}\n{data[:1000]!r}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # from KiB
    seconds = time.process_time() - start
    # Python's own memory, and that of the libraries underneath as far as it passed what the
    # process had used before.
    assert peak < 32 * MEGABYTE
    assert grown < 64
    # Of this process, not of the clock: 3 here, and minutes if a string took its square.
    assert seconds < 60
    # Hostile strings that are all refused at the door would test nothing behind it.
    assert accepted["flipped_body"] == EACH
    for name in ("flipped", "giant_tensor", "hostile_scalars"):
        assert 20 < accepted[name] < EACH - 20
    for name in ("noise", "cut", "inserted", "duplicated", "header_length", "hostile_header"):
        assert accepted[name] < EACH / 10


# Packed by a codec ----------------------------------------------------------------------------


def packed_border(values: dict[str, float | int]) -> tuple[Channel, Schema, bytes]:
    schema = Schema(
        {name: TensorField(tuple(t.shape)) for name, t in TENSORS.items()},
        {name: ScalarField(type(value)) for name, value in SCALARS.items()},
    )
    channel = Channel(codec=DWC(**values))  # type: ignore[arg-type]
    packed = channel.pack(
        Message(TENSORS, SCALARS), schema, direction="uplink", client="hall", round=1
    )
    return channel, schema, packed.data


@pytest.mark.parametrize(
    "values",
    [
        {"fraction": 0.5, "bits": 4, "feature_bits": 4},
        {"fraction": 0.1, "bits": 32},
        {"fraction": 1.0, "bits": 16, "feature_bits": 2},
    ],
)
def test_a_thousand_hostile_packed_messages_give_what_was_declared_or_a_channel_error(
    values: dict[str, float | int],
) -> None:
    channel, schema, valid = packed_border(values)
    random, accepted = Random(20231227), 0
    (length,) = struct.unpack_from("<Q", valid)
    for number in range(EACH):
        data = bytearray(valid)
        for _ in range(random.randint(1, 8)):
            # Mostly behind the header, where the codec reads.
            first = 0 if number % 4 == 0 else 8 + length
            data[random.randrange(first, len(data))] = random.getrandbits(8)
        if number % 10 == 0:
            del data[random.randrange(len(data)) :]
        about = {"direction": "uplink", "client": "hall", "round": 1}
        try:
            message = channel.receive(bytes(data), schema, **about).message  # type: ignore[arg-type]
        except ChannelError:
            continue
        except Exception as error:
            pytest.fail(f"{number}: {type(error).__name__}: {error}"[:300])
        accepted += 1
        assert message.tensors.keys() == schema.tensors.keys()
        for name, tensor in message.tensors.items():
            assert schema.tensors[name].fault(tensor) is None
            assert bool(torch.isfinite(tensor).all())
    assert 20 < accepted < EACH - 20
