"""What server and device must have in common before they train together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from mlecs_lightning.clients.edges import Edges
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.data import FederatedDataModule, SampleTable
from mlecs_lightning.differences import alike, arguments_of, as_data, differences
from mlecs_lightning.federated.exchange.coverage import accountant_of
from mlecs_lightning.federated.settings import TrainerSettings
from mlecs_lightning.modules.contents import content_faults
from mlecs_lightning.rounds.algorithm import Algorithm

__all__ = ["Agreement", "public_digest"]

# Where a party finds its data, and how it reads them, is its own affair.
_OWN = frozenset(
    {"root", "file", "cache_dir", "allowed_roots", "num_workers", "eval_batch_size", "on_error"}
)
# The server alone decides who takes part and what it accepts; a device trains one client.
_SERVERS = frozenset({"participation", "update_limits", "cohort"})
# What a device's share of the noise is computed from, named by the settings that it follows from.
_EXPECTED = "expected_participants (participation.fraction times the clients of its group)"
# Compared by the digests of their content: a model may lie in another folder.
_NAMES = ("backbone.model",)


@dataclass(frozen=True)
class Agreement:
    """What a device and the server compare before the first round.

    Attributes:
        version: Version of this package.
        settings: Settings of algorithm, data, trainer and this client, as plain data.
        frozen: Digests of the frozen parts of the client's model.
        public: SHA-256 of the public samples as the client sees them.
    """

    version: str
    settings: Mapping[str, Any]
    frozen: Mapping[str, Any]
    public: str

    @classmethod
    def of(
        cls,
        client: str,
        *,
        edges: Edges,
        data: FederatedDataModule,
        algorithm: Algorithm,
        trainer: TrainerSettings,
        precision: str,
        public: Callable[[tuple[str, ...]], str] | None = None,
    ) -> Agreement:
        """Return what this end knows.

        Args:
            client: The client.
            edges: The models, of this client at least.
            data: The data set.
            algorithm: The method.
            trainer: Settings of the trainer.
            precision: Numerical precision of the training.
            public: Returns what `public_digest` does; may remember it, since it reads all samples.
        """
        parties, parts = edges.parties, arguments_of(data)
        modalities = parties.profiles[client].modalities
        preparations = {
            name: preparation.to_dict()
            for name, preparation in data.preparations.items()
            if name in modalities
        }
        settings = {
            "seed_everything": parties.seed,
            "algorithm": _named(algorithm, arguments_of(algorithm)),
            "data": _named(data, {k: v for k, v in parts.items() if k not in _OWN}),
            "trainer": {**_shared(client, trainer, parties), "precision": precision},
            f"clients.{client}": {
                "modalities": sorted(modalities),
                **as_data(parties.models[client]),
            },
            "inputs": preparations,
        }
        return cls(
            version("mlecs_lightning"),
            _plain(settings),
            _plain(edges.module(client).frozen_contents()),
            (public or partial(public_digest, data))(tuple(modalities)),
        )

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dict(vars(self))

    def faults(self, server: Mapping[str, Any]) -> list[str]:
        """Compare it with what the server says, on the device.

        Args:
            server: The server's `plain`.

        Returns:
            One line for each difference, with its key and both values.
        """
        faults = []
        if server.get("version") != self.version:
            faults.append(
                f"mlecs_lightning is {server.get('version')} at the server and {self.version} on "
                "the device: install the same version"
            )
        lines = differences(server.get("settings", {}), self.settings, same=alike)
        faults += [
            line.replace("in the checkpoint", "at the server").replace(" now", " on the device")
            for key, line in lines.items()
            if not key.endswith(_NAMES)
        ]
        names = ("at the server", "on the device")
        faults += content_faults(server.get("frozen", {}), self.frozen, names=names)
        if server.get("public") != self.public:
            faults.append(
                f"the public samples have sha256 {str(server.get('public'))[:16]} at the server "
                f"and {self.public[:16]} on the device: copy the server's public samples"
            )
        return faults


def public_digest(data: FederatedDataModule, modalities: Sequence[str]) -> str:
    """Return the SHA-256 of the public samples as a client with these modalities sees them."""
    return digest_of(*(data.public(s, modalities=modalities) for s in ("train", "val")))


def digest_of(*tables: SampleTable) -> str:
    """Return the SHA-256 of the samples of tables: ids, texts and inputs."""
    digest = hashlib.sha256()
    for table in tables:
        texts = (table.ids, table.instructions, [str(target) for target in table.targets])
        digest.update(json.dumps([table.modalities, *texts]).encode())
        for tensor in (table.present, *table.inputs.values()):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _shared(client: str, trainer: TrainerSettings, parties: Parties) -> dict[str, Any]:
    """Return the trainer's settings that both ends must share."""
    settings = {k: v for k, v in trainer.compared().items() if k not in _SERVERS}
    accountant = accountant_of(trainer.loop, parties.groups.values())
    if accountant is not None and accountant.privacy.where == "device":
        # Participation is the server's, but with another number devices would add too little noise.
        expected = float(accountant.expected(client))
        settings["privacy"] = {**settings["privacy"], _EXPECTED: expected}
    return settings


def _named(part: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"class_path": type(part).__name__, "init_args": as_data(arguments)}


def _plain(value: Any) -> Any:  # noqa: ANN401 - plain data
    """Return a value as it comes out of JSON, so that both ends compare the same form."""
    return json.loads(json.dumps(as_data(value)))
