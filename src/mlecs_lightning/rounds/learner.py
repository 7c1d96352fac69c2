"""Learners: a module, its optimiser and the training loop that algorithms call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn import Parameter

from mlecs_lightning.modules import EdgeModule, Losses, MultimodalLM, Objective, ServerModule
from mlecs_lightning.rounds.optimization import Optimization
from mlecs_lightning.types import Batch

__all__ = [
    "EdgeLearner",
    "HeldOut",
    "Histories",
    "Kind",
    "Learner",
    "NonFiniteError",
    "Parts",
    "ServerLearner",
    "TrainingPass",
    "in_turns",
]

M = TypeVar("M", bound=MultimodalLM)
B = TypeVar("B")
R = TypeVar("R")

Histories = dict[str, list[dict[str, Tensor]]]
"""For each stage the losses of every step."""


class TrainingPass(NamedTuple):
    """One optimiser step for each batch.

    Attributes:
        stage: Name of the pass, for metrics and errors.
        batches: The batches.
        objective: What to minimise; L_LM by default.
    """

    stage: str
    batches: Iterable[Batch]
    objective: Objective | None = None


Parts = Callable[[Any, Batch, int], list[R]]
"""Takes the module, the rows of some clients one after another, and the number of these clients;
returns a result for each."""
Kind = Literal["loss", "predictions", "answers"] | Parts[Any]


class HeldOut(NamedTuple):
    """Batches that a party reads without training.

    Attributes:
        kind: What is asked for of each batch: L_LM, predictions, answers with their confidence, or
            what a function returns.
        batches: The batches.
        wide: Number of rows that the function makes of one.
    """

    kind: Kind
    batches: Iterable[Batch]
    wide: int = 1


class NonFiniteError(RuntimeError):
    """A loss or a weight is not finite; says whose, in which stage and step."""


class Learner(Generic[M]):
    """Trains one module with the precision and on the device of Fabric.

    Attributes:
        name: The client's name, or ``server``.
        module: The module itself.
        stage: The current or last training pass, for error messages.
        before_step: Called before every optimiser step; may raise to stop the pass there.
        changed: Settings that differ from those of the state loaded last.
        fabric: Device, precision and strategy.
        clip: Maximum gradient norm; 0 for no clipping.
        optimization: The optimiser with its scheduler.
        together: Takes the steps of this learner's passes in one with those of other learners,
            where its client is in a cohort; ``None`` where it is alone. It returns the `Histories`
            of training passes, and of held-out batches a list of what is found for each.
    """

    def __init__(
        self, name: str, module: M, *, fabric: Fabric, gradient_clip_val: float | None, sync: bool
    ) -> None:
        """Put the module on its device.

        Args:
            name: Name of the party, for messages.
            module: The module.
            fabric: Device, precision and strategy.
            gradient_clip_val: Maximum gradient norm; ``None`` or 0 for no clipping.
            sync: Whether all ranks train the module together (the server). An edge belongs to one
                rank, so it is moved to the device but not wrapped.
        """
        self.name, self.module, self.fabric = name, module, fabric
        self.stage, self.changed = "", list[str]()
        self.before_step: Callable[[], None] = _go_on
        self.together: Callable[[Sequence[TrainingPass] | HeldOut], Any] | None = None
        self.clip = gradient_clip_val or 0.0
        backbones = [module.tower(name).backbone for name in module.towers]
        self._staged = [each for each in backbones if each.lora.scope == "per_stage"]
        scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        # One scale each: ranks must agree on that of the server, and have different clients.
        self._scaler = torch.amp.GradScaler(fabric.device.type) if scaled else None
        optimizer = module.configure_optimizers(scaled=scaled)
        if isinstance(module, ServerModule):
            module.sharded = sync and fabric.world_size > 1
        if sync:
            self._wrapped, self.optimizer = fabric.setup(module, optimizer)
        else:
            module.to(fabric.device)
            self._wrapped, self.optimizer = None, fabric.setup_optimizers(optimizer)
        self.optimization = Optimization(
            module.settings, self.optimizer, module.configure_lr_scheduler(optimizer)
        )
        module.train()

    def _evaluate(self, batch: Any, objective: Objective | None) -> Losses:  # noqa: ANN401
        batch = self.fabric.to_device(batch)
        # One rank scores held-out data alone; DDP would wait for the others.
        with self.fabric.autocast():
            if self._wrapped is not None and self.module.training:
                # Fabric's own wrapper would round all inputs to 16 bits before autocast.
                return self._wrapped._forward_module(batch, objective)  # type: ignore[no-any-return]
            return self.module(batch, objective)  # type: ignore[no-any-return]

    def fit(
        self, batches: Iterable[Any], objective: Objective | None = None, *, stage: str
    ) -> dict[str, float]:
        """Take one optimiser step for each batch.

        Args:
            batches: The batches of this pass: `Batch`, or whatever the objective takes.
            objective: What to minimise; L_LM by default.
            stage: Name of the pass, for metrics and errors.

        Returns:
            The mean of each loss over the pass, under ``stage/name``. Empty without batches.

        Raises:
            NonFiniteError: If a loss or a weight is not finite. Checked once after the pass, since
                a check in every step would make a GPU wait for the host.
        """
        return self.fit_in_turns([TrainingPass(stage, batches, objective)])

    def fit_in_turns(self, passes: Sequence[TrainingPass]) -> dict[str, float]:
        """Take one step of each pass in turn until all have ended.

        Returns:
            As `fit`, of all passes.

        Raises:
            NonFiniteError: As `fit`.
        """
        histories = self._steps(passes) if self.together is None else self.together(passes)
        means: dict[str, float] = {}
        for stage, history in histories.items():
            means |= self._summary(history, stage)
        return means

    def _steps(self, passes: Sequence[TrainingPass]) -> Histories:
        histories: Histories = {}
        # A client of this architecture may have failed between its backward pass and its step.
        self.optimizer.zero_grad(set_to_none=True)
        if self._scaler is not None:
            cast(Any, self.fabric.strategy.precision).scaler = self._scaler
        for stage, batch, objective in in_turns(passes):
            # Only if needed: `train` visits every layer, including frozen ones.
            if not self.module.training:
                self.module.train()
            self.stage = stage
            self.before_step()
            losses = self._evaluate(batch, objective)
            self.fabric.backward(losses["loss"])
            for parameter in self._resting(stage):
                parameter.grad = None
            if self.clip:
                self.fabric.clip_gradients(
                    self.module, self.optimizer, max_norm=self.clip, error_if_nonfinite=False
                )
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            histories.setdefault(stage, []).append({k: v.detach() for k, v in losses.items()})
        return histories

    def _resting(self, stage: str) -> Iterator[Parameter]:
        """Yield the adapter that a stage does not train; see ``scope`` of `LoraSettings`."""
        for backbone in self._staged:
            travels, stays = backbone.adapter_parameters(), backbone.private_parameters
            yield from (travels if stage == "private" else stays).values()

    def _summary(self, history: list[dict[str, Tensor]], stage: str) -> dict[str, float]:
        # A part of a loss may be missing in batches that have nothing to compare. On several ranks
        # it may not: all of them must reduce the same parts, each of the same length.
        names = dict.fromkeys(name for step in history for name in step)
        curves = {k: torch.stack([s[k].float() for s in history if k in s]) for k in names}
        if self._wrapped is not None:
            # Each rank has the loss of its part of every batch.
            reduce = partial(self.fabric.all_reduce, reduce_op="mean")
            curves = {k: cast(Tensor, reduce(v)) for k, v in curves.items()}
        curves = {k: v.cpu() for k, v in curves.items()}
        bad = (~torch.isfinite(curves["loss"])).nonzero()
        if len(bad):
            raise NonFiniteError(
                f"{self.name}: loss is {curves['loss'][bad[0]].item()} in step {int(bad[0])} of "
                f"stage {stage!r}; a smaller learning rate or precision 32-true may help"
            )
        weights = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        if not math.isfinite(float(torch.nn.utils.get_total_norm(weights))):
            raise NonFiniteError(f"{self.name}: weights are not finite after stage {stage!r}")
        return {f"{stage}/{k}": float(v.mean()) for k, v in curves.items()}

    def end_round(self) -> None:
        """Let the learning rate go on to its value of the next round."""
        self.optimization.end_round()

    @torch.no_grad()
    def loss(self, batches: Iterable[Batch]) -> float:
        """Return the mean L_LM over held-out batches, weighted by their size."""
        total, count = 0.0, 0
        for value, rows in self._read(HeldOut("loss", batches)):
            total += value * rows
            count += rows
        return total / count if count else math.nan

    def _read(self, held_out: HeldOut) -> Iterable[Any]:
        """Return what is asked for of each batch, with the other clients of a cohort if any."""
        if self.together is not None and not (
            held_out.kind == "predictions" and self.module.settings.inference == "int8"
        ):
            return self.together(held_out)  # type: ignore[no-any-return]
        self.module.eval()
        return map(partial(self._found, held_out.kind), held_out.batches)

    @torch.no_grad()
    def _found(self, kind: Kind, batch: Batch) -> Any:  # noqa: ANN401 - depends on the kind
        if kind == "loss":
            return float(self._evaluate(batch, None)["loss"]), len(batch.ids)
        with self.fabric.autocast():
            placed = self.fabric.to_device(batch)
            if callable(kind):
                (result,) = kind(self.module, placed, 1)
                return result
            if kind == "answers":
                return self.module.answer(placed)
            return self.module.predict_step(placed)

    @torch.no_grad()
    def map(self, batches: Iterable[B], function: Callable[[M, B], R]) -> list[R]:
        """Apply a function of the module to each batch, in evaluation mode and this precision."""
        self.module.eval()
        with self.fabric.autocast():
            return [function(self.module, self.fabric.to_device(batch)) for batch in batches]

    @torch.no_grad()
    def map_parts(self, batches: Iterable[Batch], function: Parts[R], *, wide: int = 1) -> list[R]:
        """Apply a function to each batch as `map` does, for the clients of a cohort at once.

        Args:
            batches: The batches.
            function: Draws random numbers in dropout layers only. The rows that it gives to a layer
                are those of the first client, then of the second, and so on.
            wide: Number of rows that it makes of one.
        """
        return list(self._read(HeldOut(function, batches, wide)))

    @torch.no_grad()
    def predict(self, batches: Iterable[Batch]) -> list[dict[str, str]]:
        """Generate a sentence for each sample.

        Returns:
            For each sample ``id``, ``prediction`` and ``target``.
        """
        targets = list[str]()

        def noted() -> Iterator[Batch]:
            for batch in batches:
                targets.extend(batch.targets)
                yield batch

        with self.module.for_inference():
            rows = list(chain.from_iterable(self._read(HeldOut("predictions", noted()))))
        return [{**row, "target": target} for row, target in zip(rows, targets, strict=True)]

    @torch.no_grad()
    def answer(self, batches: Iterable[Batch]) -> list[tuple[list[str], Tensor]]:
        """Return what `MultimodalLM.answer` says of each batch."""
        return list(self._read(HeldOut("answers", batches)))

    # State ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return trainable tensors and optimiser state, copied to the CPU."""
        model = {k: v.cpu() for k, v in self.module.trainable_state().items()}
        scaler = {} if self._scaler is None else {"scaler": self._scaler.state_dict()}
        return {"model": model, **self.optimization.state_dict(), **scaler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.module.load_trainable_state(state["model"])
        self.changed = self.optimization.load_state_dict(state)
        if self._scaler is not None:
            # A new one: the old one may be in the middle of a step that has failed.
            self._scaler = torch.amp.GradScaler(self.fabric.device.type)
            if "scaler" in state:
                self._scaler.load_state_dict(state["scaler"])


EdgeLearner = Learner[EdgeModule]
ServerLearner = Learner[ServerModule]


def in_turns(
    passes: Sequence[TrainingPass],
) -> Iterator[tuple[str, Batch, Objective | None]]:
    """Yield stage, batch and objective of the next step of each pass in turn until all end."""
    going = [(each, iter(each.batches)) for each in passes]
    while going:
        unfinished = []
        for each, batches in going:
            batch = next(batches, None)
            if batch is not None:
                yield each.stage, batch, each.objective
                unfinished.append((each, batches))
        going = unfinished


def _go_on() -> None:
    """Never stop."""
