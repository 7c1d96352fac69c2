"""The objectives of ML-ECS: L_LM and volume contrasts between server and client."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mlecs_lightning.functional import VolumeContrast, volume_contrastive_loss
from mlecs_lightning.modules import EdgeModule, Losses, ServerModule
from mlecs_lightning.modules.server import RepresentationSource
from mlecs_lightning.nn.tower import TowerOutput
from mlecs_lightning.types import Batch

__all__ = ["AMT_LOSSES", "CCL_LOSSES", "Agreed", "Alignment", "Objectives"]

Alignment = Literal["volume", "modalities", "fused", "cosine"]

_VOLUME = ("volume", "volume_diagonal", "volume_off_diagonal", "gram_det")
CCL_LOSSES = ("loss", "lm", *_VOLUME, "cosine", "cosine_off_diagonal", "cosine_distance")
"""The losses that `Objectives.ccl` may return."""
AMT_LOSSES = ("loss", "lm", "volume", "cosine")
"""The losses that `Objectives.amt` may return."""


@dataclass(frozen=True)
class Agreed:
    """What the clients agree on about public samples, as a target of SE-CCL.

    Attributes:
        rows: (N, D) weighted means of the clients' unit representations; the length of a row says
            how far they agree, and is 0 where no client has sent any.
        row: Number of the row of each sample, by id.
        weight: Weight of the distance in the loss.
    """

    rows: Tensor
    row: dict[str, int]
    weight: float

    def of(self, batch: Batch, device: torch.device) -> Tensor:
        """Return the rows (B, D) of a batch."""
        return self.rows[[self.row[i] for i in batch.ids]].to(device)


@dataclass(frozen=True)
class Objectives:
    """The objectives of CCL, AMT and SE-CCL, and the settings that they share.

    Attributes:
        temperature: Temperature tau of the volume contrast.
        contrast_weight: Weight lambda of L_vol.
        class_aware: Whether samples with the same target text are excluded from the negatives.
        alignment: What aligns a client with the server's representations; see `MLECS`.
        fused_weight: Weight mu of 1 - cos(f, anchor) beside the volume.
        representation: Which of the server's representations are the anchors of the clients.
        freeze_extractors: Whether CCL freezes the extractors.
        slm_trains_extractors: Whether the hosted SLMs train the server's extractors as well.
    """

    temperature: float
    contrast_weight: float
    class_aware: bool
    alignment: Alignment
    freeze_extractors: bool
    fused_weight: float = 0.0
    representation: RepresentationSource = "connector"
    slm_trains_extractors: bool = True

    def ccl(
        self, edge: EdgeModule, batch: Batch, *, anchors: Tensor, row: dict[str, int]
    ) -> Losses:
        """L = L_LM + lambda * L_vol(server's representation a; z_m, f) + mu * (1 - cos(f, a))."""
        with edge.frozen_extractors() if self.freeze_extractors else nullcontext():
            output = edge.read(batch)
        rows = torch.tensor([row[i] for i in batch.ids], device=anchors.device)
        return self._aligned(output, anchors[rows], self._classes(batch, rows.device))

    def amt(self, edge: EdgeModule, batch: Batch, *, prototypes: dict[str, Tensor]) -> Losses:
        """L = L_LM + lambda * L_vol(a; z_m, f) + mu * (1 - cos(f, a)), a = prototype of the target.

        Samples whose target text has no prototype are left out of the volume and of the cosine. A
        single one that is left has no other to be contrasted with: it is drawn to its prototype
        alone.
        """
        output = edge.read(batch)
        known = [n for n, target in enumerate(batch.targets) if target in prototypes]
        loss, volume = output.loss, dict[str, Tensor]()
        if not known:
            return {"loss": loss, "lm": loss}
        anchors = torch.stack([prototypes[batch.targets[n]] for n in known])
        if len(known) > 1:
            classes = self._classes(batch, anchors.device)[known]
            vectors, present = self._drawn(output)
            contrast = self._contrast(anchors, vectors[known], present[known], classes)
            loss = loss + self.contrast_weight * contrast.loss
            volume["volume"] = contrast.loss
        cosine = _cosine(output.embeddings.fused[known], anchors)
        return {
            "loss": self._drawn_to(cosine, loss),
            "lm": output.loss,
            **volume,
            "cosine": cosine.detach(),
        }

    def se_ccl(self, server: ServerModule, batch: Batch, *, agreed: Agreed | None = None) -> Losses:
        """L_LM of all towers, and volume terms between them, so that both models learn.

        For the LLM and one hosted SLM there are four terms: the first two align each tower's
        vectors with the other model's view; the last two align each model's view with its own
        tower's vectors (docs/method.md, SE-CCL). Several hosted SLMs, one for each group of
        clients, are contrasted with the LLM but not with each other, and the term of the LLM's
        vectors is the mean over the groups. The contrast covers all samples of the global batch, on
        all ranks.

        With a ``fused_weight`` mu, mu * (1 - cos(f_SLM, sg a)) is added, where a is what the server
        sends as anchors: each hosted SLM reads the space that its clients are drawn to.

        Args:
            server: The server.
            batch: Public samples.
            agreed: What the clients agree on; f of every tower is drawn to it as well.
        """
        paths = self._towers(server, batch)
        lm = {f"lm_{name}": server.mean_loss(path) for name, path in paths.items()}
        exists = server.gather(paths["llm"].embeddings.vectors()[1])
        classes = server.gather(self._classes(batch, exists.device))
        (llm_view, llm_vectors), *slms = (
            (server.gather(path.view), server.gather(path.embeddings.vectors()[0]))
            for path in paths.values()
        )

        def contrast(anchors: Tensor, vectors: Tensor) -> VolumeContrast:
            return self._contrast(anchors, vectors, exists, classes)

        to_llm = [contrast(view.detach(), llm_vectors) for view, _ in slms]
        to_slms = [contrast(llm_view.detach(), vectors) for _, vectors in slms]
        within = [contrast(llm_view, llm_vectors.detach())]
        within += [contrast(view, vectors.detach()) for view, vectors in slms]
        terms = [c.loss / len(slms) for c in to_llm] + [c.loss for c in (*to_slms, *within)]
        zero = lm["lm_llm"].new_zeros(())
        volume = sum(terms, zero)
        f_llm, *f_slms = (v[:, -1] for v in (llm_vectors, *(vectors for _, vectors in slms)))
        sent = f_llm if self.representation == "connector" else llm_view
        shared = torch.stack([_cosine(f, sent.detach()) for f in f_slms]).mean()
        losses = {
            "loss": self._drawn_to(shared, sum(lm.values(), zero) + self.contrast_weight * volume),
            **lm,
            "volume": volume,
            "volume_diagonal": to_llm[0].diagonal,
            "volume_off_diagonal": to_llm[0].off_diagonal,
            "gram_det": to_llm[0].gram_det,
            "cosine_llm": torch.stack([_cosine(f_llm, view) for view, _ in slms]).mean().detach(),
            "cosine_slm": torch.stack([_cosine(f, llm_view) for f in f_slms]).mean().detach(),
            "cosine_sent": shared.detach(),
        }
        if agreed is not None:
            target = server.gather(agreed.of(batch, f_llm.device))
            distance = torch.stack([_distance(f, target) for f in (f_llm, *f_slms)]).mean()
            losses["agreed"] = distance
            losses["loss"] = losses["loss"] + agreed.weight * distance
        return losses

    def all_towers(self, server: ServerModule, batch: Batch) -> Losses:
        """L_LM of the LLM and of each hosted SLM over the same features."""
        paths = self._towers(server, batch)
        losses = {f"lm_{name}": server.mean_loss(path) for name, path in paths.items()}
        return {"loss": torch.stack([*losses.values()]).sum(), **losses}

    def _towers(self, server: ServerModule, batch: Batch) -> dict[str, TowerOutput]:
        """Run all towers over the features of a batch."""
        features, present = server.features(batch)
        text = (batch.instructions, batch.targets)
        shared = features
        if not self.slm_trains_extractors:
            shared = {modality: each.detach() for modality, each in features.items()}
        return {
            name: tower(features if name == "llm" else shared, present, *text)
            for name, tower in server.towers.items()
        }

    def _aligned(self, output: TowerOutput, anchors: Tensor, classes: Tensor) -> Losses:
        if self.alignment == "cosine":
            fused = output.embeddings.fused.float()
            distance = (1 - torch.cosine_similarity(fused, anchors.float(), dim=-1)).mean()
            total = output.loss + self.contrast_weight * distance
            others = _cosine_of_others(fused, anchors, classes)
            cosines = {"cosine": 1 - distance.detach(), "cosine_off_diagonal": others}
            return {"loss": total, "lm": output.loss, **cosines, "cosine_distance": distance}
        contrast = self._contrast(anchors, *self._drawn(output), classes)
        cosine = _cosine(output.embeddings.fused, anchors)
        return {
            "loss": self._drawn_to(cosine, output.loss + self.contrast_weight * contrast.loss),
            "lm": output.loss,
            "volume": contrast.loss,
            "volume_diagonal": contrast.diagonal,
            "volume_off_diagonal": contrast.off_diagonal,
            "gram_det": contrast.gram_det,
            "cosine": cosine.detach(),
            "cosine_off_diagonal": _cosine_of_others(output.embeddings.fused, anchors, classes),
        }

    def _drawn_to(self, cosine: Tensor, loss: Tensor) -> Tensor:
        """Add mu * (1 - cos(f, anchor)) to a loss; without a mu the loss keeps its bits."""
        return loss + self.fused_weight * (1 - cosine) if self.fused_weight else loss

    def _drawn(self, output: TowerOutput) -> tuple[Tensor, Tensor]:
        """Return the vectors to align with the anchors, (B, K, D), and which are present."""
        vectors, present = output.embeddings.vectors()
        match self.alignment:
            case "fused":
                drawn = slice(-1, None)  # f is the last
            case "modalities":
                drawn = slice(None, -1)
            case _:
                drawn = slice(None)
        return vectors[:, drawn], present[:, drawn]

    def _contrast(
        self, anchors: Tensor, vectors: Tensor, present: Tensor, classes: Tensor
    ) -> VolumeContrast:
        return volume_contrastive_loss(
            anchors, vectors, present=present, classes=classes, temperature=self.temperature
        )

    def _classes(self, batch: Batch, device: torch.device) -> Tensor:
        """Return (B,) class numbers; samples of one class are no negatives of each other.

        A class is a target text, or else an id. The numbers agree between ranks.
        """
        names = batch.ids
        if self.class_aware:
            names = tuple(t or i for t, i in zip(batch.targets, batch.ids, strict=True))
        return torch.tensor([_number(name) for name in names], device=device)


def _cosine(vectors: Tensor, anchors: Tensor) -> Tensor:
    """Return the mean cosine of rows (B, D) with their anchors (B, D), a scalar in [-1, 1]."""
    return torch.cosine_similarity(vectors.float(), anchors.float(), dim=-1).mean()


@torch.no_grad()
def _cosine_of_others(vectors: Tensor, anchors: Tensor, classes: Tensor) -> Tensor:
    """Return the mean cosine of rows (B, D) with the anchors of samples of other classes.

    If it is as large as that with their own, all vectors have collapsed onto one direction. 0 if
    there are no other classes.
    """
    units = F.normalize(vectors.float(), dim=-1), F.normalize(anchors.float(), dim=-1)
    others = classes[:, None] != classes[None]
    total: Tensor = ((units[0] @ units[1].T) * others).sum()
    return total / others.sum().clamp_min(1)


def _distance(vectors: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of |t| (1 - cos(v, t)) over rows (B, D): a short target pulls little."""
    targets = targets.float()
    along = (F.normalize(vectors.float(), dim=-1) * targets).sum(dim=-1)
    distance: Tensor = (targets.norm(dim=-1) - along).mean()
    return distance


@lru_cache(maxsize=65536)
def _number(name: str) -> int:
    """Return 63 bits of a hash: among a billion names, two collide with a probability of 5 %."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
