"""How the private pool is dealt to the clients, and how a client's share is split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["dirichlet_proportions", "partition_by_domain", "partition_dirichlet", "split_groups"]


def partition_by_domain(
    domains: Sequence[str], groups: Sequence[str], *, wanted: Mapping[str, Sequence[str] | None]
) -> dict[str, np.ndarray]:
    """Give each client the samples of its domains.

    A client that names no domains gets its share of those that nobody named: dealt round robin, and
    where there are more such clients than domains, several share one. The recordings (groups) of a
    domain with several claimants are dealt to them in turn, so no recording is held twice.

    Args:
        domains: Domain of each sample, length N.
        groups: Recording of each sample, length N.
        wanted: For each client the domains it named, or ``None``.

    Returns:
        For each client the indices of its samples, ascending.

    Raises:
        ValueError: If clients name domains that do not exist, one line for each.
    """
    known = list(dict.fromkeys(domains))
    claims: dict[str, list[str]] = {domain: [] for domain in known}
    named = [
        (client, name) for client, names in wanted.items() for name in dict.fromkeys(names or ())
    ]
    faults = [
        f"clients.{client}.domains: {name!r} is none of {sorted(known)}"
        for client, name in named
        if name not in claims
    ]
    if faults:
        raise ValueError("\n".join(faults))
    for client, name in named:
        claims[name].append(client)
    undecided = [client for client, names in wanted.items() if names is None]
    free = [domain for domain in known if not claims[domain]] or known
    if undecided:
        for i in range(max(len(free), len(undecided))):
            claims[free[i % len(free)]].append(undecided[i % len(undecided)])

    owner: dict[str, str] = {}
    dealt = dict.fromkeys(known, 0)
    for domain, group in zip(domains, groups, strict=True):
        if group not in owner and claims[domain]:
            owner[group] = claims[domain][dealt[domain] % len(claims[domain])]
            dealt[domain] += 1
    held = np.array([owner.get(group, "") for group in groups])
    return {client: np.flatnonzero(held == client) for client in wanted}


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
        proportions: (C, J), rows sum to one: `dirichlet_proportions`. The same table cuts the
            private pool and the test pool, so that a client's own test has the class mix it trained
            on.
        seed: Seed of the shuffle within each class.

    Returns:
        For each client the indices of its samples, ascending. Every sample goes to one client.
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
    """Draw the label skew: for each class how its samples spread over the clients.

    Args:
        classes: Number of classes C.
        clients: Number of clients J.
        alpha: Concentration of the Dirichlet distribution; small is skewed, infinity is even.
        seed: Seed of the draw.

    Returns:
        (C, J) proportions, each row sums to one.

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
    """Split samples into training and validation without cutting a recording in two.

    Args:
        groups: Recording of each sample, length N.
        fraction: Share of the recordings that go to validation; at least one goes there and at
            least one stays, and with a single recording validation is empty.
        seed: Seed of the choice.

    Returns:
        Indices of the training samples and of the validation samples, ascending.
    """
    names = sorted(set(groups))
    held = min(max(1, round(fraction * len(names))), len(names) - 1) if fraction > 0 else 0
    chosen = np.random.default_rng(seed).permutation(len(names))[: max(held, 0)]
    validation = np.isin(np.asarray(groups), [names[i] for i in chosen])
    return np.flatnonzero(~validation), np.flatnonzero(validation)
