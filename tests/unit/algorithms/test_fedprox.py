from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlecs_lightning.algorithms import FedAvg, FedProx
from mlecs_lightning.federated import Message, RoundContext

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


def drift(tiny: SimpleNamespace, algorithm: FedAvg) -> float:
    """Return how far a client's adapter ends from the one that it received."""
    data = tiny.data()
    federation = tiny.build(algorithm, None, data)
    start = federation.server.module.adapter_state()
    broadcast = Message({f"adapter/{k}": t for k, t in start.items()})
    update = algorithm.client_update(
        federation.edge("hall"), tiny.loaders(data, "hall"), broadcast, CTX
    )
    assert update.message is not None
    own = update.message.component("adapter")
    return float(torch.stack([(own[k] - t).square().sum() for k, t in start.items()]).sum().sqrt())


def test_a_higher_price_keeps_clients_nearer(tiny: SimpleNamespace) -> None:
    steps = tiny.steps(public=3, private=3)
    free, cheap, dear = (drift(tiny, FedProx(mu=mu, steps=steps)) for mu in (0.0, 1.0, 1e3))
    assert dear < cheap < free
    assert free == drift(tiny, FedAvg(steps=steps))


def test_a_run_reports_the_term(tiny: SimpleNamespace, tmp_path: Path) -> None:
    tiny.fit(FedProx(steps=tiny.steps()), tmp_path, logger=True)
    (table,) = tmp_path.rglob("metrics.csv")
    assert "private/proximal" in table.read_text()


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(ValueError, match=r"algorithm.init_args.mu must not be negative, got -1"):
        FedProx(mu=-1)
