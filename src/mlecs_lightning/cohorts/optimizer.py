"""One optimiser for the stacked parameters of several clients."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mlecs_lightning.rounds.optimization import Lent

__all__ = ["JointOptimizer"]

_ELEMENTWISE = (
    *(torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW),
    *(torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop),
    torch.optim.SGD,
)
"""Optimisers whose step of one element depends on no other element."""


class JointOptimizer:
    """The optimiser of several clients, of the class that each of them has.

    As long as all clients take all steps, and have taken equally many before, its parameters are
    the stacked tensors. Otherwise they are the rows of each client, which is slower: a client has
    its own number of steps then, and its own learning rate. The result is the same.
    """

    def __init__(
        self,
        own: Optimizer,
        parameters: Sequence[Tensor],
        stacked: Sequence[Tensor],
        rows: Sequence[Sequence[Tensor]],
        lent: Mapping[int, Lent],
    ) -> None:
        """Take over the clients' states.

        Args:
            own: The optimiser of one client, for its class.
            parameters: Its N parameters.
            stacked: For each parameter the tensor (C, ...) of all clients.
            rows: For each parameter the rows of that tensor.
            lent: For each place what the client's optimiser has lent.
        """
        self._parameters, self._stacked, self._rows = parameters, stacked, rows
        self._places = tuple(lent)
        self._optimizer: Optimizer = copy.copy(own)
        self._optimizer.state = defaultdict(dict)
        whole = len(stacked) == 0 or self._places == tuple(range(len(stacked[0])))
        self._joined = whole and self._join(list(lent.values()))
        if not self._joined:
            states = {
                (place, n): each.moments[p]
                for place, each in lent.items()
                for n, p in enumerate(parameters)
                if p in each.moments
            }
            self._split(states, {place: each.options[0] for place, each in lent.items()})

    @staticmethod
    def allows(optimizer: Optimizer) -> bool:
        """Return whether an optimiser can be that of several clients."""
        return type(optimizer) in _ELEMENTWISE and len(optimizer.param_groups) == 1

    def step(self) -> None:
        """Take the step of all clients, with the gradients of the stacked tensors."""
        if self._joined:
            self._optimizer.step()
        else:
            self.step_of(self._places, [each.grad for each in self._stacked])

    def step_of(self, places: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
        """Take the step of some clients.

        Args:
            places: The places of the clients.
            gradients: For each parameter the gradients of these clients, stacked, if it has any.
        """
        if self._joined:
            options = {k: v for k, v in self._optimizer.param_groups[0].items() if k != "params"}
            self._split(self._states(), dict.fromkeys(self._places, options))
        moved = list[Tensor]()
        for rows, gradient in zip(self._rows, gradients, strict=True):
            if gradient is None:
                continue
            for place, own in zip(places, gradient.unbind(), strict=True):
                rows[place].grad = own
                moved.append(rows[place])
        self._optimizer.step()
        for row in moved:
            row.grad = None

    def hand_back(self, lent: Mapping[int, Lent]) -> None:
        """Give every client its state."""
        for each in lent.values():
            each.moments.clear()
        for (place, n), state in self._states().items():
            lent[place].moments[self._parameters[n]] = state

    # The two forms --------------------------------------------------------------------------

    def _join(self, lent: Sequence[Lent]) -> bool:
        """Stack the states of all clients, if that is possible."""
        first = lent[0]
        if any(each.options != first.options for each in lent):
            return False
        joint: dict[Tensor, dict[str, Any]] = {}
        for parameter, stacked in zip(self._parameters, self._stacked, strict=True):
            states = [each.moments.get(parameter, {}) for each in lent]
            state = _stacked(states, parameter)
            if state is None:
                return False
            if state:
                joint[stacked] = state
        self._optimizer.state.update(joint)
        self._optimizer.param_groups = [{**first.options[0], "params": list(self._stacked)}]
        return True

    def _split(
        self,
        states: Mapping[tuple[int, int], dict[str, Any]],
        options: Mapping[int, Mapping[str, Any]],
    ) -> None:
        """Go on with the rows of each client.

        Args:
            states: By place and number of the parameter.
            options: By place.
        """
        self._joined = False
        self._optimizer.state = defaultdict(dict)
        for (place, n), state in states.items():
            self._optimizer.state[self._rows[n][place]] = state
        groups = list[dict[str, Any]]()
        for place, own in options.items():
            rows = [each[place] for each in self._rows]
            group = next((g for g in groups if all(g[k] == v for k, v in own.items())), None)
            if group is None:
                groups.append({**own, "params": rows})
            else:
                group["params"] = [*group["params"], *rows]
        self._optimizer.param_groups = groups

    def _states(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Return the state of each client by its place and the number of the parameter."""
        found, state = dict[tuple[int, int], dict[str, Any]](), self._optimizer.state
        for n, (stacked, rows) in enumerate(zip(self._stacked, self._rows, strict=True)):
            if self._joined and stacked in state:
                for place, own in zip(self._places, _rows_of(state[stacked], stacked), strict=True):
                    found[place, n] = own
            elif not self._joined:
                found |= {(p, n): state[rows[p]] for p in self._places if rows[p] in state}
        return found


def _stacked(states: Sequence[Mapping[str, Any]], parameter: Tensor) -> dict[str, Any] | None:
    """Return the states of one parameter as one, or ``None`` if they do not fit together.

    Moments have the shape of the parameter; anything else, such as the number of steps, must be
    equal.
    """
    first = states[0]
    if not parameter.dim() or any(state.keys() != first.keys() for state in states):
        return None
    joint: dict[str, Any] = {}
    for key, value in first.items():
        values = [state[key] for state in states]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            joint[key] = torch.stack(values)
        elif all(_equal(value, other) for other in values):
            joint[key] = _copy(value)
        else:
            return None
    return joint


def _rows_of(state: Mapping[str, Any], stacked: Tensor) -> list[dict[str, Any]]:
    """Return the state of each row of a stacked parameter: the opposite of `_stacked`."""
    each: list[dict[str, Any]] = [{} for _ in range(len(stacked))]
    for key, value in state.items():
        whole = isinstance(value, Tensor) and value.shape == stacked.shape
        for n, row in enumerate(each):
            row[key] = value[n] if whole else _copy(value)
    return each


def _copy(value: Any) -> Any:  # noqa: ANN401 - any state
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(one == other)
    return bool(one == other)
