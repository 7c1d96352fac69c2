"""Runs under differential privacy: what is sent, what is added up, and what is refused."""

import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning import CDCCA, ECLM, MLECS
from mlecs_lightning.algorithms import (
    Centralized,
    CoPLMs,
    FedAvg,
    FediLoRA,
    FedMD,
    FedProx,
    MultiFedAvg,
    Standalone,
)
from mlecs_lightning.algorithms.answers import Answers
from mlecs_lightning.algorithms.mlecs.representations import Representations
from mlecs_lightning.callbacks import EarlyStopping, FederatedCallback
from mlecs_lightning.clients import ClientSettings, Federation
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated.exchange.coverage import (
    check_coverage,
    check_stopping,
    uncovered,
)
from mlecs_lightning.federated.exchange.privacy import PrivateSum, protected
from mlecs_lightning.functional import gaussian_noise
from mlecs_lightning.rounds import (
    FailureTrace,
    Interrupted,
    Participation,
    Privacy,
    RoundContext,
    UpdateLimits,
)
from mlecs_lightning.rounds.accounting import Accountant, epsilon_of
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.participation import LoopSettings
from mlecs_lightning.rounds.privacy import poisson_clients
from mlecs_lightning.wire import Message, Schema
from mlecs_lightning.wire.codec import DWC
from mlecs_lightning.wire.encoding import decode
from mlecs_lightning.wire.messages import ScalarField, TensorField, component_of
from tests.integration.network.processes import plain

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]

PRIVATE = {"update_limits": UpdateLimits(max_ratio=None)}
QUIET = 1e-12  # a noise multiplier that changes no float32


def private(clip: float = 0.01, noise: float = QUIET, **values: Any) -> dict[str, Any]:
    """Return the trainer's options of a private run that keeps its checkpoints."""
    privacy = Privacy(**{"clip": clip, "noise_multiplier": noise, "delta": 1e-3, **values})
    return {**PRIVATE, "privacy": privacy, "enable_checkpointing": True}


def averaging(tiny: SimpleNamespace, **values: Any) -> FedAvg:
    """Return an algorithm whose server keeps the aggregate as it is."""
    return FedAvg(steps=tiny.steps(server=0), weights="equal", **values)


def state(root: Path, number: int) -> dict[str, Any]:
    path = root / f"tiny/version_0/checkpoints/round={number:04d}.ckpt"
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def hosted(root: Path, number: int) -> dict[str, Tensor]:
    model = state(root, number)["server"]["model"]
    return {k: v for k, v in model.items() if k.startswith("towers.slm.") and "lora_" in k}


def adapters(log: SimpleNamespace, direction: str) -> dict[str, dict[str, Tensor]]:
    """Return the adapter of each client's last message, as read from the wire."""
    found = {}
    for way, client, data in log.messages:
        if way == direction:
            message = decode(data)[0]
            found[client] = {k: t.double() for k, t in message.component("adapter").items()}
    return found


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


# The sum ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [pytest.param(1.0, marks=pytest.mark.slow), 0.5])
def test_clipped_changes_are_added_with_fixed_weights(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path, fraction: float
) -> None:
    """1 / (q N), whoever takes part: a mean over those who came would change with each of them."""
    clip = 0.01
    with tapped() as log:
        summary = tiny.fit(
            averaging(tiny), tmp_path, **private(clip), participation=Participation(fraction)
        )
    received, sent = adapters(log, "downlink"), adapters(log, "uplink")
    drawn = poisson_clients(tuple(tiny.clients), fraction, seed=0, round=0)
    assert tuple(sent) == tuple(received) == drawn
    assert len(drawn) == (3 if fraction == 1 else 2)
    changes = {name: flat(sent[name]) - flat(received[name]) for name in drawn}
    norms = [float(change.norm()) for change in changes.values()]
    assert norms == pytest.approx([clip] * len(drawn), rel=1e-4)  # float32: 1e-7 of values near 1
    before = flat(received[drawn[0]])
    moved = torch.stack(list(changes.values())).sum(0) / (fraction * len(tiny.clients))
    after = flat(hosted(tmp_path, 0))
    torch.testing.assert_close(after - before, moved, rtol=1e-3, atol=1e-7)
    assert summary["privacy"]["sampling_rate"] == fraction


def test_a_change_within_the_bound_is_sent_as_it_is(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    """And nothing beside it; rounds that were trained without privacy cannot be made private."""
    with tapped() as log:
        tiny.fit(averaging(tiny), tmp_path / "private", **private(clip=1e3))
    with tapped() as plain:
        tiny.fit(averaging(tiny), tmp_path, **PRIVATE, enable_checkpointing=True)
    one, other = adapters(log, "uplink"), adapters(plain, "uplink")
    assert all(torch.equal(flat(one[name]), flat(other[name])) for name in tiny.clients)
    for sent, parts in ((log, {"adapter"}), (plain, {"adapter", "report"})):
        messages = [decode(data)[0] for way, _, data in sent.messages if way == "uplink"]
        assert {component_of(name) for m in messages for name in m.tensors} == parts
        assert {name for m in messages for name in m.scalars} == {"modalities"}
    trainer = tiny.trainer(tmp_path, **private(), max_rounds=2, allow_other_config=True)
    with pytest.raises(ConfigurationError, match=r"ckpt_path: .* without trainer\.privacy"):
        trainer.fit(averaging(tiny), tiny.data(), tiny.parties(), "last")


def test_noise_of_the_server_is_that_of_the_definition(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    """sigma C on the sum: its deviation, and value by value what the seed draws."""
    clip, noise, fraction = 0.5, 3.0, 0.2
    with tapped() as log:
        tiny.fit(
            averaging(tiny),
            tmp_path,
            **private(clip, noise),
            participation=Participation(fraction),
        )
    received, sent = adapters(log, "downlink"), adapters(log, "uplink")
    (client,) = sent
    before = flat(received[client])
    weight = fraction * len(tiny.clients)
    added = (flat(hosted(tmp_path, 0)) - before) * weight - (flat(sent[client]) - before)
    count = len(added)
    deviation = float(added.square().mean().sqrt())
    assert abs(deviation / (noise * clip) - 1) < 10 / math.sqrt(2 * count)
    seed = RoundContext(0, 0, ()).seed_for("kitchen", "privacy of the sum")
    names = {f"adapter/{name}": tensor for name, tensor in received[client].items()}
    drawn = flat(gaussian_noise(names, noise * clip, seed=seed))
    torch.testing.assert_close(added, drawn, rtol=0, atol=1e-5)


def test_noise_of_the_devices_is_their_share(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    """Each sends noise of deviation sigma C / sqrt(q N); the server adds none and clips none."""
    clip, noise = 0.01, 30.0
    with tapped() as log:
        summary = tiny.fit(averaging(tiny), tmp_path, **private(clip, noise, where="device"))
    received, sent = adapters(log, "downlink"), adapters(log, "uplink")
    share = noise * clip / math.sqrt(len(tiny.clients))
    changes = {name: flat(sent[name]) - flat(received[name]) for name in sent}
    for name, change in changes.items():
        # The clipped change has a norm of 0.01, the noise one of 8.
        assert abs(float(change.square().mean().sqrt()) / share - 1) < 10 / math.sqrt(
            2 * len(change)
        ), name
    both = [changes["kitchen"], changes["study"]]  # of one architecture, yet with noise of its own
    cosine = float(torch.nn.functional.cosine_similarity(*both, dim=0))
    assert abs(cosine) < 10 / math.sqrt(len(both[0]))
    moved = torch.stack(list(changes.values())).mean(0)
    after = flat(hosted(tmp_path, 0)) - flat(received["hall"])
    torch.testing.assert_close(after, moved, rtol=0, atol=1e-6)
    everybody = epsilon_of([(1.0, noise, 1)], delta=1e-3)
    alone = epsilon_of([(1.0, noise / math.sqrt(3), 1)], delta=1e-3)
    assert summary["privacy"]["epsilon"] == pytest.approx(everybody)
    assert summary["privacy"]["epsilon_server"] == pytest.approx(alone)


class Stops(FederatedCallback):
    """Asks the run to stop when the first client of a round has been served."""

    def __init__(self, number: int = 1) -> None:
        self.number = number

    def on_client_end(self, *, round: int, client: str, metrics: Mapping[str, float]) -> None:
        if (round, client) == (self.number, "kitchen"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["server", "device"])
def test_a_round_that_was_interrupted_goes_on_bit_by_bit(
    tiny: SimpleNamespace, tmp_path: Path, where: str
) -> None:
    options = {**private(0.3, 0.8, where=where), "max_rounds": 2}
    whole = tiny.fit(averaging(tiny), tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        tiny.fit(averaging(tiny), tmp_path / "parts", callbacks=[Stops()], **options)
    folder = tmp_path / "parts/tiny/version_0/checkpoints"
    partial = torch.load(folder / "round=0001-partial.ckpt", weights_only=True)
    assert list(partial["partial"]) == ["kitchen"]
    trainer = tiny.trainer(tmp_path / "parts", **options)
    resumed = trainer.fit(averaging(tiny), tiny.data(), tiny.parties(), "last")
    assert resumed["privacy"] == whole["privacy"]
    ends = [state(tmp_path / name, 1) for name in ("whole", "parts")]
    for part in ("server", "clients", "history", "privacy", "ledger"):
        assert plain(ends[0][part]) == plain(ends[1][part]), part


def test_who_was_served_before_an_interruption_is_counted_if_not_drawn_again(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """With secure noise the round draws anew: here all at first, then nobody."""
    noise, rate = 2.0, 1e-6
    options = {**private(0.3, noise, where="device", secure_noise=True), "max_rounds": 1}
    with pytest.raises(Interrupted):
        tiny.fit(averaging(tiny), tmp_path, callbacks=[Stops(0)], **options)
    options |= {"participation": Participation(rate), "allow_other_config": True}
    trainer = tiny.trainer(tmp_path, **options)
    trainer.fit(averaging(tiny), tiny.data(), tiny.parties(), "last")
    saved = state(tmp_path, 0)
    assert saved["history"][0]["aggregate/clients"] == 0
    shown = rate * len(tiny.clients) / noise**2  # see Accountant.add_round
    assert saved["privacy"]["shown"] == {"kitchen": pytest.approx(shown)}
    assert saved["privacy"]["lost"] == {}


def test_a_round_of_nobody_has_its_noise(tiny: SimpleNamespace, tmp_path: Path) -> None:
    fraction, clip, noise = 1e-6, 1e-6, 1.0
    summary = tiny.fit(
        averaging(tiny),
        tmp_path,
        **private(clip, noise),
        participation=Participation(fraction),
        max_rounds=2,
    )
    assert summary["communication"]["uplink_bytes"] == 0
    moved = flat(hosted(tmp_path, 1)) - flat(hosted(tmp_path, 0))
    expected = noise * clip / (fraction * 3)
    deviation = float(moved.square().mean().sqrt())
    assert abs(deviation / expected - 1) < 10 / math.sqrt(2 * len(moved))
    assert [row["aggregate/clients"] for row in state(tmp_path, 1)["history"]] == [0, 0]


@pytest.mark.parametrize("secure", [False, True])
def test_noise_from_entropy_repeats_nothing(tiny: SimpleNamespace, *, secure: bool) -> None:
    algorithm = averaging(tiny)
    federation = tiny.build(algorithm)
    ctx = RoundContext(0, 0, ("hall",))
    loaders = tiny.loaders(tiny.data())
    ((_, received),) = algorithm.broadcast(federation.server, loaders, ctx)
    sums, sent = [], []
    for _ in range(2):
        for where in ("server", "device"):
            privacy = Privacy(1.0, 1.0, 1e-3, where, secure)  # type: ignore[arg-type]
            accountant = Accountant(privacy, 0.5, federation.parties.groups.values())
            if where == "device":
                update = protected(received, received, accountant, client="hall", ctx=ctx)
                sent.append(flat(update.component("adapter")))
            else:
                total = PrivateSum(federation, algorithm, accountant, ctx)
                total.begin(loaders)
                ((_, message),) = total.messages([])
                sums.append(flat(message.component("adapter")))
    for one, other in (sums, sent):
        assert bool((one == other).any()) != secure
        assert torch.equal(one, other) != secure


# The run ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_goes_on_bit_by_bit_and_so_does_epsilon(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    options = {**private(0.3, 0.8), "participation": Participation(0.5)}

    def fit(root: Path, rounds: int, ckpt_path: str | None = None) -> dict[str, Any]:
        trainer = tiny.trainer(root, **options, max_rounds=rounds, logger=True)
        summary: dict[str, Any] = trainer.fit(
            FedAvg(steps=tiny.steps(), weights="equal"), tiny.data(), tiny.parties(), ckpt_path
        )
        return summary

    straight = fit(tmp_path / "straight", 3)
    fit(tmp_path / "halves", 1)
    resumed = fit(tmp_path / "halves", 3, "last")
    assert {**straight, "seconds": 0} == {**resumed, "seconds": 0}
    ends = [state(tmp_path / name, 2) for name in ("straight", "halves")]
    for part in ("server", "clients", "history", "privacy", "ledger"):
        assert repr(ends[0][part]) == repr(ends[1][part]), part
    assert torch.equal(*(flat(hosted(tmp_path / name, 2)) for name in ("straight", "halves")))
    seen = [row["privacy/epsilon"] for row in ends[0]["history"]]
    assert seen == [epsilon_of([(0.5, 0.8, n)], delta=1e-3) for n in (1, 2, 3)]
    assert straight["privacy"] == {
        **{"epsilon": seen[-1], "delta": 1e-3, "clip": 0.3, "noise_multiplier": 0.8},
        **{"sampling_rate": 0.5, "where": "server", "secure_noise": False},
    }
    logged = (tmp_path / "straight/tiny/version_0/metrics.csv").read_text()
    assert "privacy/epsilon" in logged.splitlines()[0]
    assert json.loads((tmp_path / "halves/tiny/version_0/summary.json").read_text())["privacy"]
    # Neither losses of clients nor sample counts have left the devices.
    told = {key for row in ends[0]["history"] for key in row if key.startswith("clients/")}
    assert told == set()
    assert ends[0]["claims"] == []


@pytest.mark.slow
def test_a_device_that_fails_takes_its_noise_with_it(tiny: SimpleNamespace, tmp_path: Path) -> None:
    options = {**private(1.0, 2.0, where="device"), "max_rounds": 2}
    summary = tiny.fit(
        averaging(tiny), tmp_path, **options, faults=FailureTrace(dropout_rate=0.4, seed=1)
    )
    assert 0 < summary["faults"]["dropout"] < 6
    everybody = epsilon_of([(1.0, 2.0, 2)], delta=1e-3)
    assert summary["privacy"]["epsilon"] > everybody


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"), [(FedProx, {}), (CoPLMs, {}), (FedAvg, {"aggregation": "freeze_a"})]
)
def test_methods_whose_clients_send_the_adapter_alone_run(
    tiny: SimpleNamespace, tmp_path: Path, kind: type[FedAvg], options: dict[str, Any]
) -> None:
    algorithm = kind(steps=tiny.steps(), weights="equal", **options)
    assert tiny.fit(algorithm, tmp_path, **private(0.1, 5.0))["privacy"]["epsilon"] > 0


@pytest.mark.slow
def test_groups_have_sums_of_their_own(tiny: SimpleNamespace, tapped: Tap, tmp_path: Path) -> None:
    """Clients with another backbone: each group's weight is that of its own clients."""
    own = {"backbone": {"model": "pocket/xs"}}
    clients = {**tiny.clients, "attic": ClientSettings(["pixels"], **own)}
    with tapped() as log:
        summary = tiny.fit(averaging(tiny), tmp_path, tiny.parties(clients), **private(clip=0.01))
    assert list(summary["groups"]) == ["slm", "slm_2"]
    received, sent = adapters(log, "downlink"), adapters(log, "uplink")
    model = state(tmp_path, 0)["server"]["model"]
    second = flat({k: v for k, v in model.items() if ".slm_2." in k and "lora_" in k})
    torch.testing.assert_close(second, flat(sent["attic"]), rtol=0, atol=1e-7)
    first = flat(hosted(tmp_path, 0)) - flat(received["hall"])
    mean = torch.stack([flat(sent[n]) - flat(received[n]) for n in tiny.clients]).mean(0)
    torch.testing.assert_close(first, mean, rtol=1e-3, atol=1e-7)


# What is refused ----------------------------------------------------------------------------------


def built(tiny: SimpleNamespace, algorithm: Algorithm) -> Federation:
    """Build a federation that any method can run: one client with all modalities."""
    clients = {"attic": ClientSettings(["pixels", "profile", "fourier"])}
    layers = ["c_fc", "mlp.c_proj"] if isinstance(algorithm, ECLM) else None
    models = dict.fromkeys(("server", "edge"), tiny.model(lora={"target_modules": layers}))
    federation: Federation = tiny.build(algorithm, tiny.parties(clients, **models))
    return federation


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (FedAvg(), ["FedAvg: algorithm.init_args.weights must be 'equal'", "send samples"]),
        (FedProx(), ["clients of FedProx send samples"]),
        (FedAvg(weights="equal", answers=Answers()), ["clients of FedAvg send answers"]),
        (FedAvg(weights="equal", aggregation="median"), ["aggregation must be", "got 'median'"]),
        (MLECS(weights="equal"), ["MLECS: it weighs clients by a rule of its own"]),
        (MLECS(), ["clients of MLECS send samples"]),
        (
            ECLM(),
            ["ECLM: its aggregate", "send budget, drifted, gates, modules, samples, which"],
        ),
        (CDCCA(), ["CDCCA: its aggregate", "clients of CDCCA send", "tokens"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Algorithm) else "",
)
def test_what_is_not_covered_is_named(
    tiny: SimpleNamespace, algorithm: Algorithm, said: list[str]
) -> None:
    federation = built(tiny, algorithm)
    with pytest.raises(ConfigurationError) as refused:
        check_coverage(federation, algorithm)
    assert [part for part in said if part not in str(refused.value)] == []


def test_a_scalar_of_one_value_says_nothing() -> None:
    fixed, free = ScalarField(tuple, equal=("rgb",)), ScalarField(int)
    form = TensorField((2,))
    schema = Schema({"adapter/a": form, "fused/x": form}, {"n": free, "m": fixed}, {"z/y": form})
    assert uncovered(schema) == ["fused", "n", "z"]
    assert uncovered(Schema({"adapter/a": form}, {"m": fixed})) == []


@pytest.mark.parametrize(
    ("algorithm", "options", "said"),
    [
        (Standalone, {}, ["clients of Standalone send nothing"]),
        (Centralized, {}, ["nothing that could be protected"]),
        (FedAvg, {"update_limits": UpdateLimits()}, ["trainer.update_limits.max_ratio is 100.0"]),
        (FedAvg, {"participation": Participation(1.0, 2)}, ["min_clients is 2"]),
        (FedAvg, {"codec": DWC()}, ["trainer.codec: a codec keeps"]),
        (
            FedAvg,
            {"privacy": Privacy(1.0, 1.0, 0.4)},
            ["trainer.privacy.delta is 0.4, allowed: below 1/3"],
        ),
        (
            FedAvg,
            {"callbacks": [EarlyStopping()]},
            ["EarlyStopping may stop the run by the value 'clients/val/loss'"],
        ),
        (
            FedAvg,
            {"participation": Participation(1.0, 2), "codec": DWC()},
            ["min_clients is 2", "trainer.codec"],
        ),
    ],
)
def test_settings_that_break_the_guarantee_are_refused(
    tiny: SimpleNamespace,
    tmp_path: Path,
    algorithm: type[Algorithm],
    options: dict[str, Any],
    said: list[str],
) -> None:
    trainer = tiny.trainer(tmp_path, **{**private(), **options})
    with pytest.raises(ConfigurationError) as refused:
        trainer.fit(algorithm(), tiny.data(), tiny.parties())
    assert [part for part in said if part not in str(refused.value)] == []
    assert list(tmp_path.iterdir()) == []


def test_stopping_by_what_the_server_knows_is_allowed() -> None:
    check_stopping(LoopSettings(privacy=Privacy(1.0, 1.0, 0.1)), [EarlyStopping("server/val/loss")])
    check_stopping(LoopSettings(), [EarlyStopping()])


def test_a_missing_accountant_is_named_before_anything_is_built(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ConfigurationError, match=r"mlecs_lightning\[privacy\]"):
        tiny.fit(averaging(tiny), tmp_path, **private())
    assert list(tmp_path.iterdir()) == []


class Personal(FedAvg):
    """Sends each client an adapter of its own."""

    def broadcast(self, server: Any, loaders: Any, ctx: RoundContext) -> Any:  # noqa: ANN401
        for client, message in super().broadcast(server, loaders, ctx):
            more = float(client == "study")
            yield client, Message({k: t + more for k, t in message.tensors.items()}, {})


def test_adapters_of_their_own_cannot_be_added_up(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Personal sends clients\.study another adapter"):
        tiny.fit(Personal(steps=tiny.steps(), weights="equal"), tmp_path, **private())


def test_clients_of_other_ranks_cannot_be_added_up(tiny: SimpleNamespace, tmp_path: Path) -> None:
    clients = {**tiny.clients, "hall": replace(tiny.clients["hall"], lora={"r": 4})}
    algorithm = FedAvg(weights="equal", aggregation="svd")
    federation = tiny.build(algorithm, tiny.parties(clients))
    with pytest.raises(ConfigurationError, match=r"clients\.hall\.lora makes another adapter"):
        check_coverage(federation, algorithm)


def test_the_document_names_what_each_method_sends(tiny: SimpleNamespace, repo_root: Path) -> None:
    methods = {
        "FedAvg, FedProx, FediLoRA, CoPLMs, MLECS": [
            *(FedAvg(), FedProx(), FediLoRA(), CoPLMs(), MLECS()),
        ],
        "FedAvg with `weights: equal`": [FedAvg(weights="equal")],
        "FedAvg with `answers`": [FedAvg(answers=Answers())],
        "FedMD": [FedMD()],
        "MultiFedAvg": [MultiFedAvg()],
        "MLECS with `representations`": [MLECS(representations=Representations())],
        "ECLM": [ECLM(modules=2, active=1)],
        "CDCCA": [CDCCA()],
        "Standalone, StandalonePublic": [],
    }
    text = (repo_root / "docs/privacy.md").read_text()
    table = text.partition("|---|---|\n")[2].partition("\n\n")[0]
    rows = {cells[1].strip(): cells[2] for cells in (row.split("|") for row in table.splitlines())}
    assert list(rows) == list(methods)
    for label, algorithms in methods.items():
        named = set(re.findall(r"`(\w+)`", rows[label]))
        for algorithm in algorithms:
            federation = built(tiny, algorithm)
            schema = algorithm.uplink(federation.module("attic"))
            parts = {component_of(name) for name in schema.tensors}
            report = {"report"} if algorithm.figures() else set()
            assert named == parts | set(schema.scalars) | report, type(algorithm).__name__
    assert rows["Standalone, StandalonePublic"].strip() == "nothing"
