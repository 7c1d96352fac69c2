from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mlecs_lightning.algorithms import FedAvg, FedProx
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.wire import Message

LR, MU = 0.05, 8.0
CTX = RoundContext(0, 0, ("kitchen", "hall", "study"))


def test_term_and_gradient_by_hand(tiny: SimpleNamespace) -> None:
    algorithm = FedProx(mu=0.5)
    data = tiny.data()
    edge = tiny.build(algorithm, None, data).edge("hall").module
    (batch,) = tiny.loaders(data, "hall").private.take(1, seed=0)
    received = {k: t + 0.1 for k, t in edge.adapter_state().items()}
    losses = algorithm.proximal(edge, batch, received=received)
    size = sum(t.numel() for t in received.values())
    assert float(losses["proximal"]) == pytest.approx(0.01 * size, rel=1e-4)
    torch.testing.assert_close(losses["loss"], losses["lm"] + 0.25 * losses["proximal"])
    losses["proximal"].backward()
    for parameter in edge.backbone.adapter_parameters().values():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, -0.2))


def trained(tiny: SimpleNamespace, algorithm: FedAvg) -> list[dict[str, Tensor]]:
    """Return the adapter that a client receives, and the one that it sends back."""
    data = tiny.data()
    sgd = tiny.model(optimizer={"class_path": "SGD", "init_args": {"lr": LR}})
    federation = tiny.build(algorithm, tiny.parties(edge=sgd), data)
    start = federation.server.module.adapter_state()
    broadcast = Message({f"adapter/{k}": t for k, t in start.items()})
    update = algorithm.client_update(
        federation.edge("hall"), tiny.loaders(data, "hall"), broadcast, CTX
    )
    assert update.message is not None
    return [start, update.message.component("adapter")]


def test_the_price_takes_back_its_share_of_the_way(tiny: SimpleNamespace) -> None:
    """By hand: it has no gradient where the client starts, mu (w_1 - w_0) after the first step."""
    one, two = (tiny.steps(public=0, private=n) for n in (1, 2))
    start, once = trained(tiny, FedProx(mu=MU, steps=one))
    _, free = trained(tiny, FedProx(mu=0.0, steps=two))
    _, priced = trained(tiny, FedProx(mu=MU, steps=two))
    _, plain = trained(tiny, FedAvg(steps=two))
    for name, tensor in free.items():
        assert torch.equal(tensor, plain[name])
        pull = LR * MU * (once[name] - start[name])
        torch.testing.assert_close(tensor - priced[name], pull, rtol=1e-3, atol=1e-7)
    assert any((once[name] != start[name]).any() for name in start)


def test_a_run_reports_the_term(tiny: SimpleNamespace, tmp_path: Path) -> None:
    tiny.fit(FedProx(steps=tiny.steps()), tmp_path, logger=True)
    (table,) = tmp_path.rglob("metrics.csv")
    assert "private/proximal" in table.read_text()


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(ValueError, match=r"algorithm.init_args.mu must not be negative, got -1"):
        FedProx(mu=-1)
