"""The trainable tensors of several clients of one architecture, stacked, and their optimiser."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlecs_lightning.modules.resizable import Resizable
from mlecs_lightning.rounds.learner import EdgeLearner
from mlecs_lightning.rounds.optimization import Lent

__all__ = ["NotTogetherError", "Stack"]


class NotTogetherError(Exception):
    """Clients cannot train in a cohort; says why. They train one by one instead."""


_EACH_FOR_ITSELF = (
    *(torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW),
    *(torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop),
    torch.optim.SGD,
)
"""Optimisers whose step of one parameter depends on no other parameter."""


class Stack:
    """The trainable tensors of up to C clients, each as one tensor (C, ...).

    The optimiser is the learner's own class. Its parameters are the rows of the stacked tensors,
    and its state is each client's own, so its step is the step of each client alone, with one call
    for all of them.
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
            raise NotTogetherError("parts of the model change their size from client to client")
        inner = learner.optimizer.optimizer
        if type(inner) not in _EACH_FOR_ITSELF or len(inner.param_groups) != 1:
            raise NotTogetherError(f"the optimizer {type(inner).__name__} may mix parameters")
        self._held = learner.module.trainable_tensors()
        names = {id(tensor): name for name, tensor in self._held.items()}
        self._optimized = [names[id(p)] for p in inner.param_groups[0]["params"]]
        self._rows = {
            name: tensor.new_empty(size, *tensor.shape) for name, tensor in self._held.items()
        }
        self._views = [[self._rows[n][i] for n in self._held] for i in range(size)]
        self._each = {name: each.unbind() for name, each in self._rows.items()}
        self._leaves: dict[str, Tensor] = {}
        self._optimizer: Optimizer = inner
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
        self._used = max(lent) + 1
        self._leaves = {
            name: self._rows[name][: self._used].detach().requires_grad_(tensor.requires_grad)
            for name, tensor in self._held.items()
        }
        parameters = {name: self._held[name] for name in self._optimized}
        self._optimizer = self._joint_optimizer(lent, parameters)
        own = {name: tensor.data for name, tensor in self._held.items()}
        for tensor in self._held.values():
            tensor.data = tensor.data.new_empty(0)
        try:
            yield
        finally:
            for name, tensor in self._held.items():
                tensor.data = own[name]
            for place, each in lent.items():
                each.moments.clear()
                for name, parameter in parameters.items():
                    row = self._each[name][place]
                    if row in self._optimizer.state:
                        each.moments[parameter] = self._optimizer.state[row]
            self.weights, self._leaves = {}, {}

    def _joint_optimizer(
        self, lent: Mapping[int, Lent], parameters: Mapping[str, Tensor]
    ) -> Optimizer:
        """Return an optimiser over the rows of some clients, one group for equal options."""
        joint: Optimizer = copy.copy(self._learner.optimizer.optimizer)
        joint.state, groups = defaultdict(dict), list[dict[str, Any]]()
        for place, each in lent.items():
            rows = [self._each[name][place] for name in parameters]
            for row, parameter in zip(rows, parameters.values(), strict=True):
                if parameter in each.moments:
                    joint.state[row] = each.moments[parameter]
            options = each.options[0]
            group = next((g for g in groups if _equal(options, g)), None)
            if group is None:
                groups.append({**options, "params": rows})
            else:
                group["params"] = [*group["params"], *rows]
        joint.param_groups = groups
        return joint

    def select(self, places: Sequence[int]) -> None:
        """Set `weights` to the tensors of the clients that take the next step."""
        self.weights = self._leaves
        if len(places) < self._used:
            index = torch.tensor(places, device=self._learner.module.device)
            self.weights = {n: leaf.index_select(0, index) for n, leaf in self._leaves.items()}

    @torch.no_grad()
    def step(self, places: Sequence[int], *, clip: float) -> None:
        """Take the optimiser step of some clients, each with its own gradient.

        Args:
            places: The places of the clients.
            clip: Maximum gradient norm of a client; 0 for no clipping.
        """
        gradients = {n: leaf.grad for n, leaf in self._leaves.items() if leaf.grad is not None}
        if len(places) < self._used:
            index = torch.tensor(places, device=self._learner.module.device)
            gradients = {n: gradient[index] for n, gradient in gradients.items()}
        if clip:
            _clip_each(list(gradients.values()), clip)
        moved = list[Tensor]()
        for name, gradient in gradients.items():
            rows = self._each[name]
            for place, own in zip(places, gradient.unbind(), strict=True):
                rows[place].grad = own
                moved.append(rows[place])
        self._optimizer.step()
        for row in moved:
            row.grad = None
        for leaf in self._leaves.values():
            leaf.grad = None

    def parameter_names(self, part: nn.Module) -> dict[int, str]:
        """Return the name of each stacked tensor of a part of the module, by its id."""
        names = {id(tensor): name for name, tensor in self._held.items()}
        own = [*part.parameters(), *part.buffers()]
        return {id(t): names[id(t)] for t in own if id(t) in names}


def _equal(options: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    """Return whether a group has these options."""
    return all(group[key] == value for key, value in options.items())


def _clip_each(gradients: Sequence[Tensor], limit: float) -> None:
    """Clip the gradients (C, ...) of each client, as `torch.nn.utils.clip_grad_norm_` does."""
    if not gradients:
        return
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients])
    factor = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
