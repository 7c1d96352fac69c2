"""Clients of three backbones and three ranks in one federation."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mlecs_lightning import FedAvg
from mlecs_lightning.algorithms import MLECS, CoPLMs
from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.clients import ClientSettings, Federation
from mlecs_lightning.clients.groups import group_clients
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.functional import volume_contrastive_loss
from mlecs_lightning.modules import ServerModule
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.settings import BackboneSettings, LoraSettings
from mlecs_lightning.wire import Message

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]

CLIENTS = {
    "kitchen": ClientSettings(["pixels", "profile"]),
    "hall": ClientSettings(["fourier"], lora={"r": 3, "alpha": 3}),
    "study": ClientSettings(["pixels"], backbone={"model": "pocket/llm"}),
    "cellar": ClientSettings(
        ["fourier"], backbone={"model": "pocket/xs"}, lora={"r": 4, "alpha": 4}
    ),
}
GROUPS = {"slm": ("kitchen", "hall"), "slm_2": ("study",), "slm_3": ("cellar",)}


@pytest.fixture(scope="module")
def parties(tiny: SimpleNamespace) -> Federation:
    settings: Federation = tiny.parties(CLIENTS)
    return settings


def delta(adapter: dict[str, Tensor], layer: str, scaling: float) -> Tensor:
    up, down = (adapter[f"{layer}.lora_{x}.weight"].double() for x in "BA")
    return scaling * up @ down


def test_a_group_has_one_backbone_and_one_set_of_adapted_layers(tiny: SimpleNamespace) -> None:
    slm, lora = tiny.model(), tiny.model().lora
    models = {
        "a": slm,
        "b": replace(slm, lora=replace(lora, r=9, target_modules=["c_fc", "c_proj"])),
        "c": replace(slm, backbone=BackboneSettings("pocket/llm")),
        "d": replace(slm, lora=replace(lora, target_modules=["c_proj", "c_fc"])),
        "e": replace(slm, backbone=replace(slm.backbone, dtype="bfloat16"), lora=LoraSettings(7)),
        "f": replace(slm, backbone=replace(slm.backbone, revision="v2")),
    }
    assert group_clients(models) == {
        **{"slm": ("a", "e"), "slm_2": ("b", "d"), "slm_3": ("c",), "slm_4": ("f",)}
    }
    assert group_clients(models, one=True) == {"slm": tuple("abcdef")}


def test_the_server_hosts_one_slm_for_each_group(
    tiny: SimpleNamespace, parties: Federation
) -> None:
    for aggregation, ranks in (("svd", [3, 2, 4]), ("stack", [2 + 3, 2, 4])):
        federation = tiny.build(FedAvg(aggregation=aggregation), parties)
        assert federation.parties.groups == GROUPS
        server = federation.server.module
        assert list(server.towers) == ["llm", *GROUPS]
        assert [server.tower(host).backbone.lora.r for host in server.hosts] == ranks
        for host, members in GROUPS.items():
            for name in members:
                own = federation.module(name).backbone
                assert server.host_of(own) == host
                assert server.tower(host).backbone.settings == own.settings
    with pytest.raises(KeyError, match=r"none of \('slm',\) hosts"):
        tiny.build(FedAvg()).server.module.host_of(own)


def test_one_group_keeps_its_names_and_its_arguments(tiny: SimpleNamespace) -> None:
    server = tiny.build(FedAvg()).server.module
    assert list(server.towers) == ["llm", "slm"]
    assert set(server.hparams) == {"settings", "hosted", "modalities"}


def test_ranks_are_a_matter_of_each_group_alone(tiny: SimpleNamespace) -> None:
    alone = {name: CLIENTS[name] for name in ("kitchen", "study", "cellar")}
    Parties.resolve(tiny.parties(alone), MLECS(), tiny.data())
    with pytest.raises(ConfigurationError) as caught:
        Parties.resolve(tiny.parties(CLIENTS), MLECS(), tiny.data(batch_size=1))
    _, *faults = str(caught.value).splitlines()
    assert [fault.split(" ")[0] for fault in faults] == [
        *("clients.hall.lora", "data.init_args.batch_size")
    ]


def test_adapters_meet_within_their_group_alone(tiny: SimpleNamespace, parties: Federation) -> None:
    algorithm = FedAvg(aggregation="svd", steps=tiny.steps(server=0))
    federation, data = tiny.build(algorithm, parties), tiny.data()
    ctx = RoundContext(0, 0, tuple(CLIENTS))
    generator = torch.Generator().manual_seed(0)
    updates, loras = {}, {n: federation.module(n).backbone.lora for n in CLIENTS}
    for n, name in enumerate(CLIENTS):
        like = federation.module(name).adapter_state()
        drawn = {k: torch.randn(t.shape, generator=generator) for k, t in like.items()}
        updates[name] = (drawn, n + 1)
    messages = [
        (name, Message({f"adapter/{k}": t for k, t in a.items()}, {"samples": n}))
        for name, (a, n) in updates.items()
    ]
    aggregate = algorithm.aggregate(iter(messages), ctx)
    assert aggregate.clients == 4
    assert list(aggregate.adapters) == ["slm", "slm_2", "slm_3"]
    assert aggregate.error > 0.1, "rank 3 cannot hold the mean of ranks 2 and 3"
    errors = [algorithm.aggregate([each], ctx).error for each in messages]
    assert max(errors) < 1e-6
    assert aggregate.error == algorithm.aggregate(messages[:2], ctx).error, "the largest of all"
    algorithm.server_update(federation.server, aggregate, tiny.loaders(data), ctx)
    server = federation.server.module
    for host, name in (("slm_2", "study"), ("slm_3", "cellar")):
        hosted = server.adapter_state(host)
        lora, tower = loras[name], server.tower(host).backbone
        for layer in (k.removesuffix(".lora_A.weight") for k in hosted if "lora_A" in k):
            torch.testing.assert_close(
                delta(hosted, layer, tower.scaling),
                delta(updates[name][0], layer, lora.alpha / lora.r),
                rtol=1e-4,
                atol=1e-4,
            )
    # Kitchen and hall, 1 sample and 2: the nearest of rank 3 to the exact mean.
    hosted, scaling = server.adapter_state(), server.tower("slm").backbone.scaling
    layer = next(k for k in hosted if "lora_A" in k).removesuffix(".lora_A.weight")
    mean = (
        delta(updates["kitchen"][0], layer, 2.0) + 2 * delta(updates["hall"][0], layer, 1.0)
    ) / 3
    singular = torch.linalg.svdvals(mean)
    missed = (delta(hosted, layer, scaling) - mean).norm()
    assert missed.item() == pytest.approx(singular[3:].norm().item(), rel=1e-4)

    sent = dict(algorithm.broadcast(federation.server, tiny.loaders(data), ctx))
    for name in CLIENTS:
        received = sent[name].component("adapter")
        assert {t.shape for t in received.values()} == {
            t.shape for t in federation.module(name).adapter_state().values()
        }
    for host, name in (("slm_2", "study"), ("slm_3", "cellar")):
        assert all(
            torch.equal(t, server.adapter_state(host)[k])
            for k, t in sent[name].component("adapter").items()
        )


def test_a_group_of_which_nobody_came_keeps_its_adapter(
    tiny: SimpleNamespace, parties: Federation
) -> None:
    algorithm = FedAvg(aggregation="svd", steps=tiny.steps(server=0))
    federation = tiny.build(algorithm, parties)
    server = federation.server.module
    before = {host: server.adapter_state(host) for host in GROUPS}
    like = {f"adapter/{k}": t + 1 for k, t in before["slm_2"].items()}
    update = Message(like, {"samples": 3})
    ctx = RoundContext(0, 0, ("study",))
    aggregate = algorithm.aggregate([("study", update)], ctx)
    assert (list(aggregate.adapters), aggregate.clients) == (["slm_2"], 1)
    algorithm.server_update(federation.server, aggregate, tiny.loaders(tiny.data()), ctx)
    changed = [
        host
        for host, adapter in before.items()
        if not all(torch.equal(t, server.adapter_state(host)[k]) for k, t in adapter.items())
    ]
    assert changed == ["slm_2"]


def test_a_fixed_a_is_common_to_a_group(tiny: SimpleNamespace) -> None:
    clients = {
        **{n: CLIENTS[n] for n in ("kitchen", "study")},
        "hall": ClientSettings(["fourier"]),
    }
    federation = tiny.build(FedAvg(aggregation="freeze_a"), tiny.parties(clients))
    server = federation.server.module
    for name, host in (("kitchen", "slm"), ("hall", "slm"), ("study", "slm_2")):
        own, hosted = federation.module(name).backbone, server.tower(host).backbone
        assert not own.trains_a()
        assert not hosted.trains_a()
        fixed = {k: p for k, p in hosted.lm.named_parameters() if ".lora_A." in k}
        assert all(torch.equal(dict(own.lm.named_parameters())[k], p) for k, p in fixed.items())


def test_se_ccl_runs_between_the_llm_and_each_hosted_slm(
    tiny: SimpleNamespace, parties: Federation
) -> None:
    algorithm, data = MLECS(aggregation="svd", contrast_weight=0.7, temperature=0.3), tiny.data()
    server = tiny.build(algorithm, parties, data).server.module.eval()
    batch = data.public("train").__getitems__(list(range(8)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in server.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=generator)
    losses = algorithm.objectives.se_ccl(server, batch)
    losses["loss"].backward()
    classes = torch.tensor([sorted(set(batch.targets)).index(t) for t in batch.targets])

    def volume(anchors: Tensor, vectors: Tensor) -> Tensor:
        return volume_contrastive_loss(anchors, vectors, classes=classes, temperature=0.3).loss

    def run(tower: str) -> tuple[Tensor, Tensor, Tensor]:
        output = server.read(batch, tower=tower)
        fused = output.embeddings.fused[:, None]
        return output.loss, output.view, torch.cat([output.embeddings.modalities, fused], dim=1)

    with torch.no_grad():
        lm, view, vectors = run("llm")
        total, by_hand = lm, volume(view, vectors)
        for host in GROUPS:
            lm, its_view, its_vectors = run(host)
            total = total + lm
            by_hand = by_hand + volume(its_view, vectors) / 3 + volume(view, its_vectors)
            by_hand = by_hand + volume(its_view, its_vectors)
    assert losses["volume"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((total + 0.7 * by_hand).item(), rel=1e-5)
    assert {k for k in losses if k.startswith("lm_")} == {"lm_llm", *(f"lm_{h}" for h in GROUPS)}
    learned = {n.split(".")[1] for n, p in server.named_parameters() if p.grad is not None}
    assert learned >= {"llm", *GROUPS}


def test_proxies_are_of_one_group_whatever_the_clients_own_models(tiny: SimpleNamespace) -> None:
    federation = tiny.build(
        CoPLMs(steps=tiny.steps()),
        tiny.parties(
            {
                "study": ClientSettings(["pixels"], backbone={"model": "pocket/llm"}),
                "hall": ClientSettings(["fourier"]),
            }
        ),
    )
    assert federation.server.module.hosts == ("slm",)
    slm = federation.module("hall").backbone.settings
    assert federation.module("study").backbone.settings == slm, "the edge's, for all"
    assert federation.module("study").tower().backbone.settings != slm


# A run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(
    tiny: SimpleNamespace,
    parties: Federation,
    tapped: Tap,
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """Two rounds; and two more of one, the second from its checkpoint."""
    root = tmp_path_factory.mktemp("groups")
    algorithm = MLECS(aggregation="svd", steps=tiny.steps(warmup=1))

    def fit(folder: Path, **values: int | str) -> dict[str, object]:
        ckpt = values.pop("ckpt_path", None)
        trainer = tiny.trainer(folder, enable_checkpointing=True, **values)
        summary: dict[str, object] = trainer.fit(algorithm, tiny.data(), parties, ckpt)
        return summary

    with tapped() as log:
        summary = fit(root / "one", max_rounds=2)
    fit(root / "two", max_rounds=1)
    fit(root / "two", max_rounds=2, ckpt_path="last")
    folders = [root / name / "tiny" / "version_0" for name in ("one", "two")]
    return SimpleNamespace(
        summary=summary,
        folder=folders[0],
        messages=log.messages,
        states=[
            torch.load(f / "checkpoints" / "round=0001.ckpt", weights_only=True) for f in folders
        ],
    )


def alike(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return repr(one) == repr(other)


@pytest.mark.slow
def test_a_resumed_run_of_groups_ends_in_the_same_bits(run: SimpleNamespace) -> None:
    one, other = run.states
    for key in ("server", "clients", "ledger", "history", "about"):
        assert alike(one[key], other[key]), key
    assert any(k.startswith("towers.slm_3.backbone") for k in one["server"]["model"])


def test_the_summary_names_the_groups(run: SimpleNamespace) -> None:
    assert run.summary["groups"] == {host: list(members) for host, members in GROUPS.items()}
    assert len(run.messages) == 2 * 2 * 4


def test_models_of_all_groups_leave_the_run(run: SimpleNamespace, tmp_path: Path) -> None:
    from mlecs_lightning import load_exported

    for name in ("study", "cellar", "server"):
        model = load_exported(export_run(run.folder, tmp_path / name, client=name))
        kind = {"study": "llm", "cellar": "xs", "server": "slm"}[name]
        assert model.config["backbone"]["pocket"] == f"pocket/{kind}"


def test_the_server_is_built_again_from_its_hyperparameters(
    tiny: SimpleNamespace, parties: Federation
) -> None:
    server = tiny.build(FedAvg(aggregation="stack"), parties).server.module
    again = ServerModule(**dict(server.hparams))
    assert again.trainable_state().keys() == server.trainable_state().keys()
    again.load_trainable_state(server.trainable_state())
