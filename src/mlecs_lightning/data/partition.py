"""Partitions of samples among clients, and splits into training and validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["dirichlet_proportions", "partition_by_domain", "partition_dirichlet", "split_groups"]


def partition_by_domain(
    domains: Sequence[str], groups: Sequence[str], *, wanted: Mapping[str, Sequence[str] | None]
) -> dict[str, np.ndarray]:
    """Give each client the samples of its domains.

    The domains that no client names are dealt round robin to the clients that name none; if there
    are more such clients than domains, several clients share a domain. The recordings (groups) of a
    shared domain are dealt to its clients in turn, so that no two clients hold the same recording.

    Args:
        domains: Domain of each sample, length N.
        groups: Recording of each sample, length N.
        wanted: The domains that each client names, or ``None``.

    Returns:
        The indices of each client's samples, ascending.

    Raises:
        ValueError: If clients name domains that do not exist; one line for each.
    """
    clients_of = _clients_that_name(list(dict.fromkeys(domains)), wanted)
    undecided = [client for client, names in wanted.items() if names is None]
    _deal_free_domains(clients_of, undecided)
    owner = _deal_groups(domains, groups, clients_of)
    held = np.array([owner.get(pair, "") for pair in zip(domains, groups, strict=True)])
    return {client: np.flatnonzero(held == client) for client in wanted}


def _clients_that_name(
    known: Sequence[str], wanted: Mapping[str, Sequence[str] | None]
) -> dict[str, list[str]]:
    """Return for each known domain the clients that name it."""
    clients_of: dict[str, list[str]] = {domain: [] for domain in known}
    faults = []
    for client, names in wanted.items():
        for name in dict.fromkeys(names or ()):
            if name in clients_of:
                clients_of[name].append(client)
            else:
                faults.append(f"clients.{client}.domains: {name!r} is not one of {sorted(known)}")
    if faults:
        raise ValueError("\n".join(faults))
    return clients_of


def _deal_free_domains(clients_of: dict[str, list[str]], undecided: Sequence[str]) -> None:
    """Deal the domains without a client, or all if there are none, to the undecided clients."""
    free = [domain for domain, clients in clients_of.items() if not clients] or list(clients_of)
    # Round robin over the longer of the two, so that no domain and no client is left out.
    for i in range(max(len(free), len(undecided)) if undecided else 0):
        clients_of[free[i % len(free)]].append(undecided[i % len(undecided)])


def _deal_groups(
    domains: Sequence[str], groups: Sequence[str], clients_of: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], str]:
    """Return the client that each group of a domain goes to: the clients of a domain take turns.

    Groups of different domains may have the same name, since devices may number their recordings.
    """
    owner: dict[tuple[str, str], str] = {}
    dealt = dict.fromkeys(clients_of, 0)
    for pair in zip(domains, groups, strict=True):
        domain, clients = pair[0], clients_of[pair[0]]
        if pair not in owner and clients:
            owner[pair] = clients[dealt[domain] % len(clients)]
            dealt[domain] += 1
    return owner


def partition_dirichlet(
    labels: Sequence[int] | np.ndarray,
    clients: Sequence[str],
    *,
    proportions: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Deal the samples of every class to the clients in the given proportions.

    Args:
        labels: (N,) class of each sample.
        clients: Names of the J clients.
        proportions: (C, J), rows sum to one: `dirichlet_proportions`. The private pool and the test
            pool are dealt in the same proportions, so that a client is tested on the class mix that
            it trained on.
        seed: Seed of the shuffle within each class.

    Returns:
        The indices of each client's samples, ascending. Every sample goes to one client.
    """
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    shares = {client: [np.empty(0, dtype=np.int64)] for client in clients}
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.round(np.cumsum(proportions[label])[:-1] * len(members)).astype(int)
        for client, part in zip(clients, np.split(members, cuts), strict=True):
            shares[client].append(part)
    return {client: np.sort(np.concatenate(parts)) for client, parts in shares.items()}


def dirichlet_proportions(classes: int, clients: int, *, alpha: float, seed: int) -> np.ndarray:
    """Draw the label skew: the fraction of each class that goes to each client.

    Args:
        classes: Number of classes C.
        clients: Number of clients J.
        alpha: Concentration of the Dirichlet distribution; the smaller, the more skewed, and
            infinity gives equal parts.
        seed: Seed of the draw.

    Returns:
        (C, J) proportions; each row sums to one.

    Raises:
        ValueError: If ``alpha`` is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"the Dirichlet concentration alpha must be positive, got {alpha}")
    if np.isinf(alpha):
        return np.full((classes, clients), 1.0 / clients)
    return np.random.default_rng(seed).dirichlet([alpha] * clients, classes)


def split_groups(
    groups: Sequence[str], fraction: float, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split samples into training and validation; a recording goes as a whole to one of the two.

    Args:
        groups: Recording of each sample, length N.
        fraction: Fraction of the recordings for validation. Unless it is 0, at least one goes there
            and at least one stays; with a single recording, validation is empty.
        seed: Seed of the choice.

    Returns:
        Indices of the training samples and of the validation samples, ascending.
    """
    names = sorted(set(groups))
    held = min(max(1, round(fraction * len(names))), len(names) - 1) if fraction > 0 else 0
    chosen = np.random.default_rng(seed).permutation(len(names))[: max(held, 0)]
    validation = np.isin(np.asarray(groups), [names[i] for i in chosen])
    return np.flatnonzero(~validation), np.flatnonzero(validation)
