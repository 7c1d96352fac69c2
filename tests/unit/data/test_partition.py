from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlecs_lightning.data.partition import (
    dirichlet_proportions,
    partition_by_domain,
    partition_dirichlet,
    split_groups,
)

# Two recordings of two samples in each of three scenes, the recordings interleaved.
DOMAINS = [scene for scene in ("attic", "bath", "cellar") for _ in range(4)]
GROUPS = [f"{scene}-{i % 2}" for scene in ("attic", "bath", "cellar") for i in range(4)]


def dealt(wanted: Mapping[str, Sequence[str] | None]) -> dict[str, list[str]]:
    """Return the recordings of each client, after checking that each is held whole and once."""
    rows = partition_by_domain(DOMAINS, GROUPS, wanted=wanted)
    assert list(rows) == list(wanted)
    everything = [i for part in rows.values() for i in part]
    assert len(everything) == len(set(everything))
    held = {client: sorted({GROUPS[i] for i in part}) for client, part in rows.items()}
    for client, part in rows.items():
        assert list(part) == [i for i, group in enumerate(GROUPS) if group in held[client]]
    return held


def groups_of(*scenes: str) -> list[str]:
    return [f"{scene}-{i}" for scene in scenes for i in (0, 1)]


# By domain ----------------------------------------------------------------------------------------


def test_client_gets_the_domains_that_it_names() -> None:
    assert dealt({"a": ["cellar"], "b": ["attic", "bath"]}) == {
        "a": groups_of("cellar"),
        "b": groups_of("attic", "bath"),
    }


def test_domain_that_nobody_names_is_held_by_nobody() -> None:
    assert dealt({"a": ["cellar"]}) == {"a": groups_of("cellar")}


def test_recordings_of_a_shared_domain_are_dealt_in_turn() -> None:
    assert dealt({"a": ["bath"], "b": ["bath", "attic"]}) == {
        "a": ["bath-0"],
        "b": ["attic-0", "attic-1", "bath-1"],
    }


def test_undeclared_clients_get_the_domains_that_nobody_named() -> None:
    assert dealt({"a": None, "b": ["bath"]}) == {
        "a": groups_of("attic", "cellar"),
        "b": groups_of("bath"),
    }
    assert dealt({"a": None, "b": None}) == {
        "a": groups_of("attic", "cellar"),
        "b": groups_of("bath"),
    }


def test_more_undeclared_clients_than_domains_share_them() -> None:
    assert dealt({"a": ["attic", "bath"], "b": None, "c": None}) == {
        "a": groups_of("attic", "bath"),
        "b": ["cellar-0"],
        "c": ["cellar-1"],
    }


def test_undeclared_client_shares_all_domains_if_none_is_free() -> None:
    assert dealt({"a": ["attic", "bath", "cellar"], "b": None}) == {
        "a": ["attic-0", "bath-0", "cellar-0"],
        "b": ["attic-1", "bath-1", "cellar-1"],
    }


def test_client_that_names_no_domain_gets_nothing() -> None:
    assert dealt({"a": [], "b": None}) == {"a": [], "b": groups_of("attic", "bath", "cellar")}


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.one_of(st.none(), st.sets(st.sampled_from("xyz"), min_size=1)), min_size=1),
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 3)), min_size=1),
)
def test_groups_are_whole_and_every_claimed_sample_is_held_once(
    wishes: list[set[str] | None], samples: list[tuple[str, int]]
) -> None:
    known = {domain for domain, _ in samples}
    wanted = {
        f"c{j}": None if wish is None else sorted(wish & known) for j, wish in enumerate(wishes)
    }
    domains = [domain for domain, _ in samples]
    groups = [f"{domain}{i}" for domain, i in samples]
    rows = partition_by_domain(domains, groups, wanted=wanted)
    owners = {g: {c for c, part in rows.items() if g in {groups[i] for i in part}} for g in groups}
    claimed = known if None in wishes else {d for names in wanted.values() for d in names or ()}
    for domain, group in zip(domains, groups, strict=True):
        assert len(owners[group]) == (domain in claimed)
    assert sum(map(len, rows.values())) == sum(domain in claimed for domain in domains)


def test_clients_may_number_their_recordings_alike() -> None:
    domains, groups = ["hall", "kitchen", "kitchen"], ["rec-1", "rec-1", "rec-2"]
    wanted = {"hall": ["hall"], "kitchen": ["kitchen"]}
    rows = partition_by_domain(domains, groups, wanted=wanted)
    assert {client: own.tolist() for client, own in rows.items()} == {
        "hall": [0],
        "kitchen": [1, 2],
    }


def test_unknown_domains_of_all_clients_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="not one of") as caught:
        partition_by_domain(DOMAINS, GROUPS, wanted={"a": ["moon", "attic"], "b": ["mars"]})
    assert str(caught.value).splitlines() == [
        "clients.a.domains: 'moon' is not one of ['attic', 'bath', 'cellar']",
        "clients.b.domains: 'mars' is not one of ['attic', 'bath', 'cellar']",
    ]


# Dirichlet ----------------------------------------------------------------------------------------


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.integers(1, 6),
    st.floats(0.05, 50),
    st.integers(0, 1000),
)
def test_every_sample_goes_to_one_client(
    labels: list[int], clients: int, alpha: float, seed: int
) -> None:
    names = [f"c{j}" for j in range(clients)]
    table = dirichlet_proportions(4, clients, alpha=alpha, seed=seed)
    rows = partition_dirichlet(labels, names, proportions=table, seed=seed)
    assert list(rows) == names
    assert sorted(i for part in rows.values() for i in part) == list(range(len(labels)))
    assert all(list(part) == sorted(part) for part in rows.values())


def test_proportions_hold_for_every_class_in_both_pools() -> None:
    names = ["a", "b", "c"]
    table = dirichlet_proportions(2, 3, alpha=0.5, seed=4)
    for seed, sizes in ((1, [1000, 500]), (2, [200, 300])):
        labels = np.repeat([0, 1], sizes)
        rows = partition_dirichlet(labels, names, proportions=table, seed=seed)
        counts = np.array([np.bincount(labels[rows[n]], minlength=2) for n in names]).T
        # Only the rounding of the two cuts is between a share and its proportion.
        assert np.abs(counts - table * np.array(sizes)[:, None]).max() <= 1


def test_samples_of_a_class_are_shuffled_by_the_seed() -> None:
    labels, even = np.zeros(100, dtype=int), np.full((1, 2), 0.5)
    first, again, other = (
        partition_dirichlet(labels, ["a", "b"], proportions=even, seed=s)["a"] for s in (0, 0, 1)
    )
    assert first.tolist() == again.tolist() != other.tolist()
    assert first.tolist() != list(range(50))


def test_alpha_sets_the_skew() -> None:
    shares = {a: dirichlet_proportions(2000, 4, alpha=a, seed=0) for a in (0.3, 10.0, np.inf)}
    for table in shares.values():
        assert table.shape == (2000, 4)
        np.testing.assert_allclose(table.sum(axis=1), 1)
        np.testing.assert_allclose(table.mean(axis=0), 0.25, atol=0.03)
    # Variance of a share of a symmetric Dirichlet with J = 4: (1/4)(3/4) / (4 alpha + 1).
    for alpha in (0.3, 10.0):
        assert shares[alpha].var() == pytest.approx(0.1875 / (4 * alpha + 1), rel=0.05)
    assert (shares[np.inf] == 0.25).all()


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be positive, got"):
        dirichlet_proportions(2, 2, alpha=alpha, seed=0)


# Training and validation --------------------------------------------------------------------------


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.integers(0, 9).map(str), min_size=1, max_size=50),
    st.floats(0, 0.99),
    st.integers(0, 1000),
)
def test_split_covers_each_sample_once_and_cuts_no_group(
    groups: list[str], fraction: float, seed: int
) -> None:
    train, val = split_groups(groups, fraction, seed=seed)
    assert sorted([*train, *val]) == list(range(len(groups)))
    assert not {groups[i] for i in train} & {groups[i] for i in val}
    n = len(set(groups))
    held = len({groups[i] for i in val})
    assert held == (min(max(round(fraction * n), 1), n - 1) if fraction else 0)


def test_split_counts_recordings_not_samples() -> None:
    groups = ["long"] * 90 + [f"short-{i}" for i in range(9)]
    held = [len({groups[i] for i in split_groups(groups, 0.3, seed=s)[1]}) for s in range(20)]
    assert held == [3] * 20


def test_split_is_a_function_of_its_seed_and_of_the_names() -> None:
    groups = [f"g{i}" for i in range(20)]
    _, first = split_groups(groups, 0.25, seed=0)
    _, other = split_groups(groups, 0.25, seed=1)
    assert first.tolist() != other.tolist()
    # The same recordings, wherever they stand.
    _, turned = split_groups(groups[::-1], 0.25, seed=0)
    assert {groups[i] for i in first} == {groups[::-1][i] for i in turned}
