"""A model that a run has left, exported once."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlecs_lightning.checkpoints.export import export_run


@pytest.fixture(scope="session")
def exported(mlecs_run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client hall: read it, do not change it."""
    return export_run(mlecs_run.folder, tmp_path_factory.mktemp("out") / "hall", client="hall")


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """The same, to be changed on purpose: without digests, as of an earlier version."""
    folder = Path(shutil.copytree(exported, tmp_path / "hall"))
    (folder / "SHA256SUMS").unlink()
    return folder


@pytest.fixture(scope="session")
def talking(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run whose models say whole sentences, and what they say."""
    from mlecs_lightning import FedAvg

    root = tmp_path_factory.mktemp("talking")
    model = tiny.model(max_new_tokens=12, optimizer={"init_args": {"lr": 1e-2}})
    # One client has an adapter of its own beside the one that travels.
    clients = {**tiny.clients, "hall": replace(tiny.clients["hall"], lora={"private_r": 1})}
    federation = tiny.parties(clients, server=model, edge=model)
    trainer = tiny.trainer(root, enable_checkpointing=True)
    algorithm, data = FedAvg(steps=tiny.steps(warmup=2, public=2)), tiny.data()
    trainer.fit(algorithm, data, federation)
    rows = trainer.predict(algorithm, data, federation, "last")
    return SimpleNamespace(
        trainer=trainer,
        folder=rows.path.parent,
        test=data.pools.test,
        said={
            party: {r["id"]: r["prediction"] for r in rows if r["party"] == party}
            for party in ("kitchen", "hall", "study", "server")
        },
    )
