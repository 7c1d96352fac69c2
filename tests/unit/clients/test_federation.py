from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mlecs_lightning.algorithms import MLECS, FedAvg
from mlecs_lightning.clients import ClientSettings, DrawnClients, FederationModels
from mlecs_lightning.clients.edges import _architecture_key
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.rounds.context import derive_seed
from mlecs_lightning.settings import BackboneSettings, LoraSettings, ModelSettings


@pytest.fixture(scope="module")
def federation(tiny: SimpleNamespace) -> FederationModels:
    return tiny.build(FedAvg())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[k], t) for k, t in one.items())


def modules(federation: FederationModels) -> list[MultimodalLM]:
    return [federation.server.module, *(federation.module(c) for c in federation.clients)]


# Sharing --------------------------------------------------------------------------------------


def test_all_parties_share_one_frozen_backbone(federation: FederationModels) -> None:
    places: dict[str, set[int]] = defaultdict(set)
    for module in modules(federation):
        for tower in module.towers.values():
            for name, parameter in tower.backbone.lm.named_parameters():
                if ".lora_" not in name:
                    places[name].add(parameter.data_ptr())
                    assert not parameter.requires_grad
    assert len(places) > 30
    assert {len(pointers) for pointers in places.values()} == {1}


def test_adapters_are_not_shared(federation: FederationModels) -> None:
    server, kitchen, hall = (
        {p.data_ptr() for n, p in m.named_parameters() if ".lora_" in n}
        for m in (federation.server.module, federation.module("kitchen"), federation.module("hall"))
    )
    assert not server & kitchen
    assert not server & hall
    assert not kitchen & hall


def test_clients_of_one_architecture_share_a_module(tiny: SimpleNamespace) -> None:
    clients = {
        **tiny.clients,
        "cellar": ClientSettings(["pixels", "profile"], optimizer={"init_args": {"lr": 0.5}}),
    }
    federation = tiny.build(FedAvg(), tiny.parties(clients))
    assert federation.module("kitchen") is federation.module("study")
    assert federation.module("kitchen") is not federation.module("hall")
    assert federation.module("kitchen") is not federation.module("cellar")
    assert federation.edge("cellar").optimizer.param_groups[0]["lr"] == 0.5
    assert federation.edge("kitchen").optimizer.param_groups[0]["lr"] == 1e-2
    assert federation.edge("study").name == "study"


# States ---------------------------------------------------------------------------------------


def test_a_client_that_trains_changes_nobody_else(tiny: SimpleNamespace) -> None:
    federation, data = tiny.build(FedAvg()), tiny.data()
    initial = {name: federation.edge(name).state_dict() for name in federation.clients}
    assert equal(initial["kitchen"]["model"], initial["study"]["model"])
    batch = data.public(modalities=["pixels", "profile"]).__getitems__([0, 1, 2])

    study = federation.edge("study")
    study.fit([batch], stage="s")
    trained = study.state_dict()
    federation.keep(study, round=0)

    kitchen = federation.edge("kitchen").state_dict()
    assert equal(kitchen["model"], initial["kitchen"]["model"])
    assert kitchen["optimizer"]["state"] == {}
    again = federation.edge("study").state_dict()
    assert equal(again["model"], trained["model"])
    assert again["optimizer"]["state"].keys() == trained["optimizer"]["state"].keys() != set()
    moved = [k for k, t in trained["model"].items() if not torch.equal(t, kitchen["model"][k])]
    assert any(k.startswith("extractors.pixels") for k in moved)


def test_where_a_client_starts_does_not_depend_on_the_others(tiny: SimpleNamespace) -> None:
    names = list(tiny.clients)
    backwards = {name: tiny.clients[name] for name in reversed(names)}
    first = tiny.build(FedAvg())
    other = tiny.build(FedAvg(), tiny.parties(backwards))
    for name in names:
        one, two = (f.edge(name).state_dict()["model"] for f in (first, other))
        assert equal(one, two)
    assert equal(first.server.module.trainable_state(), other.server.module.trainable_state())


def test_another_seed_starts_elsewhere(tiny: SimpleNamespace) -> None:
    one = tiny.build(FedAvg())
    two = tiny.build(FedAvg(), tiny.parties(seed=1))
    for module, other in zip(modules(one), modules(two), strict=True):
        mine, its = module.trainable_state(), other.trainable_state()
        drawn = [k for k, t in mine.items() if t.std() > 0 and "norm" not in k.lower()]
        drawn = [k for k in drawn if not torch.equal(t := mine[k], torch.ones_like(t))]
        assert len(drawn) > 5
        assert not any(torch.equal(mine[k], its[k]) for k in drawn)


def test_hosted_slm_has_the_clients_backbone_and_the_servers_connector(
    tiny: SimpleNamespace,
) -> None:
    server = tiny.model(connector={"prompt_length": 6}, lora={"r": 3, "alpha": 3})
    parties = Parties.resolve(tiny.parties(server=server), FedAvg(), tiny.data())
    assert (parties.hosted.lora.r, parties.hosted.lora.alpha) == (2, 4)
    assert parties.hosted.connector.prompt_length == 6
    assert parties.hosted.backbone == parties.models["hall"].backbone


# Settings -------------------------------------------------------------------------------------


def test_a_client_keeps_what_it_does_not_name(tiny: SimpleNamespace) -> None:
    client = ClientSettings(["pixels"], lora={"r": 4}, optimizer={"init_args": {"lr": 0.5}})
    model = client.model(tiny.model(), key="clients.x")
    assert (model.lora.r, model.lora.alpha, model.lora.dropout) == (4, 4, 0.0)
    assert model.optimizer == {"class_path": "AdamW", "init_args": {"lr": 0.5}}
    assert model.connector == tiny.model().connector


def test_drawn_clients_are_a_function_of_their_own_seed(tiny: SimpleNamespace) -> None:
    modalities = ["a", "b", "c"]
    one = tiny.parties(DrawnClients(5, 0.5, seed=3)).named_clients(modalities)
    other = tiny.parties(DrawnClients(5, 0.5, seed=3), seed=9).named_clients(modalities)
    assert one == other
    assert list(one) == [f"client_0{j}" for j in range(5)]
    assert all(c.modalities for c in one.values())
    assert tiny.parties(DrawnClients(5, 0.5, seed=4)).named_clients(modalities) != one


def test_all_faults_come_in_one_error(tiny: SimpleNamespace) -> None:
    clients = {
        "kitchen": ClientSettings(["pixels"]),
        "rank": ClientSettings(["pixels"], lora={"r": 4}),
        "width": ClientSettings(["pixels"], connector={"width": 32}),
        "hub": ClientSettings(["pixels"], backbone={"model": "no such/hub id"}),
        "nowhere": ClientSettings(["pixels"], backbone={"model": "pocket/xl"}),
        "key": ClientSettings(["pixels"], lora={"rank": 4}),
        "modality": ClientSettings(["smell"]),
        "extractor": ClientSettings(["pixels"], extractors={"pixel": {"class_path": "ImageCNN"}}),
    }
    with pytest.raises(ConfigurationError) as caught:
        Parties.resolve(tiny.parties(clients), MLECS(), tiny.data(batch_size=1))
    title, *faults = str(caught.value).splitlines()
    assert title == "the configuration has faults:"
    expected = [
        "clients.rank.lora has r=4, alpha=4, clients.kitchen has r=2, alpha=4; "
        "algorithm.init_args.aggregation 'separate' needs equal ones, 'stack', 'svd' and "
        "'dimensions' do not",
        "clients.width: connector.width is 32, the server's is 16; all parties share one latent "
        "space",
        "clients.hub.backbone.model: there is no directory 'no such/hub id', and a hub id is "
        "'name' or 'owner/name'; made on this machine: ['pocket/llm', 'pocket/slm', 'pocket/xs']",
        "clients.nowhere.backbone.model 'pocket/xl': the pocket models are ['pocket/llm', "
        "'pocket/slm', 'pocket/xs']",
        "clients.key.lora: unknown keys ['rank'], known: ['r', 'alpha', 'dropout', "
        "'target_modules', 'private_r', 'scope']",
        "clients.modality.modalities: 'smell' is not one of ['pixels', 'profile', 'fourier']",
        "clients.extractor.extractors: 'pixel' is none of ['pixels', 'profile', 'fourier']",
        "data.init_args.batch_size is 1; components ['ccl', 'se_ccl'] contrast the samples of a "
        "batch and need at least 2",
    ]
    assert sorted(faults) == sorted(expected)


@pytest.mark.parametrize("clients", [{}, DrawnClients(0), DrawnClients(2, modality_rate=0.0)])
def test_a_federation_without_clients_is_a_fault_of_the_configuration(
    tiny: SimpleNamespace, clients: dict[str, ClientSettings] | DrawnClients
) -> None:
    with pytest.raises(ConfigurationError):
        Parties.resolve(tiny.parties(clients), FedAvg(), tiny.data())


@pytest.mark.parametrize("name", ["server", "a/b", "..", ""])
def test_a_name_that_would_overwrite_something_is_refused(tiny: SimpleNamespace, name: str) -> None:
    """Names become folders and parts of metric names, beside those of the server."""
    with pytest.raises(ConfigurationError, match="clients: the name"):
        Parties.resolve(tiny.parties({name: ClientSettings(["pixels"])}), FedAvg(), tiny.data())


def test_settings_that_came_later_leave_the_first_weights_as_they_were() -> None:
    """A seed of an earlier version: runs of then can be repeated now."""
    key = _architecture_key(["pixels"], ModelSettings(BackboneSettings("m")))
    assert derive_seed(0, key) == 6270121741755941862
    scoped = LoraSettings(private_r=1, scope="per_stage")
    assert key != _architecture_key(["pixels"], ModelSettings(BackboneSettings("m"), lora=scoped))
