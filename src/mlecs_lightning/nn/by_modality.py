"""Modules by the name of a modality, whatever that name is."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView

from torch import nn

__all__ = ["ByModality"]

_OWN = frozenset(dir(nn.ModuleDict()))
# No name of a modality begins so, and none is the mark and another name.
_MARK = "~"


class ByModality(nn.ModuleDict):
    """A `torch.nn.ModuleDict` that takes names which a module has itself: ``training``, ``type``.

    Such a name is stored with a mark before it. All others are stored as they are, so that states
    have the names that a plain `torch.nn.ModuleDict` gives them.

    Example:
        >>> modules = ByModality({"camera": nn.Linear(1, 1), "training": nn.Linear(1, 1)})
        >>> list(modules), list(modules.state_dict())[::2]
        (['camera', 'training'], ['camera.weight', '~training.weight'])
    """

    def __getitem__(self, key: str) -> nn.Module:
        """Return the module of a modality."""
        return super().__getitem__(_stored(key))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        """Set the module of a modality."""
        super().__setitem__(_stored(key), module)

    def __contains__(self, key: str) -> bool:
        """Return whether there is a module of the modality."""
        return super().__contains__(_stored(key))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the modalities."""
        return iter(self.keys())

    def keys(self) -> KeysView[str]:
        """Return the modalities."""
        return dict(self.items()).keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """Return the modalities and their modules."""
        return {name.removeprefix(_MARK): module for name, module in self._modules.items()}.items()


def _stored(name: str) -> str:
    return f"{_MARK}{name}" if name in _OWN else name
