import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning import MLECS, Digits
from mlecs_lightning.aggregation import Aggregation
from mlecs_lightning.algorithms import FedAvg, Standalone
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.data.base import Pools
from mlecs_lightning.federated import ClientsFailedError
from mlecs_lightning.rounds import Algorithm, NonFiniteError, Participation, UpdateLimits
from mlecs_lightning.types import ClientProfile
from mlecs_lightning.wire import ChannelError, MessageLimits

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]


def checkpoint(root: Path, number: int = 0) -> dict[str, Any]:
    path = root / "tiny" / "version_0" / "checkpoints" / f"round={number:04d}.ckpt"
    return torch.load(path, weights_only=True)


def hosted(root: Path) -> dict[str, Tensor]:
    """Return the adapter of the hosted SLM after round 0."""
    model = checkpoint(root)["server"]["model"]
    return {k: t for k, t in model.items() if k.startswith("towers.slm") and ".lora_" in k}


# Hooks ----------------------------------------------------------------------------------------


class Diary(FederatedCallback):
    """Writes down every hook with its facts, and what the disk holds at the end of a round."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.folder = Path()
        self.files: list[list[str]] = []

    def on_fit_start(self, *, max_rounds: int, clients: tuple[str, ...], folder: str) -> None:
        self.folder = Path(folder)
        self.entries.append(("fit_start", {"max_rounds": max_rounds, "clients": clients}))

    def on_round_start(self, *, round: int, participants: tuple[str, ...]) -> None:
        self.entries.append(("round_start", {"round": round, "participants": participants}))

    def on_client_end(self, *, round: int, client: str, metrics: Mapping[str, float]) -> None:
        self.entries.append((f"client_end {client}", {"round": round, "metrics": set(metrics)}))

    def on_aggregate(self, *, round: int, error: float, clients: int) -> None:
        self.entries.append(("aggregate", {"round": round, "error": error, "clients": clients}))

    def on_round_end(self, *, round: int, metrics: Mapping[str, float]) -> None:
        self.entries.append(("round_end", {"round": round, "metrics": dict(metrics)}))
        self.files.append(sorted(p.name for p in (self.folder / "checkpoints").iterdir()))

    def on_fit_end(self, *, summary: Mapping[str, Any]) -> None:
        self.entries.append(("fit_end", dict(summary)))


@pytest.fixture(scope="module")
def diary(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Diary:
    diary = Diary()
    tiny.fit(
        MLECS(steps=tiny.steps()),
        tmp_path_factory.mktemp("diary"),
        max_rounds=2,
        callbacks=[diary],
        enable_checkpointing=True,
    )
    return diary


def test_hooks_fire_in_the_order_of_what_happens(diary: Diary) -> None:
    one_round = [
        "round_start",
        *(f"client_end {name}" for name in ("kitchen", "hall", "study")),
        "aggregate",
        "round_end",
    ]
    names = [name for name, _ in diary.entries]
    assert names == ["fit_start", *one_round, *one_round, "fit_end"]
    assert [f["round"] for _, f in diary.entries[1:-1]] == [0] * 6 + [1] * 6


def test_hooks_are_told_the_facts(diary: Diary) -> None:
    clients = ("kitchen", "hall", "study")
    facts = diary.entries
    assert facts[0][1] == {"max_rounds": 2, "clients": clients}
    assert facts[1][1]["participants"] == clients
    assert {"ccl/loss", "ccl/volume", "private/loss"} <= facts[2][1]["metrics"]
    assert facts[5][1]["clients"] == 3
    end = facts[6][1]["metrics"]
    assert facts[5][1]["error"] == end["aggregate/error"] > 0
    assert {"clients/hall/ccl/loss", "server/public/loss"} <= end.keys()
    assert facts[-1][1]["rounds"] == 2


def test_a_round_ends_after_its_checkpoint(diary: Diary) -> None:
    assert diary.files == [["round=0000.ckpt"], ["round=0000.ckpt", "round=0001.ckpt"]]


def test_the_base_callback_has_every_hook_and_takes_keywords_only() -> None:
    silent = FederatedCallback()
    silent.on_fit_start(max_rounds=1, clients=("a",), folder="x")
    silent.on_round_start(round=0, participants=("a",))
    silent.on_client_end(round=0, client="a", metrics={})
    silent.on_aggregate(round=0, error=0.0, clients=1)
    silent.on_round_end(round=0, metrics={})
    silent.on_fit_end(summary={})
    with pytest.raises(TypeError):
        silent.on_round_start(0, ("a",))


# Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("max_rounds", 0, "at least 1"),
        ("check_val_every_n_rounds", -1, "at least 0"),
        ("limit_train_batches", -1, "at least 0"),
        ("save_top_k", -2, "at least -1"),
        ("limit_val_batches", -1, "at least 0"),
        ("limit_test_batches", -1, "at least 0"),
        ("limit_eval_clients", 0, "at least 1"),
        ("limit_test_clients", -1, "at least 1"),
        ("gradient_clip_val", -1.0, "at least 0"),
        ("gradient_clip_val", math.nan, "at least 0"),
    ],
)
def test_numbers_out_of_range_name_their_key(
    tiny: SimpleNamespace, key: str, value: float, allowed: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.{key} must be {allowed}, got {value}"):
        tiny.trainer(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("group", "kind", "name", "value", "allowed"),
    [
        ("participation", Participation, "fraction", 0.0, r"lie in \(0, 1\]"),
        ("participation", Participation, "fraction", 1.5, r"lie in \(0, 1\]"),
        ("participation", Participation, "min_clients", -1, "be at least 0"),
        ("update_limits", UpdateLimits, "max_norm", 0.0, "be above 0"),
        ("update_limits", UpdateLimits, "max_ratio", math.nan, "be above 0"),
        ("message_limits", MessageLimits, "max_norm", -1.0, "be above 0"),
        ("message_limits", MessageLimits, "max_bytes", 0, "be above 0"),
    ],
)
def test_groups_of_options_check_themselves(
    group: str, kind: type, name: str, value: float, allowed: str
) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.{group}\.{name} must {allowed}, got {value}"):
        kind(**{name: value})


def test_validation_comes_every_nth_round(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, tmp_path: Path
) -> None:
    diary = Diary()
    clients = {"hall": tiny.clients["hall"]}
    steps = tiny.steps(public=0, server=0)
    options = {"max_rounds": 3, "check_val_every_n_rounds": 2, "enable_checkpointing": True}
    tiny.fit(FedAvg(steps=steps), tmp_path, tiny.parties(clients), callbacks=[diary], **options)
    ends = [facts["metrics"] for name, facts in diary.entries if name == "round_end"]
    assert ["clients/val/loss" in metrics for metrics in ends] == [False, True, False]


def test_a_fast_run_is_one_round_of_single_batches_without_a_checkpoint(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    steps = tiny.steps(warmup=3, public=3, private=3, server=3)
    with tapped() as log:
        summary = tiny.fit(
            MLECS(steps=steps), tmp_path, max_rounds=5, fast_dev_run=True, enable_checkpointing=True
        )
    assert summary["rounds"] == 1
    assert len(log.passes) == 2 + 2 * 3
    assert {len(batches) for _, _, batches in log.passes} == {1}
    assert not (tmp_path / "tiny" / "version_0" / "checkpoints").exists()


def test_the_limit_caps_every_training_pass(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    steps = tiny.steps(warmup=1, public=3, private=4, server=5)
    clients = {"hall": tiny.clients["hall"]}
    with tapped() as log:
        tiny.fit(MLECS(steps=steps), tmp_path, tiny.parties(clients), limit_train_batches=2)
    taken = {(party, stage): len(batches) for party, stage, batches in log.passes}
    assert taken == {
        ("server", "warmup"): 1,
        ("hall", "private"): 2,
        ("hall", "ccl"): 2,
        ("server", "public"): 2,
    }


def test_the_norm_of_a_message_is_limited(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match="downlink of client 'kitchen' refused: norm"):
        tiny.fit(MLECS(steps=tiny.steps()), tmp_path, message_limits=MessageLimits(max_norm=1e-3))


# What a run depends on ------------------------------------------------------------------------


def test_a_run_depends_on_its_seed_and_on_nothing_before_it(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    ends = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        root = tmp_path / str(number)
        settings = tiny.parties(seed=seed)
        tiny.fit(MLECS(steps=tiny.steps()), root, settings, enable_checkpointing=True)
        ends.append(hosted(root))
    assert all(torch.equal(ends[1][k], t) for k, t in ends[0].items())
    assert not any(torch.equal(ends[2][k], t) for k, t in ends[0].items())


class ByName(Digits):
    """Deals the samples in the order of the names, so that clients keep theirs when reordered."""

    def attach(self, clients: Mapping[str, ClientProfile]) -> None:
        super().attach(dict(sorted(clients.items())))


@pytest.mark.parametrize("aggregation", ["separate", "svd"])
def test_order_of_the_clients_does_not_matter(
    tiny: SimpleNamespace, aggregation: Aggregation, tmp_path: Path
) -> None:
    algorithm = MLECS(steps=tiny.steps(), aggregation=aggregation)
    # Adam would take steps of full size along gradients that are rounding errors.
    server = tiny.model(optimizer={"class_path": "SGD", "init_args": {"lr": 0.1}})
    results = []
    for number, names in enumerate((["kitchen", "hall", "study"], ["study", "kitchen", "hall"])):
        settings = tiny.parties({name: tiny.clients[name] for name in names}, server=server)
        root = tmp_path / str(number)
        summary = tiny.fit(algorithm, root, settings, tiny.data(ByName), enable_checkpointing=True)
        results.append((hosted(root), checkpoint(root)["clients"], summary))
    (one, clients, summary), (other, others, again) = results
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=0, atol=1e-6)
    for name in tiny.clients:
        mine, its = clients[name]["model"], others[name]["model"]
        assert all(torch.equal(its[k], t) for k, t in mine.items())
    assert summary["clients"] == again["clients"]
    assert summary["aggregation_error"] == pytest.approx(again["aggregation_error"], rel=1e-6)


# What goes wrong ------------------------------------------------------------------------------


HOT = {"init_args": {"lr": 1e30}}


@pytest.mark.parametrize("algorithm", [MLECS, FedAvg, Standalone])
def test_a_client_that_diverges_is_named_with_its_stage_and_the_round_goes_on(
    tiny: SimpleNamespace, algorithm: Callable[..., Algorithm], tmp_path: Path
) -> None:
    clients = tiny.clients | {"hall": ClientSettings(["fourier"], optimizer=HOT)}
    method = algorithm(steps=tiny.steps(private=2))
    summary = tiny.fit(method, tmp_path, tiny.parties(clients))
    (fault,) = summary["faults"]["events"]
    assert (fault["client"], fault["kind"], fault["round"]) == ("hall", "error", 0)
    assert (fault["stage"], fault["error"]) == ("private", "NonFiniteError")


def test_a_round_in_which_every_client_raises_ends_the_run(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    settings = tiny.parties(edge=tiny.model(optimizer=HOT))
    with pytest.raises(ClientsFailedError) as caught:
        tiny.fit(FedAvg(steps=tiny.steps(private=2)), tmp_path, settings)
    first, *others = str(caught.value).splitlines()
    assert first == "round 0: every client failed:"
    for client, line in zip(tiny.clients, others, strict=True):
        start, _, path = line.partition("; full text in ")
        assert start == f"client {client!r}, stage 'private': NonFiniteError"
        assert f"{client}: loss is nan in step 1 of stage 'private'" in Path(path).read_text()


def test_the_only_participant_of_several_clients_may_fail(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """And the run goes on; in a federation of one, its failure is that of all."""
    hot = tiny.model(optimizer=HOT)
    algorithm = FedAvg(steps=tiny.steps(private=2))
    one_of = {"participation": Participation(0.34), "max_rounds": 2}
    summary = tiny.fit(algorithm, tmp_path / "three", tiny.parties(edge=hot), **one_of)
    faults = [(fault["round"], fault["kind"]) for fault in summary["faults"]["events"]]
    assert faults == [(0, "error"), (1, "error")]
    settings = tiny.parties({"hall": tiny.clients["hall"]}, edge=hot)
    with pytest.raises(ClientsFailedError, match="round 0: every client failed"):
        tiny.fit(algorithm, tmp_path / "one", settings)


class Broken(Digits):
    """Digits with one sensor reading that is no number, in every public sample."""

    def load_pools(self) -> Pools:
        pools = super().load_pools()
        pools.public.inputs["fourier"][:, 0] = torch.nan
        return pools


def test_a_broken_public_sample_is_found_in_the_stage_that_reads_it(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    warm = MLECS(steps=tiny.steps(warmup=1))
    with pytest.raises(NonFiniteError, match="server: loss is nan in step 0 of stage 'warmup'"):
        tiny.fit(warm, tmp_path / "a", None, tiny.data(Broken))
    cold = FedAvg(steps=tiny.steps(server=0))
    summary = tiny.fit(cold, tmp_path / "b", None, tiny.data(Broken))
    (fault,) = summary["faults"]["events"]  # the others have no such sensor
    assert (fault["client"], fault["stage"], fault["error"]) == ("hall", "public", "NonFiniteError")
    # What such a server says of the samples is stopped at the border.
    with pytest.raises(ChannelError, match=r"downlink of client 'kitchen' .*fused.*not finite"):
        tiny.fit(MLECS(steps=tiny.steps()), tmp_path / "c", None, tiny.data(Broken))
