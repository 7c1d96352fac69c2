"""The parts of the student that AKD trains and that go down to the devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from mlecs_lightning.modules import EdgeModule, ServerModule
from mlecs_lightning.nn.connector import Connector

__all__ = ["Alignment", "Part", "copied_shapes", "trained_tensors"]

Part = Literal["lora", "norms", "biases", "prompts"]


def trained_tensors(connector: Connector, parts: Sequence[Part]) -> dict[str, nn.Parameter]:
    """Return the parameters of a connector that train beside LoRA, by their names.

    ``prompts`` are the P learned query tokens: the part of the soft prompt that does not depend on
    the sample, the bias of its last layer. ``norms`` is the LayerNorm before the fusion, ``biases``
    are all other biases. The norms and biases of the frozen backbone stay as they are, since all
    parties of a process share them (our choice; the public code of CD-CCA trains them).

    Args:
        connector: The connector of the student, or of a device.
        parts: What trains.
    """
    prompts = f"to_prompt.{len(connector.to_prompt) - 1}.bias"
    named = dict(connector.named_parameters())
    kinds: dict[str, Part] = {name: "biases" for name in named if name.endswith(".bias")}
    kinds |= {prompts: "prompts", "fuse.0.weight": "norms", "fuse.0.bias": "norms"}
    return {name: named[name] for name in named if kinds.get(name) in parts}


class Alignment(nn.ModuleDict):
    """Maps features of the student to the teacher's width, position by position (a 1x1 layer).

    One for the query tokens and one for the last hidden states. Each starts as the identity, cut or
    padded with zeros, which takes no random number (our choice).
    """

    def __init__(self, student: int, teacher: int) -> None:
        """Build the layers.

        Args:
            student: Width of the student's features.
            teacher: Width of the teacher's.
        """
        super().__init__()
        for name in ("prompt", "hidden"):
            layer: nn.Linear = nn.utils.skip_init(nn.Linear, student, teacher)  # type: ignore[no-untyped-call]
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
            self[name] = layer

    def forward(self, prompt: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Map query tokens (B, P, H) and hidden states (B, L, H) to the teacher's width."""
        return self["prompt"](prompt.float()), self["hidden"](hidden.float())

    @classmethod
    def add(cls, server: ServerModule) -> None:
        """Add the layers to a fresh server, as ``alignment``."""
        student, teacher = (server.tower(name).backbone.hidden_size for name in ("slm", "llm"))
        server.add_module("alignment", cls(student, teacher))


def copied_shapes(module: ServerModule | EdgeModule, tower: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a device copies from the student."""
    parts = {"extractors": module.extractors, "connector": module.tower(tower).connector}
    return {
        f"{part}.{name}": tuple(tensor.shape)
        for part, each in parts.items()
        for name, tensor in each.state_dict().items()
    }
