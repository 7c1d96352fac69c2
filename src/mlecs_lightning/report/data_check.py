"""What a run would see of its data, and what looks wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlecs_lightning.data import FederatedDataModule, Manifest, SampleTable
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.metrics import BertScore, has_words
from mlecs_lightning.nn.words import limits_of
from mlecs_lightning.report.data_reading import changes_of_reading, lengths_of_reading, short_window
from mlecs_lightning.types import ClientProfile

__all__ = ["check_data", "suspicions"]

# Deviation of a signal that is about 1, standardised or sound in -1..1: -60 dB, less than the noise
# of a room.
_FLAT = 1e-3


def check_data(
    data: FederatedDataModule,
    clients: Mapping[str, ClientProfile],
    console: Console | None = None,
    *,
    texts: Sequence[str] = (),
    bertscore: BertScore | None = None,
) -> list[str]:
    """Print samples, modalities, targets and what is suspicious.

    Args:
        data: Has the clients attached.
        clients: The clients, by name.
        console: Where to; the process's own by default.
        texts: What the parties' language models cannot read or say of the texts.
        bertscore: What a run would score targets with; ``None`` for no BERTScore.

    Returns:
        What is suspicious.
    """
    console = console or Console()
    console.print(_samples(data, clients))
    console.print(_modalities(data))
    for line in changes_of_reading(data):
        console.print(escape(line), highlight=False)
    console.print(_targets(data, bertscore))
    try:
        unknown = len(data.asked()) - len(data.pools.test)
    except ConfigurationError:  # there is nothing to answer, which `suspicions` tells
        unknown = 0
    if unknown:
        console.print(f"without a target, for predict alone: {unknown:,}")
    found = [*suspicions(data, clients, bertscore), *texts]
    console.print(f"suspicious: {len(found) or 'nothing'}")
    for each in found:
        console.print(f"- {escape(each)}", highlight=False)
    return found


# Tables -------------------------------------------------------------------------------------------


def _samples(data: FederatedDataModule, clients: Mapping[str, ClientProfile]) -> Table:
    table = Table(title="samples")
    for name in ("party", "train", "val", "test", "modalities, of all training samples"):
        table.add_column(name, overflow="fold")
    parties = {"server": {s: data.public(s) for s in ("train", "val", "test")}} | {
        name: {s: data.private(name, s) for s in ("train", "val", "test")} for name in clients
    }
    for party, splits in parties.items():
        train = splits["train"]
        shares = train.present.float().mean(0).tolist()
        has = ", ".join(f"{m} {s:.0%}" for m, s in zip(train.modalities, shares, strict=True))
        table.add_row(escape(party), *(f"{len(t):,}" for t in splits.values()), escape(has))
    return table


def _modalities(data: FederatedDataModule) -> Table:
    table = Table(title="modalities")
    for name in ("name", "kind", "shape", "public", "train", "test", "as it was read"):
        table.add_column(name, overflow="fold")
    inputs = data.inputs if isinstance(data, Manifest) else None
    for k, (name, spec) in enumerate(data.modalities.items()):
        counts = [f"{int(pool.present[:, k].sum()):,}" for pool in data.pools]
        read = _span(inputs.sources[name]) if inputs else "-"
        if inputs and inputs.rates[name]:
            read += " at " + ", ".join(f"{rate:,} Hz" for rate in sorted(inputs.rates[name]))
        table.add_row(escape(name), spec.kind, _shape(spec.shape), *counts, read)
    return table


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _span(shapes: Iterable[tuple[int, ...]]) -> str:
    """Return the smallest and the largest of shapes, by their length."""
    ordered = sorted(shapes, key=lambda shape: (shape[-1], shape))
    ends = [_shape(ordered[0]), _shape(ordered[-1])] if ordered else ["-"]
    return " to ".join(dict.fromkeys(ends))


def _targets(data: FederatedDataModule, bertscore: BertScore | None) -> Table:
    table = Table(title="targets")
    names = ["split", "different", "words", "longest", "most frequent"]
    for name in [*names, *(["unknown to BERTScore"] if bertscore is not None else [])]:
        table.add_column(name, overflow="fold")
    for split, pool in _splits(data):
        counts = Counter(target for target in pool.targets if target)
        lengths = [len(target.split()) for target in counts]
        top = "; ".join(f"{target[:60]} ({n})" for target, n in counts.most_common(3))
        row = [split, f"{len(counts):,}", f"{len(_words(pool)):,}", str(max(lengths, default=0))]
        row.append(escape(top))
        if bertscore is not None:
            row.append(f"{bertscore.unknown_share(pool.targets):.1%}")
        table.add_row(*row)
    return table


def _words(pool: SampleTable) -> set[str]:
    return {word for target in set(pool.targets) for word in target.split()}


def _splits(data: FederatedDataModule) -> Iterator[tuple[str, SampleTable]]:
    """Yield the pools that have samples, as they lie in the files."""
    val = data.named_val if isinstance(data, Manifest) else None
    named = zip(("public", "train", "test", "val"), (*data.pools, val), strict=True)
    yield from ((split, pool) for split, pool in named if pool is not None and len(pool))


# Suspicions ---------------------------------------------------------------------------------------


def suspicions(
    data: FederatedDataModule,
    clients: Mapping[str, ClientProfile],
    bertscore: BertScore | None = None,
) -> list[str]:
    """Say what is allowed, but is rarely meant.

    Args:
        data: Has the clients attached.
        clients: The clients, by name.
        bertscore: See `check_data`.
    """
    return [
        *_of_reading(data),
        *_repeated(data),
        *_without_signal(data),
        *_of_clients(data, clients),
        *_of_targets(data),
        *_of_scores(data, bertscore),
    ]


def _some(names: Sequence[object], limit: int = 5) -> str:
    rest = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + rest


def _of_reading(data: FederatedDataModule) -> Iterator[str]:
    """What was lost between the files and the table."""
    if not isinstance(data, Manifest) or data.inputs is None:
        return
    if unread := data.inputs.unread:
        yield f"{len(unread):,} inputs could not be read and count as absent: {_some(unread, 3)}"
    for name, spec in data.modalities.items():
        rates, sources = data.inputs.rates[name], data.inputs.sources[name]
        if spec.kind == "text":
            longer = sum(n for source, n in sources.items() if source[0] > spec.shape[0])
            if longer:
                yield (
                    f"{name}: of {longer:,} of {sources.total():,} texts only the first "
                    f"{spec.shape[0]} bytes are used"
                )
        if len(rates) > 1 and data.declared[name].rate is None:
            yield (
                f"{name} has sounds of {sorted(rates)} points a second, which are not brought to "
                f"one: give data.init_args.modalities.{name}.rate"
            )
        if spec.kind == "series":
            yield from lengths_of_reading(name, data.declared[name], data.inputs.lengths[name])
        if spec.kind in ("series", "text"):
            yield from short_window(name, data.declared[name], _lengths(data, name))


def _lengths(data: Manifest, name: str) -> Counter[tuple[int, int]]:
    """Return how many series or texts have which length and, for sounds, which rate."""
    assert data.inputs is not None
    if data.modalities[name].kind == "series":
        return data.inputs.lengths[name]
    counts = Counter[tuple[int, int]]()
    for source, count in data.inputs.sources[name].items():
        counts[source[-1], 0] += count
    return counts


def _repeated(data: FederatedDataModule) -> Iterator[str]:
    """The same content, or parts of one recording, in two splits."""
    splits = dict(_splits(data))
    whole = {
        split: [_digest(pool, i, pool.modalities) for i in range(len(pool))]
        for split, pool in splits.items()
    }
    yield from _shared("samples", splits, whole)
    found_in = Counter(digest for digests in whole.values() for digest in set(digests))
    for k, (name, spec) in enumerate(data.modalities.items()):
        if spec.kind == "vector":
            continue  # a few numbers can be the same by chance, and so can silence
        single = {}
        for split, pool in splits.items():
            flat, present = _flat(pool, k), pool.present[:, k].tolist()
            single[split] = [
                _digest(pool, i, [name])
                if present[i] and not flat[i] and found_in[whole[split][i]] == 1
                else None
                for i in range(len(pool))
            ]
        yield from _shared(f"inputs of {name}", splits, single)
    groups = {split: list(pool.groups) for split, pool in splits.items()}
    yield from _shared("parts of one group", splits, groups)


def _digest(pool: SampleTable, row: int, modalities: Iterable[str]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in modalities:
        present = bool(pool.present[row, pool.modalities.index(name)])
        digest.update(pool.inputs[name][row].numpy().tobytes() if present else b"absent")
    return digest.digest()


def _shared(
    what: str, splits: Mapping[str, SampleTable], keys: Mapping[str, Sequence[object]]
) -> Iterator[str]:
    names = list(splits)
    for i, one in enumerate(names):
        first = {key: splits[one].ids[row] for row, key in enumerate(keys[one]) if key is not None}
        for other in names[i + 1 :]:
            pairs = [
                f"{first[key]} = {splits[other].ids[row]}"
                for row, key in enumerate(keys[other])
                if key in first
            ]
            if pairs:
                yield f"{len(pairs):,} {what} are in split {one} and in {other}: {_some(pairs)}"


def _flat(pool: SampleTable, k: int) -> list[bool]:
    """Say of each sample whether a modality has the same value everywhere."""
    column = pool.inputs[pool.modalities[k]]
    if column.dim() < 3:
        return [False] * len(pool)
    column = column.flatten(2)
    flat = column.std(-1, correction=0).amax(-1) < _FLAT
    return (flat & pool.present[:, k]).tolist()


def _without_signal(data: FederatedDataModule) -> Iterator[str]:
    pools = [pool for _, pool in _splits(data)]
    for k, (name, spec) in enumerate(data.modalities.items()):
        if spec.kind == "text":
            continue
        if spec.kind != "vector" and max(spec.shape[1:]) > 1:
            flat = [
                pool.ids[i] for pool in pools for i, is_flat in enumerate(_flat(pool, k)) if is_flat
            ]
            if flat:
                word = "silent, or do not change in time" if spec.kind == "series" else "one colour"
                yield f"{len(flat):,} inputs of {name} are {word}: {_some(flat)}"
        present = torch.cat([pool.inputs[name][pool.present[:, k]] for pool in pools])
        if len(present) > 1:
            by_channel = present.transpose(0, 1).flatten(1)
            constant = (by_channel.amax(1) == by_channel.amin(1)).nonzero().flatten().tolist()
            if constant:
                what = "features" if spec.kind == "vector" else "channels"
                yield f"{name}: the same value in all samples in {what} {_some(constant)}"


def _of_clients(data: FederatedDataModule, clients: Mapping[str, ClientProfile]) -> Iterator[str]:
    held: set[str] = set()
    for name in clients:
        train, val, test = (data.private(name, split) for split in ("train", "val", "test"))
        held |= {*train.ids, *val.ids}
        if data.classes and len(set(train.labels.tolist())) == 1:
            yield f"clients.{name} has one class only: {data.classes[int(train.labels[0])]!r}"
        elif len(set(train.targets)) == 1:
            yield f"clients.{name} has one target only: {train.targets[0]!r}"
        for modality, column in zip(train.modalities, train.present.T, strict=True):
            if not column.any():
                yield f"clients.{name}: none of its training samples has {modality!r}"
        for split, table in (("validation", val), ("test", test)):
            if not len(table):
                yield f"clients.{name} has no {split} samples"
    blind = dict(_blind(data, clients, held))
    for name, (samples, modalities) in blind.items():
        yield (
            f"{len(samples):,} samples have only modalities that their client does not list: add "
            f"{' or '.join(modalities)} to clients.{name}.modalities"
        )
    yield from _of_nobody(data, held.union(*(samples for samples, _ in blind.values())))
    if not len(data.public("val")):
        yield "the server has no validation samples"
    test, train = data.pools.test, data.pools.private
    if not len(test):
        yield "split test is empty: nothing will be scored"
    for k, modality in enumerate(test.modalities if len(test) else ()):
        if train.present[:, k].any() and not test.present[:, k].any():
            yield (
                f"no sample of split test has {modality!r}, which private samples have: what is "
                "learnt of it is not scored, and a client that reads nothing else has no scores"
            )


def _blind(
    data: FederatedDataModule, clients: Mapping[str, ClientProfile], held: Set[str]
) -> Iterator[tuple[str, tuple[set[str], list[str]]]]:
    """Yield the samples of a client's domains that it sees nothing of, and what they have."""
    seen = set(held).union(*(data.private(name, "test").ids for name in clients))
    for name, profile in clients.items():
        domains, samples, has = {*data.private(name, "train").domains}, set[str](), set[str]()
        for pool in (data.pools.private, data.pools.test):
            for i, sample in enumerate(pool.ids):
                if sample in seen or pool.domains[i] not in domains:
                    continue
                given = {pool.modalities[k] for k in pool.present[i].nonzero().flatten().tolist()}
                if given.isdisjoint(profile.modalities):
                    samples.add(sample)
                    has |= given
        if samples:
            yield name, (samples, [m for m in data.modalities if m in has])


def _of_nobody(data: FederatedDataModule, held: Set[str]) -> Iterator[str]:
    pool = data.pools.private
    nobody = Counter(d for d, i in zip(pool.domains, pool.ids, strict=True) if i not in held)
    if nobody:
        what = ", ".join(f"{count:,} of {domain!r}" for domain, count in nobody.items())
        yield (
            f"no client holds these samples of split train: {what}; list them under a client's "
            "`domains`, if they are meant for one"
        )


def _of_targets(data: FederatedDataModule) -> Iterator[str]:
    known, read = _words(data.pools.public), list(limits_of(data.modalities))
    why = "a pocket model cannot say them"
    if read:  # by a model that spells, and can repeat what it reads
        why = "in no text of their sample, so no pocket model can know them"
    for split, pool in _splits(data):
        texts = [pool.texts_of(name) for name in read]
        unknown = Counter(
            word
            for i, target in enumerate(pool.targets)
            for word in set(target.split()) - {w for t in texts for w in (t[i] or "").split()}
            if word not in known
        )
        if unknown:
            words = [
                word for word, _ in sorted(unknown.items(), key=lambda item: (-item[1], item[0]))
            ]
            yield (
                f"{len(words):,} words of targets of split {split} are in no public target, and "
                f"{why}: {_some(words, 10)}"
            )


def _of_scores(data: FederatedDataModule, bertscore: BertScore | None) -> Iterator[str]:
    """What of the held-out targets no score, or not every score, is made of."""
    targets = data.pools.test.targets
    counts = Counter(targets)
    wordless = {target: n for target, n in counts.items() if not has_words(target)}
    if wordless:
        yield (
            f"{sum(wordless.values()):,} targets of split test have no word, and Rouge-Lsum leaves "
            f"them out: {_some(list(map(repr, wordless)))}"
        )
    unknown = bertscore.unknown_share(targets) if bertscore is not None else 0.0
    if unknown:
        yield (
            f"trainer.bertscore: its tokenizer does not know {unknown:.1%} of the tokens of the "
            "targets of split test, and takes them all for the same"
        )
