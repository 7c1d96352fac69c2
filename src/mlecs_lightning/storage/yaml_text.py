"""Safe YAML: bounded in size, and with names read as they are written.

YAML 1.1 reads ``no`` as false, ``007`` as 7, ``010`` as 8 and ``12:30`` as 750. Here every key is
a string, and so is every item of a list of names (`NAME_KEYS`): a client ``no`` is called "no".
Elsewhere ``yes`` and ``no`` are still booleans, and integers are decimal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

__all__ = ["NAME_KEYS", "YamlFaultError", "dump_yaml", "parse_yaml"]

# Our choices: room for thousands of clients with settings of their own, and for twice the depth of
# the deepest key.
_MOST_VALUES = 100_000
_DEEPEST = 40

# Keys of lists of names, and keys of mappings to such lists.
_LISTS = {"modalities", "domains", "clients", "lose"}
_TABLES = {"labels", "domains"}
NAME_KEYS = frozenset(_LISTS | _TABLES)
"""Keys under which lists of names may appear."""

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)")
_TAG = "tag:yaml.org,2002:"


class YamlFaultError(yaml.YAMLError):  # type: ignore[misc]
    """Valid YAML that is refused; says why, and what to do."""


class _Loader(_BASE):  # type: ignore[misc]
    """Resolves decimal numbers, booleans and null; everything else, even a date, is a string."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes every string that `_Loader` or another YAML reader would not read as a string."""


_kept = {"null", "bool", "merge", "value"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.removeprefix(_TAG) in _kept]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        f"{_TAG}int", re.compile(f"(?:{_INT.pattern})$"), list("-+0123456789")
    )
    _kind.add_implicit_resolver(
        f"{_TAG}float", re.compile(f"(?:{_FLOAT.pattern})$"), list("-+.0123456789")
    )


def parse_yaml(text: str, *, at: Sequence[str] = ()) -> Any:  # noqa: ANN401 - any value
    """Read YAML, which includes JSON.

    Args:
        text: The text. Its size, with aliases expanded, and its depth are checked first.
        at: The keys above it, if it is part of a larger configuration.

    Raises:
        YamlFaultError: If it is too large or too deep, a key is repeated, or a value is invalid.
        yaml.YAMLError: If it is not YAML.

    Example:
        >>> parse_yaml("clients: {007: {modalities: [no, yes], lora: {r: 010}}}")
        {'clients': {'007': {'modalities': ['no', 'yes'], 'lora': {'r': '010'}}}}
        >>> parse_yaml("[on, off]", at=["clients", "hall", "modalities"])
        ['on', 'off']
    """
    _check_size(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        twice = list(_prepared(node, tuple(at)))
        if twice:
            raise YamlFaultError(f"written twice, and the first would be lost: {twice}")
        return loader.construct_document(node)
    except (ValueError, TypeError, OverflowError) as error:  # e.g. `!!int x`
        raise YamlFaultError(f"a value cannot be read: {error}") from error
    finally:
        loader.dispose()


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write YAML that `parse_yaml` and other YAML readers read back unchanged.

    Example:
        >>> print(dump_yaml({"name": "no", "run": "1e3", "rate": 0.1}), end="")
        name: 'no'
        run: '1e3'
        rate: 0.1
    """
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)
    return text


def _check_size(text: str) -> None:
    """Count values event by event, with every alias expanded.

    Raises:
        YamlFaultError: If there are too many, they are too deep, or one contains itself.
    """
    total = 0
    sizes: dict[str | None, int] = {}
    open_: list[tuple[str | None, int]] = []  # anchor and preceding count of each collection
    for event in _events(text):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise YamlFaultError(f"{_place(event)}: *{event.anchor} is a part of itself")
            total += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            sizes[anchor] = total - before
        if total > _MOST_VALUES:
            raise YamlFaultError(
                f"{_place(event)}: there are more than {_MOST_VALUES:,} values up to here, aliases "
                "written out; remove aliases of aliases, or split the file"
            )
        if len(open_) > _DEEPEST:
            raise _too_deep(_place(event))


def _events(text: str) -> Iterator[Any]:
    """Yield the events of a text.

    Raises:
        YamlFaultError: If the parser itself finds it too deep, as it does from PyYAML 6.0.4 on. It
            reads ahead, so that may come before the first event.
    """
    try:
        yield from yaml.parse(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        if "nesting depth" not in str(error):
            raise
        raise _too_deep(f"line {error.problem_mark.line + 1}") from error


def _too_deep(place: str) -> YamlFaultError:
    return YamlFaultError(f"{place}: values lie more than {_DEEPEST} levels deep; no key does")


def _place(event: Any) -> str:  # noqa: ANN401 - an event of yaml
    return f"line {event.start_mark.line + 1}"


def _prepared(node: yaml.Node, path: tuple[str, ...]) -> Iterator[str]:
    """Turn all names into strings; yield the keys that a mapping repeats.

    Raises:
        YamlFaultError: If a key is a list or a mapping.
    """
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise YamlFaultError(f"{_place(key)}: a key must be a word, got a list or a table")
            if key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
            yield from _prepared(value, (*path, key.value))
        names = Counter(key.value for key, _ in node.value)
        yield from (".".join((*path, name)) for name, times in names.items() if times > 1)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if isinstance(item, yaml.ScalarNode) and _is_named(path):
                item.tag = f"{_TAG}str"
            yield from _prepared(item, path)


def _is_named(path: tuple[str, ...]) -> bool:
    """Return whether a list at this path holds names."""
    return bool(path) and (path[-1] in _LISTS or bool({*path[-2:]} & _TABLES))
