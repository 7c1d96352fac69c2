"""ECLM's round: what travels, what is merged, what changes when data or budget drift."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning import ECLM, load_device_model
from mlecs_lightning.algorithms.eclm.ability import AbilityTraining
from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.algorithms.eclm.models import CloudParts, modular_of
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.clients import Federation
from mlecs_lightning.data import Drift, Shift
from mlecs_lightning.deploy import ProgramFormat
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.rounds import ClientUpdate, Interrupted, RoundContext
from mlecs_lightning.wire import DWC, Message
from mlecs_lightning.wire.encoding import decode

K, L = 4, 3  # the pocket SLM has three layers
CLIENTS = ("kitchen", "hall", "study")
ROW = 96 * 2 * 2  # 384 neurons in 4 modules, r = 2, two layers of the MLP
CTX = RoundContext(0, 0, CLIENTS)


@pytest.fixture(scope="module")
def run(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    tapped: Callable[[], AbstractContextManager[SimpleNamespace]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., SimpleNamespace]:
    """Fit some rounds; returns messages by round, server states, history and faults."""

    def call(algorithm: ECLM, *shifts: Shift, rounds: int = 3, **values: Any) -> SimpleNamespace:
        data = tiny.data(schedule=Drift(list(shifts)) if shifts else None)
        root = tmp_path_factory.mktemp("eclm")
        trainer = tiny.trainer(root, max_rounds=rounds, enable_checkpointing=True, **values)
        with tapped() as log:
            summary = trainer.fit(algorithm, data, divided())
        folder = root / "tiny" / "version_0" / "checkpoints"
        states = [torch.load(p, weights_only=True) for p in sorted(folder.glob("round=0*.ckpt"))]
        sent: dict[tuple[str, int, str], Message] = {}
        for way, client, blob in log.messages:
            message, envelope = decode(blob)
            sent[way, int(envelope["round"]), client] = message  # type: ignore[call-overload]
        return SimpleNamespace(
            sent=sent,
            states=states,
            history=states[-1]["history"],
            summary=summary,
            algorithm=algorithm,
            rows=lambda r: rows_of(algorithm, states[r]["server"]["model"]),
        )

    return call


@pytest.fixture(scope="module")
def plain(run: Callable[..., SimpleNamespace], eclm: Callable[..., ECLM]) -> SimpleNamespace:
    """Four rounds in which nothing drifts: read it, do not change it."""
    return run(eclm(), rounds=4)


@pytest.fixture(scope="module")
def refreshed(run: Callable[..., SimpleNamespace], eclm: Callable[..., ECLM]) -> SimpleNamespace:
    """Three rounds in which modules are sent again: read it, do not change it."""
    return run(eclm(refresh=True), rounds=3)


def rows_of(algorithm: ECLM, state: dict[str, Tensor]) -> Tensor:
    """Return the modules' adapters (L K, ROW) of a server's state."""
    server = algorithm._server
    server.load_trainable_state(state)
    return modular_of(server).rows()


def numbers(message: Message) -> list[int]:
    return list(message.tensors["modules/index"].tolist())


# What travels -------------------------------------------------------------------------------------


def test_only_what_a_device_lacks_goes_down_and_only_its_modules_go_up(
    plain: SimpleNamespace,
) -> None:
    ran = plain
    for client in CLIENTS:
        held: set[int] = set()
        for round in range(4):
            down, up = (ran.sent[way, round, client] for way in ("downlink", "uplink"))
            assert down.tensors.keys() == {
                *("submodel/mask", "modules/index", "modules/adapters", "prototype/values")
            }
            own = {k for k in up.tensors if not k.startswith("report/")}
            assert own == {"modules/index", "modules/adapters", "gates/mean"}
            assert up.scalars.keys() == {"budget", "drifted", "samples"}
            wanted = set(down.tensors["submodel/mask"].flatten().nonzero().flatten().tolist())
            assert len(wanted) == K * L // 2
            assert set(numbers(down)) == wanted - held
            assert len(down.tensors["modules/adapters"]) == len(numbers(down))
            assert (len(down.tensors["prototype/values"]) > 0) is (round == 0)
            assert set(numbers(up)) == wanted
            assert up.tensors["modules/adapters"].shape == (len(wanted), ROW)
            held = wanted
        # Nothing has drifted: after the first report nothing more is sent but the form.
        assert numbers(ran.sent["downlink", 3, client]) == []
    parts = ran.summary["communication"]["by_component"]
    assert parts["uplink"]["modules"] == 4 * 3 * (K * L // 2) * (ROW * 4 + 8)
    assert parts["uplink"]["gates"] == 4 * 3 * K * L * 4
    assert ran.summary["faults"]["events"] == []


def test_what_is_sent_down_is_what_the_cloud_has(refreshed: SimpleNamespace) -> None:
    ran = refreshed
    before, sent = ran.rows(0), 0
    for client in CLIENTS:
        down = ran.sent["downlink", 1, client]
        for number, row in zip(numbers(down), down.tensors["modules/adapters"], strict=True):
            assert torch.equal(row, before[number])
            sent += 1
    assert sent


def test_refreshed_modules_are_those_that_others_have_changed(
    refreshed: SimpleNamespace,
) -> None:
    ran = refreshed
    for client in CLIENTS:
        trained = {c: set(numbers(ran.sent["uplink", 1, c])) for c in CLIENTS}
        others = set().union(*(trained[c] for c in CLIENTS if c != client))
        assert set(numbers(ran.sent["downlink", 2, client])) == trained[client] & others


def test_modules_changed_while_a_device_was_away_are_sent_again(
    tiny: SimpleNamespace, divided: Callable[..., Federation], eclm: Callable[..., ECLM]
) -> None:
    algorithm = eclm(refresh=True)
    server, loaders = tiny.build(algorithm, divided()).server, tiny.loaders(tiny.data())
    cloud = CloudParts.of(server.module)
    cloud.informed[:], cloud.assigned[:, 0] = 1, 1
    told = Message(
        {
            "modules/index": torch.tensor([0]),
            "modules/adapters": torch.ones(1, ROW),
            "gates/mean": torch.full((L, K), 0.25),
        },
        {"budget": 1.0, "drifted": 0, "samples": 1},
    )
    held = []
    for client in ("kitchen", "hall"):  # each alone in its round
        algorithm.server_update(server, algorithm.aggregate([(client, told)], CTX), loaders, CTX)
        held.append([int(cloud.held[j].flatten()[0]) for j in (0, 1)])
    assert held == [[1, 0], [0, 1]]


# The merge ----------------------------------------------------------------------------------------


def test_the_merge_by_hand_and_untouched_modules_stay_bit_equal(
    run: Callable[..., SimpleNamespace], eclm: Callable[..., ECLM]
) -> None:
    small = {"hall": Budget(modules=0.25), "study": Budget(modules=0.25)}
    ran = run(eclm(budget=Budget(modules=0.34), budgets=small), rounds=3)
    for round in (1, 2):
        before, after = ran.rows(round - 1), ran.rows(round)
        totals, weights = torch.zeros(K * L, ROW, dtype=torch.float64), torch.zeros(K * L)
        for client in CLIENTS:
            up = ran.sent["uplink", round, client]
            importance = up.tensors["gates/mean"].flatten()
            for number, row in zip(numbers(up), up.tensors["modules/adapters"], strict=True):
                weight = importance[number] * up.scalars["samples"]  # type: ignore[operator]
                totals[number] += row.double() * weight.double()
                weights[number] += weight
        touched = weights > 0
        assert 0 < int(touched.sum()) < K * L
        assert torch.equal(after[~touched], before[~touched])
        expected = totals[touched] / weights[touched, None]
        torch.testing.assert_close(after[touched].double(), expected, rtol=1e-5, atol=1e-8)
        assert (after[touched] != before[touched]).any(dim=1).all()


def test_the_cloud_s_own_parts_stay_as_devices_have_them(plain: SimpleNamespace) -> None:
    """Online nothing trains on the cloud: trunk, selector, connector and extractors are fixed."""
    ran, algorithm = plain, plain.algorithm
    first, last = (ran.states[i]["server"]["model"] for i in (0, -1))
    owns = {id(p) for p in modular_of(algorithm._server).own_parameters()}
    names = {n for n, p in algorithm._server.named_parameters() if id(p) in owns}
    register = {f"eclm.{n}" for n in ("informed", "held", "assigned", "importance", "budget")}
    changed = {k for k in first if not torch.equal(first[k], last[k])}
    assert changed
    assert changed <= names | register


@pytest.mark.parametrize(
    "index", [[0, 99], [-1, 0], [0, 11], [0]], ids=["beyond", "negative", "foreign", "short"]
)
def test_modules_that_are_not_a_device_s_are_not_merged(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
    index: list[int],
) -> None:
    algorithm = eclm()
    server = tiny.build(algorithm, divided()).server
    cloud = CloudParts.of(server.module)
    cloud.informed[0], cloud.assigned[0, 0] = 1, 1  # modules 0 to 3, not 11
    message = Message(
        {
            "modules/index": torch.tensor(index),
            "modules/adapters": torch.ones(2, ROW),
            "gates/mean": torch.full((L, K), 1e9),
        },
        {"budget": 1.0, "drifted": 0, "samples": 1},
    )
    # What such a message is measured by before that is of its form, or nothing at all.
    former = algorithm.former(server, message, None)
    assert {k: v.shape for k, v in former.items()} == (
        {} if index == [0] else {"modules/adapters": (2, ROW)}
    )
    merged = algorithm.aggregate([("kitchen", message)], CTX)
    assert merged.clients == 1
    assert merged.index.tolist() == ([] if index == [0] else [0])
    assert merged.reports["kitchen"].gates.max() == 1.0


def test_modules_that_explode_are_refused(
    run: Callable[..., SimpleNamespace],
    eclm: Callable[..., ECLM],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update = ECLM.client_update

    def exploding(self: ECLM, edge: Any, *args: Any) -> ClientUpdate:  # noqa: ANN401
        done = update(self, edge, *args)
        assert done.message is not None
        tensors = dict(done.message.tensors)
        if edge.name == "hall":
            tensors["modules/adapters"] = torch.full_like(tensors["modules/adapters"], 1e38)
        return done._replace(message=Message(tensors, done.message.scalars))

    monkeypatch.setattr(ECLM, "client_update", exploding)
    ran = run(eclm(), rounds=1)
    (event,) = ran.summary["faults"]["events"]
    assert (event["client"], event["error"]) == ("hall", "LargeUpdateError")
    assert float(ran.rows(0).abs().max()) < 10


# Drift --------------------------------------------------------------------------------------------


def metric(ran: SimpleNamespace, client: str, name: str) -> list[float]:
    return [row[f"clients/{client}/{name}"] for row in ran.history]


def test_a_device_whose_budget_halves_gets_a_smaller_model_and_the_run_goes_on(
    run: Callable[..., SimpleNamespace], eclm: Callable[..., ECLM]
) -> None:
    ran = run(eclm(), Shift(2, 4, clients=["hall"], budget=0.5), rounds=6)
    assert ran.summary["faults"]["events"] == []
    assert metric(ran, "kitchen", "submodel/modules") == [6] * 6
    # It cuts its model at once, from what it holds; a larger one has to come from the cloud.
    assert metric(ran, "hall", "submodel/modules") == [6, 6, 3, 3, 3, 6]
    assert [ran.sent["uplink", r, "hall"].scalars["budget"] for r in range(6)] == [
        *(1.0, 1.0, 0.5, 0.5, 1.0, 1.0)
    ]
    assert metric(ran, "hall", "budget") == [1, 1, 0.5, 0.5, 1, 1]
    assert [row["server/modules/derived"] for row in ran.history][1:] == [0, 1, 0, 1, 0]
    assert [row["server/derived/hall"] for row in ran.history] == [1, 0, 1, 0, 1, 0]
    assert [row["server/derived/kitchen"] for row in ran.history] == [1, 0, 0, 0, 0, 0]
    assert metric(ran, "hall", "submodel/bytes") == [
        4 * count for count in metric(ran, "hall", "submodel/parameters")
    ]
    sizes = metric(ran, "hall", "submodel/parameters")
    assert sizes[1] - sizes[2] == 3 * modular_size(sizes)
    assert numbers(ran.sent["downlink", 3, "hall"]) == []
    assert len(numbers(ran.sent["downlink", 5, "hall"])) == 3


def modular_size(sizes: list[float]) -> int:
    """96 neurons of GPT-2's MLP of width 96: in and out weights, biases and a row of adapters."""
    assert sizes
    return 96 * (96 + 96 + 1) + ROW


def test_a_drift_of_the_data_is_found_and_a_sub_model_derived_from_them(
    run: Callable[..., SimpleNamespace], eclm: Callable[..., ECLM], tiny: SimpleNamespace
) -> None:
    algorithm = eclm(steps=tiny.steps(warmup=3, server=0))
    ran = run(algorithm, Shift(2, clients=["kitchen"], lose=["pixels"]), rounds=4)
    # Welch's t is 95 with a spread of 2 over pocket weights, where 4.2 would be significant, and 0
    # without drift.
    assert metric(ran, "kitchen", "drifted") == [0, 0, 1, 0]
    for other in ("hall", "study"):
        assert metric(ran, other, "drifted") == [0] * 4
    assert [row["server/modules/derived"] for row in ran.history] == [3, 0, 1, 0]
    # What is assigned is the knapsack of what the device reported: the best half, one a layer.
    for round in (1, 3):
        reported = ran.sent["uplink", round - 1, "kitchen"].tensors["gates/mean"]
        mask = ran.sent["downlink", round, "kitchen"].tensors["submodel/mask"]
        assert torch.equal(mask, algorithm._derive("kitchen", reported))
    assert not torch.equal(
        ran.sent["uplink", 1, "kitchen"].tensors["gates/mean"],
        ran.sent["uplink", 2, "kitchen"].tensors["gates/mean"],
    )


def test_gates_are_measured_on_the_prototype_not_on_what_was_tuned(
    plain: SimpleNamespace,
) -> None:
    """Without drift a device reports the same gates however much it has learned."""
    ran = plain
    for client in CLIENTS:
        gates = [ran.sent["uplink", r, client].tensors["gates/mean"] for r in range(3)]
        assert torch.equal(gates[0], gates[1])
        assert torch.equal(gates[0], gates[2])


def test_without_rederivation_a_sub_model_is_derived_once(
    run: Callable[..., SimpleNamespace], eclm: Callable[..., ECLM]
) -> None:
    shifts = Shift(1, clients=["kitchen"], lose=["pixels"]), Shift(1, budget=2.0)
    ran = run(eclm(rederive=False), *shifts, rounds=3)
    assert [row["server/modules/derived"] for row in ran.history] == [3, 0, 0]


def test_a_budget_that_nothing_fits_costs_the_device_its_round(
    run: Callable[..., SimpleNamespace], eclm: Callable[..., ECLM]
) -> None:
    ran = run(eclm(), Shift(1, 2, clients=["hall"], budget=0.4), rounds=3)
    (event,) = ran.summary["faults"]["events"]
    assert (event["round"], event["client"], event["kind"]) == (1, "hall", "error")
    assert event["error"] == "InfeasibleBudgetError"
    assert metric(ran, "kitchen", "submodel/modules") == [6] * 3
    assert ran.history[2]["clients/hall/submodel/modules"] == 6


# Going on -----------------------------------------------------------------------------------------


SHIFTS = [Shift(2, budget=0.5), Shift(2, clients=["kitchen"], lose=["pixels"])]


class Stop(FederatedCallback):
    """Ends a run by a signal after the first client of round 2."""

    def on_client_end(self, *, round: int, client: str, metrics: dict[str, float]) -> None:
        if (round, client) == (2, "kitchen"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def go(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
) -> Callable[..., None]:
    def call(
        root: Path,
        *,
        ckpt_path: str | None = None,
        method: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> None:
        options = {"max_rounds": 4, "enable_checkpointing": True, **values}
        data = tiny.data(schedule=Drift(SHIFTS))
        tiny.trainer(root, **options).fit(eclm(**(method or {})), data, divided(), ckpt_path)

    return call


def end(root: Path) -> dict[str, Any]:
    folder = root / "tiny" / "version_0" / "checkpoints"
    state: dict[str, Any] = torch.load(folder / "round=0003.ckpt", weights_only=True)
    for client, kept in state["clients"].items():
        if isinstance(kept, str):
            kept = torch.load(folder / "clients" / kept, weights_only=True)
            state["clients"][client] = kept
    return {k: v for k, v in state.items() if k != "seconds"}


@pytest.fixture(scope="module")
def unbroken(go: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("unbroken")
    go(root)
    return end(root)


@pytest.mark.parametrize("store", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
def test_resumed_in_the_middle_of_the_online_stage_it_ends_in_the_same_bits(
    go: Callable[..., None], unbroken: dict[str, Any], tmp_path: Path, store: str
) -> None:
    """Stopped in a round in which budgets and data drift, with sub-models being cut."""
    with pytest.raises(Interrupted):
        go(tmp_path, store=store, callbacks=[Stop()])
    folder = tmp_path / "tiny" / "version_0" / "checkpoints"
    assert (folder / "round=0002-partial.ckpt").exists()
    go(tmp_path, store=store, ckpt_path="last")
    assert differences(unbroken, end(tmp_path)) == []
    modules = [row["clients/hall/submodel/modules"] for row in unbroken["history"]]
    assert modules == [6, 6, 3, 3]


@pytest.mark.slow
def test_weights_of_modules_and_abilities_are_resumed_bit_by_bit(
    go: Callable[..., None], tmp_path: Path
) -> None:
    method = {"gate_weighted": True, "bypass": True, "ability": AbilityTraining(steps=2)}
    go(tmp_path / "whole", method=method)
    with pytest.raises(Interrupted):
        go(tmp_path / "cut", method=method, callbacks=[Stop()])
    go(tmp_path / "cut", method=method, ckpt_path="last")
    whole = end(tmp_path / "whole")
    assert differences(whole, end(tmp_path / "cut")) == []
    names = [name for name in whole["clients"]["hall"]["model"] if name.endswith("modular.weights")]
    weights = [whole["clients"]["hall"]["model"][name] for name in names]
    assert any(each.unique().numel() > 1 for each in weights)


@pytest.mark.slow
def test_a_bypass_is_a_module_of_the_selector_that_costs_nothing(
    run: Callable[..., SimpleNamespace], eclm: Callable[..., ECLM]
) -> None:
    # The budget holds two modules of twelve: fewer than there are layers.
    ran = run(eclm(bypass=True, budget=Budget(modules=0.17), ability=AbilityTraining(steps=1)))
    for client in CLIENTS:
        up, down = ran.sent["uplink", 2, client], ran.sent["downlink", 2, client]
        assert up.tensors["gates/mean"].shape == (L, K + 1)
        torch.testing.assert_close(up.tensors["gates/mean"].sum(dim=1), torch.ones(L))
        assert down.tensors["submodel/mask"].shape == (L, K)
        assert int(down.tensors["submodel/mask"].sum()) == 2
        wanted = down.tensors["submodel/mask"].flatten().nonzero().flatten().tolist()
        assert numbers(up) == wanted
    assert ran.summary["faults"]["events"] == []
    rows = [ran.rows(round) for round in range(3)]
    assert not torch.equal(rows[0], rows[2])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize("party", ["hall", "server"])
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_an_exported_sub_model_answers_as_the_device_does(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
    tmp_path: Path,
    party: str,
    kind: ProgramFormat,
    recwarn: pytest.WarningsRecorder,
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    # As ONNX also a layer without modules, and modules that count with their gates.
    values: dict[str, Any] = dict.fromkeys(("bypass", "gate_weighted"), kind == "onnx")
    values |= {"budget": Budget(modules=0.5 if kind == "torch" else 0.17)}
    values |= {"steps": tiny.steps(warmup=3, private=2, server=0)}
    trainer = tiny.trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(eclm(**values), tiny.data(), divided())
    run = trainer.open(eclm(**values), tiny.data(), divided(), "last", training=False)
    place = tmp_path / "tiny/version_0"
    folder = export_run(place, tmp_path / party, client=party, format=kind)
    assert not [each for each in recwarn if "invalid shape" in str(each.message)]
    learner = run.federation.server if party == "server" else run.federation.edge(party)
    table = run.data.public("test") if party == "server" else run.data.private(party, "test")
    device = load_device_model(folder)
    for row, said in enumerate(run.tester.predictions(learner, table)[:4]):
        sample = {m: table.inputs[m][row] for m in table.modalities}
        assert device.ask(**sample) == said["prediction"]
    with torch.no_grad():
        expected = learner.module.eval().read(table.__getitems__([0])).logits[0, 0]
    _, logits = device.decode(**{m: table.inputs[m][0] for m in table.modalities})
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)
    weights = modular_of(learner.module).weights
    assert (weights is not None and weights.unique().numel() > 1) == (kind == "onnx")
    if party == "hall" and kind == "torch":
        whole = export_run(place, tmp_path / "whole", client="server", format=kind)
        small, large = (
            sum(path.stat().st_size for path in each.glob("*.pt2")) for each in (folder, whole)
        )
        # Half of the neurons of each MLP is gone from the file.
        modular = modular_of(run.federation.server.module)
        gone = (K * L // 2) * (modular.module_bytes() - 4 * modular.row_size)
        assert large - small >= 0.9 * 2 * gone  # in both programs


def differences(one: Any, other: Any, at: str = "") -> list[str]:  # noqa: ANN401 - nested states
    if isinstance(one, dict) and isinstance(other, dict):
        odd = [f"{at}/{k}" for k in one.keys() ^ other.keys()]
        shared = [k for k in one if k in other]
        return odd + [d for k in shared for d in differences(one[k], other[k], f"{at}/{k}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{at}/{i}")]
    same = torch.equal(one, other) if isinstance(one, Tensor) else repr(one) == repr(other)
    return [] if same else [at]


def test_predict_builds_the_modules_again_and_export_says_which_formats_can(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
    tmp_path: Path,
) -> None:
    trainer = tiny.trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(eclm(), tiny.data(), divided())
    rows = trainer.predict(eclm(), tiny.data(), divided(), "last")
    assert {row["party"] for row in rows} == {*tiny.clients, "server"}
    run = trainer.open(eclm(), tiny.data(), divided(), "last", training=False)
    for client in run.federation.clients:
        table = run.data.held_out(client, run.federation.parties.profiles[client])
        said = run.tester.predictions(run.federation.edge(client), table)
        assert [r["prediction"] for r in rows if r["party"] == client] == [
            r["prediction"] for r in said
        ]
    with pytest.raises(ConfigurationError, match=r"'hall' has parts of layers.*--format torch"):
        export_run(rows.path.parent, tmp_path / "out", client="hall")


def test_a_codec_that_shortens_nothing_is_told(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
    tmp_path: Path,
) -> None:
    trainer = tiny.trainer(tmp_path, max_rounds=1, codec=DWC())
    with pytest.warns(UserWarning, match="DWC shortens no message of ECLM"):
        trainer.fit(eclm(), tiny.data(), divided())
