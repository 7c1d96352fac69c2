"""The interface between the federated trainer and an algorithm: the four steps of a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from mlecs_lightning.aggregation import Aggregate
from mlecs_lightning.data import SampleTable, SeededLoader
from mlecs_lightning.extras import Need
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
        private: A client's own samples. The server has none, unless the algorithm pools the data
            (`Centralized`); then every party has the samples of all clients.
        resources: The client's budget in this round, as a multiple of its configured budget.
        checks: The public validation samples, restricted to the party's modalities: their targets
            are known to all, and nobody trains on them. ``None`` counts as none.
    """

    public: SeededLoader
    private: SeededLoader | None
    resources: float = 1.0
    checks: SampleTable | None = None


class ClientUpdate(NamedTuple):
    """The result of a client's round.

    Attributes:
        message: The uplink message; ``None`` if the algorithm does not communicate.
        metrics: Training losses and other figures. Those that `Algorithm.figures` declares are
            sent with the message.
    """

    message: Message | None
    metrics: dict[str, float]


class Algorithm(ABC):
    """A method of training a federation.

    A round is ``broadcast`` -> ``client_update`` for each participant -> ``aggregate`` ->
    ``server_update``. All messages pass the channel, which checks them against the schemas declared
    here.

    An algorithm holds its settings and what `prepare` reads from the fresh modules, but no state
    that changes from round to round: such state belongs in buffers of the modules (`build_server`,
    `build_edge`), where checkpoints save it.
    """

    communicates: ClassVar[bool] = True
    """Whether messages are sent; if not, `broadcast`, `aggregate` and the schemas are not used."""

    pools_private: ClassVar[bool] = False
    """Whether every party sees all private data. Only for the upper bound, `Centralized`."""

    uses_proxy: ClassVar[bool] = False
    """Whether clients have a proxy beside their SLM, with the backbone that the server hosts."""

    reads_words: ClassVar[bool] = True
    """Whether a text modality can be tokens (``as: tokens``). Not in a method that sends what
    extractors return, or replaces extractors and connector: the text itself would be there."""

    one_model: ClassVar[bool] = False
    """Whether devices run one model, or parts of it, so that all have one backbone."""

    registers: ClassVar[tuple[str, ...]] = ()
    """Scalars that a client must not change after its first update, such as its sample count."""

    delivers: ClassVar[bool] = False
    """Whether clients start from a model that the server has trained; see `deliver`."""

    def needs(self) -> tuple[Need, ...]:
        """Return the optional packages that it needs, at the server or on a device."""
        return ()

    def faults(self, clients: Mapping[str, LoraSettings], *, batch_size: int) -> list[str]:
        """List settings that do not fit this algorithm, before anything is built.

        Args:
            clients: The adapter settings of each client.
            batch_size: Number of samples in a training batch.

        Returns:
            One line per fault, with the key and what is allowed.
        """
        return []

    def privacy_faults(self) -> list[str]:
        """List what keeps this algorithm from running under ``trainer.privacy``.

        There, `aggregate` gets one message for each group of clients with one adapter: the adapter
        that they were sent, plus the noisy sum of their clipped changes with fixed weights. An
        algorithm for which that is an aggregate says so by returning nothing here. What its clients
        send is checked apart, by `uplink`.

        Returns:
            One line per fault, with the key and what is allowed.
        """
        return ["its aggregate is not known to be a sum of adapters with fixed weights"]

    def hosted_lora(self, clients: Mapping[str, LoraSettings]) -> LoraSettings:
        """Return the adapter settings of the SLM that the server hosts."""
        return next(iter(clients.values()))

    def adds_parts(self) -> bool:
        """Return whether the models have parts that only this algorithm can rebuild."""
        hooks = ("build_edge", "build_server")
        return any(getattr(type(self), hook) is not getattr(Algorithm, hook) for hook in hooks)

    def adds_edge_parts(self) -> bool:
        """Return whether those of the clients have: all others can be exported."""
        return type(self).build_edge is not Algorithm.build_edge

    @classmethod
    def rebuilt(cls, arguments: Mapping[str, Any]) -> Algorithm | None:
        """Return the algorithm, as far as its `build_edge` and `build_server` need it, for export.

        Args:
            arguments: Those of the run, as plain data.

        Returns:
            ``None``, the default, if models with its parts cannot be exported.
        """
        return None

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

    @property
    def provisions(self) -> bool:
        """Whether a device cannot build its first state alone, so that the server must send it.

        The seed gives all other first weights, on the device as on the server.
        """
        return self.delivers

    def prepare_edge(self, client: str, module: EdgeModule) -> None:
        """Read or change a client's fresh module with what the client alone knows.

        Called before `prepare` and, on a device of its own, instead of it.

        Args:
            client: The client.
            module: The module of its architecture.
        """
        return

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Check, read or change the fresh modules before round 0, where all parties are at hand.

        Args:
            server: The server.
            clients: The module of each client; clients of one architecture share it.
        """
        return

    def shipped(self, server: ServerLearner, client: str) -> Mapping[str, Tensor]:
        """Return the tensors of a broadcast that a client has before the first message.

        A codec sends the difference from them; tensors that are missing here count as zero. Called
        once, on the fresh server: its weights are a function of the seed, so a device can ship with
        them.
        """
        return {}

    def downlink(self, edge: EdgeModule) -> Schema:
        """Declare the contents of a broadcast to a client."""
        return Schema()

    def uplink(self, edge: EdgeModule) -> Schema:
        """Declare the contents of a client's update."""
        return Schema()

    def figures(self) -> tuple[str, ...]:
        """Name the training figures that a client may report, as ``stage/name``.

        They are sent with the message, one finite float64 each, and counted under ``report``. Other
        metrics that `client_update` returns stay on the client. Without communication, these are
        the figures in the log.
        """
        return ()

    def why_alone(self) -> str:
        """Return why a cohort gains nothing in a client's update, so that each client trains alone.

        Empty, which is the default, if clients may train together.
        """
        return ""

    def former(
        self, server: ServerLearner, message: Message, received: Message | None
    ) -> Mapping[str, Tensor]:
        """Return the tensors that an update started from, where its change is limited.

        See ``trainer.update_limits``. By default these are the tensors of the received adapter.

        Args:
            server: The server.
            message: The update, valid under the schema.
            received: The broadcast that the client received.

        Returns:
            Tensors with names and shapes of the update.
        """
        sent = {} if received is None else received.tensors
        return {k: sent[k] for k in message.tensors if k in sent and k.startswith("adapter/")}

    def refusals(self, server: ServerLearner, message: Message) -> list[str]:
        """List what is wrong with the values of an update that is valid under the schema.

        Called before the update is used. An update with any fault is refused, and the client does
        not contribute to this round.
        """
        return []

    def deliver(self, server: ServerLearner, edge: EdgeModule) -> None:
        """Initialise a client's fresh model from the server after the warm-up.

        Called only if `delivers` is true. This happens before the device is deployed, so it is no
        message and is not counted. `shipped` is called again afterwards.
        """
        return

    def summary(self, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Return what summary.json says of this method beside what it says of every method.

        Args:
            history: The figures of each round, as in metrics.csv.
        """
        return {}

    def remarks(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """List what a user should know about the figures of a run, each with its remedy.

        They are logged as warnings at the end of a run.

        Args:
            history: The figures of each round, as in metrics.csv.
        """
        return []

    @abstractmethod
    def warmup(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> dict[str, float]:
        """Train the server alone before round 0, and return its losses."""

    def after_warmup(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> dict[str, float]:
        """Train the server alone once more, and return the losses; by default do nothing.

        Unlike `warmup`, this also follows a warm-up that was loaded from
        ``trainer.warmup_ckpt_path``.
        """
        return {}

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message | None]]:
        """Yield the message to each participant, in order; ``None`` sends nothing.

        A generator, so that only one client's message exists at a time.
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
        """Aggregate the clients' messages as they arrive.

        They come one at a time: keep only what is needed, so that memory does not grow with the
        number of clients.

        Returns:
            What `server_update` needs: an `Aggregate`, or a subclass of the algorithm's own.
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
        """Update the server from the aggregate, train it, and return its losses.

        Args:
            server: The server.
            aggregate: What `aggregate` returned, of the algorithm's own class; ``None`` if fewer
                than ``trainer.participation.min_clients`` clients sent an update.
            loaders: The server's data.
            ctx: The round.
        """
