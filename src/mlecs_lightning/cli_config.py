"""What a command line and its configuration files say together, client by client."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from mlecs_lightning.digests import read_checked
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated.clients import are_drawn
from mlecs_lightning.files import DamagedFileError

__all__ = ["with_merged_clients"]

log = logging.getLogger(__name__)


def with_merged_clients(args: list[str]) -> list[str]:
    """Merge all that a command line and its ``--config`` files say of the clients.

    jsonargparse lets a later file replace a whole dict, so that a file which changes one client
    would make the others vanish without a word. Here files and ``--clients.NAME.KEY`` merge by name
    and key, in their order. ``--clients`` replaces them all; named clients replace drawn ones and
    the other way round.

    Args:
        args: The command line.

    Returns:
        The command line with the merged ``--clients`` at its end, where it overrules what stands
        before; as it was, if nothing names any.

    Raises:
        ConfigurationError: If an option is to change a client that is not there.
    """
    clients: dict[str, Any] = {}
    for argument, following in zip(args, [*args[1:], ""], strict=False):
        flag, given, value = argument.partition("=")
        text = value if given else following
        if flag in ("-c", "--config"):
            clients = _merge_clients(clients, _read(text).get("clients"))
        elif flag == "--clients":
            said = _yaml(text, key=flag)
            clients = said if isinstance(said, dict) else clients
        elif flag.startswith("--clients."):
            said = _yaml(text, key=flag)
            name, *keys = flag.removeprefix("--clients.").split(".")
            if keys and name not in clients:
                raise ConfigurationError(
                    f"{flag}: there is no client {name!r} to change, only {list(clients)}; "
                    f"--clients.{name} '{{modalities: [...]}}' adds one"
                )
            for key in reversed([name, *keys]):
                said = {key: said}
            clients = _merge_clients(clients, said)
    return [*args, f"--clients={json.dumps(clients)}"] if clients else args


def _read(file: str) -> dict[str, Any]:
    """Read a configuration file; empty if there is none, as the parser will say."""
    key = f"--config {file}"
    try:
        read_checked(Path(file))
    except OSError:
        return {}
    except DamagedFileError:
        # That of an old run, edited for a new one: allowed, but not in silence.
        log.warning("%s is not what its run wrote: it is taken as it stands now", key)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{key}: no text in UTF-8: {error}") from error
    values = _yaml(text, key=key)
    if not isinstance(values, dict):
        raise ConfigurationError(f"{key}: expected keys and their values, got {values!r}")
    twice = list(_written_twice(yaml.compose(text, yaml.SafeLoader)))
    if twice:
        raise ConfigurationError(f"{key}: written twice, and the first would be lost: {twice}")
    return values


def _yaml(text: str, *, key: str) -> Any:  # noqa: ANN401 - whatever stands there
    try:
        return get_loader("yaml")(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{key}: no YAML: {error}") from error


def _written_twice(node: yaml.Node, above: str = "") -> Iterator[str]:
    """Yield the keys that a mapping holds more than once; YAML takes the last without a word."""
    if isinstance(node, yaml.MappingNode):
        names = Counter(str(key.value) for key, _ in node.value)
        yield from (f"{above}{name}" for name, times in names.items() if times > 1)
        for key, value in node.value:
            yield from _written_twice(value, f"{above}{key.value}.")


def _merge_clients(old: dict[str, Any], new: object) -> dict[str, Any]:
    if not isinstance(new, dict):
        return old
    return _merge(old, new) if are_drawn(old) == are_drawn(new) else new


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    if new.get("class_path", old.get("class_path")) != old.get("class_path"):
        return new  # the arguments of one class mean nothing to another
    return old | {
        key: _merge(old[key], value)
        if isinstance(value, dict) and isinstance(old.get(key), dict)
        else value
        for key, value in new.items()
    }
