import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlecs_lightning.data.sampling import SeededLoader, draw_batches, sequential_loader
from mlecs_lightning.data.table import SampleTable

SIZES = st.integers(1, 30)


def table(n: int) -> SampleTable:
    """Build n samples whose input, target and id all tell their row."""
    return SampleTable(
        ids=tuple(f"s{i}" for i in range(n)),
        modalities=("x",),
        inputs={"x": torch.arange(float(n)).view(n, 1)},
        present=torch.ones(n, 1, dtype=torch.bool),
        instructions=("ask",) * n,
        targets=tuple(f"say {i}" for i in range(n)),
        labels=torch.zeros(n, dtype=torch.int64),
        domains=("d",) * n,
        groups=tuple(f"s{i}" for i in range(n)),
    )


@settings(deadline=None)  # the machine may be busy
@given(samples=SIZES, batch_size=SIZES, steps=st.integers(0, 12), seed=st.integers(0, 2**63))
def test_batches_are_full_and_every_sample_comes_before_any_comes_again(
    samples: int, batch_size: int, steps: int, seed: int
) -> None:
    batches = draw_batches(samples, batch_size, steps=steps, seed=seed)
    assert [len(batch) for batch in batches] == [min(batch_size, samples)] * steps
    seen: Counter[int] = Counter(dict.fromkeys(range(samples), 0))
    for index in (i for batch in batches for i in batch):
        seen[index] += 1
        assert max(seen.values()) - min(seen.values()) <= 1
    assert len(seen) == samples


def test_draw_depends_on_its_seed_alone() -> None:
    first = draw_batches(50, 8, steps=20, seed=5)
    for library in (random.seed, np.random.seed, torch.manual_seed):
        library(123)
    assert draw_batches(50, 8, steps=20, seed=5) == first
    assert draw_batches(50, 8, steps=20, seed=6) != first
    # Each further round through the data has an order of its own.
    flat = [i for batch in first for i in batch]
    assert flat[:50] != flat[50:100]


def states() -> tuple[object, list[int], list[int]]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_drawing_leaves_the_global_generators_alone() -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(123)  # a state that no draw ends in
    before = states()
    draw_batches(50, 8, steps=20, seed=5)
    assert states() == before


def test_nothing_to_draw_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty data set"):
        draw_batches(0, 8, steps=1, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_pass_is_the_drawn_rows_whatever_the_workers(workers: int) -> None:
    loader = SeededLoader(table(10), batch_size=4, num_workers=workers)
    rows = draw_batches(10, 4, steps=5, seed=3)
    batches = list(loader.take(5, seed=3))
    assert [[int(x) for x in batch.inputs["x"]] for batch in batches] == rows
    assert [batch.targets for batch in batches] == [tuple(f"say {i}" for i in b) for b in rows]


def test_pass_taken_twice_or_begun_and_dropped_is_the_same() -> None:
    loader = SeededLoader(table(10), batch_size=4)
    whole = [batch.ids for batch in loader.take(4, seed=3)]
    next(loader.take(4, seed=3))
    assert [batch.ids for batch in loader.take(4, seed=3)] == whole
    assert [batch.ids for batch in loader.take(4, seed=4)] != whole


@pytest.mark.parametrize(("steps", "count"), [(1, 4), (2, 8), (3, 10), (9, 10)])
def test_ids_are_the_distinct_ones_of_the_pass_in_order(steps: int, count: int) -> None:
    loader = SeededLoader(table(10), batch_size=4)
    used = [i for batch in loader.take(steps, seed=1) for i in batch.ids]
    ids = loader.ids(steps, seed=1)
    assert len(ids) == len(set(ids)) == count
    assert list(ids) == sorted(set(used), key=used.index)


def test_limit_caps_a_pass_and_its_ids() -> None:
    loader = SeededLoader(table(10), batch_size=4, limit=2)
    assert len(loader) == 10
    assert len(list(loader.take(5, seed=1))) == 2
    assert len(list(loader.take(1, seed=1))) == 1
    assert loader.ids(5, seed=1) == loader.ids(2, seed=1)


@settings(deadline=None)
@given(samples=st.integers(3, 20), batch_size=st.integers(3, 9), ranks=st.integers(1, 3))
def test_ranks_share_every_batch(samples: int, batch_size: int, ranks: int) -> None:
    whole = SeededLoader(table(samples), batch_size=batch_size)
    parts = [
        SeededLoader(table(samples), batch_size=batch_size, shard=(rank, ranks))
        for rank in range(ranks)
    ]
    passes = [[batch.ids for batch in part.take(4, seed=5)] for part in parts]
    for n, batch in enumerate(whole.take(4, seed=5)):
        assert [mine[n] for mine in passes] == [batch.ids[rank::ranks] for rank in range(ranks)]
    assert all(part.ids(4, seed=5) == whole.ids(4, seed=5) for part in parts)


@pytest.mark.parametrize(("batch_size", "samples"), [(2, 10), (8, 2)])
def test_a_batch_with_fewer_samples_than_ranks_is_refused(batch_size: int, samples: int) -> None:
    SeededLoader(table(samples), batch_size=batch_size, shard=(1, 2))
    with pytest.raises(ValueError, match=r"data\.init_args\.batch_size is .*3 processes cannot"):
        SeededLoader(table(samples), batch_size=batch_size, shard=(1, 3))


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_is_none_is_refused(shard: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="0 <= rank < size"):
        SeededLoader(table(10), batch_size=4, shard=shard)


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_a_resumed_pass_goes_on_where_it_stopped(start: int) -> None:
    loader = SeededLoader(table(10), batch_size=4, shard=(1, 2))
    whole = [batch.ids for batch in loader.take(5, seed=3)]
    assert [batch.ids for batch in loader.take(5, seed=3, start=start)] == whole[start:]


def test_sequential_loader_goes_through_the_table_once_in_order() -> None:
    batches = list(sequential_loader(table(10), 4))
    assert [len(batch.ids) for batch in batches] == [4, 4, 2]
    assert [i for batch in batches for i in batch.ids] == [f"s{i}" for i in range(10)]
