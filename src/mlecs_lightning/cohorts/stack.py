"""The trainable tensors of several clients of one architecture, stacked, and their optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mlecs_lightning.cohorts.optimizer import JointOptimizer
from mlecs_lightning.modules.resizable import Resizable
from mlecs_lightning.rounds.learner import EdgeLearner
from mlecs_lightning.rounds.optimization import Lent

__all__ = ["NotTogetherError", "Stack"]


class NotTogetherError(Exception):
    """Clients cannot train in a cohort; says why. They train one by one instead."""


class Stack:
    """The trainable tensors of up to C clients, each as one tensor (C, ...).

    Their optimiser is a `JointOptimizer`, so that one call takes the step of each client.
    """

    def __init__(self, learner: EdgeLearner, size: int) -> None:
        """Allocate the tensors.

        Args:
            learner: Trains one client of the architecture at a time.
            size: Number of clients C.

        Raises:
            NotTogetherError: If the optimiser, or a part of the model, does not allow it.
        """
        self._learner, self._used = learner, size
        if any(isinstance(part, Resizable) for part in learner.module.modules()):
            raise NotTogetherError(
                "each has a sub-model, and sub-models differ in size and in their frozen weights, "
                "which a cohort would share"
            )
        inner = learner.optimizer.optimizer
        if not JointOptimizer.allows(inner):
            raise NotTogetherError(f"the optimizer {type(inner).__name__} may mix parameters")
        self._held = learner.module.trainable_tensors()
        names = {id(tensor): name for name, tensor in self._held.items()}
        if len(names) < len(self._held):
            raise NotTogetherError("parts of the model share weights that train")
        self._optimized = [names[id(p)] for p in inner.param_groups[0]["params"]]
        self._rows = {
            name: tensor.new_empty(size, *tensor.shape) for name, tensor in self._held.items()
        }
        self._views = [[self._rows[n][i] for n in self._held] for i in range(size)]
        self._each = {name: each.unbind() for name, each in self._rows.items()}
        self._leaves: dict[str, Tensor] = {}
        self._optimizer: JointOptimizer | None = None
        self.weights: dict[str, Tensor] = {}
        """The tensors (C', ...) of the clients that take the present step."""

    @torch.no_grad()
    def put(self, place: int) -> None:
        """Copy the tensors of the learner's present client to a place."""
        torch._foreach_copy_(self._views[place], [t.detach() for t in self._held.values()])

    @torch.no_grad()
    def get(self, place: int) -> None:
        """Copy the tensors of the client at a place back to the learner."""
        torch._foreach_copy_([t.detach() for t in self._held.values()], self._views[place])

    @contextmanager
    def training(self, lent: Mapping[int, Lent]) -> Iterator[None]:
        """Train the clients at some places within the context.

        The module has no weights of its own meanwhile, so that nothing can take those of another
        client by mistake: whatever reads them fails.

        Args:
            lent: For each place what the client's optimiser has lent; updated at the end.
        """
        self._begin(max(lent) + 1)
        for name, tensor in self._held.items():
            self._leaves[name].requires_grad_(tensor.requires_grad)
        self._optimizer = JointOptimizer(
            self._learner.optimizer.optimizer,
            [self._held[name] for name in self._optimized],
            [self._leaves[name] for name in self._optimized],
            [self._each[name] for name in self._optimized],
            lent,
        )
        try:
            with self._empty():
                yield
        finally:
            self._optimizer.hand_back(lent)
            self._optimizer = None

    @contextmanager
    def reading(self, clients: int) -> Iterator[None]:
        """Read with the tensors of the first clients within the context, without training."""
        self._begin(clients)
        with self._empty():
            yield

    def _begin(self, clients: int) -> None:
        self._used = clients
        self._leaves = {name: rows[:clients].detach() for name, rows in self._rows.items()}

    @contextmanager
    def _empty(self) -> Iterator[None]:
        """Take the module's own weights away within the context."""
        own = {name: tensor.data for name, tensor in self._held.items()}
        for tensor in self._held.values():
            tensor.data = tensor.data.new_empty(0)
        try:
            yield
        finally:
            for name, tensor in self._held.items():
                tensor.data = own[name]
            self.weights, self._leaves = {}, {}

    def select(self, places: Sequence[int]) -> None:
        """Set `weights` to the tensors of the clients that take the next step."""
        self.weights = self._leaves
        if list(places) != list(range(self._used)):
            index = torch.tensor(places, device=self._learner.module.device)
            self.weights = {n: leaf.index_select(0, index) for n, leaf in self._leaves.items()}

    @torch.no_grad()
    def step(self, places: Sequence[int], *, clip: float) -> None:
        """Take the optimiser step of some clients, each with its own gradient.

        Args:
            places: The places of the clients.
            clip: Maximum gradient norm of a client; 0 for no clipping.
        """
        assert self._optimizer is not None
        gradients = {n: leaf.grad for n, leaf in self._leaves.items()}
        if len(places) < self._used:
            index = torch.tensor(places, device=self._learner.module.device)
            gradients = {n: None if g is None else g[index] for n, g in gradients.items()}
        if clip:
            _clip_each([g for g in gradients.values() if g is not None], clip)
        if len(places) < self._used:
            self._optimizer.step_of(places, [gradients[n] for n in self._optimized])
            for name, held in self._held.items():
                if not isinstance(held, nn.Parameter):  # a layer has changed its buffers in place
                    self._leaves[name].index_copy_(0, index, self.weights[name])
        else:
            self._optimizer.step()
        for leaf in self._leaves.values():
            leaf.grad = None

    def parameters(self) -> list[nn.Parameter]:
        """Return the module's own parameters that are stacked."""
        return [held for held in self._held.values() if isinstance(held, nn.Parameter)]

    def parameter_names(self, part: nn.Module) -> dict[int, str]:
        """Return the name of each stacked tensor of a part of the module, by its id."""
        names = {id(tensor): name for name, tensor in self._held.items()}
        own = [*part.parameters(), *part.buffers()]
        return {id(t): names[id(t)] for t in own if id(t) in names}


def _clip_each(gradients: Sequence[Tensor], limit: float) -> None:
    """Clip the gradients (C, ...) of each client, as `torch.nn.utils.clip_grad_norm_` does."""
    if not gradients:
        return
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients])
    factor = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
