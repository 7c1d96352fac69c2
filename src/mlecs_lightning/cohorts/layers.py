"""Layers that treat the rows of each client with that client's own weights.

A cohort's batch has the rows of its clients one after another. What has no weights of its own, and
what is frozen, does not notice. Layers with weights are replaced for a while: a linear layer
multiplies the rows of all clients in one batched product, LoRA's factors included, since PEFT's
layers consist of linear ones. Convolutions and embeddings, and whole extractors of an unknown
class, are run client by client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlecs_lightning.cohorts.draws import Draws
from mlecs_lightning.cohorts.product import product
from mlecs_lightning.cohorts.stack import NotTogetherError, Stack
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.nn.connector import Connector
from mlecs_lightning.nn.extractors.pretrained import PretrainedExtractor
from mlecs_lightning.nn.extractors.small import ImageCNN, SeriesCNN, TextCNN, VectorMLP
from mlecs_lightning.nn.words import TextInput

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear

__all__ = ["Layers"]

_ROW_BY_ROW = (ImageCNN, SeriesCNN, TextCNN, TextInput, VectorMLP)
"""Extractors whose rows do not depend on each other."""

Forward = Callable[..., Tensor]


class Layers:
    """Replaces the layers of a module by those of a cohort.

    Attributes:
        draws: The random numbers of each client of the present step.
        reading: Whether the rows are those of the whole cohort; if not, the layers refuse them.
    """

    def __init__(self, module: EdgeModule, stack: Stack) -> None:
        """Find the layers.

        Raises:
            NotTogetherError: If a layer of an unknown class has weights of the clients.
        """
        self._module, self._stack = module, stack
        self.draws: Sequence[Draws] = ()
        self.reading = False
        self._lengths: list[int] | None = None
        self._shape: tuple[int, ...] = ()
        self._unbound: dict[str, tuple[Tensor, ...]] = {}
        self._held = stack.parameter_names(module)
        self._forwards: list[tuple[nn.Module, Forward]] = []
        self._absent: list[tuple[Connector, str]] = []
        for extractor in module.extractors.values():
            self._add_extractor(extractor)
        towers = [module.tower(name) for name in module.towers]
        for tower in towers:
            for part in (tower.connector, tower.backbone, tower.readout):
                self._add_all(part)
        self._extractors = stack.parameter_names(module.extractors)
        adapter = module.backbone.adapter_parameters()
        self._adapter = {key: self._held[id(p)] for key, p in adapter.items()}
        models = [tower.backbone.lm for tower in towers]
        self._drops: dict[nn.Module, bool] = {lm: any(map(_drops, lm.modules())) for lm in models}

    def _add_extractor(self, extractor: nn.Module) -> None:
        owns = bool(self._stack.parameter_names(extractor))
        if isinstance(extractor, PretrainedExtractor) and not owns:
            return  # frozen, and each row by itself
        if type(extractor) in _ROW_BY_ROW:
            self._add_all(extractor)
        else:
            self._forwards.append((extractor, partial(self._one_by_one, extractor)))

    def _add_all(self, part: nn.Module) -> None:
        from peft.tuners.lora import Linear as LoraLinear

        for layer in part.modules():
            if type(layer) is LoraLinear and not layer.lora_variant:
                self._forwards.append((layer, partial(self._lora, layer)))
            names = {
                leaf: self._held[id(tensor)]
                for leaf, tensor in (*layer._parameters.items(), *layer._buffers.items())
                if tensor is not None and id(tensor) in self._held
            }
            if _drops(layer):
                self._forwards.append((layer, partial(self._dropout, layer)))
            elif isinstance(layer, Connector):
                self._absent.append((layer, names.pop("absent")))
            elif names:
                self._forwards.append((layer, self._forward_of(layer, names)))

    def _forward_of(self, layer: nn.Module, names: Mapping[str, str]) -> Forward:
        kinds: dict[type[nn.Module], Forward] = {
            nn.Linear: self._linear,
            nn.LayerNorm: self._layer_norm,
            nn.GroupNorm: self._group_norm,
            nn.Conv1d: self._convolution,
            nn.Conv2d: self._convolution,
            nn.Embedding: self._embedding,
        }
        if type(layer) not in kinds or any(
            tensor is not None and leaf not in names for leaf, tensor in layer._parameters.items()
        ):
            raise NotTogetherError(f"a layer of class {type(layer).__name__} has weights")
        return partial(kinds[type(layer)], layer, names)

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Replace the layers within the context."""
        before = [layer.__dict__.get("forward") for layer, _ in self._forwards]
        for layer, forward in self._forwards:
            layer.__dict__["forward"] = partial(self._guarded, forward)
        handles = [
            handle
            for lm in self._drops
            for handle in (
                lm.register_forward_pre_hook(self._measure, with_kwargs=True),
                lm.register_forward_hook(self._end_measure),
            )
        ]
        for connector, name in self._absent:
            handles.append(connector.register_forward_pre_hook(partial(self._give_absent, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for (layer, _), own in zip(self._forwards, before, strict=True):
                del layer.__dict__["forward"]
                if own is not None:
                    layer.__dict__["forward"] = own

    def _guarded(self, forward: Forward, x: Tensor) -> Tensor:
        """Refuse rows that are not those of all clients, one client's after another's."""
        if not self.reading:
            raise NotTogetherError("an objective goes round the module that it is given")
        # Within the language model (rows, positions, width); experts, say, would get other rows.
        if x.shape[: len(self._shape)] != self._shape or (len(self._shape) > 1 and x.dim() != 3):
            raise NotTogetherError("a layer of the model regroups the rows of a batch")
        return forward(x)

    @contextmanager
    def step(self, draws: Sequence[Draws], *, rows: int) -> Iterator[None]:
        """Give the rows of a step to their clients within the context.

        Args:
            draws: The random numbers of each client, in the order of the rows.
            rows: Number of rows of each client.
        """
        self.draws, self._lengths, self._unbound = draws, None, {}
        self._shape = (len(draws) * rows,)
        own = [connector._parameters["absent"] for connector, _ in self._absent]
        try:
            yield
        finally:
            for (connector, _), absent in zip(self._absent, own, strict=True):
                connector._parameters["absent"] = absent

    def _give_absent(self, name: str, connector: nn.Module, given: tuple[Any, ...]) -> None:
        """Give a connector the vectors of each row's client that stand in for absent modalities."""
        if self.reading:  # the rows may be more than in the batch, but each client has as many
            self._shape = (len(given[1]),)
            weights = self._stack.weights[name]
            each = weights.repeat_interleave(len(given[1]) // len(weights), dim=0)
            connector._parameters["absent"] = each  # type: ignore[assignment]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Take rows within the context, which are those of all clients of the step."""
        self.reading = True
        try:
            yield
        finally:
            self.reading = False

    @contextmanager
    def frozen_extractors(self) -> Iterator[None]:
        """Run the extractors without gradients of their weights within the context."""
        weights, names = self._stack.weights, self._extractors.values()
        self._stack.weights = {**weights, **{name: weights[name].detach() for name in names}}
        try:
            yield
        finally:
            self._stack.weights = weights

    def adapter(self, client: int) -> dict[str, Tensor]:
        """Return the trainable tensors of a client's adapter under PEFT's names.

        Args:
            client: Place of the client in the present step.
        """
        if not self._unbound:
            weights = self._stack.weights
            self._unbound = {key: weights[n].unbind() for key, n in self._adapter.items()}
        return {key: each[client] for key, each in self._unbound.items()}

    # Layers ---------------------------------------------------------------------------------

    def _weight(self, names: Mapping[str, str], leaf: str) -> Tensor | None:
        return self._stack.weights[names[leaf]] if leaf in names else None

    def _linear(self, layer: nn.Module, names: Mapping[str, str], x: Tensor) -> Tensor:
        weight, bias = self._stack.weights[names["weight"]], self._weight(names, "bias")
        rows = x.reshape(len(weight), -1, x.shape[-1])
        return product(rows, weight, bias).view(*x.shape[:-1], weight.shape[1])

    def _layer_norm(self, layer: nn.LayerNorm, names: Mapping[str, str], x: Tensor) -> Tensor:
        normal = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        return self._scaled(normal, names, len(layer.normalized_shape), before=False)

    def _group_norm(self, layer: nn.GroupNorm, names: Mapping[str, str], x: Tensor) -> Tensor:
        normal = F.group_norm(x, layer.num_groups, eps=layer.eps)
        return self._scaled(normal, names, x.dim() - 2, before=True)

    def _scaled(self, x: Tensor, names: Mapping[str, str], own: int, *, before: bool) -> Tensor:
        """Multiply rows by each client's scale, and add its shift.

        Args:
            x: (C * B, ...).
            names: Names of scale and shift.
            own: Number of dimensions of a row that scale and shift have, or, if they come
                ``before`` them, that they lack.
            before: Whether the dimensions of scale and shift come first.
        """
        scale, shift = self._weight(names, "weight"), self._weight(names, "bias")
        result = x.view(len(self.draws), -1, *x.shape[1:])
        for value, add in ((scale, False), (shift, True)):
            if value is None:
                continue
            if before:
                wide = value.view(len(value), 1, *value.shape[1:], *[1] * own)
            else:
                lacking = result.dim() - 1 - own
                wide = value.view(len(value), *[1] * lacking, *value.shape[1:])
            result = result + wide if add else result * wide
        return result.flatten(0, 1)

    def _convolution(
        self, layer: nn.Conv1d | nn.Conv2d, names: Mapping[str, str], x: Tensor
    ) -> Tensor:
        weight, bias = self._stack.weights[names["weight"]].unbind(), self._weight(names, "bias")
        biases = [None] * len(weight) if bias is None else bias.unbind()
        parts = x.chunk(len(weight))
        each = [
            layer._conv_forward(part, w, b)
            for part, w, b in zip(parts, weight, biases, strict=True)
        ]
        return torch.cat(each)

    def _embedding(self, layer: nn.Embedding, names: Mapping[str, str], x: Tensor) -> Tensor:
        weights = self._stack.weights[names["weight"]].unbind()
        parts = x.chunk(len(weights))
        each = [
            F.embedding(part, weight, layer.padding_idx)
            for part, weight in zip(parts, weights, strict=True)
        ]
        return torch.cat(each)

    def _one_by_one(self, extractor: nn.Module, x: Tensor) -> Tensor:
        """Run an extractor client by client, with each client's weights and random numbers."""
        held = extractor.__dict__.pop("forward")
        own = {
            leaf: self._held[id(tensor)]
            for leaf, tensor in (*extractor.named_parameters(), *extractor.named_buffers())
            if id(tensor) in self._held
        }
        try:
            each = []
            for number, (part, draws) in enumerate(
                zip(x.chunk(len(self.draws)), self.draws, strict=True)
            ):
                weights = {leaf: self._stack.weights[name][number] for leaf, name in own.items()}
                with draws.lent():
                    each.append(torch.func.functional_call(extractor, weights, (part,)))
        finally:
            extractor.__dict__["forward"] = held
        return torch.cat(each)

    def _lora(self, layer: LoraLinear, x: Tensor) -> Tensor:
        """Do what PEFT's layer does, with scale and sum in the second product."""
        result = layer.base_layer(x)
        kind, shape = result.dtype, result.shape
        clients = len(self.draws)
        for name in layer.active_adapters:
            if name not in layer.lora_A:
                continue
            down = self._stack.weights[self._held[id(layer.lora_A[name].weight)]]
            up = self._stack.weights[self._held[id(layer.lora_B[name].weight)]]
            dropped = layer.lora_dropout[name](x.to(down.dtype))
            low = product(dropped.reshape(clients, -1, x.shape[-1]), down)
            start = result.reshape(clients, -1, shape[-1]).to(low.dtype)
            result = product(low, up, start, factor=layer.scaling[name])
        merged: Tensor = result.view(shape).to(kind)
        return merged

    # Dropout --------------------------------------------------------------------------------

    def _measure(self, lm: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        """Note the longest sequence of each client: a padded position must draw nothing."""
        # In generation the mask also covers what was read before.
        mask: Tensor = kwargs["attention_mask"]
        read = kwargs.get("inputs_embeds")
        read = kwargs["input_ids"] if read is None else read
        self._shape = tuple(read.shape[:2])
        if self._drops[lm] and lm.training and mask.device.type == "cpu":
            longest = mask.sum(dim=1).view(len(self.draws), -1).amax(dim=1).tolist()
            self._lengths = [int(length) for length in longest]

    def _end_measure(self, *_: object) -> None:
        self._shape, self._lengths = self._shape[:1], None

    def _dropout(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Drop elements; on a CPU each client by the numbers that it would draw alone."""
        assert isinstance(layer, nn.Dropout)
        if not layer.training:
            return x
        kept = torch.zeros_like(x, requires_grad=False)
        if x.device.type != "cpu":
            # These numbers are not those of a client alone anyway, and one draw is much faster.
            kept.bernoulli_(1 - layer.p, generator=self.draws[0].device)
            return x * kept.div_(1 - layer.p)
        for number, (part, draws) in enumerate(
            zip(kept.chunk(len(self.draws)), self.draws, strict=True)
        ):
            shorter = self._shorter(x, number)
            if shorter is None:
                part.bernoulli_(1 - layer.p, generator=draws.device)
            else:
                own = part.new_empty(len(part), shorter, *part.shape[2:])
                part[:, :shorter] = own.bernoulli_(1 - layer.p, generator=draws.device)
        return x * kept.div_(1 - layer.p)

    def _shorter(self, x: Tensor, client: int) -> int | None:
        """Return the length of a client's sequences if it is less than that of the cohort."""
        if self._lengths is None or self._lengths[client] == x.shape[1]:
            return None
        return self._lengths[client]


def _drops(layer: nn.Module) -> bool:
    return type(layer) is nn.Dropout and 0 < layer.p < 1
