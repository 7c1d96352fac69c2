"""A cohort: clients of one architecture that take every optimiser step in one batched pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch

from mlecs_lightning.cohorts.draws import Draws, drawn_from
from mlecs_lightning.cohorts.layers import Layers
from mlecs_lightning.cohorts.lockstep import run_in_lockstep
from mlecs_lightning.cohorts.member import Member, Reads, parts_of
from mlecs_lightning.cohorts.reading import Reading
from mlecs_lightning.cohorts.rows import joined, part
from mlecs_lightning.cohorts.stack import NotTogetherError, Stack
from mlecs_lightning.modules import Losses, Objective
from mlecs_lightning.nn.tower import TowerOutput
from mlecs_lightning.rounds.learner import EdgeLearner, HeldOut, Histories, TrainingPass, in_turns
from mlecs_lightning.rounds.optimization import Lent
from mlecs_lightning.types import Batch

__all__ = ["Cohort"]

T = TypeVar("T")


Request = Sequence[TrainingPass] | HeldOut
Step = tuple[str, Batch, Objective | None]
"""Stage, batch and objective of a client's next step."""
Meet = Callable[[Iterator[Step] | HeldOut], Any]


@dataclass
class _Client:
    """What belongs to one client while the learner is another's.

    Attributes:
        name: As in `Learner`, as are the next four.
        lent: The state of its optimiser.
        trains: For each parameter of the module whether it trains.
        draws: Its random numbers.
    """

    name: str
    stage: str
    changed: list[str]
    before_step: Callable[[], None]
    together: Callable[[Request], Any] | None
    lent: Lent
    trains: list[bool]
    draws: Draws


class Cohort:
    """Lets clients of one architecture train together.

    Each client's part of a round runs as if it were alone, up to the point where its passes begin.
    There it waits until the others of the cohort are as far, and the steps are taken together. A
    client's result depends on the others by no more than rounding: it has weights, moments,
    gradient norm and random numbers of its own.
    """

    def __init__(self, learner: EdgeLearner, size: int, *, batch_size: int = 1) -> None:
        """Prepare for cohorts of up to ``size`` clients.

        Args:
            learner: The learner of the architecture.
            size: Maximum number of clients.
            batch_size: Rows of a client's training step. Held-out batches are read together as
                long as there are no more rows than in the training step of a whole cohort.

        Raises:
            NotTogetherError: If the clients of this architecture cannot train together.
        """
        if getattr(learner.fabric.strategy.precision, "scaler", None) is not None:
            raise NotTogetherError("precision 16-mixed has a loss scale for each client")
        backbones = [learner.module.tower(name).backbone for name in learner.module.towers]
        if any(each.lora.scope == "per_stage" for each in backbones):
            raise NotTogetherError(
                "lora.scope 'per_stage' trains other adapters in every other pass"
            )
        if any(each.settings.gradient_checkpointing for each in backbones):
            raise NotTogetherError("backbone.gradient_checkpointing draws dropout twice")
        self._learner = learner
        self._stack = Stack(learner, size)
        self._layers = Layers(learner.module, self._stack)
        self._reading = Reading(learner, self._stack, self._layers, most=size * batch_size)
        self._parameters = self._stack.parameters()
        self._trains: list[bool] = []
        self._clients: dict[int, _Client] = {}

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Run the parts of a round of several clients, with their passes taken together.

        Args:
            jobs: The clients' parts of the round, which load their state into the learner.

        Returns:
            Their results.

        Raises:
            NotTogetherError: If they cannot train together. Nothing was kept.
        """
        learner, common = self._learner, Draws(self._learner.module.device)
        self._clients.clear()
        self._trains = [p.requires_grad for p in self._parameters]
        try:
            return run_in_lockstep([partial(self._seat, job) for job in jobs], self._serve, self)
        finally:
            learner.together = None
            self._clients.clear()
            self._set_trains(self._trains)
            common.give()

    def _seat(self, job: Callable[[], T], meet: Meet) -> T:
        def together(request: Request) -> Any:  # noqa: ANN401 - see `Learner.together`
            if isinstance(request, HeldOut):
                return meet(request)
            steps = in_turns(request)
            first = next(steps, None)  # in the client's own turn, with its own random numbers
            return {} if first is None else meet(chain([first], steps))

        self._learner.together = together
        return job()

    # Turns of the clients: see `Switch` -----------------------------------------------------

    def leave(self, job: int) -> None:
        """Put away what the learner has of a client."""
        learner = self._learner
        self._stack.put(job)
        self._clients[job] = _Client(
            learner.name,
            learner.stage,
            learner.changed,
            learner.before_step,
            learner.together,
            learner.optimization.lend(),
            [p.requires_grad for p in self._parameters],
            Draws(learner.module.device),
        )

    def enter(self, job: int) -> None:
        """Give the learner to a client; a new one loads its state itself."""
        learner, client = self._learner, self._clients.pop(job, None)
        if client is None:
            self._set_trains(self._trains)
            return
        self._stack.get(job)
        learner.name, learner.stage, learner.changed = client.name, client.stage, client.changed
        learner.before_step, learner.together = client.before_step, client.together
        learner.optimization.take_back(client.lent)
        self._set_trains(client.trains)
        client.draws.give()

    def _set_trains(self, flags: Sequence[bool]) -> None:
        for parameter, trains in zip(self._parameters, flags, strict=True):
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)

    # Steps ----------------------------------------------------------------------------------

    def _serve(self, requests: Mapping[int, Iterator[Step] | HeldOut]) -> dict[int, Any]:
        """Train the clients that wait for it, and read the held-out batches of the others."""
        held_out = {job: each for job, each in requests.items() if isinstance(each, HeldOut)}
        passes = {job: each for job, each in requests.items() if not isinstance(each, HeldOut)}
        answers: dict[int, Any] = {}
        if passes:
            answers |= self._train(passes)
        if held_out:
            draws = {job: self._clients[job].draws for job in held_out}
            answers |= self._reading.serve(held_out, draws)
        return answers

    def _train(self, requests: Mapping[int, Iterator[Step]]) -> dict[int, Histories | Exception]:
        """Take the steps of all waiting clients.

        Returns:
            For each client the losses of its steps, or what has stopped it: its data, or a
            simulated failure.
        """
        clients = {job: self._clients[job] for job in requests}
        first = next(iter(clients.values()))
        if any(client.trains != first.trains for client in clients.values()):
            raise NotTogetherError("not the same parameters train in all clients")
        self._set_trains(first.trains)
        self._learner.module.train()
        answers: dict[int, Histories | Exception] = {job: {} for job in requests}
        going = dict(requests)
        lent = {job: client.lent for job, client in clients.items()}
        with self._layers.replaced(), self._stack.training(lent):
            while going:
                steps: dict[int, Step] = {}
                for job, batches in list(going.items()):
                    step = self._next(self._clients[job], batches)
                    if isinstance(step, Exception):
                        answers[job] = step
                    if step is None or isinstance(step, Exception):
                        del going[job]
                    else:
                        steps[job] = step
                for alike in _alike(steps):
                    for (job, step), losses in zip(alike.items(), self._step(alike), strict=True):
                        history = answers[job]
                        assert isinstance(history, dict)
                        history.setdefault(step[0], []).append(losses)
        return answers

    @staticmethod
    def _next(client: _Client, batches: Iterator[Step]) -> Step | Exception | None:
        """Return a client's next step, ``None`` at the end, or why it cannot take it."""
        try:
            with client.draws.lent():
                step = next(batches, None)
            if step is not None:
                client.stage = step[0]
                client.before_step()
        except Exception as error:  # of this client alone
            return error
        return step

    def _step(self, steps: Mapping[int, Step]) -> list[Losses]:
        """Take one step of some clients with batches of one shape, and return their losses."""
        learner, places = self._learner, list(steps)
        fabric, device = learner.fabric, learner.module.device
        batches = [batch for _, batch, _ in steps.values()]
        draws = [self._clients[job].draws for job in places]
        before = drawn_from(device)
        self._stack.select(places)
        with self._layers.step(draws, rows=len(batches[0].ids)):
            with fabric.autocast():
                batch = fabric.to_device(joined(batches))
                objectives = [objective for _, _, objective in steps.values()]
                losses = self._losses(batch, objectives)
                total = torch.stack([each["loss"] for each in losses]).sum()
            fabric.backward(total)
        if not torch.equal(before, drawn_from(device)):
            raise NotTogetherError("the model draws random numbers that clients would share")
        self._stack.step(places, clip=learner.clip)
        return [{name: loss.detach() for name, loss in each.items()} for each in losses]

    def _losses(self, batch: Batch, objectives: Sequence[Objective | None]) -> list[Losses]:
        """Return the losses of each client, whose rows are side by side in the batch."""
        clients, module = len(objectives), self._learner.module
        plainly = Reads(frozen=False, towers=(module.first,))
        if all(objective is None for objective in objectives):
            (output,) = self._read(batch, clients, plainly).values()
            return [{"loss": loss} for loss in output.loss.unbind()]
        outputs: dict[Reads, dict[str, list[TowerOutput]]] = {}

        def read(reads: Reads, number: int) -> dict[str, TowerOutput]:
            if reads not in outputs:  # the first that asks reads for all
                found = self._read(batch, clients, reads)
                outputs[reads] = {name: parts_of(each, clients) for name, each in found.items()}
            return {name: each[number] for name, each in outputs[reads].items()}

        losses: list[Losses] = []
        for number, objective in enumerate(objectives):
            if objective is None:
                losses += [{"loss": each.loss} for each in read(plainly, number).values()]
                continue
            own = part(batch, number, len(batch.ids) // clients)
            seen = Member(
                own,
                partial(read, number=number),
                partial(self._layers.adapter, number),
                [*module.towers],
                batch.present.device,
            )
            losses.append(objective(seen, own))
        return losses

    def _read(self, batch: Batch, clients: int, reads: Reads) -> dict[str, TowerOutput]:
        module, layers = self._learner.module, self._layers
        text = (batch.instructions, batch.targets)
        with layers.whole():
            with layers.frozen_extractors() if reads.frozen else nullcontext():
                features, present = module.features(batch)
            return {
                name: module.tower(name)(features, present, *text, parts=clients)
                for name in reads.towers
            }


def _alike(steps: Mapping[int, Step]) -> Iterator[dict[int, Step]]:
    """Yield the steps in groups of one stage whose batches have one shape."""
    groups: dict[Any, dict[int, Step]] = {}
    for job, step in steps.items():
        stage, batch, objective = step
        shapes = tuple((name, each.shape) for name, each in batch.inputs.items())
        kind = getattr(objective, "func", objective)
        key = (
            stage,
            getattr(kind, "__func__", kind),
            batch.modalities,
            batch.present.shape,
            shapes,
        )
        groups.setdefault(key, {})[job] = step
    yield from groups.values()
