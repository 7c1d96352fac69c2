"""Random numbers that belong to one client of a cohort."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draws", "drawn_from"]


class Draws:
    """The random numbers of one client: what the global generators would give it alone.

    Attributes:
        device: Draws on the device of the models. On a CPU these are the numbers that the client
            draws alone; on a GPU they are others, and the first client's serve all in a
            dropout layer: independent of each other, but different in another cohort.
    """

    def __init__(self, device: torch.device) -> None:
        """Take the present states of the global generators."""
        self._host = torch.Generator()
        self.device = self._host if device.type == "cpu" else torch.Generator(device)
        self.take()

    def take(self) -> None:
        """Go on where the global generators are now."""
        self._host.set_state(torch.default_generator.get_state())
        if self.device is not self._host:
            self.device.set_state(_of(self.device.device).get_state())
        self._others: tuple[Any, Any] = random.getstate(), np.random.get_state()  # noqa: NPY002

    def give(self) -> None:
        """Let the global generators go on where these draws are."""
        torch.default_generator.set_state(self._host.get_state())
        if self.device is not self._host:
            _of(self.device.device).set_state(self.device.get_state())
        random.setstate(self._others[0])
        np.random.set_state(self._others[1])  # noqa: NPY002

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let code within the context draw from here, which knows torch's global generator only."""
        pairs = [(torch.default_generator, self._host)]
        if self.device is not self._host:
            pairs.append((_of(self.device.device), self.device))
        before = [common.get_state() for common, _ in pairs]
        for common, own in pairs:
            common.set_state(own.get_state())
        try:
            yield
        finally:
            for (common, own), state in zip(pairs, before, strict=True):
                own.set_state(common.get_state())
                common.set_state(state)


def drawn_from(device: torch.device) -> Tensor:
    """Return the state of the global generator of a device; it differs after every draw."""
    return _of(device).get_state()


def _of(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[device.index or 0]
