import json
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from scipy.stats import trim_mean
from torch import Tensor

from mlecs_lightning.aggregation import Aggregation
from mlecs_lightning.aggregation.adapters import over_ranks
from mlecs_lightning.algorithms import FedAvg, Steps
from mlecs_lightning.algorithms.answers.training import MAX_SAMPLES
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, UpdateLimits
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.wire import Message
from mlecs_lightning.wire.channel import decode
from tests.unit.updates import dense, mean, relative_error

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]
LAYERS = [f"base_model.model.transformer.h.{i}.attn.c_attn" for i in range(3)]
NAMES = {f"{layer}.lora_{x}.weight" for layer in LAYERS for x in "AB"}


def checkpoint(root: Path, number: int = 0) -> dict[str, Any]:
    path = root / "tiny" / "version_0" / "checkpoints" / f"round={number:04d}.ckpt"
    return torch.load(path, weights_only=True)


def adapter(state: dict[str, Tensor], tower: str = "slm") -> dict[str, Tensor]:
    """Return a tower's adapter out of a trainable state, under PEFT's names."""
    start = f"towers.{tower}.backbone.lm."
    return {
        k.removeprefix(start).replace(".default.", "."): t
        for k, t in state.items()
        if k.startswith(start) and ".lora_" in k
    }


def sent(log: SimpleNamespace, direction: str) -> dict[str, list[dict[str, Tensor]]]:
    """Return the adapters on the wire, by client, round by round."""
    table: dict[str, list[dict[str, Tensor]]] = defaultdict(list)
    for way, client, data in log.messages:
        if way == direction:
            tensors = load(data)
            table[client].append({k.removeprefix("adapter/"): t for k, t in tensors.items()})
    return table


def samples(tiny: SimpleNamespace) -> dict[str, int]:
    data = tiny.data()
    tiny.build(FedAvg(), None, data)
    return {name: len(data.private(name)) for name in tiny.clients}


# One client is no federation ------------------------------------------------------------------


def test_one_client_and_one_step_a_round_is_plain_sgd(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """Two rounds, because the gradient of A is zero as long as B is."""
    sgd = {"class_path": "SGD", "init_args": {"lr": 0.5}}
    settings = tiny.parties({"hall": ClientSettings(["fourier"], optimizer=sgd)})
    algorithm = FedAvg(steps=tiny.steps(public=0, server=0))
    data = tiny.data()
    tiny.fit(
        algorithm,
        tmp_path,
        settings,
        data,
        max_rounds=2,
        gradient_clip_val=None,
        enable_checkpointing=True,
    )

    federation = tiny.build(algorithm, settings, data)
    module = federation.edge("hall").module
    module.load_adapter_state(federation.server.module.adapter_state())
    before = module.adapter_state()
    optimizer = torch.optim.SGD(module.trainable_parameters(), lr=0.5)
    loader = tiny.loaders(data, "hall").private
    for number in range(2):
        ctx = RoundContext(number, 0, ("hall",))
        (batch,) = loader.take(1, seed=ctx.seed_for("hall", "private"))
        optimizer.zero_grad()
        module.read(batch).loss.backward()
        optimizer.step()

    hosted = adapter(checkpoint(tmp_path, 1)["server"]["model"])
    assert hosted.keys() == NAMES
    for name, tensor in module.adapter_state().items():
        # Against the way that the steps went, however long that is.
        went = tensor - before[name]
        assert went.any()
        assert (hosted[name] - tensor).norm() <= 1e-3 * went.norm()


# Weights --------------------------------------------------------------------------------------


def test_a_client_counts_by_its_samples(tiny: SimpleNamespace) -> None:
    algorithm = FedAvg()
    federation = tiny.build(algorithm)
    like = federation.server.module.adapter_state()
    updates = [
        (
            client,
            Message(
                {f"adapter/{k}": torch.full_like(t, value) for k, t in like.items()},
                {"modalities": ("a",) * modalities, "samples": count},
            ),
        )
        for client, value, count, modalities in (
            ("kitchen", 1.0, 10, 3),
            ("hall", 2.0, 30, 1),
            ("study", 10.0, 60, 2),
        )
    ]
    aggregate = algorithm.aggregate(iter(updates), RoundContext(0, 0, federation.clients))
    for tensor in aggregate.adapters["slm"].values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.1 + 0.6 + 6.0))
    assert aggregate.clients == 3


def test_the_mean_goes_to_the_server_and_comes_down_to_all(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    algorithm = FedAvg(steps=tiny.steps(server=0))
    with tapped() as log:
        tiny.fit(algorithm, tmp_path, max_rounds=2, enable_checkpointing=True)
    up, down = sent(log, "uplink"), sent(log, "downlink")
    weights = samples(tiny)
    hosted = adapter(checkpoint(tmp_path)["server"]["model"])
    assert hosted.keys() == NAMES
    for name in NAMES:
        terms = [up[client][0][name] * weights[client] for client in weights]
        expected = sum(terms) / sum(weights.values())
        torch.testing.assert_close(hosted[name], expected, rtol=1e-5, atol=1e-8)
        for client in weights:
            assert torch.equal(down[client][1][name], hosted[name])
            assert torch.equal(down[client][0][name], down["hall"][0][name])
    assert not torch.equal(up["kitchen"][0][name], up["study"][0][name])


REPORT = ["report/private/loss", "report/public/loss"]


def test_nothing_but_adapter_modalities_and_count_goes_up_and_an_adapter_down(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    with tapped() as log:
        tiny.fit(FedAvg(steps=tiny.steps()), tmp_path)
    counts = samples(tiny)
    assert [(way, client) for way, client, _ in log.messages] == [
        (way, client) for client in tiny.clients for way in ("downlink", "uplink")
    ]
    for way, client, data in log.messages:
        report = {k: t for k, t in load(data).items() if k.startswith("report/")}
        assert load(data).keys() - report == {f"adapter/{name}" for name in NAMES}
        assert sorted(report) == (REPORT if way == "uplink" else [])
        assert all(t.shape == () and t.dtype == torch.float64 for t in report.values())
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        scalars = json.loads(header["__metadata__"]["message"])["scalars"]
        up = {"modalities": tiny.clients[client].modalities, "samples": counts[client]}
        assert scalars == (up if way == "uplink" else {})


# Claims ---------------------------------------------------------------------------------------


def test_a_client_cannot_claim_a_weight_by_other_modalities_or_beyond_reason(
    tiny: SimpleNamespace,
) -> None:
    algorithm = FedAvg()
    federation = tiny.build(algorithm)
    for client, settings in tiny.clients.items():
        form = algorithm.uplink(federation.edge(client).module).scalars
        known = tuple(settings.modalities)
        assert form.keys() == {"modalities", "samples"}
        assert form["modalities"].fault(known) is None
        for claim in ((*known, "lidar"), (*known, known[0]), (), ("pixels",), known[::-1] * 2):
            fault = form["modalities"].fault(claim)
            assert fault == f"{claim!r}, declared {known!r}"
        assert MAX_SAMPLES == 2**31 - 1
        assert form["samples"].fault(1) is form["samples"].fault(MAX_SAMPLES) is None
        for count in (0, -5, 2**31, 10**300, True, 3.0, "3"):
            assert form["samples"].fault(count) is not None


# Mixing ---------------------------------------------------------------------------------------


# The round of the run, how many rounds of its own the client has ended, the share that is received.
@pytest.mark.parametrize(("number", "ended", "share"), [(0, 0, 1.0), (3, 0, 1.0), (3, 1, 0.25)])
def test_what_a_client_starts_from_is_a_mix_except_in_its_first_round(
    tiny: SimpleNamespace, number: int, ended: int, share: float
) -> None:
    algorithm, data = FedAvg(steps=Steps(0, 0, 0, 0), adapter_mix=0.25), tiny.data()
    federation = tiny.build(algorithm, None, data)
    edge = federation.edge("hall")
    for _ in range(ended):
        edge.end_round()
    own = edge.module.adapter_state()
    received = {k: torch.full_like(t, 2.0) for k, t in own.items()}
    broadcast = Message({f"adapter/{k}": t for k, t in received.items()})
    ctx = RoundContext(number, 0, federation.clients)
    update = algorithm.client_update(edge, tiny.loaders(data, "hall"), broadcast, ctx)
    assert update.message is not None
    for name, tensor in update.message.component("adapter").items():
        torch.testing.assert_close(tensor, share * received[name] + (1 - share) * own[name])


@pytest.mark.parametrize("mix", [0.0, -0.5, 1.1, float("nan")])
def test_a_mix_lies_in_its_range(mix: float) -> None:
    with pytest.raises(ValueError, match=r"adapter_mix must lie in \(0, 1\]"):
        FedAvg(adapter_mix=mix)


# Aggregations ---------------------------------------------------------------------------------


def test_freeze_a_leaves_every_a_as_it_was_and_off_the_wire(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    algorithm = FedAvg(steps=tiny.steps(), aggregation="freeze_a")
    with tapped() as log:
        tiny.fit(algorithm, tmp_path, max_rounds=2, enable_checkpointing=True)
    initial = adapter(tiny.build(FedAvg()).server.module.trainable_state())
    state = checkpoint(tmp_path, 1)
    parties = [state["server"], *state["clients"].values()]
    for party in parties:
        for name, tensor in adapter(party["model"]).items():
            assert torch.equal(tensor, initial[name]) == (".lora_A." in name)
    only_b = {f"adapter/{name}" for name in NAMES if ".lora_B." in name}
    assert all(
        {k for k in load(data) if not k.startswith("report/")} == only_b
        for _, _, data in log.messages
    )
    assert len(log.messages) == 12
    # The mean of B, by hand; the A of the LLM, which nobody averages, trains.
    up, weights = sent(log, "uplink"), samples(tiny)
    down = sent(log, "downlink")
    for name in (n.removeprefix("adapter/") for n in only_b):
        mean = sum(up[c][0][name] * weights[c] for c in weights) / sum(weights.values())
        torch.testing.assert_close(down["hall"][1][name], mean, rtol=1e-5, atol=1e-8)
    llm = adapter(state["server"]["model"], "llm")
    fresh = adapter(tiny.build(FedAvg()).server.module.trainable_state(), "llm")
    assert any(not torch.equal(llm[n], fresh[n]) for n in llm if ".lora_A." in n)


@pytest.mark.parametrize("aggregation", ["stack", "svd"])
def test_ranks_may_differ_where_updates_are_averaged_as_a_whole(
    tiny: SimpleNamespace, tapped: Tap, aggregation: Aggregation, tmp_path: Path
) -> None:
    clients = {
        "kitchen": ClientSettings(["pixels", "profile"], lora={"r": 1, "alpha": 3}),
        "hall": ClientSettings(["fourier"]),
        "study": ClientSettings(["pixels", "profile"], lora={"r": 3}),
    }
    ranks = {"kitchen": (1, 3.0), "hall": (2, 2.0), "study": (3, 4 / 3)}
    algorithm = FedAvg(steps=tiny.steps(server=0), aggregation=aggregation)
    settings = tiny.parties(clients)
    with tapped() as log:
        options = {
            "update_limits": UpdateLimits(max_ratio=None),
            "enable_checkpointing": True,
        }  # it would be refused
        summary = tiny.fit(algorithm, tmp_path, settings, max_rounds=2, **options)
    up, down, weights = sent(log, "uplink"), sent(log, "downlink"), samples(tiny)
    rank, scaling = (6, 1.0) if aggregation == "stack" else (3, 4 / 3)
    for number in range(2):
        hosted = adapter(checkpoint(tmp_path, number)["server"]["model"])
        exact, nearest = [], []
        for layer in LAYERS:
            updates = {c: dense(up[c][number], layer, scale) for c, (_, scale) in ranks.items()}
            exact.append(mean((updates[c], weights[c]) for c in ranks))
            left, values, right = torch.linalg.svd(exact[-1], full_matrices=False)
            near = float(1e-6 * values[0])

            def best(r: int, u: Tensor = left, s: Tensor = values, v: Tensor = right) -> Tensor:
                return u[:, :r] @ s[:r].diag() @ v[:r]

            nearest.append(best(rank))
            assert hosted[f"{layer}.lora_A.weight"].shape == (rank, 96)
            torch.testing.assert_close(dense(hosted, layer, scaling), best(rank), rtol=0, atol=near)
            for client, (r, scale) in ranks.items() if number == 0 else ():
                assert down[client][1][f"{layer}.lora_A.weight"].shape == (r, 96)
                received = dense(down[client][1], layer, scale)
                torch.testing.assert_close(received, best(r), rtol=0, atol=near)
        # The singular values that were dropped, over all: none of a stack.
        missed = relative_error(nearest, exact)
        assert summary["aggregation_error"][number] == pytest.approx(missed, rel=1e-4, abs=1e-6)


def test_a_rank_dimension_is_averaged_over_the_clients_that_have_it(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    clients = {
        "kitchen": ClientSettings(["pixels", "profile"], lora={"r": 1, "alpha": 3}),
        "hall": ClientSettings(["fourier"]),
        "study": ClientSettings(["pixels", "profile"], lora={"r": 3}),
    }
    scales, scaling = {"kitchen": 3.0, "hall": 2.0, "study": 4 / 3}, 4 / 3
    algorithm = FedAvg(steps=tiny.steps(server=0), aggregation="dimensions")
    limits = UpdateLimits(max_ratio=None)
    with tapped() as log:
        tiny.fit(
            algorithm,
            tmp_path,
            tiny.parties(clients),
            update_limits=limits,
            enable_checkpointing=True,
        )
    up, down, weights = sent(log, "uplink"), sent(log, "downlink"), samples(tiny)
    hosted = adapter(checkpoint(tmp_path, 0)["server"]["model"])
    for layer in LAYERS:
        a, b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        assert [down[c][0][a].shape[0] for c in clients] == [1, 2, 3]
        for d, holders in enumerate([["kitchen", "hall", "study"], ["hall", "study"], ["study"]]):
            rows = mean((up[c][0][a][d], weights[c]) for c in holders)
            columns = mean((up[c][0][b][:, d] * scales[c] / scaling, weights[c]) for c in holders)
            torch.testing.assert_close(hosted[a][d], rows, rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(hosted[b][:, d], columns, rtol=1e-5, atol=1e-8)


def test_rank_dimensions_that_nobody_sent_stay_as_they_are() -> None:
    own = {"x.lora_A.weight": torch.ones(3, 2), "x.lora_B.weight": torch.ones(4, 3)}
    sent = {"x.lora_A.weight": torch.zeros(1, 2), "x.lora_B.weight": torch.zeros(4, 1)}
    replaced = over_ranks(own, sent)
    assert replaced["x.lora_A.weight"].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert replaced["x.lora_B.weight"].tolist() == [[0, 1, 1]] * 4
    assert own["x.lora_A.weight"].all()


@pytest.mark.parametrize("aggregation", ["separate", "freeze_a", "median"])
def test_unequal_adapters_are_a_fault_where_factors_are_averaged(aggregation: Aggregation) -> None:
    clients = {"a": LoraSettings(4, 8), "b": LoraSettings(4, 8), "c": LoraSettings(2, 8)}
    assert FedAvg(aggregation=aggregation).faults(clients, batch_size=1) == [
        "clients.c.lora has r=2, alpha=8, clients.a has r=4, alpha=8; "
        f"algorithm.init_args.aggregation {aggregation!r} needs equal ones, 'stack', 'svd' "
        "and 'dimensions' do not"
    ]
    assert FedAvg(aggregation="stack").faults(clients, batch_size=1) == []
    assert FedAvg(aggregation="svd").faults(clients, batch_size=1) == []


def test_an_alpha_of_its_own_is_a_fault_too() -> None:
    clients = {"a": LoraSettings(4, 8), "b": LoraSettings(4, 16)}
    (fault,) = FedAvg().faults(clients, batch_size=1)
    assert fault.startswith("clients.b.lora has r=4, alpha=16, clients.a has r=4, alpha=8")


@pytest.mark.parametrize(
    ("aggregation", "rank", "alpha"),
    [("separate", 4, 8), ("svd", 4, 8), ("freeze_a", 4, 8), ("stack", 7, 7), ("median", 4, 8)],
)
def test_the_hosted_adapter_can_hold_the_aggregate(
    aggregation: Aggregation, rank: int, alpha: int
) -> None:
    clients = {"a": LoraSettings(1, 3), "b": LoraSettings(4, 8), "c": LoraSettings(2, 6)}
    hosted = FedAvg(aggregation=aggregation).hosted_lora(clients)
    assert (hosted.r, hosted.alpha) == (rank, alpha)


# Robust aggregation ---------------------------------------------------------------------------


class Attacked(FedAvg):
    """One client sends its adapter with another sign, and 1e6 times as large."""

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        update = super().client_update(edge, loaders, broadcast, ctx)
        if edge.name != "c" or update.message is None:
            return update
        tensors = {k: -1e6 * t for k, t in update.message.tensors.items()}
        return update._replace(message=Message(tensors, update.message.scalars))


@pytest.mark.parametrize("aggregation", ["median", "trimmed_mean"])
def test_a_robust_aggregate_of_five_clients_stands_a_hostile_one(
    tiny: SimpleNamespace, tapped: Tap, aggregation: Aggregation, tmp_path: Path
) -> None:
    settings = tiny.parties({name: ClientSettings(["fourier"]) for name in "abcde"})
    algorithm = Attacked(steps=tiny.steps(server=0), aggregation=aggregation, trim=0.25)
    with tapped() as log:
        options = {
            "update_limits": UpdateLimits(max_ratio=None),
            "enable_checkpointing": True,
        }  # it would be refused
        summary = tiny.fit(algorithm, tmp_path, settings, max_rounds=2, **options)
    up, down = sent(log, "uplink"), sent(log, "downlink")
    hosted = adapter(checkpoint(tmp_path)["server"]["model"])
    assert hosted.keys() == NAMES
    for name in NAMES:
        values = np.stack([up[client][0][name].double().numpy() for client in "abcde"])
        expected = np.median(values, 0) if aggregation == "median" else trim_mean(values, 0.25, 0)
        np.testing.assert_allclose(hosted[name], expected, rtol=1e-5, atol=1e-12)
        honest = values[[0, 1, 3, 4]].astype(np.float32)
        low, high = honest.min(0), honest.max(0)
        assert ((low <= hosted[name].numpy()) & (hosted[name].numpy() <= high)).all()
        assert ((values[2] < low) | (high < values[2])).any()
        assert all(torch.equal(down[client][1][name], hosted[name]) for client in "abcde")
    # What the weighted mean has of the hostile update, the robust aggregate has not.
    messages = [decode(data)[0] for way, _, data in log.messages if way == "uplink"][:5]
    exact = [
        mean((dense(m.component("adapter"), layer, 2.0), m.scalars["samples"]) for m in messages)
        for layer in LAYERS
    ]
    missed = relative_error([dense(hosted, layer, 2.0) for layer in LAYERS], exact)
    assert summary["aggregation_error"][0] == pytest.approx(missed, rel=1e-5)


@pytest.mark.parametrize("trim", [0.0, 0.5, 0.9, -0.1, float("nan")])
def test_a_share_to_cut_off_lies_in_its_range(trim: float) -> None:
    with pytest.raises(ValueError, match=rf"init_args.trim must lie in \(0, 0.5\), got {trim}"):
        FedAvg(aggregation="trimmed_mean", trim=trim)


def test_faults_of_the_arguments_are_named_together() -> None:
    with pytest.raises(
        ValueError, match=r"(?s)adapter_mix must lie .* got 2\n.*trim must lie .* 1"
    ):
        FedAvg(adapter_mix=2, trim=1)


def test_a_trimmed_mean_that_cuts_off_nobody_is_a_fault() -> None:
    clients = {name: LoraSettings(4, 8) for name in "abcde"}
    assert FedAvg(aggregation="trimmed_mean").faults(clients, batch_size=1) == [
        "algorithm.init_args.trim is 0.1: of 5 clients it drops none; 'trimmed_mean' needs at "
        "least 1/5 here (and below 0.5), 'median' needs no trim"
    ]
    assert FedAvg(aggregation="trimmed_mean", trim=0.2).faults(clients, batch_size=1) == []
    for aggregation in ("median", "separate"):
        assert FedAvg(aggregation=aggregation).faults(clients, batch_size=1) == []


# The adapter that stays -----------------------------------------------------------------------


def test_a_private_adapter_trains_and_stays_on_the_device(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    settings = tiny.parties(edge=tiny.model(lora={"private_r": 1}))
    with tapped() as log:
        tiny.fit(
            FedAvg(steps=tiny.steps()), tmp_path, settings, max_rounds=2, enable_checkpointing=True
        )
    for _, _, data in log.messages:
        names = {k for k in load(data) if not k.startswith("report/")}
        assert {k.removeprefix("adapter/") for k in names} == NAMES
    states = [checkpoint(tmp_path, number)["clients"]["hall"]["model"] for number in range(2)]
    own = [k for k in states[0] if ".private." in k]
    assert len(own) == 2 * len(LAYERS)
    assert all(not torch.equal(states[0][k], states[1][k]) for k in own)
    hosted = checkpoint(tmp_path, 1)["server"]["model"]
    assert not any(".private." in k for k in hosted)
    assert (tmp_path / "tiny/version_0/adapters/hall/private/adapter_config.json").is_file()


def test_a_private_adapter_of_the_server_is_refused(tiny: SimpleNamespace) -> None:
    settings = tiny.parties(server=tiny.model(lora={"private_r": 1}))
    with pytest.raises(ValueError, match=r"server\.lora\.private_r is 1.*clients only"):
        tiny.build(FedAvg(), settings)


@pytest.mark.parametrize("stays", [True, False])
def test_with_an_adapter_a_stage_a_pass_trains_its_own_alone(
    tiny: SimpleNamespace, tmp_path: Path, stays: bool
) -> None:
    settings = tiny.parties(edge=tiny.model(lora={"private_r": 1, "scope": "per_stage"}))
    steps = tiny.steps(public=int(not stays), private=int(stays))
    tiny.fit(FedAvg(steps=steps), tmp_path, settings, enable_checkpointing=True)
    model = checkpoint(tmp_path, 0)["clients"]["hall"]["model"]
    # Every B begins at zero.
    moved = {k: bool(v.any()) for k, v in model.items() if ".lora_B." in k}
    assert moved == {key: (".private." in key) == stays for key in moved}
    assert set(moved.values()) == {True, False}


def test_what_is_decomposed_for_one_client_serves_all_that_are_alike(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, data = FedAvg(aggregation="svd"), tiny.data()
    server, asked = tiny.build(algorithm, None, data).server, list[str]()
    shipped = FedAvg.shipped
    monkeypatch.setattr(
        FedAvg, "shipped", lambda own, s, client: (asked.append(client), shipped(own, s, client))[1]
    )
    ctx = RoundContext(0, 0, tuple(tiny.clients))
    said = dict(algorithm.broadcast(server, tiny.loaders(data), ctx))
    assert list(said) == list(tiny.clients)
    assert asked == list(tiny.clients)[:1]
