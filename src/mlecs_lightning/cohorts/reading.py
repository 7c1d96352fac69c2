"""Held-out batches of several clients, read in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mlecs_lightning.cohorts.draws import Draws
from mlecs_lightning.cohorts.layers import Layers
from mlecs_lightning.cohorts.rows import joined
from mlecs_lightning.cohorts.stack import Stack
from mlecs_lightning.rounds.learner import EdgeLearner, HeldOut, Kind
from mlecs_lightning.types import Batch

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """Reads the held-out batches of the clients of a cohort.

    Attributes:
        learner: The learner of their architecture.
        stack: Their weights.
        layers: The layers of a cohort.
        most: Maximum number of rows of a pass, unless one client alone has more.
    """

    learner: EdgeLearner
    stack: Stack
    layers: Layers
    most: int

    @torch.no_grad()
    def serve(
        self, requests: Mapping[int, HeldOut], draws: Mapping[int, Draws]
    ) -> dict[int, list[Any] | Exception]:
        """Read all batches of all clients.

        Args:
            requests: What each client asks for.
            draws: The random numbers of each client.

        Returns:
            For each client what was found in each of its batches, or the error of its data.
        """
        found: dict[int, list[Any] | Exception] = {job: [] for job in requests}
        going = {job: iter(request.batches) for job, request in requests.items()}
        self.learner.module.eval()
        with self.layers.replaced(), self.stack.reading(max(requests) + 1):
            while going:
                batches: dict[int, Batch] = {}
                for job, left in list(going.items()):
                    try:
                        with draws[job].lent():
                            batch = next(left, None)
                    except Exception as error:  # of this client alone
                        found[job], batch = error, None
                    if batch is None:
                        del going[job]
                    else:
                        batches[job] = batch
                for jobs in self._alike(requests, batches):
                    own = [batches[job] for job in jobs]
                    results = self._read(requests[jobs[0]].kind, jobs, own, draws)
                    for job, result in zip(jobs, results, strict=True):
                        list_of(found[job]).append(result)
        return found

    def _alike(
        self, requests: Mapping[int, HeldOut], batches: Mapping[int, Batch]
    ) -> Iterator[list[int]]:
        """Yield clients whose batches fit side by side, the largest batches first."""
        groups: dict[Any, list[int]] = {}
        for job, batch in batches.items():
            kind = requests[job].kind
            shapes = tuple((name, each.shape[1:]) for name, each in batch.inputs.items())
            # In a function dropout may draw, which it must not do for rows that do not count.
            rows = len(batch.ids) if callable(kind) else 0
            groups.setdefault((kind, rows, batch.modalities, shapes), []).append(job)
        for jobs in groups.values():
            left = sorted(jobs, key=lambda job: -len(batches[job].ids))
            while left:
                rows = len(batches[left[0]].ids) * requests[left[0]].wide
                count = max(1, self.most // rows)
                yield sorted(left[:count])
                left = left[count:]

    def _read(
        self, kind: Kind, jobs: Sequence[int], batches: Sequence[Batch], draws: Mapping[int, Draws]
    ) -> list[Any]:
        """Read batches side by side; the shorter ones are filled up with rows that do not count."""
        learner, layers = self.learner, self.layers
        module, fabric = learner.module, learner.fabric
        sizes = [len(batch.ids) for batch in batches]
        rows = max(sizes)
        self.stack.select(jobs)
        with layers.step([draws[job] for job in jobs], rows=rows), fabric.autocast():
            batch = fabric.to_device(joined([_filled(each, rows) for each in batches]))
            with layers.whole():
                if callable(kind):
                    return kind(module, batch, len(jobs))
                if kind == "loss":
                    features, present = module.features(batch)
                    text = (batch.instructions, batch.targets)
                    output = module.tower()(features, present, *text, parts=len(jobs))
                    return list(zip(output.loss.tolist(), sizes, strict=True))
                starts = range(0, rows * len(jobs), rows)
                spans = [slice(n, n + size) for n, size in zip(starts, sizes, strict=True)]
                if kind == "answers":
                    texts, sure = module.answer(batch)
                    return [(texts[own], sure[own]) for own in spans]
                said = module.predict_step(batch)
                return [said[own] for own in spans]


def list_of(found: list[Any] | Exception) -> list[Any]:
    """Return what was found by a client that has not failed."""
    assert isinstance(found, list)
    return found


def _filled(batch: Batch, rows: int) -> Batch:
    """Return a batch with its first row repeated, without a target, up to a number of rows."""
    few = rows - len(batch.ids)
    if not few:
        return batch
    inputs = {
        name: torch.cat([each, each[:1].expand(few, *each.shape[1:])])
        for name, each in batch.inputs.items()
    }
    present = torch.cat([batch.present, batch.present[:1].expand(few, -1)])
    return Batch(
        (*batch.ids, *[batch.ids[0]] * few),
        batch.modalities,
        inputs,
        present,
        (*batch.instructions, *[batch.instructions[0]] * few),
        (*batch.targets, *[""] * few),
    )
