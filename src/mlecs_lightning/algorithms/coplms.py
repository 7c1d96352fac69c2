"""Co-PLMs: co-tuning through proxy models (arXiv 2511.11678)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.errors import FaultList
from mlecs_lightning.functional import common_columns, distillation_loss
from mlecs_lightning.modules import EdgeModule, Losses, MultimodalLM, Objective
from mlecs_lightning.nn.tower import TowerOutput
from mlecs_lightning.rounds import EdgeLearner, Loaders, RoundContext, ServerLearner, TrainingPass
from mlecs_lightning.types import Batch
from mlecs_lightning.wire import Message

__all__ = ["CoPLMs"]


class CoPLMs(FedAvg):
    """Each party trains its own model and a proxy by mutual learning; the proxies are averaged.

    One round:

    1. The clients' proxies load the hosted adapter.
    2. Private data: each client's own model minimises L_LM. Its adapter never leaves the device.
    3. Public data: own model and proxy each minimise L_LM and the divergence of their next-token
       distribution from that of the other.
    4. The clients send the proxies' adapters, which are averaged by samples.
    5. The server trains its LLM and the hosted proxy as the clients did in step 3.

    Follows the paper's structure-agnostic mutual learning, with two differences (our choice): one
    vocabulary is required where the paper bridges tokenizers, and distillation uses public data
    alone, so that a proxy learns about private data only from the outputs of its client's model.
    """

    uses_proxy = True

    def __init__(self, *, weight: float = 1.0, temperature: float = 2.0, **options: Any) -> None:
        """Set passes, aggregation and distillation.

        Args:
            weight: Weight of each divergence.
            temperature: Temperature T of the distributions.
            **options: See `FedAvg`.

        Raises:
            ConfigurationError: If the weight or the temperature is out of range.
            ValueError: If another value is.
        """
        super().__init__(**options)
        faults = FaultList()
        if weight < 0:
            faults.append(f"algorithm.init_args.weight must not be negative, got {weight}")
        if not temperature > 0:
            faults.append(f"algorithm.init_args.temperature must be positive, got {temperature}")
        faults.raise_any()
        self.distillation_weight = weight
        self.temperature = temperature

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Check that all models have one vocabulary.

        Raises:
            ConfigurationError: If one differs; names the party.
        """
        super().prepare(server, clients)
        hosted = _vocabulary(server.module, "slm")
        others = {"server": _vocabulary(server.module)}
        others |= {f"clients.{name}": _vocabulary(module) for name, module in clients.items()}
        faults = FaultList()
        for party, vocabulary in others.items():
            if vocabulary != hosted:
                faults.append(
                    f"{party}.backbone.model has another vocabulary or end of an answer than "
                    f"edge.backbone.model ({len(vocabulary[0])} and {len(hosted[0])} tokens, ends "
                    f"{vocabulary[1]} and {hosted[1]}); CoPLMs compares next-token "
                    "distributions and needs one for all: choose models of one family"
                )
        faults.raise_any()

    def losses(self) -> dict[str, tuple[str, ...]]:
        """Name the losses of `mutual` and of the private pass."""
        return {**super().losses(), "public": ("loss", "lm", "lm_proxy", "divergence")}

    def public_pass(
        self, edge: EdgeLearner, loaders: Loaders, ctx: RoundContext, broadcast: Message | None
    ) -> TrainingPass:
        """Return the pass in which own model and proxy learn from each other."""
        return super().public_pass(edge, loaders, ctx, broadcast)._replace(objective=self.mutual)

    def warmup_objective(self) -> Objective | None:
        """Warm up LLM and proxy together."""
        return self.mutual

    def server_objective(self) -> Objective | None:
        """Mutual learning of LLM and proxy."""
        return self.mutual

    def mutual(self, module: MultimodalLM, batch: Batch) -> Losses:
        """L_LM of both towers + weight T^2 [KL(sg own || proxy) + KL(sg proxy || own)]."""
        own, proxy = module.read_towers(batch).values()
        lm_own, lm_proxy = module.mean_loss(own), module.mean_loss(proxy)
        divergence = self._divergence(own, proxy) + self._divergence(proxy, own)
        distance = module.token_mean(divergence, own)
        return {
            "loss": lm_own + lm_proxy + self.distillation_weight * distance,
            "lm": lm_own,
            "lm_proxy": lm_proxy,
            "divergence": distance,
        }

    def _divergence(self, student: TowerOutput, teacher: TowerOutput) -> Tensor:
        spoken = student.labels >= 0
        common = common_columns(student.logits, teacher.logits)
        return distillation_loss(*common, mask=spoken, temperature=self.temperature)


def _vocabulary(module: MultimodalLM, tower: str | None = None) -> tuple[dict[str, int], int]:
    """Return the tokens of a tower with their numbers, and the one that ends an answer."""
    tokenizer = module.tower(tower).backbone.tokenizer
    return tokenizer.get_vocab(), tokenizer.eos_token_id
