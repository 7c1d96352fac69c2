"""The backbone B: a frozen causal language model of Hugging Face with a LoRA adapter from PEFT."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlecs_lightning.nn.embeddings import as_embeddings
from mlecs_lightning.nn.frozen import (
    PRIVATE,
    add_lora,
    digests,
    frozen_tensors,
    share,
)
from mlecs_lightning.nn.loading import load_coder, load_frozen
from mlecs_lightning.nn.quantized import int8_copy
from mlecs_lightning.settings import BackboneSettings, LoraSettings

__all__ = ["Backbone", "BackboneOutput"]

_IGNORE = -100


class BackboneOutput(NamedTuple):
    """The result of a forward pass of the language model.

    Attributes:
        loss: L_LM, the mean next-token cross entropy over the target tokens; scalar, or one of each
            part of the batch.
        prompt_hidden: (B, H) last hidden state, averaged over the P prompt positions.
        logits: (B, T, vocabulary) logits that predict ``labels``.
        labels: (B, T) target tokens, -100 elsewhere.
        hidden: (B, L, H) last hidden state of the whole sequence.
        mask: (B, L) int64, 1 where the sequence has a token and 0 in the padding.
    """

    loss: Tensor
    prompt_hidden: Tensor
    logits: Tensor
    labels: Tensor
    hidden: Tensor
    mask: Tensor

    def log_probability(self) -> Tensor:
        """Return (B,) the log probability of each target with its end of sequence; 0 without."""
        spoken = self.labels != _IGNORE
        chosen = self.logits.float().log_softmax(dim=-1)
        chosen = chosen.gather(-1, self.labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return chosen.masked_fill(~spoken, 0.0).sum(dim=1)

    def probability(self) -> Tensor:
        """Return (B,) the probability of each target with its end of sequence; 0 without one.

        Of an empty target no token is scored, and the product over none would be 1.
        """
        spoken = (self.labels != _IGNORE).any(dim=1)
        return torch.where(spoken, self.log_probability().exp(), 0.0)


class Backbone(nn.Module):
    """A frozen causal language model that reads a soft prompt S, with a trainable LoRA adapter.

    The sequence is [beginning of sequence ; S ; tokens of text modalities ; instruction tokens ;
    target tokens ; end of sequence]. It has a beginning-of-sequence token only if the tokenizer
    adds one to every text, and tokens of text modalities only if there are any: see `WordReader`.
    """

    def __init__(self, settings: BackboneSettings, lora: LoraSettings) -> None:
        """Load the model, or share the one that is already loaded, and insert a new adapter.

        Args:
            settings: The language model.
            lora: The adapter.

        Raises:
            ConfigurationError: If the model cannot be loaded, its tokenizer has no end-of-sequence
                token, or PEFT finds no layer to adapt.
        """
        super().__init__()
        model, self.tokenizer = load_frozen(settings)
        self.coder = load_coder(settings)
        self.settings, self.lora = settings, lora
        own = share(model)
        self.lm = add_lora(
            own,
            lora,
            task="CAUSAL_LM",
            key="lora.target_modules",
            what=f"backbone.model {settings.model!r}",
        )
        if settings.gradient_checkpointing:
            # After PEFT, which would make the word embeddings require a gradient for the re-entrant
            # variant; this one does not need it.
            own.activation_checkpointing_enable({"use_reentrant": False})
        # We always pass attention masks. `generate` drops one that masks nothing, and the model
        # would then warn about every answer that ends before the others.
        self.lm.config.pad_token_id = None
        # Loaded models are in evaluation mode, new modules in training mode. The whole module is
        # set to training, so that a plain `Trainer` and the federated loop use the same dropout.
        self.lm.train()
        self.hidden_size: int = model.get_input_embeddings().embedding_dim  # type: ignore[assignment]

    def frozen_names(self) -> set[str]:
        """Return the names of the tensors that checkpoints omit, since `load_frozen` loads them."""
        return frozen_tensors(self)

    def frozen_contents(self) -> dict[str, str]:
        """Return the model's name and the SHA-256 of its weights, configuration and tokenizer."""
        return {"model": self.settings.model, **digests(*load_frozen(self.settings))}

    # Adapter --------------------------------------------------------------------------------

    @functools.cached_property
    def _adapter(self) -> dict[str, nn.Parameter]:
        return {
            name.replace(".default.", "."): parameter
            for name, parameter in self.lm.named_parameters()
            if ".lora_" in name and f".{PRIVATE}." not in name
        }

    def adapted_layers(self) -> set[str]:
        """Return the full names of the layers that the adapter changes."""
        return {key.partition(".lora_")[0] for key in self._adapter}

    @property
    def scaling(self) -> float:
        """The scale alpha / r of the adapter's update."""
        return self.lora.alpha / self.lora.r

    def adapter_state(self) -> dict[str, Tensor]:
        """Return copies of the adapter's tensors under PEFT's names.

        Tensors that do not train (``lora_A`` after `freeze_a`) are left out: they never change, so
        they need not be sent.
        """
        return {k: p.detach().clone() for k, p in self.adapter_parameters().items()}

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return the adapter's trainable parameters under PEFT's names."""
        return {k: p for k, p in self._adapter.items() if p.requires_grad}

    @functools.cached_property
    def private_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the adapter that stays on the device; none without one."""
        return {k: p for k, p in self.lm.named_parameters() if f".{PRIVATE}." in k}

    @torch.no_grad()
    def load_adapter_state(self, state: Mapping[str, Tensor], *, mix: float = 1.0) -> None:
        """Set the adapter to ``mix`` times the given state plus ``1 - mix`` times its own.

        Args:
            state: The `adapter_state` of a backbone of the same shape.
            mix: Weight of the given state in [0, 1]: 1 overwrites the adapter, 0 keeps it.

        Raises:
            KeyError: If a key is unknown. Nothing is written then.
            ValueError: If a shape differs. Nothing is written then.
        """
        for key, value in state.items():
            if key not in self._adapter:
                raise KeyError(f"the adapter has no tensor {key!r}")
            expected = self._adapter[key].shape
            if expected != value.shape:
                raise ValueError(
                    f"{key}: expected shape {tuple(expected)}, got {tuple(value.shape)}"
                )
        for key, value in state.items():
            parameter = self._adapter[key]
            if mix == 1.0:
                parameter.copy_(value)
            else:
                parameter.lerp_(value.to(parameter), mix)

    def trains_a(self) -> bool:
        """Return whether ``lora_A`` trains."""
        return any(p.requires_grad for k, p in self._adapter.items() if ".lora_A." in k)

    def freeze_a(self) -> None:
        """Train only ``lora_B``, as FFA-LoRA does (arXiv 2403.12313)."""
        for name, parameter in self._adapter.items():
            if ".lora_A." in name:
                parameter.requires_grad_(False)

    @contextmanager
    def in_int8(self) -> Iterator[None]:
        """Use a copy in 8-bit integers within the context; see `int8_copy`."""
        own = self.lm
        self.lm = int8_copy(own)  # type: ignore[assignment]
        try:
            yield
        finally:
            self.lm = own

    # Text -----------------------------------------------------------------------------------

    def tokens(self, text: str) -> int:
        """Return the number of tokens of a text.

        Raises:
            ConfigurationError: If the model has no embedding for one of them.
        """
        return len(self.coder.encode(text))

    def _heads(
        self, instructions: Sequence[str], words: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        """Return the tokens of text modalities and instruction of each sample."""
        asked = [self.coder.encode(text) for text in instructions]
        if not words:
            return asked
        return [(*before, *own) for before, own in zip(words, asked, strict=True)]

    def _pack(
        self, heads: Sequence[tuple[int, ...]], targets: Sequence[str] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, attention mask and labels (B, L), padded on the right."""
        tails: list[tuple[int, ...]] = (
            [(*self.coder.encode(text), self.coder.end) if text else () for text in targets]
            if targets
            else [()] * len(heads)
        )
        longest = max(len(h) + len(t) for h, t in zip(heads, tails, strict=True))
        rows, masks, labels = [], [], []
        for head, tail in zip(heads, tails, strict=True):
            pad = longest - len(head) - len(tail)
            rows.append([*head, *tail] + [self.coder.pad] * pad)
            masks.append([1] * (len(head) + len(tail)) + [0] * pad)
            labels.append([_IGNORE] * len(head) + [*tail] + [_IGNORE] * pad)
        return tuple(
            torch.tensor(x, dtype=torch.long).view(len(heads), -1) for x in (rows, masks, labels)
        )  # type: ignore[return-value]

    def _check_length(self, needed: int, what: str) -> None:
        """Check a length before the model does: an index error on a GPU would end the process.

        Raises:
            ValueError: If the model has fewer positions.
        """
        if self.coder.positions is not None and needed > self.coder.positions:
            raise ValueError(
                f"{what} needs {needed} positions, but backbone.model {self.settings.model!r} has "
                f"{self.coder.positions}: shorten the text"
            )

    def _sequence(self, prompt: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the embeddings (B, L', H) of start token, prompt and tokens (B, L)."""
        embed = self.lm.get_input_embeddings()
        parts = [as_embeddings(prompt, embed)]
        if self.coder.start:
            start = torch.tensor(self.coder.start, device=prompt.device)
            parts.insert(0, embed(start).expand(len(prompt), -1, -1))
        if tokens is not None:
            parts.append(embed(tokens))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    # Forward passes and generation ----------------------------------------------------------

    def forward(
        self,
        prompt: Tensor,
        instructions: Sequence[str],
        targets: Sequence[str],
        *,
        words: Sequence[tuple[int, ...]] = (),
        parts: int = 0,
    ) -> BackboneOutput:
        """Read prompt, instruction and target.

        Args:
            prompt: (B, P, H) soft prompt.
            instructions: B texts.
            targets: B texts.
            words: The tokens of the text modalities of B samples; none by default.
            parts: Number of parts of equal size that the batch consists of, where the loss of each
                is wanted: ``loss`` is (parts,) then.

        Returns:
            The loss, the prompt's hidden states and the logits. L_LM covers the target tokens and
            the end-of-sequence token only.

        Raises:
            ValueError: If a sequence is longer than the model can read.
        """
        heads = self._heads(instructions, words)
        tokens, mask, labels = (t.to(prompt.device) for t in self._pack(heads, targets))
        before = len(self.coder.start) + prompt.shape[1]
        self._check_length(before + tokens.shape[1], "the longest instruction with its target")
        # Only the last positions predict a target. With a large vocabulary, the logits of the
        # others would cost more than the whole transformer.
        first = min(map(len, heads))
        keep = tokens.shape[1] - first + 1
        mask = nn.functional.pad(mask, (before, 0), value=1)
        output = self.lm(
            inputs_embeds=self._sequence(prompt, tokens),
            attention_mask=mask,
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=keep,
        )
        # Some model families ignore `logits_to_keep` and return all logits.
        logits, answer = output.logits[:, -keep:-1], labels[:, first:]
        if parts:
            loss = _mean_of_each(logits, answer, parts)
        elif any(targets):
            loss = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), answer.flatten(), ignore_index=_IGNORE
            )
        else:  # a mean over nothing; every parameter has a gradient all the same, as DDP asks
            loss = 0.0 * output.logits.float().sum()
        hidden: Tensor = output.hidden_states[-1]
        view = self._prompt_mean(hidden, prompt.shape[1])
        return BackboneOutput(loss, view, logits, answer, hidden, mask)

    def read_prompt(self, prompt: Tensor) -> Tensor:
        """Return the last hidden state (B, H), averaged over the prompt positions, without a text.

        It equals ``forward(...).prompt_hidden``, because the model is causal.
        """
        sequence = self._sequence(prompt)
        output = self.lm(
            inputs_embeds=sequence,
            attention_mask=prompt.new_ones(sequence.shape[:2], dtype=torch.long),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
        return self._prompt_mean(output.hidden_states[-1], prompt.shape[1])

    def _prompt_mean(self, hidden: Tensor, length: int) -> Tensor:
        first = len(self.coder.start)
        return hidden[:, first : first + length].mean(dim=1, dtype=torch.float32)

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        instructions: Sequence[str],
        *,
        max_new_tokens: int,
        words: Sequence[tuple[int, ...]] = (),
    ) -> list[str]:
        """Generate answers by greedy decoding, whatever the model's own generation settings.

        Args:
            prompt: (B, P, H) soft prompt.
            instructions: B texts.
            max_new_tokens: Maximum number of tokens of an answer.
            words: As in `forward`.

        Returns:
            B sentences without special tokens.

        Raises:
            ValueError: If an instruction leaves no room for an answer of that length.
        """
        from transformers import GenerationConfig

        heads = self._heads(instructions, words)
        tokens, mask, _ = (t.to(prompt.device) for t in self._pack(heads, None))
        sequence = self._sequence(prompt, tokens)
        before = sequence.shape[1] - tokens.shape[1]
        self._check_length(
            sequence.shape[1] + max_new_tokens, "the longest instruction with max_new_tokens"
        )
        mask = nn.functional.pad(mask, (before, 0), value=1)
        # Answers start at the right end, so padding moves to the left of the prompt, where the
        # mask and the position ids skip it.
        order = mask.argsort(dim=1, stable=True)
        answer = self.lm.generate(  # type: ignore[no-untyped-call]
            inputs_embeds=sequence.gather(1, order.unsqueeze(-1).expand_as(sequence)),
            attention_mask=mask.gather(1, order),
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.coder.pad,
                eos_token_id=self.coder.end,
            ),
        )
        return self.coder.decode(answer)


def _mean_of_each(logits: Tensor, labels: Tensor, parts: int) -> Tensor:
    """Return the mean cross entropy (parts,) of equal parts of a batch; 0 without a target."""
    each = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORE, reduction="none"
    )
    spoken = (labels != _IGNORE).view(parts, -1).sum(dim=1)
    return each.view(parts, -1).sum(dim=1) / spoken.clamp(min=1)
