"""Shifts: who is concerned when, and what is left of the data."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mlecs_lightning.data import Digits, Drift, Phase, SampleTable, Shift
from mlecs_lightning.types import ClientProfile

KEY = "data.init_args.schedule.init_args"
CLIENTS = {
    "kitchen": ClientProfile(("pixels", "profile"), ("bold", "light")),
    "hall": ClientProfile(("fourier",), ("bold",)),
}


def attached(*shifts: Shift, seed: int = 0) -> Digits:
    data = Digits(partition="domain", schedule=Drift(list(shifts), seed=seed))
    data.attach(CLIENTS)
    return data


def mix(table: SampleTable) -> Tensor:
    counts = torch.bincount(table.labels, minlength=10).float()
    return counts / counts.sum()


def test_a_modality_goes_and_comes() -> None:
    data = attached(Shift(2, 4, lose=["profile"], clients=["kitchen"]))
    whole = data.private("kitchen")
    for round in range(6):
        seen = data.private("kitchen", round=round)
        assert seen.ids == whole.ids
        column = seen.modalities.index("profile")
        gone = round in (2, 3)
        assert bool(seen.present[:, column].any()) is not gone
        assert bool(seen.inputs["profile"].any()) is not gone
        assert torch.equal(seen.inputs["pixels"], whole.inputs["pixels"])
    assert data.schedule is not None
    assert data.schedule.phases("kitchen") == (
        Phase(0, "all"),
        Phase(2, "without profile"),
        Phase(4, "all"),
    )
    assert data.schedule.phases("hall") == (Phase(0, "all"),)


def test_a_mix_of_one_class_is_refused() -> None:
    table = attached(Shift(1, class_mix=0.5)).private("hall")
    one = replace(table, labels=torch.zeros_like(table.labels))
    shift = Shift(1, class_mix=0.5)
    (fault,) = Drift([shift]).faults({"hall": one})
    assert "shifts[0].class_mix: all samples of its clients are of one class" in fault
    assert not Drift([shift]).faults({"hall": table, "study": one})


def test_the_scene_changes_in_every_split() -> None:
    data = attached(
        Shift(0, 3, ["kitchen"], domains=["bold"]), Shift(3, clients=["kitchen"], domains=["light"])
    )
    for split in ("train", "val", "test"):
        before, after = (data.private("kitchen", split, round=r) for r in (0, 3))
        assert set(before.domains) == {"bold"}
        assert set(after.domains) == {"light"}
    assert data.private("hall", round=3).ids == data.private("hall").ids


def test_the_class_mix_shifts_to_the_same_mix_in_training_and_test() -> None:
    data = attached(Shift(1, class_mix=0.5))
    before, after = (mix(data.private("kitchen", round=r)) for r in (0, 1))
    assert before.max() < 0.2
    assert after.max() > 1.5 * before.max()
    test = mix(data.private("kitchen", "test", round=1))
    # The mix that was drawn, up to rounding and to classes that are too rare for their share.
    assert torch.corrcoef(torch.stack([after, test]))[0, 1] > 0.9
    rows = Counter(data.private("kitchen", round=1).ids)
    assert set(rows.values()) == {1}
    assert rows == Counter(data.private("kitchen", round=7).ids)
    # Clients and seeds have mixes of their own.
    hall = mix(data.private("hall", round=1))
    other = mix(attached(Shift(1, class_mix=0.5), seed=1).private("kitchen", round=1))
    assert not torch.allclose(hall, after, atol=0.05)
    assert not torch.allclose(other, after, atol=0.05)


def test_a_mild_shift_is_mild() -> None:
    data = attached(Shift(1, class_mix=1e4))
    after = mix(data.private("kitchen", round=1))
    assert (after - 0.1).abs().max() < 0.03
    assert len(data.private("kitchen", round=1)) > 0.7 * len(data.private("kitchen"))


def test_the_budget_halves_and_doubles() -> None:
    data = attached(Shift(1, 4, budget=0.5), Shift(3, clients=["hall"], budget=4.0))
    assert [data.resources("kitchen", round=r) for r in range(5)] == [1, 0.5, 0.5, 0.5, 1]
    assert [data.resources("hall", round=r) for r in range(5)] == [1, 0.5, 0.5, 2, 4]
    assert data.private("hall", round=1).ids == data.private("hall").ids
    assert Digits().resources("anybody", round=3) == 1.0


def test_shifts_of_one_round_add_up() -> None:
    data = attached(
        Shift(1, clients=["kitchen"], domains=["bold"]),
        Shift(2, clients=["kitchen"], lose=["pixels"]),
    )
    assert data.schedule is not None
    assert data.schedule.phases("kitchen")[-1] == Phase(2, "in bold and without pixels")
    seen = data.private("kitchen", round=2)
    assert set(seen.domains) == {"bold"}
    assert seen.present.any(dim=0).tolist() == [m != "pixels" for m in seen.modalities]


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (Shift(-1, budget=2.0), r"start must be at least 0 and end after it, got -1 and None"),
        (Shift(3, 3, budget=2.0), r"end after it, got 3 and 3"),
        (Shift(3), r"changes nothing; give lose, domains, class_mix or budget"),
        (Shift(0, budget=0.0), r"\.budget must be positive, got 0.0"),
        (Shift(0, class_mix=-1.0), r"\.class_mix must be positive, got -1.0"),
    ],
)
def test_a_shift_that_makes_no_sense_is_named(shift: Shift, words: str) -> None:
    with pytest.raises(ValueError, match=rf"{KEY}\.shifts\[1\].*{words}"):
        Drift([Shift(budget=2.0), shift])


def test_a_very_small_mix_leaves_a_sample() -> None:
    """Its shares are mostly zero, those of the only class that is held too."""
    table = attached(Shift(budget=2.0)).private("hall")
    alone = table.select((table.labels == table.labels[0]).nonzero().flatten().tolist())
    for seed in range(8):
        drift = Drift([Shift(0, class_mix=1e-3)], seed=seed)
        assert len(drift.view(alone, client="hall", round=0, seed=0)) >= 1


def test_all_that_does_not_fit_the_clients_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="shifts") as caught:
        attached(
            Shift(1, clients=["cellar"], lose=["depth"]),
            Shift(2, clients=["hall"], lose=["fourier"]),
            Shift(3, domains=["light"]),
        )
    said = str(caught.value).splitlines()
    assert (
        said[0] == f"{KEY}.shifts[0].clients: there is no client 'cellar', only ['kitchen', 'hall']"
    )
    assert said[1].startswith(f"{KEY}.shifts[0].lose: no client has 'depth', only ['fourier'")
    assert "clients.hall has no training samples from round 2 on (without fourier)" in said[2]
    assert "clients.hall has no training samples from round 3 on" in said[3]
    assert len(said) == 4
