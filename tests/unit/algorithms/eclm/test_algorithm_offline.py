"""ECLM's offline stage, and settings that do not fit."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mlecs_lightning import ECLM
from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.algorithms.eclm.gating import top_k_gates
from mlecs_lightning.algorithms.eclm.models import CloudParts, modular_of
from mlecs_lightning.clients import ClientSettings, Federation
from mlecs_lightning.data.availability import without_some_modalities
from mlecs_lightning.errors import ConfigurationError

K, L = 4, 3  # the pocket SLM has three layers

# The offline stage --------------------------------------------------------------------------------


def test_the_offline_loss_by_hand(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
) -> None:
    algorithm, data = eclm(active=K, balance_weight=0.3), tiny.data()
    module = tiny.build(algorithm, divided(), data).server.module.eval()
    batch = data.public().__getitems__(list(range(6)))
    losses = algorithm.offline.loss(module, batch)
    # With all modules the gates are one: L_LM is that of the undivided model.
    expected = module.read(batch, tower="slm").loss
    torch.testing.assert_close(losses["lm"], expected, rtol=1e-5, atol=1e-6)
    p = CloudParts.of(module).selector(module.embed(batch, tower="slm").fused).softmax(-1)
    importance = p.sum(0)
    cv = importance.std(-1, correction=0) / importance.mean(-1)
    torch.testing.assert_close(losses["balance"], cv.square().mean())
    torch.testing.assert_close(losses["loss"], losses["lm"] + 0.3 * losses["balance"])


def test_the_selector_learns_from_both_losses(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
) -> None:
    algorithm, data = eclm(balance_weight=0.0), tiny.data()
    module = tiny.build(algorithm, divided(), data).server.module.train()
    batch = data.public().__getitems__(list(range(6)))
    with torch.no_grad():
        for p in modular_of(module).trunk_parameters():
            p.normal_(std=0.1)
    torch.manual_seed(0)
    algorithm.offline.loss(module, batch)["loss"].backward()
    # Through the gates of L_LM alone, down to the extractors.
    assert CloudParts.of(module).selector.layers[1].weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in modular_of(module).own_parameters())
    assert module.tower("slm").connector.absent.grad.abs().sum() > 0  # modalities were left out


def test_no_sample_loses_all_its_modalities(tiny: SimpleNamespace) -> None:
    batch = tiny.data().public().__getitems__(list(range(200)))
    present = batch.present.clone()
    present[:50, 0] = False
    torch.manual_seed(0)
    seen = without_some_modalities(batch._replace(present=present), 0.9)
    assert seen.present.any(dim=1).all()
    assert not (seen.present & ~present).any()
    assert seen.present.float().mean() < 0.5


def test_the_number_of_modules_of_a_sample_is_drawn_between_active_and_all() -> None:
    gates, _ = top_k_gates(torch.randn(50, L, K), torch.randint(2, K + 1, (50,)))
    assert set(gates.sum(-1).flatten().tolist()) == {2.0, 3.0, 4.0}


def test_the_server_answers_with_the_modular_model(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
) -> None:
    module = tiny.build(eclm(), divided()).server.module
    assert module.tower() is module.tower("slm")


# Settings -----------------------------------------------------------------------------------------


def test_settings_out_of_range_are_named_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ECLM(modules=1, active=2, gate_noise=-1.0, modality_dropout=1.0, drift_significance=0.0)
    keys = [line.split(" ")[0].rpartition(".")[2] for line in str(caught.value).splitlines()]
    assert keys == ["modules", "active", "gate_noise", "modality_dropout", "drift_significance"]


def test_what_does_not_fit_is_said_before_anything_is_built(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
) -> None:
    settings = divided()
    other = {**settings.clients, "hall": ClientSettings(["fourier"], lora={"r": 4})}  # type: ignore[dict-item]
    attention = tiny.model(lora={"target_modules": ["c_attn"]})
    with pytest.raises(ConfigurationError) as caught:
        tiny.build(
            eclm(budgets={"cellar": Budget(modules=0.5)}),
            replace(settings, clients=other, edge=attention),
        )
    said = str(caught.value)
    assert "clients.hall.lora is " in said
    assert "edge.lora.target_modules is ['c_attn']; ECLM adapts the MLPs alone" in said
    assert "algorithm.init_args.budgets: there is no client 'cellar'" in said


def test_an_infeasible_budget_is_said_with_the_least_feasible_one(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
) -> None:
    budgets = {"hall": Budget(modules=0.2), "study": Budget(parameters=1000)}
    with pytest.raises(ConfigurationError) as caught:
        tiny.build(eclm(budgets=budgets), divided())
    first, second = str(caught.value).splitlines()
    assert first.startswith("algorithm.init_args.budget: 'hall': no sub-model fits the budget")
    assert first.endswith("the least feasible one is modules 0.25")
    assert "'study'" in second
    assert float(second.rpartition(" ")[2]) > 1000


def test_extractors_that_are_not_the_cloud_s_are_refused(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
) -> None:
    own = {"fourier": {"class_path": "VectorMLP", "init_args": {"width": 5}}}
    clients = {"hall": ClientSettings(["fourier"], extractors=own)}
    with pytest.raises(ConfigurationError, match=r"clients\.hall: ECLM sends the cloud's"):
        tiny.build(eclm(), divided(clients=clients))
