"""Base class of the LightningModules of edge and server."""

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
from mlecs_lightning.nn.words import limits_of
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.types import Batch, ModalitySpec

__all__ = ["Losses", "MultimodalLM", "Objective"]

Losses = dict[str, Tensor]
"""Named scalar losses; ``loss`` is minimised, the others are only reported."""

Objective = Callable[[Any, Any], Losses]
"""Training objective: computes losses from the module and a batch, usually a `Batch`."""


class MultimodalLM(L.LightningModule):
    """A multimodal language model: extractors and one or more towers on top of them.

    The first tower generates the answers. A plain Lightning `Trainer` trains the model by language
    modelling on its own data. The federated trainer passes the objective of an algorithm to
    `forward`; the whole objective runs inside ``forward``, so that mixed precision and DDP wrap it.
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
            towers: Settings of each tower by name; those of the first also set the extractors and
                the optimiser.
            modalities: Kind and shape of the model's modalities, in column order.
            key: The YAML key of the settings, for error messages.

        Raises:
            ValueError: If a part cannot be built; the message names the key.
        """
        super().__init__()
        self.settings = first = next(iter(towers.values()))
        self._key = key
        self.specs = {
            m: s if isinstance(s, ModalitySpec) else ModalitySpec.from_dict(s)
            for m, s in modalities.items()
        }
        self.extractors = ByModality(
            {
                m: build_extractor(m, spec, extractors=first.extractors, key=f"{key}.extractors")
                for m, spec in self.specs.items()
            }
        )
        widths = {m: int(e.out_features) for m, e in self.extractors.items()}  # type: ignore[arg-type]
        tokens = {m: int(getattr(e, "tokens", 1)) for m, e in self.extractors.items()}
        limits = limits_of(self.specs)
        self.towers = nn.ModuleDict(
            {name: Tower(widths, s, limits=limits, tokens=tokens) for name, s in towers.items()}
        )
        self.first = next(iter(towers))
        self.objective: Objective | None = None
        """The objective of a `Trainer`; L_LM of the first tower by default."""
        # DDP need not broadcast frozen weights: every rank has loaded the same ones.
        self._ddp_params_and_buffers_to_ignore = sorted(self._frozen_names())
        self._places: dict[str, tuple[dict[str, Any], str]] | None = None

    # Parts ----------------------------------------------------------------------------------

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the model, in column order."""
        return tuple(self.specs)

    def tower(self, name: str | None = None) -> Tower:
        """Return a tower by name, the first one (which answers) by default."""
        return self.towers[name or self.first]  # type: ignore[return-value]

    def _frozen_names(self) -> set[str]:
        """Return the names of all tensors that backbones and pretrained encoders can load again.

        These are not all tensors without gradient: random weights that an extractor keeps fixed
        must be stored. Collected once, when the model is built: tensors that are frozen for a while
        later still count as trainable.
        """
        return {
            f"{part}.{name}"
            for part, module in self.named_modules()
            if hasattr(module, "frozen_names")
            for name in module.frozen_names()
        }

    def frozen_contents(self) -> dict[str, dict[str, str]]:
        """Return name and digests of every frozen part, which checkpoints omit: see `Contents`."""
        parts = {
            name: part.frozen_contents()
            for name, part in self.named_modules()
            if hasattr(part, "frozen_contents") and part is not self
        }
        # The directory of a pocket model differs between machines, its name does not.
        return {
            name: {**content, "model": pocket_of(content["model"]) or content["model"]}
            for name, content in parts.items()
            if content
        }

    def trainable_state(self) -> dict[str, Tensor]:
        """Return copies of all trainable tensors: extractors, connectors, adapters, readouts."""
        return {name: tensor.detach().clone() for name, tensor in self.trainable_tensors().items()}

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of `trainable_state` themselves, not copies.

        This runs twice per client and round, and ``state_dict`` would mostly walk over frozen
        layers, so the places of the tensors are cached. No part may be added after the first call.
        """
        if self._places is None:
            frozen = set(self._ddp_params_and_buffers_to_ignore)
            own = {k: v for k, v in self.state_dict().items() if k not in frozen}
            if any(isinstance(m, Resizable) for m in self.modules()):
                return own  # resizing replaces tensors, so their places cannot be cached
            places = {name: place for name in own if (place := self._place(name)) is not None}
            if len(places) < len(own):
                return own  # some part builds its state itself
            self._places = places
        return {name: held[leaf] for name, (held, leaf) in self._places.items()}

    def _place(self, name: str) -> tuple[dict[str, Any], str] | None:
        """Return the dictionary that holds a tensor of ``state_dict``, and its key there."""
        path, _, leaf = name.rpartition(".")
        try:
            module = self.get_submodule(path)
        except AttributeError:
            return None
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        return next(((each, leaf) for each in held if leaf in each), None)

    @torch.no_grad()
    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that `trainable_state` returned; parts that are `Resizable` are resized.

        Raises:
            KeyError: If keys are missing or unknown; the message names some. Nothing is written.
            ValueError: If a shape differs. Nothing is written.
        """
        own = self.trainable_tensors()
        if own.keys() != state.keys():
            missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise KeyError(f"state does not fit: missing {missing[:5]}, unknown {extra[:5]}")
        if self._places is None:
            for part, module in self.named_modules():
                if isinstance(module, Resizable):
                    module.fit_to(state, prefix=f"{part}.")
            own = self.trainable_tensors()  # resizing has replaced tensors
        for name, value in state.items():
            # `copy_` would broadcast a single row to all rows.
            if own[name].shape != value.shape:
                raise ValueError(
                    f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(value.shape)}"
                )
        for name, value in state.items():
            own[name].copy_(value)

    def form(self) -> dict[str, Any]:
        """Return the present form of the `Resizable` parts; empty if there are none."""
        parts = [m for m in self.modules() if isinstance(m, Resizable)]
        return {key: value for part in parts for key, value in part.form().items()}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimiser updates."""
        return [p for p in self.parameters() if p.requires_grad]

    def parameter_count(self) -> int:
        """Return the number of parameters, frozen ones included."""
        return sum(p.numel() for p in self.parameters())

    def parameter_bytes(self) -> int:
        """Return the bytes of all parameters, the denominator of the communication ratio."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    @contextmanager
    def frozen_extractors(self) -> Iterator[None]:
        """Freeze the extractors within the context, as CCL does."""
        parameters = [p for p in self.extractors.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def for_inference(self) -> AbstractContextManager[None]:
        """Return a context in which the model answers with the precision of ``inference``."""
        if self.settings.inference == "int8":
            return self.tower().backbone.in_int8()
        return nullcontext()

    # Forward passes -------------------------------------------------------------------------

    def features(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Run the extractors.

        Returns:
            (B, features) of each modality of the model, and presence (B, K).
        """
        inputs, present = self.sensed(batch)
        return {m: self.extractors[m](x) for m, x in inputs.items()}, present

    def sensed(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the batch's inputs of the modalities of the model, in column order.

        A modality that the batch does not have counts as absent in every sample. Its extractor
        still runs on zeros, so that every parameter has a gradient on every rank.

        Returns:
            (B, ...) of each modality of the model, and presence (B, K).
        """
        column = {m: k for k, m in enumerate(batch.modalities)}
        size, device = len(batch.ids), batch.present.device
        absent = torch.zeros(size, dtype=torch.bool, device=device)
        inputs = {
            m: batch.inputs[m] if m in column else torch.zeros(size, *spec.shape, device=device)
            for m, spec in self.specs.items()
        }
        present = [batch.present[:, column[m]] if m in column else absent for m in self.specs]
        return inputs, torch.stack(present, dim=1)

    def embed(self, batch: Batch, *, tower: str | None = None) -> Embeddings:
        """Run extractors and connector: latent vectors, fused representation and prompt."""
        return self.tower(tower).embed(*self.features(batch))

    def read(self, batch: Batch, *, tower: str | None = None) -> TowerOutput:
        """Run extractors and one tower over a batch with its targets."""
        (output,) = self.read_towers(batch, tower or self.first).values()
        return output

    def read_towers(self, batch: Batch, *names: str) -> dict[str, TowerOutput]:
        """Run the extractors once, and some towers, by default all, over a batch with targets."""
        features, present = self.features(batch)
        text = (batch.instructions, batch.targets)
        return {n: self.tower(n)(features, present, *text) for n in names or self.towers}

    @torch.no_grad()
    def answer(self, batch: Batch) -> tuple[list[str], Tensor]:
        """Generate an answer for each sample, and say how sure the model is of it.

        Returns:
            B texts, and (B,) float32 in 0..1: the probability of the whole text with its end under
            the model that wrote it.
        """
        embedded, tower = self.embed(batch), self.tower()
        texts = tower.generate(embedded, batch.instructions)
        output = tower.backbone(embedded.prompt, batch.instructions, texts, words=embedded.words)
        return texts, output.probability()

    def forward(self, batch: Batch, objective: Objective | None = None) -> Losses:
        """Compute the losses of an objective; by default L_LM of the first tower."""
        if objective is not None:
            return objective(self, batch)
        return {"loss": self.mean_loss(self.read(batch))}

    def mean_loss(self, output: TowerOutput) -> Tensor:
        """Return L_LM of a pass, for objectives in place of ``output.loss``; see `token_mean`."""
        return self.token_mean(output.loss, output)

    def token_mean(self, mean: Tensor, output: TowerOutput) -> Tensor:
        """Return a mean over target tokens in the form that an objective may use.

        `ServerModule` scales it where ranks share a batch; all others return it as it is.

        Args:
            mean: Mean over the target tokens of a pass, scalar.
            output: The pass.
        """
        return mean

    # Lightning hooks ------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Losses:
        """Return the losses of ``objective`` on a training batch."""
        return self._logged(self(batch, self.objective), "train", batch)

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> Losses:
        """Return L_LM of a validation batch."""
        return self._logged(self(batch), "val", batch)

    def test_step(self, batch: Batch, batch_idx: int = 0) -> Losses:
        """Return L_LM of a test batch."""
        return self._logged(self(batch), "test", batch)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[dict[str, str]]:
        """Return the ids and the generated sentences of a batch."""
        answers = self.tower().generate(self.embed(batch), batch.instructions)
        said = zip(batch.ids, answers, strict=True)
        return [{"id": i, "prediction": answer} for i, answer in said]

    def configure_optimizers(self, *, scaled: bool | None = None) -> Optimizer:
        """Build the configured optimiser for the trainable parameters.

        Adam and AdamW are fused unless the settings choose otherwise: connector and adapters are
        many small tensors, for which kernel launches cost more than the arithmetic. (The fused step
        of torch's SGD fails if a parameter has no gradient yet.)

        Args:
            scaled: Whether losses are scaled, as in 16-mixed; Lightning cannot clip the gradients
                of a fused optimiser then. By default this is read from the `Trainer`, if any.
        """
        if scaled is None:
            plugin = None if self._trainer is None else self._trainer.precision_plugin
            scaled = getattr(plugin, "scaler", None) is not None
        setting, key = self.settings.optimizer, f"{self._key}.optimizer"
        given = setting.get("init_args") or {}
        # The command line fills in defaults, so None means that nothing was chosen.
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
        """Build the configured learning-rate scheduler, if there is one.

        It is not part of `configure_optimizers` because it steps once per round, and Lightning's
        `Trainer` has no rounds.
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
        """Replace the frozen tensors in Lightning's checkpoint by their names and digests."""
        checkpoint["frozen"] = self.frozen_contents()
        frozen = set(self._ddp_params_and_buffers_to_ignore)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frozen tensors of this model to the checkpoint, which omits them.

        Raises:
            ConfigurationError: If they are not those that the checkpoint was trained with.
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
        # Only with a Trainer: Fabric would write the value to the loggers without a step.
        if self._trainer is not None:
            values = {f"{stage}_{name}": value.detach() for name, value in losses.items()}
            # Averaged over all ranks: each rank has a part of the batch.
            self.log_dict(values, prog_bar=True, batch_size=len(batch.ids), sync_dist=True)
        return losses

    def _remember(self, **settings: ModelSettings) -> None:
        """Store the arguments of `load_from_checkpoint` as plain values, for weights-only loads."""
        modalities = {m: s.to_dict() for m, s in self.specs.items()}
        plain = {name: value.to_dict() for name, value in settings.items()}
        self.save_hyperparameters({**plain, "modalities": modalities})


def as_settings(settings: ModelSettings | Mapping[str, Any]) -> ModelSettings:
    """Return settings as they are, or built from the plain values of a checkpoint."""
    return settings if isinstance(settings, ModelSettings) else ModelSettings.from_dict(settings)
