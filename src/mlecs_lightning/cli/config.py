"""Merges a command line with its configuration files, before jsonargparse reads them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import (  # type: ignore[attr-defined]  # Lightning uses it as well
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    set_loader,
)
from jsonargparse.typing import Path_fr

from mlecs_lightning.clients.settings import are_drawn
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.renamed_keys import renamed_key_faults, with_present_classes
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.shipped import shipped_config, shipped_configs
from mlecs_lightning.storage.digests import read_checked
from mlecs_lightning.storage.files import DamagedFileError
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.storage.text_files import EncodingError, utf8
from mlecs_lightning.storage.yaml_text import NAME_KEYS, YamlFaultError, dump_yaml, parse_yaml

__all__ = ["PARSER_MODE", "ConfigFile", "completed"]

PARSER_MODE = "mlecs"
"""The mode in which jsonargparse reads values and files with `parse_yaml`."""

log = logging.getLogger(__name__)


def _load(text: str) -> Any:  # noqa: ANN401 - whatever stands there
    value = parse_yaml(text)
    if isinstance(value, dict) and value and all(v is None for v in value.values()):
        # Text that only YAML takes for a mapping: "describe the digit:", "{a, b}".
        bare = {key.strip() for key in text.strip(" {}").split(",")}
        if text.strip() == f"{next(iter(value))}:" or bare == set(value):
            return text
    return value


set_loader(PARSER_MODE, _load, exceptions=(yaml.YAMLError,))


class ConfigFile(ActionConfigFile):
    """``--config``: a file in UTF-8, whatever the locale; its paths are relative to its folder."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        """Merge a file into what was parsed before it."""
        path = _file(value)
        # Written again in ASCII, since jsonargparse first tries the text as a path, and only ASCII
        # can be encoded in every locale.
        text = dump_yaml(_read(value))
        with contextlib.chdir(path.resolve().parent):
            ActionConfigFile.apply_config(parser, cfg, dest, text)
        cfg[dest][-1] = Path_fr(str(path))  # jsonargparse notes nothing of a text


class _Option(NamedTuple):
    """One ``--key value`` or ``--key=value`` of a command line.

    Attributes:
        place: Index of the argument that holds the value.
        flag: The key, with the dashes.
        text: The value.
        prefix: What stands before the value in its argument.
    """

    place: int
    flag: str
    text: str
    prefix: str


def _options(args: list[str]) -> Iterator[_Option]:
    for place, argument in enumerate(args):
        flag, given, value = argument.partition("=")
        if given and flag.startswith("-"):
            yield _Option(place, flag, value, f"{flag}=")
        elif argument.startswith("-") and place + 1 < len(args):
            yield _Option(place + 1, argument, args[place + 1], "")


def completed(args: list[str]) -> list[str]:
    """Return a command line in which everything is explicit that jsonargparse would not infer.

    Names are quoted, so that ``--data.labels.no '[no, nope]'`` holds words. The settings of the
    clients are merged (`_with_merged_clients`), and the default optimiser is named where only its
    arguments are given.

    Args:
        args: The command line.

    Raises:
        ConfigurationError: If a configuration file cannot be read, a key has been renamed, or an
            option changes a client that does not exist.
    """
    quoted = list(args)
    for option in _options(args):
        path = option.flag.removeprefix("--").split(".")
        if NAME_KEYS.intersection(path) and path[0] != "clients":
            value = _yaml(option.text, key=option.flag)
            quoted[option.place] = option.prefix + json.dumps(value)
    files = {o: _read(o.text) for o in _options(args) if o.flag in ("-c", "--config")}
    _refuse_renamed(args, files)
    return _with_optimizers(_with_merged_clients(quoted, files), files)


def _refuse_renamed(args: list[str], files: dict[_Option, dict[str, Any]]) -> None:
    """Refuse keys of earlier versions.

    Raises:
        ConfigurationError: It says, for each of them, which key has taken its place.
    """
    faults = FaultList()
    for option in _options(args):
        faults += renamed_key_faults([option.flag.removeprefix("--")])
        for section, values in files.get(option, {}).items():
            keys = [f"{section}.{name}" for name in values] if isinstance(values, dict) else []
            faults += [f"--config {option.text}: {fault}" for fault in renamed_key_faults(keys)]
    faults.raise_any(title="keys that have a new name:")


def _with_merged_clients(args: list[str], files: dict[_Option, dict[str, Any]]) -> list[str]:
    """Merge the clients of a command line and its ``--config`` files.

    With jsonargparse a later file replaces a whole dict, so a file that changes one client would
    silently remove the others. Here files and ``--clients.NAME.KEY`` are merged by name and key, in
    their order. ``--clients`` replaces all clients; named clients replace drawn ones and the other
    way round.

    Args:
        args: The command line.
        files: What its configuration files hold.

    Returns:
        The command line with the merged ``--clients`` at its end, where it overrides what comes
        before; unchanged if there are no clients in it.

    Raises:
        ConfigurationError: If an option changes a client that does not exist.
    """
    clients: dict[str, Any] = {}
    for option in _options(args):
        flag = option.flag
        if option in files:
            clients = _merge_clients(clients, files[option].get("clients"))
        elif flag == "--clients":
            said = _yaml(option.text, key=flag)
            clients = said if isinstance(said, dict) else clients
        elif flag.startswith("--clients."):
            said = _yaml(option.text, key=flag)
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


def _with_optimizers(args: list[str], files: dict[_Option, dict[str, Any]]) -> list[str]:
    """Put the default optimiser first, where only arguments of an optimiser are given.

    Raises:
        ConfigurationError: If only arguments of a scheduler are given: there is no default.
    """
    for party in ("edge", "server"):
        if _has_arguments_alone(f"{party}.lr_scheduler", args, files):
            raise ConfigurationError(
                f"{party}.lr_scheduler has arguments and no class: name one as well, such as "
                f"--{party}.lr_scheduler.class_path CosineAnnealingLR"
            )
        if _has_arguments_alone(f"{party}.optimizer", args, files):
            default = json.dumps(ModelSettings().optimizer)
            args = [args[0], f"--{party}.optimizer={default}", *args[1:]]
    return args


def _has_arguments_alone(key: str, args: list[str], files: dict[_Option, dict[str, Any]]) -> bool:
    """Return whether a class path is given without its class."""
    party, _, name = key.partition(".")
    said: list[Any] = []
    for option in _options(args):
        if option in files:
            part = files[option].get(party)
            said.append(part.get(name) if isinstance(part, dict) else None)
        elif option.flag == f"--{key}":
            said.append(_yaml(option.text, key=option.flag))
        elif option.flag.startswith(f"--{key}."):
            said.append({option.flag.removeprefix(f"--{key}.").partition(".")[0]: option.text})
    said = [each for each in said if each is not None]
    return bool(said) and all(isinstance(s, dict) and "class_path" not in s for s in said)


def _file(written: str) -> Path:
    """Return the path of a configuration file, or of the ready configuration of this name.

    Raises:
        ConfigurationError: If there is neither.
    """
    path = expanded(written)
    if path.is_file():
        return path
    ready = shipped_config(written)
    if ready is None:
        why = "is not a file" if path.exists() else "does not exist"
        raise ConfigurationError(
            f"--config: {str(path)!r} {why}; give the path of a YAML file, or the name of a ready "
            f"configuration: {', '.join(shipped_configs())}"
        )
    return ready


def _content(path: Path, *, key: str) -> bytes:
    """Return the content of a configuration file.

    The file of an old run may have been edited for a new run, which is allowed with a warning.
    """
    try:
        return read_checked(path)
    except DamagedFileError:
        log.warning("%s has been edited since its run wrote it; the present text is used", key)
        return path.read_bytes()


def _read(file: str) -> dict[str, Any]:
    """Read a configuration file, given by its path or as the name of a ready one."""
    key = f"--config {file}"
    path = _file(file)
    try:
        text = utf8(_content(path, key=key))
    except (OSError, EncodingError) as error:
        raise ConfigurationError(f"{key}: {error}") from error
    values = _yaml(text, key=key)
    if not isinstance(values, dict):
        raise ConfigurationError(f"{key}: expected keys and their values, got {values!r}")
    return with_present_classes(values)


def _yaml(text: str, *, key: str) -> Any:  # noqa: ANN401 - whatever stands there
    at = () if key.startswith("--config ") else key.removeprefix("--").split(".")
    try:
        return parse_yaml(text, at=at)
    except YamlFaultError as error:
        raise ConfigurationError(f"{key}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{key}: no YAML: {error}") from error


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
