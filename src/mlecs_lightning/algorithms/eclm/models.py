"""What ECLM adds to the modules: the cloud's selector and register, a device's gate path."""

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
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules.base import MultimodalLM
from mlecs_lightning.modules.edge import EdgeModule
from mlecs_lightning.modules.server import ServerModule
from mlecs_lightning.nn.connector import Connector
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
    "prototype_names",
    "sizes",
    "unpack",
]

SIZES = ("submodel/modules", "submodel/parameters", "submodel/bytes")
"""What `sizes` tells of a device's model."""
_LAYERS = sorted({name for makes, reads in MLP_LAYERS for name in (*makes, reads)})


def adapter_faults(lora: LoraSettings) -> list[str]:
    """Say if an adapter is no adapter of modules, and of nothing else."""
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
    """What the cloud has beside its model: the selector, and what it knows of each device.

    Buffers, so that a checkpoint of the server holds them. They change when updates are merged and
    at no other time: a round that was interrupted goes on from the same knowledge.

    Attributes:
        selector: The module selector.
        informed: (J,) uint8, devices that have the prototype.
        held: (J, L, K) uint8, modules that a device holds as the cloud does.
        assigned: (J, L, K) uint8, the sub-model that was last derived for a device.
        importance: (J, L, K) mean gates on a device's data, as it last reported.
        budget: (J,) a device's budget as a multiple of the configured one, as it last reported.
    """

    informed: Tensor
    held: Tensor
    assigned: Tensor
    importance: Tensor
    budget: Tensor

    def __init__(self, width: int, shape: tuple[int, int], clients: int) -> None:
        """Know nothing of any device yet."""
        super().__init__()
        self.selector = ModuleSelector(width, shape)
        # uint8 in place of bool: DDP tells buffers over gloo, which has no bool.
        self.register_buffer("informed", torch.zeros(clients, dtype=torch.uint8))
        self.register_buffer("held", torch.zeros(clients, *shape, dtype=torch.uint8))
        self.register_buffer("assigned", torch.zeros(clients, *shape, dtype=torch.uint8))
        self.register_buffer("importance", torch.zeros(clients, *shape))
        self.register_buffer("budget", torch.ones(clients))

    @classmethod
    def add(cls, server: ServerModule, modules: int, clients: int) -> None:
        """Divide the hosted model and let it answer; add the selector."""
        shape = divide(server, modules).shape
        server.add_module("eclm", cls(server.settings.connector.width, shape, clients))
        server.first = "slm"

    @classmethod
    def measure(cls, server: ServerModule, batch: Batch) -> Tensor:
        """Return the gates p (B, L, K) of a batch, before a choice."""
        logits: Tensor = cls.of(server).selector(server.embed(batch, tower="slm").fused)
        return logits.float().softmax(dim=-1)


class DeviceParts(_Parts):
    """What a device has beside its sub-model: the gate path, and what its gates were like.

    Attributes:
        gates: The frozen path from inputs to gates, as the cloud sent it.
        mean: (L, K) mean gates on the data for which the sub-model was derived.
        deviation: (L, K) their standard deviation.
        samples: How many samples these are of; 0 before the first round.
    """

    mean: Tensor
    deviation: Tensor
    samples: Tensor

    def __init__(self, gates: GatePath) -> None:
        """Begin without a past."""
        super().__init__()
        self.gates = gates
        shape = gates.selector.shape
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.zeros(shape))
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))

    @classmethod
    def add(cls, edge: EdgeModule, modules: int, modalities: Sequence[str]) -> None:
        """Make a fresh edge ready to take a sub-model; it begins with the smallest one.

        Args:
            edge: The edge.
            modules: K.
            modalities: All modalities of the data, in order: the columns of the cloud's connector.
        """
        tower, modular = edge.tower(), divide(edge, modules)
        widths = {m: int(e.out_features) for m, e in edge.extractors.items()}  # type: ignore[arg-type]
        tower.connector = Connector(
            widths,
            tower.backbone.hidden_size,
            settings=edge.settings.connector,
            slots=modalities,
        )
        selector = ModuleSelector(edge.settings.connector.width, modular.shape)
        gates = GatePath(edge.extractors, tower.connector, selector)
        edge.add_module("eclm", cls(gates))
        # Encoders that a checkpoint need not hold need not be held twice either.
        known = edge._ddp_params_and_buffers_to_ignore
        copies = {f"eclm.gates.{name}" for name in known if name.startswith("extractors.")}
        edge._ddp_params_and_buffers_to_ignore = sorted({*known, *copies})
        # The trunk stays as the cloud trained it: then the mean of what devices send is exact.
        for parameter in modular.trunk_parameters():
            parameter.requires_grad_(False)
        first = torch.zeros(modular.shape, dtype=torch.bool)
        first[:, 0] = True
        modular.select(first)

    def compare(self, now: GateStatistics, *, significance: float) -> bool:
        """Test the gates for drift; after one, and in the beginning, the present ones count."""
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


def divide(module: MultimodalLM, modules: int) -> ModularMLPs:
    """Divide the MLPs of a module's SLM.

    Raises:
        ConfigurationError: If that cannot be done, or the adapter adapts other layers, too: every
            tensor that devices train and send must belong to one module.
    """
    backbone = module.tower("slm").backbone
    what = f"backbone.model {backbone.settings.model!r}"
    modular = ModularMLPs(backbone.lm, modules, what=what)
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
    """Return how large a device's model is now: modules, parameters (frozen ones, too), bytes."""
    told = (
        float(modular_of(edge).mask.sum()),
        float(edge.parameter_count()),
        float(edge.parameter_bytes()),
    )
    return dict(zip(SIZES, told, strict=True))


def prototype_names(edge: EdgeModule) -> dict[str, str]:
    """Return which tensors of an edge come from the cloud once, and their names there.

    Extractors, connector, selector and the adapter's trunk; the gate path is made of the same.
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


@torch.no_grad()
def count_costs(edge: EdgeModule) -> Costs:
    """Count what an edge costs: without any module, and for each module.

    Operations are those of torch's `FlopCounterMode` for the soft prompt of one sample; memory is
    that of parameters, and of gradient and two moments of those that train.

    Args:
        edge: An edge.
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
    return Costs(fixed, per_module)


@torch.no_grad()
def pack(module: MultimodalLM, names: Mapping[str, str]) -> Tensor:
    """Return the tensors of the cloud that a prototype is made of, one behind another."""
    state = module.state_dict()
    parts = [state[name].float().flatten().cpu() for name in sorted(set(names.values()))]
    return torch.cat(parts)


@torch.no_grad()
def unpack(edge: EdgeModule, names: Mapping[str, str], values: Tensor) -> None:
    """Write a prototype into an edge.

    Raises:
        ValueError: If it has another length.
    """
    state = edge.state_dict()
    shapes = {there: state[here].shape for here, there in names.items()}
    sizes = {there: shapes[there].numel() for there in sorted(shapes)}
    if len(values) != sum(sizes.values()):
        raise ValueError(f"a prototype of {len(values)} numbers, expected {sum(sizes.values())}")
    parts = dict(zip(sizes, torch.split(values, list(sizes.values())), strict=True))
    for here, there in names.items():
        state[here].copy_(parts[there].view(shapes[there]))
