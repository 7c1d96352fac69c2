"""MultiFedAvg: an encoder is the mean of the clients that have its modality."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning import MultiFedAvg
from mlecs_lightning.algorithms.answers import Answers
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.wire import Message


def encoders(state: dict[str, Tensor]) -> dict[str, Tensor]:
    start = "extractors."
    return {k.removeprefix(start): t for k, t in state.items() if k.startswith(start)}


def run(tiny: SimpleNamespace, root: Path, rounds: int, **options: Any) -> dict[str, Any]:
    """Train, and return the last checkpoint."""
    trainer = tiny.trainer(root, max_rounds=rounds, enable_checkpointing=True)
    algorithm = MultiFedAvg(steps=tiny.steps(warmup=1), answers=Answers())
    trainer.fit(algorithm, tiny.data(public_labelled=0.2), tiny.parties(), **options)
    return torch.load(max(root.rglob("round=*.ckpt")), weights_only=True)


@pytest.mark.slow
def test_an_encoder_is_the_mean_of_the_clients_with_its_modality(tiny: SimpleNamespace) -> None:
    algorithm, data = MultiFedAvg(steps=tiny.steps()), tiny.data()
    federation = tiny.build(algorithm, None, data)
    server, loaders = federation.server, tiny.loaders(data)
    context = RoundContext(0, 0, tuple(tiny.clients))
    before = encoders(server.module.trainable_state())
    updates: dict[str, Message] = {}
    for client, broadcast in algorithm.broadcast(server, loaders, context):
        received = broadcast.component("encoder")
        assert {key.partition(".")[0] for key in received} == set(tiny.clients[client].modalities)
        assert all(torch.equal(t, before[key]) for key, t in received.items())
        edge, own = federation.edge(client), tiny.loaders(data, client)
        update = algorithm.client_update(edge, own, broadcast, context).message
        assert update is not None
        assert update.component("encoder").keys() == received.keys()
        updates[client] = update

    aggregate = algorithm.aggregate(iter(updates.items()), context)
    algorithm.server_update(server, aggregate, loaders, context)
    for key, value in encoders(server.module.trainable_state()).items():
        held = {c: u.component("encoder") for c, u in updates.items()}
        sent = [(len(data.private(c)), t[key].double()) for c, t in held.items() if key in t]
        mean = sum((n * t for n, t in sent), torch.zeros(())) / sum(n for n, _ in sent)
        # The server has trained since, its encoders are frozen.
        torch.testing.assert_close(value, mean.float())
        assert not torch.equal(value, before[key])


@pytest.mark.slow
def test_it_goes_on_to_the_same_bits(tiny: SimpleNamespace, tmp_path: Path) -> None:
    whole = run(tiny, tmp_path / "a", 2)["server"]["model"]
    run(tiny, tmp_path / "b", 1)
    again = run(tiny, tmp_path / "b", 2, ckpt_path="last")["server"]["model"]
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_what_was_sent_stays_as_it_was(tiny: SimpleNamespace) -> None:
    algorithm, data = MultiFedAvg(steps=tiny.steps()), tiny.data()
    federation = tiny.build(algorithm, None, data)
    context = RoundContext(0, 0, ("hall",))
    ((_, sent),) = algorithm.broadcast(federation.server, tiny.loaders(data), context)
    before = {k: t.clone() for k, t in sent.component("encoder").items()}
    with torch.no_grad():
        for parameter in federation.server.module.extractors.parameters():
            parameter.add_(1)
    assert before
    assert all(torch.equal(t, before[k]) for k, t in sent.component("encoder").items())


def test_encoders_that_differ_are_named(tiny: SimpleNamespace) -> None:
    narrow = {"class_path": "VectorMLP", "init_args": {"width": 8}}
    edge = tiny.model(extractors={"fourier": narrow})
    with pytest.raises(ConfigurationError, match=r"clients\.hall has an encoder.*fourier"):
        tiny.build(MultiFedAvg(), tiny.parties(edge=edge))


def test_a_mean_withstands_nobody(tiny: SimpleNamespace) -> None:
    with pytest.raises(ConfigurationError, match="withstands no hostile client"):
        tiny.build(MultiFedAvg(aggregation="median"))
