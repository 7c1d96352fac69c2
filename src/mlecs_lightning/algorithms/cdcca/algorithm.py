"""CD-CCA: cloud-device collaborative continual adaptation (arXiv 2312.16279)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from mlecs_lightning.algorithms.base import LocalTraining, Steps
from mlecs_lightning.algorithms.cdcca.distillation import (
    AKD,
    Lesson,
    teachers_answers,
    vocabulary_faults,
)
from mlecs_lightning.algorithms.cdcca.parts import Alignment, Part, copied_shapes, trained_tensors
from mlecs_lightning.algorithms.cdcca.sampling import UTS, Keep, Measure
from mlecs_lightning.algorithms.cdcca.tokens import TokenAggregate, Tokens
from mlecs_lightning.data.sampling import draw_batches
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.modules import EdgeModule, Losses, Objective, ServerModule
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.types import Batch
from mlecs_lightning.wire import Message, Schema
from mlecs_lightning.wire.messages import TensorField, adapter_fields

__all__ = ["CDCCA", "Distillation"]

Distillation = Literal["akd", "answers", "none"]


class CDCCA(LocalTraining):
    """A large cloud model adapts the small model of the devices to changing data.

    The server's LLM is the teacher. The hosted SLM is the student, and each device runs a copy of
    it: extractors, connector and adapter, delivered after the warm-up. From then on a device only
    does inference; it needs no labels and takes no optimiser step.

    One round:

    1. The server sends each device the student's adapter; with ``trainer.codec: DWC`` as a sparse,
       quantised difference (the third part of the method).
    2. ``UTS`` (device): the device sends the features of the ``token_fraction`` of tokens that its
       model is most uncertain of, with their positions and instructions, but no samples and no
       targets. *With 1: all tokens.*
    3. ``AKD`` (cloud): the teacher answers from these tokens. The student's adapter (and the
       projection of its hidden states) learns from the teacher's softened logits and hidden states,
       and from public samples with their true targets, against forgetting. *With ``answers``: from
       the teacher's answers alone. With ``none``: nothing is sent, and devices do not adapt.*

    A token is what a modality's extractor gives of one sample, or of a part of it. Teacher and
    student must have one vocabulary. Which choices are ours: docs/method.md.
    """

    communicates = True
    reads_words = False
    delivers = True
    one_model = True

    def __init__(
        self,
        *,
        token_fraction: float = 0.5,
        measure: Measure = "answers",
        keep: Keep = "uncertain",
        answer_threshold: float | None = None,
        passes: int = 4,
        variance_weight: float = 1.0,
        feature_dropout: float = 0.2,
        distillation: Distillation = "akd",
        temperature: float = 2.0,
        logits_weight: float = 1.0,
        answer_weight: float = 0.0,
        hidden_weight: float = 0.1,
        feature_weight: float = 0.0,
        replay_weight: float = 1.0,
        train: list[Part] | None = None,
        token_dropout: float = 0.3,
        student_warmup: float = 1.0,
        train_device: bool = False,
        steps: Steps | None = None,
    ) -> None:
        """Set the method.

        Args:
            token_fraction: Largest share rho of a round's tokens that a device sends.
            measure: Uncertainty of a token: of what the model answers from it (``answers``), of its
                sample's whole answer (``probability``), or of its ``features``, which takes no pass
                of the language model; or, for comparison, ``random`` or ``random_samples``.
            keep: Which tokens are sent, the most ``uncertain`` or the most ``certain`` ones.
            answer_threshold: Send only tokens of samples whose answer has a probability below this;
                of all samples with ``None``.
            passes: Number of dropout passes for the uncertainty.
            variance_weight: Weight of the variance over these passes, relative to the entropy, with
                ``measure: answers``.
            feature_dropout: Probability that an input value is dropped in these passes, with
                ``measure: features``.
            distillation: How the cloud uses the tokens.
            temperature: Temperature T of the logits.
            logits_weight: Weight of the divergence of the logits.
            answer_weight: Weight of the cross entropy on the teacher's answer.
            hidden_weight: Weight of the distance between mean hidden states.
            feature_weight: Weight of the distance between query tokens and hidden states at every
                position.
            replay_weight: Weight of L_LM on public samples.
            train: What AKD trains of the student, and what goes down: ``lora``, ``norms``,
                ``biases`` and ``prompts`` of its connector; ``lora`` alone by default.
            token_dropout: Probability that a sensor is left out of a sample in the warm-up, with
                all its tokens, so that teacher and student learn to read samples with missing ones.
            student_warmup: Share of the warm-up steps, counted from the end, in which the student
                trains with the teacher. With less than 1, the delivered student has had less
                training than the teacher. (The command ``warmup`` trains both in all steps.)
            train_device: Whether a device trains on its own labelled samples. Only with
                ``distillation: none``, because the student must remain a copy of its model.
            steps: ``warmup`` and ``server`` are optimiser steps; ``private`` is the number of
                batches that a device looks at in a round (optimiser steps with ``train_device``);
                ``public`` counts the steps of a device on public samples, with ``train_device``
                only.

        Raises:
            ValueError: If a value is out of range.
        """
        super().__init__(steps=steps)
        self.uts = UTS(
            token_fraction=token_fraction,
            measure=measure,
            keep=keep,
            answer_threshold=answer_threshold,
            passes=passes,
            variance_weight=variance_weight,
            feature_dropout=feature_dropout,
        )
        self.akd = AKD(
            temperature=temperature,
            hidden_weight=hidden_weight,
            replay_weight=replay_weight,
            words_alone=distillation == "answers",
            logits_weight=logits_weight,
            answer_weight=answer_weight,
            feature_weight=feature_weight,
            train=("lora",) if train is None else tuple(train),
        )
        key = "algorithm.init_args"
        faults = FaultList([*self.uts.faults(key), *self.akd.faults(key)])
        for name, value, ok, allowed in (
            ("token_dropout", token_dropout, 0 <= token_dropout < 1, "in [0, 1)"),
            ("student_warmup", student_warmup, 0 <= student_warmup <= 1, "in [0, 1]"),
        ):
            if not ok:
                faults.append(f"{key}.{name} must be {allowed}, got {value}")
        if train_device and distillation != "none":
            faults.append(
                f"{key}.train_device needs distillation: none, got {distillation!r}: the student "
                "in the cloud would no longer be a copy of the device's model"
            )
        faults.raise_any()
        # Checkpoints tell the arguments that are attributes, so that a resumed run can compare.
        self.__dict__ |= {**asdict(self.uts), **asdict(self.akd), "train": train}
        self.distillation: Distillation = distillation
        self._tokens = 0
        self.token_dropout, self.train_device = token_dropout, train_device
        self.student_warmup = student_warmup

    # Before round 0 ---------------------------------------------------------------------------

    def faults(self, clients: Mapping[str, LoraSettings], *, batch_size: int) -> list[str]:
        """List the devices whose adapter would differ from the student's."""
        first, lora = next(iter(clients.items()))
        return [
            f"clients.{name}.lora is {other}, that of clients.{first} is {lora}: under CDCCA all "
            "devices run a copy of one student"
            for name, other in clients.items()
            if (other.r, other.alpha, other.target_modules)
            != (lora.r, lora.alpha, lora.target_modules)
        ]

    def adds_parts(self) -> bool:
        """Return whether the server has alignment layers; devices have no parts of this method."""
        return self.akd.aligns

    def build_server(self, module: ServerModule, clients: Iterable[str]) -> None:
        """Add the alignment layers, if features are distilled."""
        if self.akd.aligns:
            Alignment.add(module)

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Check that student and teacher share a vocabulary, and that devices can run the student.

        Raises:
            ConfigurationError: If not; all faults in one message.
        """
        self._tokens = sum(server.module.tower("slm").connector.tokens.values())
        faults = FaultList(vocabulary_faults(server.module))
        wanted = copied_shapes(server.module, "slm")
        for name, module in clients.items():
            if module.modalities != server.module.modalities:
                faults.append(
                    f"clients.{name}.modalities is {list(module.modalities)}: under CDCCA a device "
                    f"runs a copy of the student, which has {list(server.module.modalities)}"
                )
                continue
            own = copied_shapes(module, "slm")
            unlike = sorted(k for k in own.keys() | wanted if own.get(k) != wanted.get(k))
            if unlike:
                faults.append(
                    f"clients.{name}: under CDCCA a device runs a copy of the student, so "
                    "connector and extractors must be those of the server; these differ: "
                    f"{unlike[:3]}"
                )
        faults.raise_any(title="the configuration has faults:")

    def warmup(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> dict[str, float]:
        """Train the teacher on public data, and in the last steps the student as well."""
        steps = self.steps.warmup
        batches = loaders.public.take(steps, seed=ctx.seed_for("server", "public"))
        alone = steps - int(self.student_warmup * steps + 0.5)
        losses = server.fit(islice(batches, alone), self.teacher_alone, stage="warmup_teacher")
        return losses | server.fit(batches, self.both_towers, stage="warmup")

    def warmup_objective(self) -> Objective | None:
        """Warm up teacher and student, with some tokens left out."""
        return self.both_towers

    def teacher_alone(self, server: ServerModule, batch: Batch) -> Losses:
        """L_LM of the teacher, with some tokens left out."""
        features, present = server.features(batch)
        given = (features, self._kept(present), batch.instructions, batch.targets)
        return {"loss": server.mean_loss(server.tower("llm")(*given))}

    def both_towers(self, server: ServerModule, batch: Batch) -> Losses:
        """L_LM of teacher and student on the same features, with some tokens left out."""
        features, present = server.features(batch)
        given = (features, self._kept(present), batch.instructions, batch.targets)
        llm, slm = (server.mean_loss(server.tower(name)(*given)) for name in ("llm", "slm"))
        return {"loss": llm + slm, "lm_llm": llm, "lm_slm": slm}

    def _kept(self, present: Tensor) -> Tensor:
        """Drop tokens at random; a sample that would lose all of them keeps all."""
        kept = present & (torch.rand(present.shape, device=present.device) >= self.token_dropout)
        return torch.where(kept.any(dim=1, keepdim=True), kept, present)

    def deliver(self, server: ServerLearner, edge: EdgeModule) -> None:
        """Copy the student to a device: extractors, connector, adapter."""
        cloud = server.module
        edge.extractors.load_state_dict(cloud.extractors.state_dict())
        mine, theirs = edge.tower(), cloud.tower("slm")
        mine.connector.load_state_dict(theirs.connector.state_dict())
        mine.readout.load_state_dict(theirs.readout.state_dict())
        edge.load_adapter_state(cloud.adapter_state())

    # The wire -----------------------------------------------------------------------------------

    def shipped(self, server: ServerLearner, client: str) -> dict[str, Tensor]:
        """Return what trains of the student, as it is now."""
        adapter = server.module.adapter_state() if "lora" in self.akd.train else {}
        own = trained_tensors(server.module.tower("slm").connector, self.akd.train)
        beside = {f"connector/{k}": p.detach().clone() for k, p in own.items()}
        return {f"adapter/{k}": v for k, v in adapter.items()} | beside

    def downlink(self, edge: EdgeModule) -> Schema:
        """Declare what trains of the student."""
        adapter = edge.backbone.adapter_parameters() if "lora" in self.akd.train else {}
        beside = trained_tensors(edge.tower().connector, self.akd.train)
        fields = {f"connector/{k}": TensorField(tuple(p.shape)) for k, p in beside.items()}
        return Schema(adapter_fields(adapter) | fields)

    def uplink(self, edge: EdgeModule) -> Schema:
        """Declare token features with their positions, and the instructions."""
        counts = edge.tower().connector.tokens
        widths = {m: int(e.out_features) // counts[m] for m, e in edge.extractors.items()}  # type: ignore[arg-type]
        return Tokens.schema(widths)

    def figures(self) -> tuple[str, ...]:
        """Name the figures of the sampling, and the losses of a device that trains."""
        return (*super().figures(), *self.uts.figures())

    def summary(self, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Return what the choice of tokens costs a device, in passes for each sample."""
        if self.distillation == "none":
            return {}
        passes = self.uts.passes_per_sample(self._tokens)
        return {"sampling": {"tokens": self._tokens, **passes}}

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message | None]]:
        """Send each device what trains of the student."""
        for client in ctx.participants:
            alone = self.distillation == "none"
            yield client, None if alone else Message(self.shipped(server, client))

    # The device ---------------------------------------------------------------------------------

    def why_alone(self) -> str:
        """Return why devices look alone, if they need no pass of a model that a cohort shares."""
        if self.train_device or (self.distillation != "none" and not self.uts.draws):
            return ""
        asked = f"measure: {self.uts.measure}, distillation: {self.distillation}"
        return f"devices have no work that can be done together ({asked})"

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Load the student's parts, look at the stream, and send the tokens that UTS chooses."""
        if broadcast is None:
            losses = self.local_passes(edge, loaders, ctx) if self.train_device else {}
            return ClientUpdate(None, losses)
        edge.module.load_adapter_state(broadcast.component("adapter"))
        beside = trained_tensors(edge.module.tower().connector, self.akd.train)
        with torch.no_grad():
            for name, value in broadcast.component("connector").items():
                beside[name].copy_(value)
        assert loaders.private is not None
        edge.stage = "uts"
        stream = loaders.private
        # No sample is looked at twice in a round.
        batches = max(1, min(self.steps.private, len(stream) // stream.batch_size))
        seed = ctx.seed_for(edge.name, "private")
        looked = self.uts.look_through(edge, stream.take(batches, seed=seed))
        sent, figures = self.uts.choose(looked)
        return ClientUpdate(sent.message(), figures)

    # The cloud ----------------------------------------------------------------------------------

    def refusals(self, server: ServerLearner, message: Message) -> list[str]:
        """List invalid positions, and instructions that are invalid or too long."""
        faults = Tokens.faults(message, server.module.tower("slm").connector.tokens)
        texts = message.scalars["instructions"]
        assert isinstance(texts, tuple)
        for name in ("llm", "slm"):
            tower = server.module.tower(name)
            room = tower.room().asked()
            for text in texts:
                try:
                    asked = tower.backbone.tokens(text)
                except ConfigurationError as error:
                    faults.append(str(error))
                    continue
                if room is not None and asked > room:
                    faults.append(f"an instruction of {asked} tokens, {name!r} has room for {room}")
        return faults

    def aggregate(
        self, updates: Iterable[tuple[str, Message]], ctx: RoundContext
    ) -> TokenAggregate | None:
        """Keep the messages of all devices; `server_update` joins their tokens."""
        parts = tuple(message for _, message in updates)
        return TokenAggregate(clients=len(parts), messages=parts) if parts else None

    def server_update(
        self,
        server: ServerLearner,
        aggregate: TokenAggregate | None,
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """AKD: train the student's adapter on the teacher's answers."""
        if self.distillation == "none":
            return {}
        counts = server.module.tower("slm").connector.tokens
        tokens = None if aggregate is None else aggregate.tokens(counts)
        if tokens is None or tokens.samples == 0:
            tokens, answers = None, list[str]()
        else:
            # Before the pass: answering puts the model in evaluation mode.
            answers = teachers_answers(server, tokens, batch_size=loaders.public.batch_size)
        losses = self.akd.teach(server, self._lessons(tokens, answers, loaders, ctx))
        return losses | {"tokens": 0.0 if tokens is None else float(tokens.number)}

    def _lessons(
        self, tokens: Tokens | None, answers: Sequence[str], loaders: Loaders, ctx: RoundContext
    ) -> Iterator[Lesson]:
        """Yield this rank's part of every step."""
        public = loaders.public
        replays = public.take(self.steps.server, seed=ctx.seed_for("server", "public"))
        if tokens is None:
            for replay in replays:
                yield Lesson(None, (), replay)
            return
        rank, size = public.shard
        drawn = draw_batches(
            tokens.samples,
            public.batch_size,
            steps=self.steps.server,
            seed=ctx.seed_for("server", "tokens"),
        )
        for rows, replay in zip(drawn, replays, strict=False):
            # With fewer samples than ranks, some are used twice, so that every rank has one.
            own = rows[rank::size] or rows[:1]
            yield Lesson(tokens.rows(own), tuple(answers[i] for i in own), replay)
