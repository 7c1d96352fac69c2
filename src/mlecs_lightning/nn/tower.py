"""A tower: a connector and a backbone on top of extractors that several towers may share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.connector import Connector, Embeddings
from mlecs_lightning.nn.texts import Room
from mlecs_lightning.nn.words import WordReader, longest, word_means
from mlecs_lightning.settings import ModelSettings

__all__ = ["Tower", "TowerOutput"]


class TowerOutput(NamedTuple):
    """The result of a forward pass of a tower over a batch with targets.

    Attributes:
        embeddings: Latent vectors, fused representation and prompt.
        view: (B, D) g, the backbone's representation of the sample.
        loss: L_LM, scalar, or one of each part of the batch.
        logits: (B, T, vocabulary) logits that predict ``labels``.
        labels: (B, T) target tokens, -100 elsewhere.
        hidden: (B, L, H) last hidden state of the whole sequence.
        mask: (B, L) int64, 1 where the sequence has a token and 0 in the padding.
    """

    embeddings: Embeddings
    view: Tensor
    loss: Tensor
    logits: Tensor
    labels: Tensor
    hidden: Tensor
    mask: Tensor

    def tokens(self) -> Tensor:
        """Return the number of target tokens that ``loss`` averages over, an integer scalar."""
        return (self.labels >= 0).sum()


class Tower(nn.Module):
    """Connector C, backbone B and the readout g = Linear(mean hidden state over the prompt)."""

    def __init__(
        self,
        features: Mapping[str, int],
        settings: ModelSettings,
        *,
        limits: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        """Build the tower.

        Args:
            features: Output width of each modality's extractor.
            settings: Connector, backbone and adapter.
            limits: The modalities that the backbone reads as tokens, and how many of each. Their
                features are bytes; z_m is projected from the mean of their word embeddings.
            tokens: Number of tokens of each modality, see `Connector`; one by default.
        """
        super().__init__()
        self.backbone = Backbone(settings.backbone, settings.lora)
        self.reader = WordReader(self.backbone.coder, limits or {})
        hidden = self.backbone.hidden_size
        widths = {m: hidden if m in self.reader.limits else n for m, n in features.items()}
        self.connector = Connector(widths, hidden, settings=settings.connector, tokens=tokens)
        self.readout = nn.Linear(self.backbone.hidden_size, settings.connector.width)
        self.longest_answer = settings.max_new_tokens

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Tensor,
        instructions: Sequence[str],
        targets: Sequence[str],
        *,
        parts: int = 0,
    ) -> TowerOutput:
        """Read a batch and compute L_LM of its targets.

        Args:
            features: (B, features) of each modality.
            present: (B, K) bool, whether a sample has a modality; or which of its tokens it has,
                see `Connector.forward`.
            instructions: B texts.
            targets: B texts.
            parts: As in `Backbone.forward`.
        """
        embeddings = self.embed(features, present)
        output = self.backbone(
            embeddings.prompt, instructions, targets, words=embeddings.words, parts=parts
        )
        view = self.readout(output.prompt_hidden)
        return TowerOutput(
            embeddings,
            view,
            output.loss,
            output.logits,
            output.labels,
            output.hidden,
            output.mask,
        )

    def embed(self, features: Mapping[str, Tensor], present: Tensor) -> Embeddings:
        """Run the connector, and tokenize the text modalities that the backbone reads as tokens.

        Args:
            features: (B, features) of each modality; (B, bytes) of one that is read as tokens.
            present: (B, K) bool, whether a sample has a modality.
        """
        if not self.reader.limits:
            return self.connector(features, present)  # type: ignore[no-any-return]
        words, texts = self.reader(features, present)
        embedding = self.backbone.lm.get_input_embeddings()
        means = {m: word_means(rows, embedding).to(present.device) for m, rows in texts.items()}
        embeddings: Embeddings = self.connector({**features, **means}, present)
        return embeddings._replace(words=words)

    def view(self, embeddings: Embeddings) -> Tensor:
        """Return g (B, D) without any text."""
        return self.readout(self.backbone.read_prompt(embeddings.prompt))  # type: ignore[no-any-return]

    def room(self) -> Room:
        """Return the lengths of this tower's sequences."""
        coder = self.backbone.coder
        before = longest(coder, self.reader.limits)
        return Room(coder, self.connector.prompt_length, self.longest_answer, before)

    def generate(self, embeddings: Embeddings, instructions: Sequence[str]) -> list[str]:
        """Generate one sentence for each sample by greedy decoding."""
        return self.backbone.generate(
            embeddings.prompt,
            instructions,
            max_new_tokens=self.longest_answer,
            words=embeddings.words,
        )
