import hashlib
import os
import random
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from lightning.fabric import seed_everything

from mlecs_lightning.rounds import RoundContext, context
from mlecs_lightning.rounds.context import derive_seed, seed_generators


def test_seeds_differ_by_run_round_party_and_stage() -> None:
    seeds = {
        RoundContext(number, seed, ("a", "b")).seed_for(party, stage)
        for seed, number, party, stage in product(
            (0, 1), (-1, 0, 1, 10), ("a", "b", "server"), ("public", "private", "update")
        )
    }
    assert len(seeds) == 2 * 4 * 3 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seed_does_not_depend_on_the_participants() -> None:
    alone, among = RoundContext(3, 7, ("b",)), RoundContext(3, 7, ("a", "b", "c"))
    assert alone.seed_for("b", "public") == among.seed_for("b", "public")


def test_seed_is_the_first_63_bits_of_a_digest() -> None:
    """A value that changed between releases would change every resumed run."""
    digest = hashlib.sha256(b"27/3/kitchen/public").hexdigest()
    expected = int("".join(reversed([digest[i : i + 2] for i in range(0, 16, 2)])), 16) // 2
    assert RoundContext(3, 27, ()).seed_for("kitchen", "public") == expected


@pytest.mark.parametrize("hash_seed", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_seed_is_the_same_in_every_process(hash_seed: str) -> None:
    # The file alone: importing the package would take seconds.
    code = (
        f"import runpy; names = runpy.run_path({context.__file__!r});"
        "print(names['RoundContext'](3, 27, ('kitchen',)).seed_for('kitchen', 'public'))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(printed) == derive_seed(27, 3, "kitchen", "public")


def test_context_is_frozen() -> None:
    ctx = RoundContext(0, 0, ())
    with pytest.raises(AttributeError):
        ctx.round = 1  # type: ignore[misc]


def test_generators_are_seeded_as_by_lightning() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    seed_everything(7, verbose=False)
    expected = draws()
    assert draws() != expected
    seed_generators(7)
    assert draws() == expected
