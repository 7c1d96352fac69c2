"""A tower: a connector and a backbone on top of extractors that several towers may share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.connector import Connector, Embeddings
from mlecs_lightning.nn.texts import Room
from mlecs_lightning.settings import ModelSettings

__all__ = ["Tower", "TowerOutput"]


class TowerOutput(NamedTuple):
    """The result of a forward pass of a tower over a batch with targets.

    Attributes:
        embeddings: Latent vectors, fused representation and prompt.
        view: (B, D) g, the backbone's representation of the sample.
        loss: L_LM, scalar.
        logits: (B, T, vocabulary) logits that predict ``labels``.
        labels: (B, T) target tokens, -100 elsewhere.
    """

    embeddings: Embeddings
    view: Tensor
    loss: Tensor
    logits: Tensor
    labels: Tensor

    def tokens(self) -> Tensor:
        """Return the number of target tokens that ``loss`` averages over, an integer scalar."""
        return (self.labels >= 0).sum()


class Tower(nn.Module):
    """Connector C, backbone B and the readout g = Linear(mean hidden state over the prompt)."""

    def __init__(self, features: Mapping[str, int], settings: ModelSettings) -> None:
        """Build the tower.

        Args:
            features: Output width of each modality's extractor.
            settings: Connector, backbone and adapter.
        """
        super().__init__()
        self.backbone = Backbone(settings.backbone, settings.lora)
        self.connector = Connector(features, self.backbone.hidden_size, settings=settings.connector)
        self.readout = nn.Linear(self.backbone.hidden_size, settings.connector.width)
        self.longest_answer = settings.max_new_tokens

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Tensor,
        instructions: Sequence[str],
        targets: Sequence[str],
    ) -> TowerOutput:
        """Read a batch and compute L_LM of its targets.

        Args:
            features: (B, features) of each modality.
            present: (B, K) bool, whether a sample has a modality.
            instructions: B texts.
            targets: B texts.
        """
        embeddings = self.connector(features, present)
        output = self.backbone(embeddings.prompt, instructions, targets)
        view = self.readout(output.prompt_hidden)
        return TowerOutput(embeddings, view, output.loss, output.logits, output.labels)

    def view(self, embeddings: Embeddings) -> Tensor:
        """Return g (B, D) without any text."""
        return self.readout(self.backbone.read_prompt(embeddings.prompt))  # type: ignore[no-any-return]

    def room(self) -> Room:
        """Return the lengths of this tower's sequences."""
        return Room(self.backbone.coder, self.connector.prompt_length, self.longest_answer)

    def generate(self, embeddings: Embeddings, instructions: Sequence[str]) -> list[str]:
        """Generate one sentence for each sample by greedy decoding."""
        return self.backbone.generate(
            embeddings.prompt, instructions, max_new_tokens=self.longest_answer
        )
