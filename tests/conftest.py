"""Fixtures that all tests share, and the environment that they run in."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

# An example may take long: the machine may be busy.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parents[1]

# Set before anything imports transformers, which reads them once, at import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Inside the checkout, and one for all workers: a pocket model is trained once, not once a worker.
os.environ.setdefault("MLECS_CACHE", str(ROOT / ".cache" / "tests"))


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Fail a test that leaves another number of threads: later runs would end in other bits."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    torch = sys.modules.get("torch")
    if before is not None and torch.get_num_threads() != before:
        left = torch.get_num_threads()
        torch.set_num_threads(before)
        pytest.fail(f"the test leaves {left} threads, it began with {before}")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Folder of the checkout, where configs/ and cli.py are."""
    return ROOT


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Folder where the package keeps its pocket models during the tests."""
    path = Path(os.environ["MLECS_CACHE"])
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def urfd_root() -> Path:
    """Folder of the UR Fall data; tests that ask for it are skipped where there is none."""
    named = os.environ.get("MLECS_URFD_ROOT")
    places = (
        [Path(named)] if named else [ROOT / "data/urfd", ROOT.parent / "shared" / "data" / "urfd"]
    )
    for place in places:
        if place.is_dir():
            return place
    pytest.skip(f"no UR Fall data in {' or '.join(map(str, places))}; set MLECS_URFD_ROOT")


@pytest.fixture(scope="session")
def tiny(cache_dir: Path) -> SimpleNamespace:
    """Factories of the smallest real federation: pocket models, Digits, one step a pass.

    ``model``, ``parties``, ``data``, ``steps``, ``trainer``, ``build`` and ``fit`` take what
    differs from it; dropout is off, so that a pass can be repeated by hand.
    """
    from lightning.fabric import Fabric

    from mlecs_lightning import Digits, FederatedTrainer
    from mlecs_lightning.algorithms import Steps
    from mlecs_lightning.clients import ClientSettings, Federation, FederationModels
    from mlecs_lightning.clients.parties import Parties
    from mlecs_lightning.modules.pocket import make_pocket
    from mlecs_lightning.rounds import Algorithm, Loaders
    from mlecs_lightning.settings import ModelSettings, override

    base = ModelSettings.from_dict(
        {
            "backbone": {"model": "pocket/slm"},
            "lora": {"r": 2, "alpha": 4, "dropout": 0.0},
            "connector": {"width": 16, "prompt_length": 4, "dropout": 0.0},
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-2}},
            "max_new_tokens": 2,
        }
    )
    # Two of one architecture, and one of another.
    clients = {
        "kitchen": ClientSettings(["pixels", "profile"]),
        "hall": ClientSettings(["fourier"]),
        "study": ClientSettings(["pixels", "profile"]),
    }
    pools = Digits().load_pools()

    def model(**values: Any) -> ModelSettings:
        return override(base, values, key="model")

    def parties(named: dict[str, ClientSettings] | None = None, **values: Any) -> Federation:
        defaults = {"server": base, "edge": base, "clients": clients if named is None else named}
        return Federation(**{**defaults, **values})

    def data(kind: type[Digits] = Digits, **values: Any) -> Digits:
        module = kind(**{"batch_size": 8, "eval_batch_size": 8, "alpha": 5.0, **values})
        if kind is Digits and not values.keys() & {"public_fraction", "test_fraction", "seed"}:
            module._pools = pools  # read once for all tests
        return module

    def pocket() -> str:
        """Return the directory of the SLM, for modules that are built without a federation."""
        texts = data()
        return str(
            make_pocket("pocket/slm", texts.pretraining_pairs(), texts.public().instructions)
        )

    def steps(warmup: int = 0, public: int = 1, private: int = 1, server: int = 1) -> Steps:
        return Steps(warmup, public, private, server)

    def trainer(root: Path, **values: Any) -> FederatedTrainer:
        defaults = {
            "max_rounds": 1,
            "accelerator": "cpu",
            "devices": 1,
            "check_val_every_n_rounds": 0,
            "limit_val_batches": 1,
            "limit_test_batches": 1,
            "enable_checkpointing": False,
            "save_top_k": -1,  # so that a test can look at any round
            "enable_progress_bar": False,
            "logger": False,
            "default_root_dir": root,
            "name": "tiny",
        }
        return FederatedTrainer(**{**defaults, **values})

    def build(
        algorithm: Algorithm,
        settings: Federation | None = None,
        datamodule: Digits | None = None,
    ) -> FederationModels:
        """Build the live modules alone, without a trainer and without gradient clipping."""
        datamodule = datamodule or data()
        resolved = Parties.resolve(settings or parties(), algorithm, datamodule)
        fabric = Fabric(accelerator="cpu", devices=1)
        federation = FederationModels(
            resolved, datamodule, fabric=fabric, gradient_clip_val=None, algorithm=algorithm
        )
        federation.prepare(algorithm, coded=True)
        return federation

    def loaders(datamodule: Digits, client: str | None = None) -> Loaders:
        """Return the loaders of a client, or of the server."""
        if client is None:
            checks = datamodule.public("val")
            return Loaders(datamodule.loader(datamodule.public()), None, checks=checks)
        private = datamodule.private(client)
        public = datamodule.public(modalities=private.modalities)
        checks = datamodule.public("val", modalities=private.modalities)
        return Loaders(datamodule.loader(public), datamodule.loader(private), checks=checks)

    def fit(
        algorithm: Algorithm,
        root: Path,
        settings: Federation | None = None,
        datamodule: Digits | None = None,
        **values: Any,
    ) -> dict[str, Any]:
        return trainer(root, **values).fit(algorithm, datamodule or data(), settings or parties())

    return SimpleNamespace(
        model=model,
        parties=parties,
        clients=clients,
        data=data,
        pocket=pocket,
        steps=steps,
        trainer=trainer,
        build=build,
        loaders=loaders,
        fit=fit,
    )


@pytest.fixture(scope="session")
def tapped() -> Callable[[], AbstractContextManager[SimpleNamespace]]:
    """A context that records the real traffic and the real training passes inside it.

    ``messages`` are (direction, client, bytes) as written to the wire; ``passes`` are (party,
    stage, batches) as read by the training loop.
    """
    from mlecs_lightning.modules import Objective
    from mlecs_lightning.rounds import Learner
    from mlecs_lightning.types import Batch
    from mlecs_lightning.wire import Schema, channel

    @contextmanager
    def tap() -> Iterator[SimpleNamespace]:
        log = SimpleNamespace(messages=[], passes=[])
        receive, fit = channel.Channel.receive, Learner.fit

        def spied_receive(
            self: channel.Channel, data: bytes, schema: Schema, **facts: Any
        ) -> channel.ReceivedMessage:
            log.messages.append((facts["direction"], facts["client"], data))
            return receive(self, data, schema, **facts)

        def spied_fit(
            self: Learner[Any],
            batches: Iterable[Batch],
            objective: Objective | None = None,
            *,
            stage: str,
        ) -> dict[str, float]:
            seen = list(batches)
            log.passes.append((self.name, stage, seen))
            return fit(self, seen, objective, stage=stage)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(channel.Channel, "receive", spied_receive)
            patch.setattr(Learner, "fit", spied_fit)
            yield log

    return tap


@pytest.fixture(scope="session")
def mlecs_run(
    tiny: SimpleNamespace,
    tapped: Callable[[], AbstractContextManager[SimpleNamespace]],
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """Two rounds of ML-ECS with all that they left: read it, do not change it."""
    from mlecs_lightning import MLECS

    root = tmp_path_factory.mktemp("mlecs")
    trainer = tiny.trainer(
        root, max_rounds=2, check_val_every_n_rounds=1, enable_checkpointing=True, logger=True
    )
    trainer.config = {"seed_everything": 0}
    algorithm, data = MLECS(steps=tiny.steps(warmup=1, public=2)), tiny.data()
    with tapped() as log:
        summary = trainer.fit(algorithm, data, tiny.parties())
    return SimpleNamespace(
        algorithm=algorithm,
        data=data,
        summary=summary,
        root=root,
        folder=root / "tiny" / "version_0",
        messages=log.messages,
        passes=log.passes,
    )
