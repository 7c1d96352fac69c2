"""The parts that ECLM adds to the modules of server and devices, and what it reads from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlecs_lightning.algorithms.eclm.derivation import Costs
from mlecs_lightning.algorithms.eclm.drift import GateStatistics, drifted
from mlecs_lightning.algorithms.eclm.modular import MLP_LAYERS, ModularMLPs
from mlecs_lightning.algorithms.eclm.selector import GatePath, ModuleSelector
from mlecs_lightning.data import SampleTable
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules.base import MultimodalLM
from mlecs_lightning.modules.edge import EdgeModule
from mlecs_lightning.modules.server import ServerModule
from mlecs_lightning.nn.connector import Connector
from mlecs_lightning.rounds import ServerLearner
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.types import Batch

__all__ = [
    "SIZES",
    "CloudParts",
    "DeviceParts",
    "adapter_faults",
    "count_costs",
    "divide",
    "modular_of",
    "pack",
    "prototype_faults",
    "prototype_names",
    "public_importance",
    "sizes",
    "unpack",
]

SIZES = ("submodel/modules", "submodel/parameters", "submodel/bytes")
"""The figures that `sizes` returns."""
_LAYERS = sorted({name for makes, reads in MLP_LAYERS for name in (*makes, reads)})


def adapter_faults(lora: LoraSettings) -> list[str]:
    """Return a fault if an adapter adapts other layers than those of the MLPs."""
    targets = lora.target_modules or []
    if targets and all(target.rpartition(".")[2] in _LAYERS for target in targets):
        return []
    return [
        f"edge.lora.target_modules is {lora.target_modules}; ECLM adapts the MLPs alone: "
        "[c_fc, mlp.c_proj] in GPT-2, [gate_proj, up_proj, down_proj] in Llama and Qwen"
    ]


class _Parts(nn.Module):
    """What ECLM adds to a module, under the name ``eclm``."""

    @classmethod
    def of(cls, module: MultimodalLM) -> Self:
        """Return the parts that were added to a module."""
        parts = module.get_submodule("eclm")
        assert isinstance(parts, cls)
        return parts


class CloudParts(_Parts):
    """The module selector, and the cloud's records of each device.

    The records are buffers, so that checkpoints of the server hold them. They change only when
    updates are merged, so that an interrupted round resumes from the same records.

    Attributes:
        selector: The module selector.
        informed: (J,) uint8, devices that have the prototype.
        held: (J, L, K) uint8, modules of which a device has the cloud's version.
        assigned: (J, L, K) uint8, the sub-model last derived for each device.
        importance: (J, L, K or, with a bypass, K + 1) mean gates last reported by each device.
        budget: (J,) budget last reported by each device, as a multiple of the configured one.
    """

    informed: Tensor
    held: Tensor
    assigned: Tensor
    importance: Tensor
    budget: Tensor

    def __init__(
        self, width: int, shape: tuple[int, int], clients: int, *, bypass: bool = False
    ) -> None:
        """Start without records."""
        super().__init__()
        self.selector = ModuleSelector(width, (shape[0], shape[1] + bypass))
        # uint8 instead of bool: DDP broadcasts buffers over gloo, which has no bool.
        self.register_buffer("informed", torch.zeros(clients, dtype=torch.uint8))
        self.register_buffer("held", torch.zeros(clients, *shape, dtype=torch.uint8))
        self.register_buffer("assigned", torch.zeros(clients, *shape, dtype=torch.uint8))
        self.register_buffer("importance", torch.zeros(clients, *self.selector.shape))
        self.register_buffer("budget", torch.ones(clients))

    @classmethod
    def add(
        cls,
        server: ServerModule,
        modules: int,
        clients: int,
        *,
        bypass: bool = False,
        weighted: bool = False,
    ) -> None:
        """Divide the hosted model into modules, let it answer, and add the selector."""
        modular = divide(server, modules, bypass=bypass, weighted=weighted)
        width = server.settings.connector.width
        server.add_module("eclm", cls(width, modular.shape, clients, bypass=bypass))
        server.first = "slm"

    @classmethod
    def measure(cls, server: ServerModule, batch: Batch) -> Tensor:
        """Return the gates p (B, L, K) of a batch, before top-k."""
        logits: Tensor = cls.of(server).selector(server.embed(batch, tower="slm").fused)
        return logits.float().softmax(dim=-1)


class DeviceParts(_Parts):
    """A device's gate path, and its reference for the drift test.

    Attributes:
        gates: The frozen path from inputs to gates, from the cloud.
        mean: (L, K) mean gates on the data for which the sub-model was derived.
        deviation: (L, K) their standard deviation.
        samples: Number of samples of these; 0 before the first round.
    """

    mean: Tensor
    deviation: Tensor
    samples: Tensor

    def __init__(self, gates: GatePath) -> None:
        """Start without a reference."""
        super().__init__()
        self.gates = gates
        shape = gates.selector.shape
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.zeros(shape))
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))

    @classmethod
    def add(
        cls,
        edge: EdgeModule,
        modules: int,
        modalities: Sequence[str],
        *,
        bypass: bool = False,
        weighted: bool = False,
    ) -> None:
        """Prepare a fresh edge for sub-models; it starts with the smallest one.

        Args:
            edge: The edge.
            modules: K.
            modalities: All modalities of the data, in order: the columns of the cloud's connector.
            bypass: Whether the selector can choose to bypass a layer.
            weighted: Whether modules have weights.
        """
        tower, modular = edge.tower(), divide(edge, modules, bypass=bypass, weighted=weighted)
        widths = {m: int(e.out_features) for m, e in edge.extractors.items()}  # type: ignore[arg-type]
        tower.connector = Connector(
            widths,
            tower.backbone.hidden_size,
            settings=edge.settings.connector,
            slots=modalities,
            tokens=tower.connector.tokens,
        )
        shape = (modular.shape[0], modular.shape[1] + bypass)
        selector = ModuleSelector(edge.settings.connector.width, shape)
        gates = GatePath(edge.extractors, tower.connector, selector)
        edge.add_module("eclm", cls(gates))
        # Frozen encoders that checkpoints leave out are left out of the copies as well.
        known = edge._ddp_params_and_buffers_to_ignore
        copies = {f"eclm.gates.{name}" for name in known if name.startswith("extractors.")}
        edge._ddp_params_and_buffers_to_ignore = sorted({*known, *copies})
        # The trunk stays as the cloud trained it, so that the mean of the adapters is exact.
        for parameter in modular.trunk_parameters():
            parameter.requires_grad_(False)
        first = torch.zeros(modular.shape, dtype=torch.bool)
        first[:, 0] = True
        modular.select(first)

    def compare(self, now: GateStatistics, *, significance: float) -> bool:
        """Test the gates for drift; after drift, and at first, they become the reference."""
        before = GateStatistics(self.mean.cpu(), self.deviation.cpu(), int(self.samples))
        changed = drifted(now, before, significance=significance)
        if changed or before.samples == 0:
            self.mean.copy_(now.mean)
            self.deviation.copy_(now.deviation)
            self.samples.fill_(now.samples)
        return changed

    @staticmethod
    def measure(edge: EdgeModule, batch: Batch) -> Tensor:
        """Return the gates p (B, L, K) of a batch."""
        return DeviceParts.of(edge).gates(*edge.sensed(batch)).cpu()  # type: ignore[no-any-return]


def divide(
    module: MultimodalLM, modules: int, *, bypass: bool = False, weighted: bool = False
) -> ModularMLPs:
    """Divide the MLPs of a module's SLM.

    Raises:
        ConfigurationError: If that cannot be done, or the adapter adapts other layers, too: every
            tensor that devices train and send must belong to one module.
    """
    backbone = module.tower("slm").backbone
    what = f"backbone.model {backbone.settings.model!r}"
    modular = ModularMLPs(backbone.lm, modules, bypass=bypass, weighted=weighted, what=what)
    if backbone.settings.gradient_checkpointing:
        raise ConfigurationError(f"{what}: ECLM cannot work with gradient_checkpointing")
    mine = {id(p) for p in (*modular.own_parameters(), *modular.trunk_parameters())}
    others = {
        ".".join(name.split(".lora_")[0].split(".")[-2:])
        for name, p in backbone.lm.named_parameters()
        if ".lora_" in name and id(p) not in mine
    }
    if others or not mine:
        raise ConfigurationError(
            f"lora.target_modules adapts {sorted(others) or 'nothing'}; ECLM adapts layers of the "
            "MLPs alone: [c_fc, mlp.c_proj] in GPT-2, [gate_proj, up_proj, down_proj] in Llama and "
            "Qwen"
        )
    backbone.add_module("modular", modular)
    return modular


def modular_of(module: MultimodalLM) -> ModularMLPs:
    """Return the divided MLPs of a module's SLM."""
    modular = module.tower("slm").backbone.get_submodule("modular")
    assert isinstance(modular, ModularMLPs)
    return modular


def sizes(edge: EdgeModule) -> dict[str, float]:
    """Return the size of a device's model: modules, parameters (frozen ones included), bytes."""
    told = (
        float(modular_of(edge).mask.sum()),
        float(edge.parameter_count()),
        float(edge.parameter_bytes()),
    )
    return dict(zip(SIZES, told, strict=True))


def prototype_names(edge: EdgeModule) -> dict[str, str]:
    """Return the names of an edge's prototype tensors, and their names in the cloud's model.

    The prototype is extractors, connector, selector and the adapter's trunk, which the cloud sends
    once. The gate path has copies of the first three.
    """
    trunk = {id(p) for p in modular_of(edge).trunk_parameters()}
    tied = {n for n, p in edge.named_parameters() if id(p) in trunk}
    connector = "towers.slm.connector."
    names = {}
    for name in sorted(edge.state_dict().keys() - set(edge._ddp_params_and_buffers_to_ignore)):
        if name.startswith(("extractors.", connector)) or name in tied:
            names[name] = name
        elif name.startswith("eclm.gates.extractors."):
            names[name] = name.removeprefix("eclm.gates.")
        elif name.startswith("eclm.gates.connector."):
            names[name] = connector + name.removeprefix("eclm.gates.connector.")
        elif name.startswith("eclm.gates.selector."):
            names[name] = "eclm." + name.removeprefix("eclm.gates.")
    return names


def prototype_faults(
    client: str, edge: EdgeModule, names: Mapping[str, str], cloud: Mapping[str, Tensor]
) -> list[str]:
    """Return a fault if the cloud's prototype does not fit into an edge.

    Args:
        client: The client, for the message.
        edge: Its module.
        names: `prototype_names`.
        cloud: The state of the cloud's model.
    """
    own = edge.state_dict()
    unlike = [
        here
        for here, there in names.items()
        if there not in cloud or own[here].shape != cloud[there].shape
    ]
    if not unlike:
        return []
    return [
        f"clients.{client}: ECLM sends the cloud's extractors and connector to devices, so theirs "
        f"must be those of the server; these differ: {unlike[:3]}"
    ]


def public_importance(
    server: ServerLearner, table: SampleTable, modalities: Sequence[str]
) -> Tensor:
    """Return the mean gates (L, K) on public data, for a device that has not reported its own yet.

    Args:
        server: The cloud.
        table: The public samples.
        modalities: Those of the device; the gates are those of samples without the others.
    """
    keep = torch.tensor([m in modalities for m in table.modalities])
    seen = table.mask(keep.expand(len(table), -1))
    return torch.cat(server.map(sequential_loader(seen, 256), CloudParts.measure)).cpu().mean(dim=0)


@torch.no_grad()
def count_costs(edge: EdgeModule) -> Costs:
    """Count the costs of an edge without modules, and of each module.

    Operations are those that torch's `FlopCounterMode` counts for the soft prompt of one sample.
    Memory is that of all parameters, and of the gradient and two moments of trainable ones.
    """
    backbone, modular = edge.backbone, modular_of(edge)
    prompt = edge.settings.connector.prompt_length
    length = len(backbone.coder.start) + prompt
    weight = edge.tower().readout.weight
    trained = sum(p.numel() * p.element_size() for p in edge.trainable_parameters())
    there = int(modular.mask.sum())
    with FlopCounterMode(display=False) as counter:
        backbone.read_prompt(weight.new_zeros(1, prompt, backbone.hidden_size))
    whole = {
        "modules": there / modular.mask.numel(),
        "parameters": float(edge.parameter_count()),
        "memory_mib": (edge.parameter_bytes() + 3 * trained) / 2**20,
        "mflops": counter.get_total_flops() / 1e6,
    }
    own = 3 * modular.row_size * weight.element_size()
    each = {
        "modules": 1 / modular.mask.numel(),
        "parameters": float(modular.module_parameters()),
        "memory_mib": (modular.module_bytes() + own) / 2**20,
        "mflops": length * modular.module_flops() / 1e6,
    }
    fixed = {name: whole[name] - there * cost for name, cost in each.items()}
    per_module = {n: torch.full(modular.shape, c, dtype=torch.float64) for n, c in each.items()}
    return Costs(fixed, per_module, modular.bypass)


@torch.no_grad()
def pack(module: MultimodalLM, names: Mapping[str, str]) -> Tensor:
    """Return the cloud's tensors of a prototype, flattened and concatenated."""
    state = module.state_dict()
    parts = [state[name].float().flatten().cpu() for name in sorted(set(names.values()))]
    return torch.cat(parts)


@torch.no_grad()
def unpack(edge: EdgeModule, names: Mapping[str, str], values: Tensor) -> None:
    """Load a prototype into an edge.

    Raises:
        ValueError: If its length is wrong.
    """
    state = edge.state_dict()
    shapes = {there: state[here].shape for here, there in names.items()}
    sizes = {there: shapes[there].numel() for there in sorted(shapes)}
    if len(values) != sum(sizes.values()):
        raise ValueError(f"a prototype of {len(values)} numbers, expected {sum(sizes.values())}")
    parts = dict(zip(sizes, torch.split(values, list(sizes.values())), strict=True))
    for here, there in names.items():
        state[here].copy_(parts[there].view(shapes[there]))
