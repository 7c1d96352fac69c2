"""What dropout draws is a function of seed, round and party, and of nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlecs_lightning.algorithms import FedAvg
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.rounds import ClientUpdate, RoundContext

Drawn = dict[tuple[int, int, str], list[list[bool]]]


class Watched(FedAvg):
    """FedAvg that remembers what the dropout of each party's connector left of the prompts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.drawn: Drawn = {}

    @contextmanager
    def _watching(self, module: MultimodalLM, ctx: RoundContext, party: str) -> Iterator[None]:
        kept: list[list[bool]] = []

        def note(_: nn.Module, __: object, output: Tensor) -> None:
            kept.append((output != 0).flatten().tolist())

        dropout = module.tower().connector.to_prompt[1]
        assert isinstance(dropout, nn.Dropout)
        handle = dropout.register_forward_hook(note)
        yield
        handle.remove()
        self.drawn[ctx.seed, ctx.round, party] = kept

    def warmup(self, server: Any, loaders: Any, ctx: RoundContext) -> dict[str, float]:  # noqa: ANN401
        with self._watching(server.module, ctx, "server"):
            return super().warmup(server, loaders, ctx)

    def client_update(
        self,
        edge: Any,  # noqa: ANN401
        loaders: Any,  # noqa: ANN401
        broadcast: Any,  # noqa: ANN401
        ctx: RoundContext,
    ) -> ClientUpdate:
        with self._watching(edge.module, ctx, edge.name):
            return super().client_update(edge, loaders, broadcast, ctx)

    def server_update(
        self,
        server: Any,  # noqa: ANN401
        aggregate: Any,  # noqa: ANN401
        loaders: Any,  # noqa: ANN401
        ctx: RoundContext,
    ) -> dict[str, float]:
        with self._watching(server.module, ctx, "server"):
            return super().server_update(server, aggregate, loaders, ctx)


@pytest.fixture(scope="module")
def drawn(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> list[Drawn]:
    """Return what two rounds draw: of seed 0, of seed 0 in other circumstances, of seed 1.

    All clients have one architecture, so that equal seeds would give equal draws.
    """
    model = tiny.model(connector={"dropout": 0.5})
    found = []
    for number, (seed, names) in enumerate(((0, "abc"), (0, "cba"), (1, "abc"))):
        torch.manual_seed(number)
        clients = dict.fromkeys(names, tiny.clients["hall"])
        algorithm = Watched(steps=tiny.steps(warmup=1, public=0))
        settings = tiny.parties(clients, server=model, edge=model, seed=seed)
        root: Path = tmp_path_factory.mktemp("seeds")
        tiny.fit(algorithm, root, settings, max_rounds=2)
        found.append(algorithm.drawn)
    return found


def test_every_seed_round_and_party_draws_its_own(drawn: list[Drawn]) -> None:
    first, _, third = drawn
    parties = {(n, party) for n in range(2) for party in ("a", "b", "c", "server")}
    expected = {(seed, n, party) for seed in range(2) for n, party in {*parties, (-1, "server")}}
    together = first | third
    assert together.keys() == expected
    # One step each, of 8 samples in 16 dimensions: 128 places, half of them dropped.
    draws = [tuple(kept) for passes in together.values() for kept in passes]
    assert {len(kept) for kept in draws} == {8 * 16}
    assert len(draws) == len(set(draws)) == len(expected)


def test_what_went_before_does_not_matter(drawn: list[Drawn]) -> None:
    """Neither the state of the generators nor whom the round has served so far."""
    first, second, _ = drawn
    assert first == second
