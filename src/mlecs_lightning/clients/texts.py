"""Checks that texts fit the context length, answer length and vocabulary of the models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lightning.pytorch.utilities import rank_zero_warn

from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.data import FederatedDataModule, SampleTable
from mlecs_lightning.data.manifest.words import keyword_pairs
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.metrics import references_of
from mlecs_lightning.modules.copying import Example, Words
from mlecs_lightning.modules.pocket import is_pocket, pocket_coder
from mlecs_lightning.nn.texts import Room, TextCoder, coder_of_files
from mlecs_lightning.nn.words import limits_of, longest
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.settings import ModelSettings

__all__ = ["check_texts", "pocket_texts", "seen_by", "text_suspicions"]

_SHOWN = 3


@dataclass
class _Reading:
    """A table that several parties read with the same kind of model.

    Attributes:
        parties: Keys of the parties; messages name the first.
        key: The key of their ``max_new_tokens``.
        settings: Settings of the first party.
        split: Name of the table for users.
        table: The samples.
    """

    parties: list[str]
    key: str
    settings: ModelSettings
    split: str
    table: SampleTable

    def who(self) -> str:
        """Return parties and split, for messages."""
        more = f" and {len(self.parties) - 1:,} more" if len(self.parties) > 1 else ""
        return f"{self.parties[0]}{more}, split {self.split}"


def check_texts(
    parties: Parties,
    data: FederatedDataModule,
    coder_of: Callable[[ModelSettings, str], TextCoder],
    *,
    algorithm: Algorithm | None = None,
    server: bool = True,
    clients: bool = True,
) -> None:
    """Find texts that are too long, in all splits of all parties, before training.

    A text beyond the context length of a model is an error, since it would end the run or give
    nonsense, possibly as late as the last evaluation. A target longer than ``max_new_tokens`` only
    causes a warning: the model can learn from it, but its answers are cut and scored as such.

    Args:
        parties: The checked settings.
        data: The data, with the clients attached.
        coder_of: Returns the tokenizer of a party's model, given settings and key.
        algorithm: Determines whether the server reads private samples.
        server: Whether to check the server.
        clients: Whether to check the clients.

    Raises:
        ConfigurationError: If a text is too long for a model; one message with all faults.
    """
    faults, warnings = FaultList(), list[str]()
    for reading in _readings(parties, data, algorithm, server=server, clients=clients):
        room = _room(reading, coder_of(reading.settings, reading.parties[0]), data)
        faults += _too_long(reading, room)
        warnings += _cut(reading, room)
    faults.raise_any(title="texts are longer than a language model can read:")
    if warnings:
        rest = len(warnings) - _SHOWN
        more = [f"and {rest} more such lines: `data check` has all"] if rest > 0 else []
        rank_zero_warn("\n".join([*warnings[:_SHOWN], *more]))


def text_suspicions(
    parties: Parties, data: FederatedDataModule, *, algorithm: Algorithm | None = None
) -> list[str]:
    """Return texts that are too long, and targets that a tokenizer cannot reproduce.

    No weights are loaded and no pocket model is trained. The lines name sample ids, so they are for
    the owner of the data only.

    Args:
        parties: The checked settings.
        data: The data, with the clients attached.
        algorithm: Determines whether the server reads private samples.

    Returns:
        One line for each party, split and kind.
    """
    coders: dict[str, TextCoder | str] = {}
    found: list[str] = []
    limits = limits_of(data.modalities)
    for reading in _readings(parties, data, algorithm):
        backbone = reading.settings.backbone
        name = str(backbone)
        if name not in coders:
            try:
                coders[name] = _coder(reading.settings, data)
            except ConfigurationError as error:
                coders[name] = str(error)
                found.append(f"{reading.parties[0]}.{error}: its texts are not checked")
        coder = coders[name]
        if isinstance(coder, str):
            continue
        try:
            found += _suspicious(reading, _room(reading, coder, data))
            found += _shortened(reading, coder, limits)
        except ConfigurationError as error:  # the tokenizer has more tokens than the model
            found.append(f"{reading.who()}: {error}")
    return found


def _suspicious(reading: _Reading, room: Room) -> Iterator[str]:
    yield from _too_long(reading, room, example=True)
    yield from _cut(reading, room, example=True)
    yield from _lost(reading, room.coder)


def _coder(settings: ModelSettings, data: FederatedDataModule) -> TextCoder:
    if is_pocket(settings.backbone.model):
        return pocket_coder(*pocket_texts(settings.backbone.model, data))
    return coder_of_files(settings.backbone)


def pocket_texts(
    model: str, data: FederatedDataModule
) -> tuple[str, list[tuple[str, str]], tuple[str, ...], Words | None]:
    """Return the arguments of `make_pocket` and `pocket_coder` for a data set.

    Where texts are read as tokens, they are of the server's public training samples alone: no
    client's words, and none of a test.

    Args:
        model: The name of the pocket model.
        data: The data.

    Raises:
        ConfigurationError: If ``pretrain_on`` does not fit the data set.
    """
    public, names = data.public(), list(limits_of(data.modalities))
    if not names:
        return model, _pairs(data), public.instructions, None
    if data.pretrain_on == "targets":
        raise ConfigurationError(
            f"data.init_args.pretrain_on: 'targets' is for models that read no texts as tokens; "
            f"{names} are read so, and their pocket models learn to copy from public texts: take "
            "public or other"
        )
    examples = () if data.pretrain_on == "other" else _examples(public, names)
    words = Words(tuple(public.texts(names)), tuple(names), examples)
    return model, [], public.instructions, words


def _examples(table: SampleTable, names: Sequence[str]) -> tuple[Example, ...]:
    """Return the labelled samples of a table with their texts, once for each reference."""
    columns = [table.texts_of(name) for name in names]
    rows = zip(zip(*columns, strict=True), table.instructions, table.targets, strict=True)
    return tuple(
        Example(texts, asked, reference)
        for texts, asked, target in rows
        if target
        for reference in references_of(target)
    )


def seen_by(model: str, data: FederatedDataModule) -> dict[str, object]:
    """Return what a pocket model has learnt before round 0, for people.

    Nothing where it is what `pretraining_pairs` of the data set says.

    Args:
        model: The name of the pocket model.
        data: The data.
    """
    _, pairs, _, words = pocket_texts(model, data)
    if words is not None:
        return {
            "kind": "copying",
            "samples": data.pretrain_on or "public",
            "sentences": len(set(words.sentences)),
            "examples": len(words.examples),
            "modalities": list(words.names),
        }
    if data.pretrain_on is None:
        return {}
    sentences = len({sentence for _, sentence in pairs})
    return {"kind": "key words", "samples": data.pretrain_on, "sentences": sentences}


def _pairs(data: FederatedDataModule) -> list[tuple[str, str]]:
    """Return the pairs that a pocket model is trained on; see `PretrainOn`."""
    if data.pretrain_on in (None, "targets"):
        return data.pretraining_pairs()
    pairs = keyword_pairs(
        sentence
        for target in data.pools.public.targets
        if target
        for sentence in references_of(target)
    )
    if data.pretrain_on == "public":
        return pairs
    return [(keys, " ".join(sorted(sentence.split()))) for keys, sentence in pairs]


def _room(reading: _Reading, coder: TextCoder, data: FederatedDataModule) -> Room:
    settings = reading.settings
    read = {m: spec for m, spec in data.modalities.items() if m in reading.table.modalities}
    words = longest(coder, limits_of(read))
    return Room(coder, settings.connector.prompt_length, settings.max_new_tokens, words)


# Who reads what -----------------------------------------------------------------------------------


def _readings(
    parties: Parties,
    data: FederatedDataModule,
    algorithm: Algorithm | None,
    *,
    server: bool = True,
    clients: bool = True,
) -> list[_Reading]:
    """List the tables of all parties; parties that read a table in the same way share an entry."""
    found: dict[tuple[str, ...], _Reading] = {}

    def add(
        party: str, key: str, settings: ModelSettings, tables: Mapping[str, SampleTable]
    ) -> None:
        kind = (settings.backbone, settings.connector.prompt_length, settings.max_new_tokens)
        for split, table in tables.items():
            # Private splits belong to one client; public ones differ only by modalities.
            whose = party if split in ("train", "val") else str(table.modalities)
            place = (key, str(kind), split, whose)
            if place not in found:
                found[place] = _Reading([], key, settings, split, table)
            if party not in found[place].parties:
                found[place].parties.append(party)

    public = {
        "public": data.public("train"),
        "public, for validation": data.public("val"),
        "test": data.public("test"),
    }
    if algorithm is not None and algorithm.pools_private:
        public["train, of all clients"] = data.pooled()
    if server:
        add("server", "server", parties.server, public)
    for host, settings in parties.hosts.items() if server else ():
        own = settings.backbone != parties.server.backbone
        add(parties.key_of(host) if own else "server", "server", settings, public)
    for name, profile in parties.profiles.items() if clients else ():
        seen = tuple(m for m in data.modalities if m in profile.modalities)
        tables = {
            "public": data.public("train", modalities=seen),
            "train": data.private(name, "train"),
            "val": data.private(name, "val"),
            "test": data.public("test", modalities=seen),
        }
        model = parties.models[name]
        add(f"clients.{name}", "edge", model, tables)
        if parties.uses_proxy:
            proxy = replace(model, backbone=parties.hosted.backbone)
            add(f"clients.{name}", "edge", proxy, tables)
    return list(found.values())


# What is wrong with them --------------------------------------------------------------------------


def _over(table: SampleTable, sizes: list[int], limit: int) -> tuple[int, int]:
    """Return the number of rows above a limit, and the index of the longest row."""
    return sum(size > limit for size in sizes), sizes.index(max(sizes))


def _id(table: SampleTable, row: int, example: bool) -> str:
    return f" (id {table.ids[row]!r})" if example else ""


def _too_long(reading: _Reading, room: Room, *, example: bool = False) -> Iterator[str]:
    table, coder = reading.table, room.coder
    if coder.positions is None or not len(table):
        return
    sizes = [room.needed(*pair) for pair in zip(table.instructions, table.targets, strict=True)]
    count, row = _over(table, sizes, coder.positions)
    if count:
        asked, said = (
            len(coder.encode(text)) for text in (table.instructions[row], table.targets[row])
        )
        yield (
            f"{reading.who()}: {count:,} of {len(table):,} texts are too long for backbone.model "
            f"{reading.settings.backbone.model!r}: with connector.prompt_length {room.prompt}, "
            f"{_words(room)}an instruction of {asked:,} tokens, and a target of {said:,} or "
            f"max_new_tokens {room.answer} the longest{_id(table, row, example)} needs "
            f"{sizes[row]:,} positions, the model has {coder.positions:,}; "
            "shorten them, or take a model that reads more"
        )


def _words(room: Room) -> str:
    return f"max_tokens of the text modalities and their markers {room.words}, " * bool(room.words)


def _cut(reading: _Reading, room: Room, *, example: bool = False) -> Iterator[str]:
    table = reading.table
    sizes = [len(room.coder.encode(target)) for target in table.targets] or [0]
    count, row = _over(table, sizes, room.answer)
    if count:
        key = f"{reading.key}.max_new_tokens"
        yield (
            f"{reading.who()}: {count:,} of {len(table):,} targets have more tokens than {key} "
            f"{room.answer} and are never said to their end; the longest{_id(table, row, example)} "
            f"has {sizes[row]:,}: raise {key}, or shorten them"
        )


def _shortened(reading: _Reading, coder: TextCoder, limits: Mapping[str, int]) -> Iterator[str]:
    """Yield modalities that are read as tokens and have texts beyond their budget."""
    table = reading.table
    for name in (name for name in limits if name in table.modalities):
        sizes = [len(coder.encode(text or "")) for text in table.texts_of(name)] or [0]
        count, row = _over(table, sizes, limits[name])
        if count:
            key = f"data.init_args.modalities.{name}.max_tokens"
            yield (
                f"{reading.who()}: {count:,} of {len(table):,} texts of {name} have more tokens "
                f"than {key} {limits[name]} and are cut; the longest{_id(table, row, True)} has "
                f"{sizes[row]:,} (scripts that the tokenizer does not know take several for each "
                f"letter): raise {key}"
            )


def _lost(reading: _Reading, coder: TextCoder) -> Iterator[str]:
    """Yield targets that change when encoded and decoded, so no answer can equal them."""
    targets = reading.table.targets
    lost = {target for target in set(targets) if not coder.survives(target)}
    rows = [row for row, target in enumerate(targets) if target in lost]
    if rows:
        yield (
            f"{reading.who()}: {len(rows):,} of {len(targets):,} targets are others once the "
            f"tokenizer of {reading.settings.backbone.model!r} has encoded and decoded them, so "
            f"that no answer can equal them, such as id {reading.table.ids[rows[0]]!r}: reword "
            "them, or take a backbone whose tokenizer knows their words and signs"
        )
