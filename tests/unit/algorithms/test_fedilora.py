from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mlecs_lightning.algorithms import FedAvg, FediLoRA
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.wire import Message


def sent(tiny: SimpleNamespace, algorithm: FedAvg, round: int) -> dict[str, Tensor]:
    """Return the adapter that a client sends back after one and the same training."""
    data = tiny.data()
    federation = tiny.build(algorithm, None, data)
    start = federation.server.module.adapter_state()
    broadcast = Message({f"adapter/{k}": t for k, t in start.items()})
    context = RoundContext(round, 0, ("kitchen", "hall", "study"))
    loaders = tiny.loaders(data, "hall")
    update = algorithm.client_update(federation.edge("hall"), loaders, broadcast, context)
    assert update.message is not None
    return {**{f"received {k}": t for k, t in start.items()}, **update.message.component("adapter")}


def test_the_least_similar_a_is_drawn_to_the_received_one(tiny: SimpleNamespace) -> None:
    steps = tiny.steps(private=2)
    plain = sent(tiny, FedAvg(steps=steps, aggregation="dimensions"), 1)
    repaired = sent(tiny, FediLoRA(steps=steps, repair_below=1.0), 1)
    cosines = {
        key: float(torch.cosine_similarity(t.flatten(), plain[f"received {key}"].flatten(), dim=0))
        for key, t in plain.items()
        if "lora_A" in key and not key.startswith("received")
    }
    worst = min(cosines, key=cosines.__getitem__)
    assert [key for key in plain if not torch.equal(plain[key], repaired[key])] == [worst]
    s = cosines[worst]
    expected = s * plain[worst] + (1 - s) * plain[f"received {worst}"]
    torch.testing.assert_close(repaired[worst], expected)


@pytest.mark.parametrize(
    ("round", "below"), [(0, 1.0), pytest.param(1, -1.0, marks=pytest.mark.slow)]
)
def test_nothing_is_repaired_before_an_aggregation_or_without_a_need(
    tiny: SimpleNamespace, round: int, below: float
) -> None:
    plain = sent(tiny, FedAvg(aggregation="dimensions"), round)
    repaired = sent(tiny, FediLoRA(repair_below=below), round)
    assert all(torch.equal(plain[key], repaired[key]) for key in plain)


def test_a_threshold_that_is_no_cosine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"repair_below must lie in \[-1, 1\], got 2"):
        FediLoRA(repair_below=2.0)
