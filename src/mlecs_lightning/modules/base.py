"""The LightningModule that edge and server share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mlecs_lightning.class_paths import build_class, import_class
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules.contents import REMEDY, content_faults
from mlecs_lightning.modules.pocket import pocket_of
from mlecs_lightning.modules.resizable import Resizable
from mlecs_lightning.nn.by_modality import ByModality
from mlecs_lightning.nn.connector import Embeddings
from mlecs_lightning.nn.extractors.small import build_extractor
from mlecs_lightning.nn.tower import Tower, TowerOutput
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.types import Batch, ModalitySpec

__all__ = ["Losses", "MultimodalLM", "Objective"]

Losses = dict[str, Tensor]
"""Named scalar losses; ``loss`` is the one to minimise, the others are reported."""

Objective = Callable[[Any, Any], Losses]
"""What a training pass minimises: a function of the module and a batch, mostly a `Batch`."""


class MultimodalLM(L.LightningModule):
    """Extractors shared by one or more towers; the first tower answers.

    Trains under a plain Lightning `Trainer` (language modelling on its own data), and under the
    federated trainer with whatever objective an algorithm passes to `forward`: the whole objective
    runs inside ``forward``, so that mixed precision and DDP wrap it.
    """

    def __init__(
        self,
        towers: Mapping[str, ModelSettings],
        modalities: Mapping[str, ModalitySpec | Mapping[str, Any]],
        *,
        key: str,
    ) -> None:
        """Build extractors and towers.

        Args:
            towers: The settings of each tower; extractors and optimiser are those of the first.
            modalities: Modalities that the model can take, in column order.
            key: The YAML key of the settings, for error messages.

        Raises:
            ValueError: If a setting cannot be built; it names the key.
        """
        super().__init__()
        first = next(iter(towers.values()))
        self.settings = first
        self._key = key
        self.specs = {
            m: s if isinstance(s, ModalitySpec) else ModalitySpec(s["kind"], tuple(s["shape"]))
            for m, s in modalities.items()
        }
        self.extractors = ByModality(
            {
                m: build_extractor(m, spec, extractors=first.extractors, key=f"{key}.extractors")
                for m, spec in self.specs.items()
            }
        )
        widths = {m: int(e.out_features) for m, e in self.extractors.items()}  # type: ignore[arg-type]
        self.towers = nn.ModuleDict({name: Tower(widths, s) for name, s in towers.items()})
        self.first = next(iter(towers))
        self.objective: Objective | None = None
        """What a `Trainer` minimises; L_LM of the answering tower if there is none."""
        # DDP leaves the frozen weights where they are: every rank has loaded the same.
        self._ddp_params_and_buffers_to_ignore = sorted(self._frozen_names())
        self._places: dict[str, tuple[dict[str, Any], str]] | None = None

    # Parts ----------------------------------------------------------------------------------

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model can take, in column order."""
        return tuple(self.specs)

    def tower(self, name: str | None = None) -> Tower:
        """Return a tower, the answering one by default."""
        return self.towers[name or self.first]  # type: ignore[return-value]

    def _frozen_names(self) -> set[str]:
        """Ask every part that can load its frozen tensors again (backbones, encoders) for theirs.

        Not all that has no gradient: what an extractor drew at random and fixed must be stored.
        Asked once, when the model is built: what is frozen for a while later on still counts as
        trained.
        """
        return {
            f"{part}.{name}"
            for part, module in self.named_modules()
            if hasattr(module, "frozen_names")
            for name in module.frozen_names()
        }

    def frozen_contents(self) -> dict[str, dict[str, str]]:
        """Return name and digests of every part that is named and not stored; see `Contents`."""
        parts = {
            name: part.frozen_contents()
            for name, part in self.named_modules()
            if hasattr(part, "frozen_contents") and part is not self
        }
        # A pocket model is known by its name on any machine.
        return {
            name: {**content, "model": pocket_of(content["model"]) or content["model"]}
            for name, content in parts.items()
            if content
        }

    def trainable_state(self) -> dict[str, Tensor]:
        """Return copies of all that can be trained: extractors, connectors, adapters, readouts."""
        return {name: tensor.detach().clone() for name, tensor in self._trainable().items()}

    def _trainable(self) -> dict[str, Tensor]:
        """Return the live tensors of `trainable_state`.

        Every client's state passes here twice a round, and most of ``state_dict`` would be a walk
        over frozen layers: where the tensors are is asked once. Parts are added before that.
        """
        if self._places is None:
            frozen = set(self._ddp_params_and_buffers_to_ignore)
            own = {k: v for k, v in self.state_dict().items() if k not in frozen}
            if any(isinstance(m, Resizable) for m in self.modules()):
                return own  # its tensors are other ones tomorrow
            places = {name: place for name in own if (place := self._place(name)) is not None}
            if len(places) < len(own):
                return own  # a part makes a state of its own
            self._places = places
        return {name: held[leaf] for name, (held, leaf) in self._places.items()}

    def _place(self, name: str) -> tuple[dict[str, Any], str] | None:
        """Return the dictionary that holds a tensor of ``state_dict``, and its name there."""
        path, _, leaf = name.rpartition(".")
        try:
            module = self.get_submodule(path)
        except AttributeError:
            return None
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        return next(((each, leaf) for each in held if leaf in each), None)

    @torch.no_grad()
    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Write what `trainable_state` returned.

        Raises:
            KeyError: If the keys are not those of this module; it names some of them.
            ValueError: If a shape differs. Nothing is written in either case.
        """
        own = self._trainable()
        if own.keys() != state.keys():
            missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise KeyError(f"state does not fit: missing {missing[:5]}, not known {extra[:5]}")
        if self._places is None:
            for part, module in self.named_modules():
                if isinstance(module, Resizable):
                    module.fit_to(state, prefix=f"{part}.")
            own = self._trainable()  # a part may have another size now
        for name, value in state.items():
            # A copy would spread a single row over all rows.
            if own[name].shape != value.shape:
                raise ValueError(
                    f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(value.shape)}"
                )
        for name, value in state.items():
            own[name].copy_(value)

    def form(self) -> dict[str, Any]:
        """Return what the parts that change their shape say of it; empty if there are none."""
        parts = [m for m in self.modules() if isinstance(m, Resizable)]
        return {key: value for part in parts for key, value in part.form().items()}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that an optimiser updates."""
        return [p for p in self.parameters() if p.requires_grad]

    def parameter_count(self) -> int:
        """Return the number of all parameters, frozen ones included, each counted once."""
        return sum(p.numel() for p in self.parameters())

    def parameter_bytes(self) -> int:
        """Return the bytes of all parameters: the denominator of the communication ratio."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    @contextmanager
    def frozen_extractors(self) -> Iterator[None]:
        """Train everything but the extractors, as CCL does."""
        parameters = [p for p in self.extractors.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def for_inference(self) -> AbstractContextManager[None]:
        """Answer, inside the context, with the model that is meant for it: ``inference``."""
        return (
            self.tower().backbone.in_int8() if self.settings.inference == "int8" else nullcontext()
        )

    # Passes ---------------------------------------------------------------------------------

    def features(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Run the extractors.

        Returns:
            For each modality of the model (B, features), and presence (B, K).
        """
        inputs, present = self.sensed(batch)
        return {m: self.extractors[m](x) for m, x in inputs.items()}, present

    def sensed(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the inputs of each modality of the model, in column order.

        A modality that the batch lacks altogether counts as absent from every sample; its extractor
        runs on zeros all the same, so that each parameter has a gradient on every rank.

        Returns:
            For each modality of the model (B, ...), and presence (B, K).
        """
        column = {m: k for k, m in enumerate(batch.modalities)}
        size, device = len(batch.ids), batch.present.device
        nobody = torch.zeros(size, dtype=torch.bool, device=device)
        inputs = {
            m: batch.inputs[m] if m in column else torch.zeros(size, *spec.shape, device=device)
            for m, spec in self.specs.items()
        }
        present = [batch.present[:, column[m]] if m in column else nobody for m in self.specs]
        return inputs, torch.stack(present, dim=1)

    def embed(self, batch: Batch, *, tower: str | None = None) -> Embeddings:
        """Return latent vectors, fused representation and prompt."""
        features, present = self.features(batch)
        return self.tower(tower).connector(features, present)  # type: ignore[no-any-return]

    def read(self, batch: Batch, *, tower: str | None = None) -> TowerOutput:
        """Run one tower over a batch with its targets."""
        features, present = self.features(batch)
        return self.tower(tower)(  # type: ignore[no-any-return]
            features, present, batch.instructions, batch.targets
        )

    @torch.no_grad()
    def answer(self, batch: Batch) -> tuple[list[str], Tensor]:
        """Generate an answer for each sample, and say how sure the model is of it.

        Returns:
            B texts, and (B,) float32 in 0..1: the probability of the whole text with its end under
            the model that wrote it.
        """
        embeddings, tower = self.embed(batch), self.tower()
        texts = tower.generate(embeddings, batch.instructions)
        output = tower.backbone(embeddings.prompt, batch.instructions, texts)
        return texts, output.log_probability().exp()

    def forward(self, batch: Batch, objective: Objective | None = None) -> Losses:
        """Evaluate an objective; language modelling (L_LM of the answering tower) by default."""
        if objective is not None:
            return objective(self, batch)
        return {"loss": self.mean_loss(self.read(batch))}

    def mean_loss(self, output: TowerOutput) -> Tensor:
        """Return L_LM of a pass: what an objective adds up, in place of ``output.loss``."""
        return self.token_mean(output.loss, output)

    def token_mean(self, mean: Tensor, output: TowerOutput) -> Tensor:
        """Return what an objective adds up, in place of a mean over the target tokens of a pass."""
        return mean

    # Lightning hooks ------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Losses:
        """Return what ``objective`` says of a batch."""
        return self._logged(self(batch, self.objective), "train", batch)

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> Losses:
        """Return L_LM of a held-out batch."""
        return self._logged(self(batch), "val", batch)

    def test_step(self, batch: Batch, batch_idx: int = 0) -> Losses:
        """Return L_LM of a test batch."""
        return self._logged(self(batch), "test", batch)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[dict[str, str]]:
        """Return the ids and the generated sentences of a batch."""
        answers = self.tower().generate(self.embed(batch), batch.instructions)
        return [
            {"id": i, "prediction": answer} for i, answer in zip(batch.ids, answers, strict=True)
        ]

    def configure_optimizers(self, *, scaled: bool | None = None) -> Optimizer:
        """Build the optimiser of the settings over the trainable parameters.

        Adam and AdamW take their fused step unless the settings choose: a connector and adapters
        are many small tensors, and the calls cost more than the arithmetic. (The fused step of
        torch's SGD fails where a parameter has no gradient yet.)

        Args:
            scaled: Whether losses are scaled, as in 16-mixed: Lightning cannot clip the gradients
                of a fused optimiser then. By default the `Trainer`, if there is one, is asked.
        """
        if scaled is None:
            plugin = None if self._trainer is None else self._trainer.precision_plugin
            scaled = getattr(plugin, "scaler", None) is not None
        setting, key = self.settings.optimizer, f"{self._key}.optimizer"
        given = setting.get("init_args") or {}
        # The command line adds defaults: None is nobody's choice.
        chosen = (
            given.get("fused") is not None or given.get("foreach") or given.get("differentiable")
        )
        optimizer = import_class(setting, home="torch.optim", key=key)
        if not scaled and not chosen and optimizer in (torch.optim.Adam, torch.optim.AdamW):
            setting = {**setting, "init_args": {**given, "fused": True}}
        return build_class(  # type: ignore[no-any-return]
            setting, self.trainable_parameters(), home="torch.optim", key=key
        )

    def configure_lr_scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """Build the scheduler of the settings over the optimiser, if they name one.

        Apart from `configure_optimizers`: it goes by rounds, which Lightning's `Trainer` has none
        of.
        """
        if self.settings.lr_scheduler is None:
            return None
        return build_class(  # type: ignore[no-any-return]
            self.settings.lr_scheduler,
            optimizer,
            home="torch.optim.lr_scheduler",
            key=f"{self._key}.lr_scheduler",
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the frozen backbone out of Lightning's checkpoint: settings and digests name it."""
        checkpoint["frozen"] = self.frozen_contents()
        frozen = set(self._ddp_params_and_buffers_to_ignore)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frozen backbone that is loaded already, so that all other keys must fit.

        Raises:
            ConfigurationError: If it is not the one that the checkpoint was trained with.
        """
        saved, names = checkpoint.get("frozen", {}), ("in the checkpoint", "here")
        if faults := content_faults(saved, self.frozen_contents(), names=names):
            raise ConfigurationError(
                "\n  ".join(["ckpt_path: trained with other frozen models:", *faults, REMEDY])
            )
        own = self.state_dict()
        frozen = {k: own[k] for k in self._ddp_params_and_buffers_to_ignore if k in own}
        checkpoint["state_dict"] = frozen | checkpoint["state_dict"]

    def _logged(self, losses: Losses, stage: str, batch: Batch) -> Losses:
        # Only under a Trainer: Fabric would write the value to the loggers without a step.
        if self._trainer is not None:
            values = {f"{stage}_{name}": value.detach() for name, value in losses.items()}
            # Over all ranks: that of one alone is the loss of a part of the batch.
            self.log_dict(values, prog_bar=True, batch_size=len(batch.ids), sync_dist=True)
        return losses

    def _remember(self, **settings: ModelSettings) -> None:
        """Store what `load_from_checkpoint` needs, as plain values a weights-only load accepts."""
        modalities = {m: {"kind": s.kind, "shape": list(s.shape)} for m, s in self.specs.items()}
        plain = {name: value.to_dict() for name, value in settings.items()}
        self.save_hyperparameters({**plain, "modalities": modalities})


def as_settings(settings: ModelSettings | Mapping[str, Any]) -> ModelSettings:
    """Return settings as they are, or built from the plain values of a checkpoint."""
    return settings if isinstance(settings, ModelSettings) else ModelSettings.from_dict(settings)
