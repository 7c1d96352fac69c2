from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning.algorithms.cdcca.tokens import Tokens
from mlecs_lightning.wire import Channel, Message

WIDTHS, ONE = {"acc": 3, "depth": 2}, {"acc": 1, "depth": 1}
ABOUT: dict[str, Any] = {"direction": "uplink", "client": "hall", "round": 0}


def tokens() -> Tokens:
    """Four samples; the third has no depth."""
    present = torch.ones(4, 2, dtype=torch.bool)
    present[2, 1] = False
    features = {m: torch.arange(4.0 * f).view(4, 1, f) + 1 for m, f in WIDTHS.items()}
    features["depth"][2] = 0
    return Tokens(features, present, ("who ?", "what ?", "who ?", "who ?"))


def test_what_is_chosen_is_what_is_sent() -> None:
    """Of seven tokens three; the sample without any of them is left out, and rows close up."""
    sent = tokens().only(torch.tensor([[0, 1], [2, 0], [3, 0]]))
    assert (sent.samples, sent.number) == (3, 3)
    assert sent.instructions == ("who ?", "who ?", "who ?")
    message = sent.message()
    assert message.scalars == {"instructions": ("who ?",)}
    assert {k: t.tolist() for k, t in message.tensors.items()} == {
        "asked/which": [0, 0, 0],
        "tokens/acc": [[7, 8, 9], [10, 11, 12]],
        "positions/acc": [1, 2],
        "tokens/depth": [[1, 2]],
        "positions/depth": [0],
    }


@pytest.mark.parametrize("chosen", [[[0, 0]], [[0, 0], [0, 1], [2, 0]], [[1, 1], [3, 1]]])
def test_a_message_is_read_as_it_was_meant(chosen: list[list[int]]) -> None:
    sent = tokens().only(torch.tensor(chosen))
    channel = Channel()
    data = channel.send(sent.message(), client="hall", round=0)
    message = channel.receive(data, Tokens.schema(WIDTHS), **ABOUT).message
    assert Tokens.faults(message, ONE) == []
    read = Tokens.read(message, ONE)
    assert torch.equal(read.present, sent.present)
    assert read.instructions == sent.instructions
    for modality in WIDTHS:
        assert torch.equal(read.features[modality], sent.features[modality])


def test_several_tokens_of_a_sensor_have_positions_of_their_own() -> None:
    """Two samples with three stretches of acc: of the second sample the last one is missing."""
    present = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1]], dtype=torch.bool)
    acc = torch.arange(6.0).view(2, 3, 1) * present[:, :3].unsqueeze(-1)
    sent = Tokens({"acc": acc, "depth": torch.ones(2, 1, 2)}, present, ("who ?",) * 2)
    message = sent.message()
    assert message.tensors["positions/acc"].tolist() == [0, 2, 4]
    assert message.tensors["tokens/acc"].flatten().tolist() == [0, 2, 4]
    counts = {"acc": 3, "depth": 1}
    assert Tokens.faults(message, counts) == []
    read = Tokens.read(message, counts)
    assert torch.equal(read.present, present)
    assert torch.equal(read.features["acc"], acc)
    assert "do not rise from 0 to 1" in Tokens.faults(message, ONE)[0]
    only = sent.only(torch.tensor([[0, 2], [0, 3]]))
    assert only.inputs()["acc"].tolist() == [[0, 0, 2]]


def test_more_tokens_than_positions_are_refused() -> None:
    many = Tokens(
        {"acc": torch.zeros(8193, 4, 1)}, torch.ones(8193, 4, dtype=torch.bool), ("",) * 8193
    )
    with pytest.raises(ValueError, match=r"32772 tokens of 'acc' .* lower .*steps\.private"):
        many.message()


def test_tokens_of_several_devices_lie_one_behind_the_other() -> None:
    both = Tokens.joined([tokens(), tokens().rows([1, 0])])
    assert both.samples == 6
    assert both.instructions[4:] == ("what ?", "who ?")
    assert both.features["acc"][4].tolist() == [[4, 5, 6]]
    with pytest.raises(ValueError, match="no tokens to join"):
        Tokens.joined([])


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]
LIES: dict[str, tuple[Change, str]] = {
    "beyond": (
        lambda t, s: t.update({"positions/acc": torch.tensor([0, 1, 2, 4], dtype=torch.int16)}),
        "positions of 'acc' do not rise from 0 to 3",
    ),
    "below": (
        lambda t, s: t.update({"positions/acc": torch.tensor([-1, 1, 2, 3], dtype=torch.int16)}),
        "positions of 'acc' do not rise from 0 to 3",
    ),
    "twice": (
        lambda t, s: t.update({"positions/acc": torch.tensor([0, 1, 1, 2], dtype=torch.int16)}),
        "positions of 'acc' do not rise from 0 to 3",
    ),
    "fewer": (
        lambda t, s: t.update({"tokens/acc": torch.ones(2, 3)}),
        "2 tokens of 'acc' have 4 positions",
    ),
    "texts": (lambda t, s: s.update(instructions=("who ?",)), "other texts than the 1"),
    "text": (
        lambda t, s: t.update({"asked/which": torch.tensor([0, -1, 0, 0], dtype=torch.int16)}),
        "other texts than the 2",
    ),
    "giant": (
        lambda t, s: t.update({"tokens/acc": torch.full((4, 3), 1e20)}),
        "a feature of 'acc' is beyond 1e+04",
    ),
    "nobody": (
        lambda t, s: t.update({"asked/which": torch.empty(0, dtype=torch.int16)}),
        "positions of 'acc' do not rise from 0 to -1",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_message_that_lies_is_seen_through(name: str) -> None:
    change, words = LIES[name]
    message = tokens().message()
    tensors, scalars = dict(message.tensors), dict(message.scalars)
    change(tensors, scalars)
    faults = Tokens.faults(Message(tensors, scalars), ONE)
    assert any(words in fault for fault in faults), faults
