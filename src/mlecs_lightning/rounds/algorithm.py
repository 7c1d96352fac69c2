"""The interface between the federated trainer and a method: four steps of a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from mlecs_lightning.aggregation import Aggregate
from mlecs_lightning.data import SeededLoader
from mlecs_lightning.modules import EdgeModule, ServerModule
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.learner import EdgeLearner, ServerLearner
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.wire.messages import Message, Schema

__all__ = ["Algorithm", "ClientUpdate", "Loaders"]


class Loaders(NamedTuple):
    """The training data of one party.

    Attributes:
        public: The public samples, restricted to the party's modalities.
        private: A client's own samples. Under an algorithm that pools the data (`Centralized`),
            everybody's; the server has none otherwise.
        resources: What a client can spend in this round, as a multiple of its configured budget.
    """

    public: SeededLoader
    private: SeededLoader | None
    resources: float = 1.0


class ClientUpdate(NamedTuple):
    """What a client did in a round.

    Attributes:
        message: What it sends up, ``None`` if the algorithm does not communicate.
        metrics: Its training losses and other figures; of these the ones that
            `Algorithm.figures` declares go up with the message.
    """

    message: Message | None
    metrics: dict[str, float]


class Algorithm(ABC):
    """One method of training a federation.

    A round is ``broadcast`` -> ``client_update`` for each participant -> ``aggregate`` ->
    ``server_update``. Everything between the two sides goes through the channel, under the schemas
    declared here. An algorithm holds settings, and no state that changes from round to round.
    """

    communicates: ClassVar[bool] = True
    """Whether anything is sent; if not, `broadcast`, `aggregate` and the schemas are not called."""

    pools_private: ClassVar[bool] = False
    """Whether every party sees all private data. Only for the ceiling, `Centralized`."""

    uses_proxy: ClassVar[bool] = False
    """Whether clients have a proxy beside their SLM, of the backbone that the server hosts."""

    registers: ClassVar[tuple[str, ...]] = ()
    """Scalars of an update that a client cannot change later, such as its number of samples."""

    delivers: ClassVar[bool] = False
    """Whether devices are handed over with a model that the server has made: see `deliver`."""

    def faults(self, clients: Mapping[str, LoraSettings], *, batch_size: int) -> list[str]:
        """Say what in the settings does not fit this algorithm, before anything is built.

        Args:
            clients: The adapter settings of each client.
            batch_size: Samples of a training batch.

        Returns:
            One line for each fault, naming the key and what is allowed.
        """
        return []

    def hosted_lora(self, clients: Mapping[str, LoraSettings]) -> LoraSettings:
        """Return the adapter settings of the SLM that the server hosts."""
        return next(iter(clients.values()))

    def adds_parts(self) -> bool:
        """Return whether models have parts that only this algorithm can build again."""
        hooks = ("build_edge", "build_server")
        return any(getattr(type(self), hook) is not getattr(Algorithm, hook) for hook in hooks)

    def build_server(self, module: ServerModule, clients: Iterable[str]) -> None:
        """Add parts to the server's fresh module, before its optimiser is built.

        Args:
            module: The server's module.
            clients: The names of all clients.
        """
        return

    def build_edge(self, module: EdgeModule, modalities: Iterable[str]) -> None:
        """Add parts to an edge's fresh module, before its optimiser is built.

        Args:
            module: The edge's module.
            modalities: All modalities of the data, not only the edge's own.
        """
        return

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Look at the freshly built modules, or change them, before round 0.

        Args:
            server: The server.
            clients: The module of each client; clients of one architecture share it.
        """
        return

    def shipped(self, server: ServerLearner, client: str) -> Mapping[str, Tensor]:
        """Return tensors of a broadcast that a device has before the first message.

        A codec sends what has changed since. Called once, on the fresh server, whose weights are a
        function of the seed: a device can be delivered with them. Whatever is not here counts as
        zero.
        """
        return {}

    def downlink(self, server: ServerLearner, edge: EdgeModule) -> Schema:
        """Declare all that a broadcast to a client holds."""
        return Schema()

    def uplink(self, edge: EdgeModule) -> Schema:
        """Declare all that a client's update holds."""
        return Schema()

    def figures(self) -> tuple[str, ...]:
        """Name all the figures that a client may report of its training, as ``stage/name``.

        They go up as a part of the message, one finite float64 each, and are counted under
        ``report``. Whatever else `client_update` returns as a metric stays on the device. Where
        nothing goes up, these are what the experimenter sees.
        """
        return ()

    def former(
        self, server: ServerLearner, message: Message, received: Message | None
    ) -> Mapping[str, Tensor]:
        """Return what the tensors of an update started from, for those whose change is limited.

        See ``trainer.max_update_ratio``. By default the adapter that came down, where one goes up.

        Args:
            server: The server.
            message: The update, of the declared form.
            received: What the client was sent.

        Returns:
            Tensors of the update's names and shapes.
        """
        there = {} if received is None else received.tensors
        return {k: there[k] for k in message.tensors if k in there and k.startswith("adapter/")}

    def refusals(self, server: ServerLearner, message: Message) -> list[str]:
        """Say what makes no sense in an update whose form is as declared.

        Called before the update is used; with any fault it is refused, and the client gives nothing
        in this round.
        """
        return []

    def deliver(self, server: ServerLearner, edge: EdgeModule) -> None:
        """Change a client's fresh model once the server is warm, as before a device is handed over.

        With `delivers` only. Not a message: it does not cross the channel, and is not counted. What
        a device has then is what the warm server has: `shipped` is asked again.
        """
        return

    @abstractmethod
    def warmup(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> dict[str, float]:
        """Train the server alone before round 0; return its losses."""

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message | None]]:
        """Yield the message to each participant, in order; ``None`` sends nothing.

        A generator: the message of one client exists only while that client is served, so that
        memory does not grow with their number.
        """
        return ()

    @abstractmethod
    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Train one client."""

    def aggregate(
        self, updates: Iterable[tuple[str, Message]], ctx: RoundContext
    ) -> Aggregate | None:
        """Consume the clients' messages as they arrive; keep no more of them than needed.

        Returns:
            What `server_update` needs of them: an `Aggregate`, or the algorithm's own subclass.
            ``None`` if nothing arrived.
        """
        for _ in updates:
            pass
        return None

    @abstractmethod
    def server_update(
        self,
        server: ServerLearner,
        aggregate: Any,  # noqa: ANN401 - the algorithm's own class
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Train the server with what `aggregate` returned; return its losses.

        Args:
            server: The server.
            aggregate: What `aggregate` returned; ``None`` if it returned that, or if fewer clients
                than ``trainer.min_clients`` sent an update. An override may name its own class.
            loaders: The server's data.
            ctx: The round.
        """
