"""Differential privacy in a round: the clipped updates of the devices, and their noisy sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.functional import clip_to_norm, gaussian_noise
from mlecs_lightning.rounds.accounting import Accountant
from mlecs_lightning.rounds.algorithm import Algorithm, Loaders
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.wire.channel import adapter_of
from mlecs_lightning.wire.messages import Message

__all__ = ["PrivateSum", "protected"]


def protected(
    message: Message,
    received: Message | None,
    accountant: Accountant,
    *,
    client: str,
    ctx: RoundContext,
) -> Message:
    """Return an update as it may leave its device: clipped, and with noise if the device adds it.

    Args:
        message: The update, with the trained adapter.
        received: The broadcast, with the adapter that the client was sent.
        accountant: Has the settings, and the expected number of participants.
        client: The client.
        ctx: The round.
    """
    privacy, sent = accountant.privacy, adapter_of(received)
    trained = adapter_of(message)
    changes = {name: trained[name].cpu().double() - sent[name].double() for name in trained}
    changes = clip_to_norm(changes, privacy.clip)
    if privacy.where == "device":
        share = privacy.noise_multiplier * privacy.clip / math.sqrt(accountant.expected(client))
        seed = None if privacy.secure_noise else ctx.seed_for(client, "privacy")
        changes = _added(changes, gaussian_noise(changes, share, seed=seed))
    moved = {
        name: (sent[name].double() + change).to(trained[name].dtype)
        for name, change in changes.items()
    }
    return Message({**message.tensors, **moved}, message.scalars)


@dataclass
class PrivateSum:
    """The noisy sum of a round's clipped updates, group by group, in the place of the updates.

    The algorithm sees nothing else of the clients, so whatever it does is post-processing. A group
    without any participant has its noise as well: that nobody took part must not show.

    Attributes:
        federation: The groups, and the clients' modules.
        algorithm: The method.
        accountant: Has the settings.
        ctx: The round.
        added: The clients whose updates are in the sums so far.
    """

    federation: FederationModels
    algorithm: Algorithm
    accountant: Accountant
    ctx: RoundContext
    added: list[str] = field(default_factory=list, init=False)
    _group: dict[str, str] = field(default_factory=dict, init=False)
    _sent: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)
    _sums: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def begin(self, loaders: Loaders) -> None:
        """Read what the clients of each group are sent, whether or not any takes part.

        Args:
            loaders: The server's data.
        """
        groups = self.federation.parties.groups.values()
        self._group = {client: members[0] for members in groups for client in members}
        firsts = replace(self.ctx, participants=tuple(members[0] for members in groups))
        for client, message in self.algorithm.broadcast(self.federation.server, loaders, firsts):
            sent = adapter_of(message)
            names = self.algorithm.uplink(self.federation.module(client)).tensors
            self._sent[client] = {name: sent[name].detach().cpu() for name in names}
            self._sums[client] = {
                name: torch.zeros(sent[name].shape, dtype=torch.float64) for name in names
            }

    def checked(
        self, broadcasts: Iterable[tuple[str, Message | None]]
    ) -> Iterator[tuple[str, Message | None]]:
        """Yield the broadcasts, each the same adapter as the first client of its group is sent.

        Raises:
            ConfigurationError: If a client is sent another one: sums of changes from several
                adapters are a change of none.
        """
        for client, message in broadcasts:
            first = self._group[client]
            expected, sent = self._sent[first], adapter_of(message)
            if not all(torch.equal(sent[k].cpu(), tensor) for k, tensor in expected.items()):
                raise ConfigurationError(
                    f"trainer.privacy: {type(self.algorithm).__name__} sends clients.{client} "
                    f"another adapter than clients.{first}, allowed: one for all clients of a group"
                )
            yield client, message

    def messages(self, updates: Iterable[tuple[str, Message]]) -> Iterator[tuple[str, Message]]:
        """Add up the updates; yield for each group the message with the noisy sum.

        Args:
            updates: The accepted updates.

        Yields:
            The first client of a group, and its adapter plus the sum of the group's changes and
            noise, divided by the expected number of participants.
        """
        for client, message in updates:
            self._add(client, message)
        for first, sent in self._sent.items():
            changes = _added(self._sums[first], self._noise(first))
            weight = 1 / self.accountant.expected(first)
            adapter = {
                name: (sent[name].double() + weight * change).to(sent[name].dtype)
                for name, change in changes.items()
            }
            schema = self.algorithm.uplink(self.federation.module(first))
            # Only scalars with one allowed value are admitted, so they say nothing of a client.
            fixed = {name: form.equal for name, form in schema.scalars.items()}
            told = {name: value for name, value in fixed.items() if value is not None}
            yield first, Message(adapter, told)

    def _add(self, client: str, message: Message) -> None:
        first, privacy = self._group[client], self.accountant.privacy
        trained = adapter_of(message)
        changes = {name: trained[name].double() - self._sent[first][name] for name in trained}
        if privacy.where == "server":
            # The device has clipped them: up to rounding, and if it is honest.
            changes = clip_to_norm(changes, privacy.clip)
        self._sums[first] = _added(self._sums[first], changes)
        self.added.append(client)

    def _noise(self, first: str) -> Mapping[str, Tensor]:
        """Return a group's noise, the same on all ranks; none where the devices have added it."""
        privacy, sums, ranks = self.accountant.privacy, self._sums[first], self.federation.ranks
        if privacy.where == "device":
            return {}
        std = privacy.noise_multiplier * privacy.clip
        if not privacy.secure_noise:
            return gaussian_noise(sums, std, seed=self.ctx.seed_for(first, "privacy of the sum"))
        return ranks.gather(None if ranks.rank else gaussian_noise(sums, std))[0] or {}


def _added(changes: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t + more[name] if name in more else t for name, t in changes.items()}
