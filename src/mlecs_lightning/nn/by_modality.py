"""A module dictionary that accepts any name of a modality."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView

from torch import nn

__all__ = ["ByModality"]

_OWN = frozenset(dir(nn.ModuleDict()))
# No name of a modality may begin with this.
_MARK = "~"


class ByModality(nn.ModuleDict):
    """A `torch.nn.ModuleDict` whose keys may be attributes of a module: ``training``, ``type``.

    Such keys are stored with a prefix. All others are stored as they are, so that the names in a
    state are those of a plain `torch.nn.ModuleDict`.

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
