from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mlecs_lightning.data.base import FederatedDataModule, Pools
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.types import ClientProfile, ModalitySpec

SCENES = ("attic", "bath", "cellar")


class Toy(FederatedDataModule):
    """Two modalities, three scenes; each recording has two samples, and each input is unique."""

    SIZES = (20, 60, 30)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.modalities = {
            "tilt": ModalitySpec("vector", (2,)),
            "wave": ModalitySpec("series", (1, 3)),
        }
        self.classes = ("up", "down")
        self.reads = 0

    def load_pools(self) -> Pools:
        self.reads += 1
        return Pools(*(self._pool(k, n) for k, n in zip("PVT", self.SIZES, strict=True)))

    def _pool(self, name: str, n: int) -> SampleTable:
        rows = torch.arange(1.0, n + 1)
        return SampleTable(
            ids=tuple(f"{name}{i:02d}" for i in range(n)),
            modalities=tuple(self.modalities),
            inputs={
                "tilt": rows.view(n, 1).repeat(1, 2),
                "wave": rows.view(n, 1, 1).repeat(1, 1, 3),
            },
            present=torch.ones(n, 2, dtype=torch.bool),
            instructions=("which way ?",) * n,
            targets=tuple(self.classes[i // 2 % 2] for i in range(n)),
            labels=torch.arange(n) // 2 % 2,
            domains=tuple(SCENES[i // 2 % 3] for i in range(n)),
            groups=tuple(f"{name}-rec{i // 2}" for i in range(n)),
        )

    def read_label(self, text: str) -> int | None:
        return self.classes.index(text) if text in self.classes else None

    def pretraining_pairs(self) -> list[tuple[str, str]]:
        return [(name, name) for name in self.classes]


def client(*modalities: str, domains: Sequence[str] | None = None) -> ClientProfile:
    return ClientProfile(modalities, None if domains is None else tuple(domains))


def attached(clients: Mapping[str, ClientProfile], **kwargs: Any) -> Toy:
    data = Toy(**kwargs)
    data.attach(clients)
    return data


BOTH = ("tilt", "wave")
SPLITS = ("train", "val", "test")


# Faults -------------------------------------------------------------------------------------------


def test_all_values_out_of_range_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        Toy(
            batch_size=0,
            eval_batch_size=0,
            alpha=0.0,
            val_fraction=1.0,
            public_train_fraction=0.0,
            public_labelled=0.0,
            sample_rate=0.0,
        )
    assert str(caught.value).split("; ") == [
        "data.init_args.batch_size must be at least 1, got 0",
        "data.init_args.eval_batch_size must be at least 1, got 0",
        "data.init_args.alpha must be positive, got 0.0",
        "data.init_args.val_fraction must be in [0, 1), got 1.0",
        "data.init_args.public_train_fraction must be in (0, 1], got 0.0",
        "data.init_args.sample_rate must be in (0, 1], got 0.0",
        "data.init_args.public_labelled must be in (0, 1], got 0.0",
    ]


def faults(clients: Mapping[str, ClientProfile], **kwargs: Any) -> list[str]:
    with pytest.raises(ValueError, match="clients") as caught:
        attached(clients, **kwargs)
    return str(caught.value).splitlines()


def test_all_faults_of_all_clients_are_in_one_message() -> None:
    assert faults(
        {
            "a": client("tilt", "sound", "smell"),
            "b": client(),
            "c": client("wave", domains=["moon"]),
            "d": client("wave", domains=["mars", "attic"]),
        }
    ) == [
        "clients.a.modalities: 'sound' is not one of ['tilt', 'wave']",
        "clients.a.modalities: 'smell' is not one of ['tilt', 'wave']",
        "clients.b.modalities is empty: name at least one of ['tilt', 'wave']",
        "clients.c.domains: 'moon' is not one of ['attic', 'bath', 'cellar']",
        "clients.d.domains: 'mars' is not one of ['attic', 'bath', 'cellar']",
    ]


def test_empty_private_splits_are_named_beside_the_other_faults() -> None:
    found = faults({"a": client("sound"), "b": client("tilt", domains=[])})
    assert found[0] == "clients.a.modalities: 'sound' is not one of ['tilt', 'wave']"
    assert found[1].startswith("clients.b has no private samples: give it other `domains`")
    assert len(found) == 2


def test_label_skew_that_leaves_a_client_nothing_is_an_error() -> None:
    clients = {f"c{j}": client("tilt") for j in range(20)}
    found = faults(clients, partition="dirichlet", alpha=0.01)
    assert "raise data.init_args.alpha" in found[0]
    # With two classes and so small an alpha, about two clients hold everything.
    assert 10 < len(found) < 20


def test_domains_under_a_partition_that_ignores_them_are_refused() -> None:
    assert faults({"a": client("tilt", domains=["attic"])}, partition="dirichlet") == [
        "clients.a.domains needs data.init_args.partition: domain, got 'dirichlet'"
    ]


def test_clients_that_do_not_fit_leave_the_attached_ones_as_they_are() -> None:
    data = attached({"a": client("tilt")})
    before = data.private("a").ids
    with pytest.raises(ValueError, match="sound"):
        data.attach({"b": client("sound")})
    assert data.private("a").ids == before


def test_client_that_is_not_attached_is_a_key_error() -> None:
    with pytest.raises(KeyError, match=r"unknown client 'b', attached: \['a'\]"):
        attached({"a": client("tilt")}).private("b")


# Public pool --------------------------------------------------------------------------------------


def test_public_split_is_complete_and_cuts_no_recording() -> None:
    data = Toy(val_fraction=0.3, sample_rate=0.5)
    train, val, test = (data.public(split) for split in SPLITS)
    assert set(train.groups).isdisjoint(val.groups)
    assert sorted(train.ids + val.ids) == [f"P{i:02d}" for i in range(20)]
    assert len(val) == 6, "3 of 10 recordings"
    assert test.ids == tuple(f"T{i:02d}" for i in range(30))
    assert all(table.present.all() for table in (train, val, test))
    assert data.reads == 1


def test_fewer_public_recordings_are_part_of_more_and_leave_the_rest_as_it_is() -> None:
    whole, most, few = (Toy(val_fraction=0.3, public_train_fraction=f) for f in (1.0, 0.6, 0.3))
    recordings = [set(data.public("train").groups) for data in (whole, most, few)]
    assert recordings[2] < recordings[1] < recordings[0]
    assert len(recordings[2]) == round(0.3 * len(recordings[0]))
    for data in (most, few):
        assert data.public("val").ids == whole.public("val").ids
        assert data.public("test").ids == whole.public("test").ids


def test_fewer_labelled_recordings_are_part_of_more_and_lose_nothing_but_targets() -> None:
    whole, most, few = (Toy(val_fraction=0.3, public_labelled=f) for f in (1.0, 0.6, 0.3))
    tables = [data.public("train") for data in (whole, most, few)]
    known = [{i for i, t in zip(t.ids, t.targets, strict=True) if t} for t in tables]
    assert known[2] < known[1] < known[0] == set(tables[0].ids)
    recordings = [dict(zip(t.ids, t.groups, strict=True)) for t in tables]
    for table, labelled in zip(tables[1:], known[1:], strict=True):
        assert table.ids == tables[0].ids
        assert torch.equal(table.inputs["wave"], tables[0].inputs["wave"])
        assert table.labelled().sum() == len(labelled)
        there = {recordings[0][i] for i in labelled}
        assert {i for i, g in recordings[0].items() if g in there} == labelled, "whole recordings"
    for split in ("val", "test"):
        assert few.public(split).targets == whole.public(split).targets


def test_public_samples_are_restricted_to_what_a_client_has() -> None:
    data = Toy()
    assert data.public(modalities=["wave"]).modalities == ("wave",)
    assert data.public(modalities=["wave"]).ids == data.public().ids


def test_lightning_hooks_serve_the_public_split() -> None:
    data = Toy(val_fraction=0.3, batch_size=4, eval_batch_size=4)
    data.setup("fit")
    assert [len(batch.ids) for batch in data.train_dataloader()] == [4, 4, 4]
    shuffled = [i for batch in data.train_dataloader() for i in batch.ids]
    assert shuffled != sorted(shuffled)
    assert [i for b in data.val_dataloader() for i in b.ids] == list(data.public("val").ids)
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        assert [i for b in loader for i in b.ids] == list(data.public("test").ids)


def test_last_batch_is_kept_where_it_is_the_only_one() -> None:
    data = Toy(val_fraction=0.3, batch_size=50)
    assert [len(batch.ids) for batch in data.train_dataloader()] == [14]


# Private pool -------------------------------------------------------------------------------------


def test_dealing_covers_each_private_sample_once_and_cuts_no_recording() -> None:
    data = attached({"a": client("tilt"), "b": client("wave"), "c": client(*BOTH)})
    held = {n: {s: data.private(n, s) for s in ("train", "val")} for n in "abc"}
    ids = [i for splits in held.values() for table in splits.values() for i in table.ids]
    assert sorted(ids) == [f"V{i:02d}" for i in range(60)]
    groups = [set(table.groups) for splits in held.values() for table in splits.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 30


def test_nobody_trains_on_what_another_client_is_validated_on() -> None:
    clients = {name: client("tilt") for name in "abc"}
    data = attached(clients, partition="dirichlet", alpha=100.0, val_fraction=0.3)
    trained = {name: set(data.private(name).groups) for name in clients}
    held = {name: set(data.private(name, "val").groups) for name in clients}
    shared = trained["a"] & trained["b"]
    assert shared, "the partition deals samples, so clients share recordings"
    everybody, validated = (set().union(*each.values()) for each in (trained, held))
    assert validated
    assert not everybody & validated


def test_own_test_is_all_of_the_client_s_domains_and_shared_by_those_who_share_them() -> None:
    data = attached(
        {
            "a": client("tilt", domains=["attic"]),
            "b": client("tilt", domains=["attic", "bath"]),
            "c": client("tilt"),
        }
    )
    tests = {name: data.private(name, "test") for name in "abc"}
    assert {name: set(table.domains) for name, table in tests.items()} == {
        "a": {"attic"},
        "b": {"attic", "bath"},
        "c": {"cellar"},
    }
    assert {name: len(table) for name, table in tests.items()} == {"a": 10, "b": 20, "c": 10}


def test_label_skew_is_the_same_in_training_and_test() -> None:
    names = ("a", "b", "c")
    data = attached(
        dict.fromkeys(names, client("tilt")), partition="dirichlet", alpha=0.5, val_fraction=0.0
    )
    shares = {
        split: np.array([np.bincount(data.private(n, split).labels, minlength=2) for n in names])
        / size
        for split, size in (("train", [30, 30]), ("test", [16, 14]))
    }
    assert np.ptp(shares["train"], axis=0).min() > 0.2, "the draw must be skewed to show anything"
    # Rounding moves a share by at most one sample of the smaller pool.
    assert np.abs(shares["train"] - shares["test"]).max() <= 1 / 14 + 1 / 30
    np.testing.assert_allclose(shares["test"].sum(axis=0), 1)


def test_client_sees_its_modalities_only() -> None:
    data = attached({"a": client("wave"), "b": client("wave", "tilt")})
    for split in SPLITS:
        assert data.private("a", split).modalities == ("wave",)
        assert tuple(data.private("a", split).inputs) == ("wave",)
        assert data.private("b", split).modalities == BOTH, "in the order of the data set"


def test_masks_have_the_rate_and_blank_the_inputs() -> None:
    data = attached({"a": client(*BOTH)}, sample_rate=0.6, val_fraction=0.0)
    table = data.private("a")
    assert table.present.any(dim=1).all()
    # 0.6 + 0.4^2 / 2 = 0.68 of 120 cells, within three deviations.
    assert abs(int(table.present.sum()) - 0.68 * 120) < 3 * (120 * 0.68 * 0.32) ** 0.5
    for k, modality in enumerate(BOTH):
        value = table.inputs[modality].flatten(1)
        row = torch.tensor([float(i[1:]) + 1 for i in table.ids])
        assert torch.equal(value, (row * table.present[:, k]).unsqueeze(1).expand_as(value))


def test_mask_of_a_client_does_not_depend_on_the_others() -> None:
    a, b = client(*BOTH, domains=["bath"]), client(*BOTH, domains=["attic"])
    alone = attached({"a": a}, sample_rate=0.5)
    beside = attached({"b": b, "a": a}, sample_rate=0.5)
    for split in SPLITS:
        assert alone.private("a", split).ids == beside.private("a", split).ids
        assert torch.equal(alone.private("a", split).present, beside.private("a", split).present)
    assert torch.equal(alone.held_out("a", a).present, beside.held_out("a", a).present)
    named_otherwise = attached({"x": a}, sample_rate=0.5)
    assert not torch.equal(
        alone.private("a", "test").present, named_otherwise.private("x", "test").present
    )


def test_data_seed_moves_split_and_masks() -> None:
    clients = {"a": client(*BOTH)}
    first, again, other = (attached(clients, sample_rate=0.5, seed=s) for s in (0, 0, 1))
    assert first.private("a").ids == again.private("a").ids != other.private("a").ids
    assert first.public().ids == again.public().ids != other.public().ids
    present = [data.private("a", "test").present for data in (first, again, other)]
    assert torch.equal(present[0], present[1])
    assert not torch.equal(present[0], present[2])


def test_held_out_is_every_domain_as_the_client_s_sensors_see_it() -> None:
    profile = client("wave", domains=["bath"])
    data = attached({"a": profile}, sample_rate=0.5)
    table = data.held_out("a", profile)
    assert table.ids == data.public("test").ids
    assert table.modalities == ("wave",)


def test_loader_caps_the_batches_of_a_pass() -> None:
    data = attached({"a": client("tilt")}, batch_size=8)
    loader = data.loader(data.private("a"), limit=2)
    assert [len(batch.ids) for batch in loader.take(9, seed=0)] == [8, 8]


# The ceiling --------------------------------------------------------------------------------------


def test_pool_is_the_union_of_what_the_clients_hold_as_they_see_it() -> None:
    clients = {
        "a": client("tilt", domains=["attic"]),
        "b": client(*BOTH, domains=["bath"]),
    }
    data = attached(clients, sample_rate=0.5)
    pool = data.pooled()
    held = [data.private(name) for name in clients]
    assert sorted(pool.ids) == sorted(i for table in held for i in table.ids)
    assert pool.modalities == BOTH
    row = {sample: i for i, sample in enumerate(pool.ids)}
    for table in held:
        for i, sample in enumerate(table.ids):
            for k, modality in enumerate(BOTH):
                has = modality in table.modalities
                there = has and bool(table.present[i, table.modalities.index(modality)])
                assert bool(pool.present[row[sample], k]) == there
                value = table.inputs[modality][i] if there else torch.zeros(())
                assert (pool.inputs[modality][row[sample]] == value).all()


def test_restricted_pool_leaves_out_those_who_have_none_of_it() -> None:
    data = attached({"a": client("tilt", domains=["attic"]), "b": client("wave")}, sample_rate=0.5)
    pool = data.pooled(["wave"])
    assert pool.modalities == ("wave",)
    assert pool.present.all()
    assert set(pool.ids) == set(data.private("b").ids)
