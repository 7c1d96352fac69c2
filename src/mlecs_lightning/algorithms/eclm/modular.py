"""Transformer MLPs divided into modules: groups of neurons that can be left out (ECLM)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mlecs_lightning.algorithms.eclm.gating import mean_one
from mlecs_lightning.errors import ConfigurationError

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["MLP_LAYERS", "ModularMLPs"]

MLP_LAYERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("c_fc",), "c_proj"),  # GPT-2
    (("gate_proj", "up_proj"), "down_proj"),  # Llama, Qwen, SmolLM
    (("fc_in",), "fc_out"),  # GPT-J
    (("fc1",), "fc2"),  # Phi
)
"""The layers of an MLP by model family: those that output its neurons, and the one that reads them.

A neuron is a row of the first layers (with its bias) and a column of the last; the bias of the last
belongs to no neuron. So the MLP is exactly a sum over groups of neurons:
MLP(x) = b + sum_k W_k^out act(W_k^in x + b_k^in).
"""


class _Layer:
    """One linear layer of an MLP, which can be cut along its neurons.

    Of its LoRA, delta W = s B A, the factor with a row (or column) for each neuron is cut with the
    layer: B of the layers that output neurons, A of the one that reads them. All modules share the
    other factor, the trunk.
    """

    def __init__(self, layer: nn.Module, *, makes: bool) -> None:
        self.base: Any = layer
        if hasattr(layer, "get_base_layer"):
            self.base = layer.get_base_layer()  # type: ignore[operator]
        self.makes = makes
        # Shared with every other copy of the backbone, so never changed in place.
        self.weight: nn.Parameter = self.base.weight
        self.bias: nn.Parameter | None = getattr(self.base, "bias", None)
        self.transposed = not isinstance(self.base, nn.Linear)  # Conv1D of GPT-2: (in, out)
        self.own: nn.Linear | None = None
        self.trunk: nn.Linear | None = None
        if layer is not self.base:
            down, up = layer.lora_A["default"], layer.lora_B["default"]  # type: ignore[index]
            self.own, self.trunk = (up, down) if makes else (down, up)  # type: ignore[assignment]

    @property
    def axis(self) -> int:
        """Axis of the neurons in the stored weight."""
        return int(self.makes == self.transposed)

    def rows(self) -> Tensor:
        """Return the neurons' own LoRA factor, (neurons, r): a view."""
        assert self.own is not None
        return self.own.weight if self.makes else self.own.weight.T

    def cut(self, neurons: Tensor | None, rows: Tensor | None) -> None:
        """Keep only some neurons; ``None`` keeps all. ``rows`` is their LoRA factor."""
        # The whole weights may be on another device: no module owns them, so none moves them.
        device, weight, bias = self.base.weight.device, self.weight, self.bias
        if neurons is not None:
            weight = _part(weight, self.axis, neurons, device)
            if bias is not None and self.makes:
                bias = _part(bias, 0, neurons, device)
        elif weight.device != device:
            weight = nn.Parameter(weight.data.to(device), requires_grad=False)
            if bias is not None:
                bias = nn.Parameter(bias.data.to(device), requires_grad=False)
        count = weight.shape[self.axis]
        self.base.weight = weight
        if self.makes:
            self.base.bias = bias
        if self.transposed:
            self.base.nf, self.base.nx = weight.shape[1], weight.shape[0]
            self.base.__dict__.pop("forward", None)
            if not count and not self.makes:
                self.base.forward = partial(_bias_alone, self.base)
        _resize(self.base, count, makes=self.makes)
        if self.own is not None and rows is not None:
            # Keep the parameter and replace its data, because an optimiser refers to it.
            self.own.weight.data = (rows if self.makes else rows.T).contiguous()
            _resize(self.own, count, makes=self.makes)


def _bias_alone(base: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - GPT-2's Conv1D
    """Return what is left without neurons; Conv1D itself cannot compute it."""
    bias: Tensor = base.bias
    return bias.expand(*x.shape[:-1], len(bias))


def _part(whole: nn.Parameter, axis: int, rows: Tensor, device: torch.device) -> nn.Parameter:
    kept = whole.data.index_select(axis, rows.to(whole.device)).to(device)
    return nn.Parameter(kept, requires_grad=False)


def _resize(layer: Any, count: int, *, makes: bool) -> None:  # noqa: ANN401 - Linear or Conv1D
    if hasattr(layer, "out_features"):
        setattr(layer, "out_features" if makes else "in_features", count)


class ModularMLPs(nn.Module):
    """The MLPs of a language model as L x K modules, any of which can be left out.

    There are two ways to leave modules out: `select` makes the model physically smaller, for a
    device; `gated` multiplies the neurons of a whole model by gates, for training in the cloud.
    Both compute the same. With all modules, the model equals the undivided one. With ``bypass`` a
    layer may have no module at all; its MLP then adds its bias alone. With ``weighted`` each
    present module counts with a weight of its own, see `weigh`.

    Attributes:
        mask: (L, K) bool, the modules that are present. Part of the model's state: loading a state
            cuts the model to its form (`fit_to`).
        shape: (L, K).
        weights: (L, K) of the modules, part of the state; ``None`` unless ``weighted``.
    """

    mask: Tensor
    weights: Tensor | None

    def __init__(
        self,
        lm: PeftModel | nn.Module,
        modules: int,
        *,
        bypass: bool = False,
        weighted: bool = False,
        what: str = "the model",
    ) -> None:
        """Find the MLPs and divide them.

        Args:
            lm: The language model, with or without LoRA on its MLPs; `select` changes it.
            modules: Number K of modules of each MLP.
            bypass: Whether a layer may be empty.
            weighted: Whether modules have weights, which begin as ones.
            what: Name of the model, for error messages.

        Raises:
            ConfigurationError: If there are no MLPs of a known family, they are quantised, or K
                does not divide their width.
        """
        super().__init__()
        found = [
            (names, block)
            for _, block in lm.named_modules()
            for names in MLP_LAYERS
            if all(isinstance(getattr(block, n, None), nn.Module) for n in (*names[0], names[1]))
        ]
        if not found:
            known = ["/".join((*makes, reads)) for makes, reads in MLP_LAYERS]
            raise ConfigurationError(f"{what} has no MLPs that can be divided; known: {known}")
        # A plain list, so that the layers remain submodules of the model alone.
        self._blocks: list[list[_Layer]] = []
        for n, ((makes, reads), block) in enumerate(found):
            layers = [_Layer(getattr(block, name), makes=True) for name in makes]
            layers.append(_Layer(getattr(block, reads), makes=False))
            self._blocks.append(layers)
            # Weights stand on what is left when an adapter is merged, for a program or for int8.
            read = (layers[-1].base, layers[-1].own) if weighted else (getattr(block, reads),)
            for layer in filter(None, read):
                layer.register_forward_pre_hook(_Gate(self, n))
        first = self._blocks[0]
        if any(layer.weight.dtype in (torch.int8, torch.uint8) for layer in first):
            raise ConfigurationError(f"{what}: quantised MLPs cannot be divided")
        self.width = first[-1].weight.shape[first[-1].axis]
        if modules < 1 or self.width % modules:
            raise ConfigurationError(
                f"{what}: {modules} modules do not divide its {self.width} neurons into equal parts"
            )
        self.neurons = self.width // modules
        self.shape, self.bypass = (len(self._blocks), modules), bypass
        self.register_buffer("mask", torch.ones(self.shape, dtype=torch.bool))
        self.register_buffer("weights", torch.ones(self.shape) if weighted else None)
        self._kept = self.mask.tolist()
        self._gates: Tensor | None = None

    # The adapters of modules ----------------------------------------------------------------

    def _adapted(self, layer: int) -> list[_Layer]:
        return [each for each in self._blocks[layer] if each.own is not None]

    @property
    def row_size(self) -> int:
        """Number of values of a module's own adapter."""
        return self.neurons * sum(each.rows().shape[1] for each in self._adapted(0))

    def own_parameters(self) -> list[nn.Parameter]:
        """Return the adapter factors that are cut with the modules."""
        owns = [each.own for n in range(self.shape[0]) for each in self._adapted(n)]
        return [cast(nn.Parameter, own.weight) for own in owns if own is not None]

    def trunk_parameters(self) -> list[nn.Parameter]:
        """Return the adapter factors that all modules share."""
        trunks = [each.trunk for n in range(self.shape[0]) for each in self._adapted(n)]
        return [cast(nn.Parameter, trunk.weight) for trunk in trunks if trunk is not None]

    def index(self) -> Tensor:
        """Return the numbers l K + k of the present modules, ascending (N,)."""
        return self.mask.flatten().nonzero().flatten()

    def rows(self, index: Tensor | None = None) -> Tensor:
        """Return copies of modules' own adapters, one row for each (N, row_size), on the CPU.

        Args:
            index: Numbers of present modules; all of them by default.

        Raises:
            KeyError: If a module is absent.
        """
        whole = torch.cat([self._layer_rows(n) for n in range(self.shape[0])]).detach().cpu()
        return whole[self._places(self.index() if index is None else index)]

    def _layer_rows(self, layer: int) -> Tensor:
        there = int(self.mask[layer].sum())
        parts = [
            each.rows().reshape(there, self.neurons * each.rows().shape[1])
            for each in self._adapted(layer)
        ]
        return torch.cat(parts, dim=1)

    def _places(self, index: Tensor) -> Tensor:
        """Return the positions of modules among the present ones."""
        index = index.cpu()
        mask = self.mask.flatten().cpu()
        if bool((~mask[index]).any()):
            raise KeyError(f"modules {index[~mask[index]].tolist()} are not there")
        return (mask.cumsum(0) - 1)[index]

    @torch.no_grad()
    def load_rows(self, index: Tensor, rows: Tensor) -> None:
        """Load the own adapters of some present modules.

        Args:
            index: (N,) the numbers of the modules.
            rows: (N, row_size) as `rows` returns them.

        Raises:
            KeyError: If a module is absent.
        """
        self._places(index)
        for number, row in zip(index.tolist(), rows, strict=True):
            layer, module = divmod(number, self.shape[1])
            place, start = int(self.mask[layer, :module].sum()), 0
            for each in self._adapted(layer):
                target = each.rows()[place * self.neurons : (place + 1) * self.neurons]
                part = row[start : start + target.numel()]
                target.copy_(part.view(target.shape))
                start += target.numel()

    # Physically smaller ---------------------------------------------------------------------

    @torch.no_grad()
    def select(self, mask: Tensor) -> None:
        """Cut the MLPs to some modules, which saves memory and time.

        Modules that stay keep their adapters; those that are added start with a zero adapter.

        Args:
            mask: (L, K) bool, at least one module of each layer unless there is a bypass.

        Raises:
            ValueError: If the shape is another, or a layer would be empty.
        """
        if tuple(mask.shape) != self.shape:
            raise ValueError(f"modules: expected shape {self.shape}, got {tuple(mask.shape)}")
        mask = mask.to(self.mask.device).bool()
        if not (self.bypass or bool(mask.any(dim=1).all())):
            raise ValueError(
                f"modules: layers {(~mask.any(dim=1)).nonzero().flatten().tolist()} would be empty"
            )
        if torch.equal(mask, self.mask):
            return
        for old, new, block in zip(self.mask, mask, self._blocks, strict=True):
            if torch.equal(old, new):
                continue
            before, after = (m.repeat_interleave(self.neurons) for m in (old, new))
            for layer in block:
                rows = None
                if layer.own is not None:
                    own = layer.rows()
                    whole = own.new_zeros(self.width, own.shape[1])
                    whole[before] = own
                    rows = whole[after]
                layer.cut(None if bool(new.all()) else after.nonzero().flatten(), rows)
        self.mask.copy_(mask)
        self._kept = self.mask.tolist()

    def fit_to(self, state: Mapping[str, Tensor], *, prefix: str) -> None:
        """Cut the model to the form of a state that is about to be loaded."""
        if f"{prefix}mask" in state:
            self.select(state[f"{prefix}mask"])

    def form(self) -> dict[str, Any]:
        """Return K and the mask (L, K) of present modules, as 0 or 1."""
        return {"modules": self.shape[1], "mask": self.mask.int().tolist()}

    # Weighted -------------------------------------------------------------------------------

    @torch.no_grad()
    def weigh(self, importance: Tensor) -> None:
        """Weigh the present modules by their importance, with a mean of one in each layer.

        Args:
            importance: (L, K), or (L, K + 1) with a bypass, which is always there.

        Raises:
            ValueError: Unless the model was built with ``weighted``.
        """
        if self.weights is None:
            raise ValueError("modules: these have no weights")
        more = importance.shape[1] - self.shape[1]
        there = nn.functional.pad(self.mask, (0, more), value=True)
        weights = mean_one(importance.to(self.weights.device), there)
        self.weights.copy_(weights[:, : self.shape[1]])

    def factors(self, layer: int) -> Tensor | None:
        """Return what the neurons of a layer are multiplied by: (B, 1, N), (N,) or nothing."""
        if self._gates is not None:
            each = self._gates[:, layer]
            return each.repeat_interleave(self.neurons, dim=-1).unsqueeze(1)
        if self.weights is None:
            return None
        # From a list: a program that is exported cannot look into the mask.
        there = [k for k, present in enumerate(self._kept[layer]) if present]
        return self.weights[layer, there].repeat_interleave(self.neurons)

    # Gated ----------------------------------------------------------------------------------

    @contextmanager
    def gated(self, gates: Tensor) -> Iterator[None]:
        """Multiply the neurons of every module by its gate, inside the context.

        Args:
            gates: (B, L, K), for the samples of the batch. Under ``bypass`` there may be one
                more, of the bypass itself, which adds nothing.
        """
        self._gates = gates[..., : self.shape[1]]
        try:
            yield
        finally:
            self._gates = None

    # Costs ----------------------------------------------------------------------------------

    def module_parameters(self) -> int:
        """Return the number of parameters of one module, adapter included."""
        return self._frozen_size() + self.row_size

    def module_bytes(self) -> int:
        """Return the size of one module's parameters in bytes."""
        base, adapter = self._blocks[0][0].weight, self.row_size
        size = self.own_parameters()[0].element_size() if adapter else 0
        return self._frozen_size() * base.element_size() + adapter * size

    def _frozen_size(self) -> int:
        return self.neurons * sum(
            layer.weight.numel() // self.width
            + (layer.makes and layer.bias is not None and layer.bias.numel() // self.width)
            for layer in self._blocks[0]
        )

    def module_flops(self) -> int:
        """Return the operations of one module for one token; a multiply-add counts as two.

        Matrix products alone, as torch's `FlopCounterMode` counts them.
        """
        weights = sum(layer.weight.numel() // self.width for layer in self._blocks[0])
        return 2 * (self.neurons * weights + self.row_size)


class _Gate:
    """Forward pre-hook that gates or weighs the input of an MLP's last layer."""

    def __init__(self, modular: ModularMLPs, layer: int) -> None:
        self._modular, self._layer = modular, layer

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        factors = self._modular.factors(self._layer)
        return None if factors is None else (args[0] * factors.to(args[0].dtype), *args[1:])
