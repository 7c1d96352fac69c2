import re

import pytest
import torch

from mlecs_lightning.algorithms.answers import Labels
from mlecs_lightning.wire import Message
from mlecs_lightning.wire.encoding import decode, encode

ANSWERS = Labels(("a two", "", "a six", "a two"), torch.tensor([0.5, 0.0, 0.25, 1.0]))


def message(labels: Labels) -> Message:
    return Message(*labels.parts())


def test_answers_cross_the_wire_and_come_back() -> None:
    sent = message(ANSWERS)
    assert sent.scalars == {"answers": ("a two", "a six")}
    assert {k: (t.dtype, len(t)) for k, t in sent.tensors.items()} == {
        "answers/index": (torch.int16, 4),
        "answers/confidence": (torch.float16, 4),
    }
    schema = Labels.schema()
    assert all(schema.tensors[k].fault(t) is None for k, t in sent.tensors.items())
    received, _ = decode(encode(sent))
    assert Labels.faults(received, samples=4) == []
    back = Labels.of(received)
    assert back.texts == ANSWERS.texts
    assert torch.equal(back.confidence, ANSWERS.confidence), "numbers that float16 holds exactly"


def test_nobody_s_answers_are_a_message_as_well() -> None:
    nothing = message(Labels.none())
    assert Labels.faults(nothing, samples=0) == []
    assert Labels.of(nothing).texts == ()
    assert Labels.of(nothing).by_id([]) == {}


def test_answers_below_a_threshold_are_left_out() -> None:
    kept = ANSWERS.above(0.5)
    assert kept.texts == ("a two", "", "", "a two")
    assert kept.confidence.tolist() == [0.5, 0.0, 0.0, 1.0]
    assert kept.by_id(["p", "q", "r", "s"]) == {"p": "a two", "s": "a two"}


def altered(**values: object) -> Message:
    whole = message(ANSWERS)
    tensors = {k: values.get(k.rpartition("/")[2], t) for k, t in whole.tensors.items()}
    return Message(tensors, {"answers": values.get("table", whole.scalars["answers"])})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"index": torch.zeros(3, dtype=torch.int16)}, "3 answers with 4 confidences, expected 4"),
        ({"index": torch.tensor([0, 2, 0, 0], dtype=torch.int16)}, r"outside of \[-1, 2\)"),
        ({"index": torch.tensor([0, -2, 0, 0], dtype=torch.int16)}, r"outside of \[-1, 2\)"),
        ({"confidence": torch.tensor([0.0, 0.0, 0.0, 1.5]).half()}, r"outside of \[0, 1\]"),
        ({"confidence": torch.tensor([0.0, 0.0, 0.0, -1.0]).half()}, r"outside of \[0, 1\]"),
        ({"table": ("a two", "a two")}, "holds a text twice"),
        ({"table": ("a two", "")}, "an empty one"),
    ],
)
def test_answers_that_make_no_sense_are_named(values: dict[str, object], fault: str) -> None:
    (found,) = Labels.faults(altered(**values), samples=4)
    assert re.search(fault, found)
