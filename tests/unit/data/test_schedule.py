from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning.algorithms import Standalone
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.data import Digits, DomainStream, Phase, SampleTable, Schedule
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.types import ClientProfile

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]
KEY = "data.init_args.schedule.init_args"
CLIENTS = {
    "kitchen": ClientProfile(("pixels", "profile"), ("bold", "light")),
    "hall": ClientProfile(("fourier",), ("bold",)),
}


def attached(schedule: Schedule | None, **clients: ClientProfile) -> Digits:
    data = Digits(partition="domain", schedule=schedule)
    data.attach(clients or CLIENTS)
    return data


# The order ----------------------------------------------------------------------------------------


def test_a_stream_goes_from_domain_to_domain_and_stays_at_the_last() -> None:
    stream = DomainStream(["a", "b", "a"], rounds_per_domain=2)
    assert stream.phases("x") == (Phase(0, "a"), Phase(2, "b"), Phase(4, "a"))
    assert [stream.phase("x", r).name for r in range(8)] == list("aabbaaaa")


def test_a_stream_may_be_repeated() -> None:
    stream = DomainStream(["a", "b"], repeat=2)
    assert [phase.name for phase in stream.phases("x")] == list("abab")
    assert [phase.start for phase in stream.phases("x")] == [0, 1, 2, 3]


def test_clients_may_have_orders_of_their_own() -> None:
    stream = DomainStream({"x": ["a", "b"]}, rounds_per_domain=3)
    assert stream.phases("x") == (Phase(0, "a"), Phase(3, "b"))
    assert stream.phases("y") == (Phase(0, "all"),)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"domains": []}, "name at least one domain, got []"),
        ({"domains": {}}, "name at least one domain, got {}"),
        ({"domains": {"x": []}}, "name at least one domain, got {'x': []}"),
        ({"domains": ["a"], "rounds_per_domain": 0}, "at least 1, got 0 and 1"),
        ({"domains": ["a"], "repeat": 0}, "at least 1, got 1 and 0"),
    ],
)
def test_a_stream_without_sense_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"schedule\.init_args") as caught:
        DomainStream(**values)
    assert words in str(caught.value)


# The view -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_round_shows_its_domain_of_each_split_and_the_whole_is_still_there(split: Any) -> None:  # noqa: ANN401 - a literal
    data = attached(DomainStream({"kitchen": ["light", "bold"]}, rounds_per_domain=2))
    whole = data.private("kitchen", split)
    seen = [data.private("kitchen", split, round=r) for r in range(5)]
    assert [set(t.domains) for t in seen] == [{"light"}] * 2 + [{"bold"}] * 3
    assert [*seen[0].ids, *seen[2].ids] != list(whole.ids)
    assert sorted([*seen[0].ids, *seen[2].ids]) == sorted(whole.ids)
    row = whole.ids.index(seen[2].ids[0])
    assert torch.equal(seen[2].inputs["pixels"][0], whole.inputs["pixels"][row])
    # Hall has no stream, and the server none at all.
    assert data.private("hall", split, round=0).ids == data.private("hall", split).ids
    assert data.public(split).ids == attached(None).public(split).ids


def test_without_a_schedule_all_rounds_are_alike() -> None:
    data = attached(None)
    assert data.private("kitchen", round=7).ids == data.private("kitchen").ids


class Blind(Schedule):
    """In round 1 a client lacks the first of its modalities in samples drawn by seed."""

    def phases(self, client: str) -> tuple[Phase, ...]:
        return (Phase(0, "sees"), Phase(1, "blind"), Phase(2, "sees"))

    def view(self, table: SampleTable, *, client: str, round: int, seed: int) -> SampleTable:
        if self.phase(client, round).name == "sees":
            return table
        keep = torch.ones_like(table.present)
        keep[:, 0] = torch.rand(len(table), generator=torch.Generator().manual_seed(seed)) < 0.5
        return table.mask(keep)

    def faults(self, held: Mapping[str, SampleTable]) -> list[str]:
        return [f"{name} has one sensor" for name, t in held.items() if len(t.modalities) < 2]


def test_a_schedule_of_ones_own_may_mask_modalities_by_seed() -> None:
    clients = {"kitchen": CLIENTS["kitchen"]}
    data, again = attached(Blind(), **clients), attached(Blind(), **clients)
    seen = [data.private("kitchen", round=r).present[:, 0].float().mean() for r in range(4)]
    assert (seen[0], seen[2], seen[3]) == (1, 1, 1)
    assert 0.4 < seen[1] < 0.6
    masks = [d.private("kitchen", round=1).present for d in (data, again)]
    assert torch.equal(*masks)
    assert not torch.equal(masks[0][:100], data.private("kitchen", "test", round=1).present[:100])


# Faults -------------------------------------------------------------------------------------------


def test_what_does_not_fit_the_clients_is_said_at_once() -> None:
    stream = DomainStream({"kitchen": ["bold", "thin"], "hall": ["light"], "attic": ["bold"]})
    data = Digits(partition="domain", schedule=stream)
    with pytest.raises(ValueError, match="there is no client") as caught:
        data.attach(CLIENTS)
    assert str(caught.value).splitlines() == [
        f"{KEY}.domains: there is no client 'attic', only ['kitchen', 'hall']",
        f"{KEY}.domains: clients.kitchen has no training samples of 'thin', only of "
        "['bold', 'light']",
        f"{KEY}.domains: clients.hall has no training samples of 'light', only of ['bold']",
    ]
    with pytest.raises(KeyError, match="unknown client"):
        data.private("kitchen")  # nothing was dealt
    with pytest.raises(ValueError, match="hall has one sensor"):
        attached(Blind())


# In a run -----------------------------------------------------------------------------------------


def test_a_client_trains_and_is_validated_on_what_it_sees_in_the_round(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[set[str]] = []
    scores = Evaluator._validated

    def spied(self: Evaluator, learner: Any, table: SampleTable) -> dict[str, float]:  # noqa: ANN401
        if learner.name == "kitchen":
            judged.append(set(table.domains))
        return scores(self, learner, table)

    monkeypatch.setattr(Evaluator, "_validated", spied)
    stream = DomainStream(["light", "bold"])
    data = tiny.data(partition="domain", schedule=stream)
    clients = {"kitchen": ClientSettings(["pixels"], domains=["light", "bold"])}
    with tapped() as log:
        tiny.fit(
            Standalone(steps=tiny.steps(private=3)),
            tmp_path,
            tiny.parties(clients),
            data,
            max_rounds=3,
            check_val_every_n_rounds=1,
        )
    domain = dict(zip(data.private("kitchen").ids, data.private("kitchen").domains, strict=True))
    trained = [
        {domain[i] for batch in batches for i in batch.ids}
        for party, _, batches in log.passes
        if party == "kitchen"
    ]
    assert trained == judged == [{"light"}, {"bold"}, {"bold"}]
