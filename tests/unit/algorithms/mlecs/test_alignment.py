"""Alignment of f: cosines, what draws f itself, and what says that nothing did."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning import MLECS
from mlecs_lightning.algorithms.mlecs.alignment import alignment_of, unaligned
from mlecs_lightning.algorithms.mlecs.objectives import Agreed
from mlecs_lightning.data.availability import without_some_modalities
from mlecs_lightning.functional import volume_contrastive_loss
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.types import Batch

CTX = RoundContext(0, 0, ("kitchen", "hall", "study"))


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1)


@pytest.fixture
def client(tiny: SimpleNamespace) -> SimpleNamespace:
    """A client, a batch of different targets, and anchors."""
    data = tiny.data()
    module = tiny.build(MLECS(), None, data).edge("kitchen").module.eval()
    table = data.public("train", modalities=module.modalities)
    first = {target: n for n, target in reversed(list(enumerate(table.targets)))}
    batch = table.__getitems__(list(first.values())[:6])
    anchors = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    row = {i: n for n, i in enumerate(batch.ids)}
    return SimpleNamespace(module=module, batch=batch, anchors=anchors, row=row)


def test_a_volume_falls_to_zero_where_f_points_away_from_the_anchor() -> None:
    """The reason for the cosine: the loss of -a is that of a, and that of a sum that meets a."""
    anchors = torch.eye(4)[:2]
    away = -anchors[:, None]
    split = torch.stack([anchors + 5 * torch.eye(4)[2], 5 * torch.eye(4)[2] - anchors], dim=1)
    meets = volume_contrastive_loss(anchors, anchors[:, None])
    for vectors, largest in ((away, -0.99), (split, 0.2)):
        found = volume_contrastive_loss(anchors, vectors)
        assert found.diagonal.item() == pytest.approx(meets.diagonal.item(), abs=1e-6)
        assert cosine(vectors[:, -1], anchors).max() < largest


@pytest.mark.parametrize("alignment", ["volume", "modalities", "fused", "cosine"])
def test_the_cosine_is_reported_whatever_is_aligned(
    client: SimpleNamespace, alignment: str
) -> None:
    algorithm = MLECS(alignment=alignment)  # type: ignore[arg-type]
    assert "cosine" in algorithm.losses()["ccl"]
    assert "cosine" in algorithm.losses()["private"]
    with torch.no_grad():
        losses = algorithm.objectives.ccl(
            client.module, client.batch, anchors=client.anchors, row=client.row
        )
        f = client.module.read(client.batch).embeddings.fused
    expected = cosine(f, client.anchors).mean().item()
    assert losses["cosine"].item() == pytest.approx(expected, abs=1e-5)
    # All six targets differ, so these are all pairs but the six.
    shifted = [cosine(f, client.anchors.roll(n, 0)).mean().item() for n in range(1, 6)]
    assert losses["cosine_off_diagonal"].item() == pytest.approx(sum(shifted) / 5, abs=1e-5)


def test_fused_weight_draws_f_beside_a_volume_of_the_modalities(client: SimpleNamespace) -> None:
    algorithm = MLECS(
        alignment="modalities", fused_weight=0.7, contrast_weight=0.3, class_aware=False
    )
    with torch.no_grad():
        losses = algorithm.objectives.ccl(
            client.module, client.batch, anchors=client.anchors, row=client.row
        )
        output = client.module.read(client.batch)
    z = output.embeddings.modalities
    assert z.shape[1] == 2
    volume = volume_contrastive_loss(client.anchors, z).loss
    distance = 1 - cosine(output.embeddings.fused, client.anchors).mean()
    assert losses["volume"].item() == pytest.approx(volume.item(), rel=1e-5)
    expected = output.loss + 0.3 * volume + 0.7 * distance
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_private_contrast_draws_f_as_well(client: SimpleNamespace) -> None:
    prototypes = dict(zip(client.batch.targets, client.anchors, strict=True))
    losses = {}
    for weight in (0.0, 0.7):
        objectives = MLECS(fused_weight=weight).objectives
        with torch.no_grad():
            losses[weight] = objectives.amt(client.module, client.batch, prototypes=prototypes)
    added = losses[0.7]["loss"] - losses[0.0]["loss"]
    assert losses[0.0]["cosine"].item() == losses[0.7]["cosine"].item()
    assert added.item() == pytest.approx(0.7 * (1 - losses[0.7]["cosine"].item()), rel=1e-4)


def test_private_contrast_draws_f_of_a_single_known_sample(client: SimpleNamespace) -> None:
    """It has no other to be contrasted with, but its own anchor."""
    prototypes = {client.batch.targets[2]: client.anchors[2]}
    losses = {}
    with torch.no_grad():
        for weight in (0.0, 0.7):
            objectives = MLECS(fused_weight=weight).objectives
            losses[weight] = objectives.amt(client.module, client.batch, prototypes=prototypes)
        fused = client.module.embed(client.batch).fused
    expected = cosine(fused[[2]], client.anchors[[2]]).item()
    for each in losses.values():
        assert list(each) == ["loss", "lm", "cosine"]
        assert each["cosine"].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(losses[0.0]["loss"], losses[0.0]["lm"])
    added = losses[0.7]["loss"] - losses[0.7]["lm"]
    assert added.item() == pytest.approx(0.7 * (1 - expected), rel=1e-4)


def test_training_with_a_fused_weight_brings_f_to_the_anchor_and_a_volume_alone_does_not(
    tiny: SimpleNamespace,
) -> None:
    data, found = tiny.data(), {}
    for weight in (0.0, 1.0):
        algorithm = MLECS(steps=tiny.steps(public=40), alignment="modalities", fused_weight=weight)
        federation = tiny.build(algorithm, None, data)
        edge, loaders = federation.edge("kitchen"), tiny.loaders(data, "kitchen")
        message = dict(algorithm.broadcast(federation.server, tiny.loaders(data), CTX))["kitchen"]
        edge.fit_in_turns([algorithm.public_pass(edge, loaders, CTX, message)])
        ids, anchors = message.scalars["ids"], message.tensors["fused/anchors"]
        table = loaders.public.table
        rows = [table.ids.index(i) for i in ids]
        edge.module.eval()
        with torch.no_grad():
            f = edge.module.embed(table.__getitems__(rows)).fused
        found[weight] = cosine(f, anchors).mean().item()
    # The spread of the second over seeds is below 0.02, the first lies around 0.
    assert found[1.0] > found[0.0] + 0.3


# SE-CCL -------------------------------------------------------------------------------------------


@pytest.fixture
def server(tiny: SimpleNamespace) -> SimpleNamespace:
    data = tiny.data()
    module = tiny.build(MLECS(), None, data).server.module.eval()
    return SimpleNamespace(module=module, batch=data.public("train").__getitems__(list(range(8))))


@pytest.mark.parametrize("representation", ["connector", "backbone"])
def test_se_ccl_draws_the_slm_to_what_is_sent_and_the_llm_nowhere(
    server: SimpleNamespace, representation: str
) -> None:
    values: dict[str, Any] = {"representation": representation}
    plain = MLECS(**values).objectives.se_ccl(server.module, server.batch)
    drawn = MLECS(fused_weight=0.7, **values).objectives.se_ccl(server.module, server.batch)
    outputs = [server.module.read(server.batch, tower=name) for name in ("llm", "slm")]
    f_llm, f_slm = (each.embeddings.fused for each in outputs)
    g_llm, g_slm = (each.view for each in outputs)
    sent = f_llm if representation == "connector" else g_llm
    by_hand = {"llm": (f_llm, g_slm), "slm": (f_slm, g_llm), "sent": (f_slm, sent)}
    for name, pair in by_hand.items():
        expected = cosine(*pair).mean().item()
        assert drawn[f"cosine_{name}"].item() == pytest.approx(expected, abs=1e-5)
    added = drawn["loss"] - plain["loss"]
    assert added.item() == pytest.approx(0.7 * (1 - drawn["cosine_sent"].item()), rel=1e-4)
    gradients = {}
    for tower in ("llm", "slm"):
        weight = server.module.tower(tower).connector.fuse[1].weight
        gradients[tower] = [
            torch.autograd.grad(each["loss"], weight, retain_graph=True)[0]
            for each in (plain, drawn)
        ]
    assert torch.allclose(*gradients["llm"], atol=1e-6)
    assert not torch.allclose(*gradients["slm"], atol=1e-4)


def test_agreement_of_clients_draws_both_towers_as_far_as_they_agree(
    server: SimpleNamespace,
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=1)
    rows = rows * torch.linspace(0, 1, 8)[:, None]
    order = torch.randperm(8, generator=generator).tolist()
    agreed = Agreed(rows[order], {i: order.index(n) for n, i in enumerate(server.batch.ids)}, 0.5)
    objectives = MLECS().objectives
    with torch.no_grad():
        plain = objectives.se_ccl(server.module, server.batch)
        drawn = objectives.se_ccl(server.module, server.batch, agreed=agreed)
        fs = [server.module.embed(server.batch, tower=t).fused for t in ("llm", "slm")]
    distances = [(rows.norm(dim=1) * (1 - cosine(f, rows).nan_to_num())).mean().item() for f in fs]
    expected = sum(distances) / 2
    assert drawn["agreed"].item() == pytest.approx(expected, rel=1e-4)
    assert (drawn["loss"] - plain["loss"]).item() == pytest.approx(0.5 * expected, rel=1e-4)


# Sensors ------------------------------------------------------------------------------------------


def test_server_sends_what_it_represents_from_the_clients_own_sensors(
    tiny: SimpleNamespace,
) -> None:
    data = tiny.data()
    sent: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for anchors in ("all", "sensed"):
        algorithm = MLECS(steps=tiny.steps(), anchors=anchors)  # type: ignore[arg-type]
        federation = tiny.build(algorithm, None, data)
        messages = dict(algorithm.broadcast(federation.server, tiny.loaders(data), CTX))
        module = federation.server.module.eval()
        sent[anchors] = {}
        for name, message in messages.items():
            table = data.public("train")
            rows = [table.ids.index(i) for i in message.scalars["ids"]]
            batch = table.restrict(tiny.clients[name].modalities).__getitems__(rows)
            with torch.no_grad():
                expected = module.embed(batch).fused
            sent[anchors][name] = (message.tensors["fused/anchors"], expected)
    for got, expected in sent["sensed"].values():
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for got, expected in sent["all"].values():
        assert not torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("components", [["ccl", "se_ccl"], ["ccl"]])
def test_sensor_dropout_hides_modalities_from_the_server_in_training_alone(
    tiny: SimpleNamespace, components: list[Any]
) -> None:
    data = tiny.data()
    algorithm = MLECS(components=components, sensor_dropout=0.5)
    module = tiny.build(algorithm, None, data).server.module
    batch = data.public("train").__getitems__(list(range(8)))
    plain = MLECS(components=components)
    for built, usual in (
        (algorithm.warmup_objective(), plain.warmup_objective()),
        (algorithm.server_objective(), plain.server_objective()),
    ):
        assert built is not None
        torch.manual_seed(3)
        some = without_some_modalities(batch, 0.5)
        assert (some.present.sum(1) >= 1).all()
        assert not some.present.all()

        def loss(seen: Batch, objective: Callable[..., Any] | None = usual) -> float:
            return float(module(seen, objective)["loss"].detach())

        torch.manual_seed(3)
        assert built(module.train(), batch)["loss"].item() == loss(some)
        assert built(module.eval(), batch)["loss"].item() == loss(batch)


# The end of a run ---------------------------------------------------------------------------------


def figures(**clients: tuple[float, ...]) -> dict[str, float]:
    return {
        f"clients/{name}/ccl/{key}": value
        for name, values in clients.items()
        for key, value in zip(("volume_diagonal", "cosine", "cosine_off_diagonal"), values)  # noqa: B905
    }


@pytest.mark.parametrize(
    ("rounds", "named"),
    [
        ([figures(hall=(0.05, -0.4), den=(0.05, 0.9))], ["hall"]),
        ([figures(hall=(0.9, -0.4))], []),  # nothing is claimed of a volume that is large
        ([figures(hall=(0.05, -0.4)), figures(hall=(0.05, 0.9))], []),
        ([figures(hall=(0.05, -0.4)), figures(den=(0.05, 0.1))], ["hall", "den"]),
        ([{"clients/hall/ccl/cosine": -0.4}], []),  # no volume: alignment `cosine`
        ([], []),
    ],
)
def test_warning_names_clients_whose_small_volume_means_nothing(
    rounds: list[dict[str, float]], named: list[str]
) -> None:
    lines = unaligned(rounds)
    assert len(lines) == bool(named)
    for line in lines:
        assert "algorithm.init_args.fused_weight" in line
        for name in ("hall", "den"):
            assert (f"{name} (volume" in line) == (name in named)


@pytest.mark.parametrize(
    ("values", "warned"),
    [((0.05, 0.95, 0.94), True), ((0.05, 0.95, 0.3), False), ((0.9, 0.2, 0.2), False)],
)
def test_warning_tells_of_cosines_that_are_large_with_every_anchor(
    values: tuple[float, ...], warned: bool
) -> None:
    lines = unaligned([figures(hall=values, den=(0.5, 0.9, 0.0))])
    assert len(lines) == warned
    assert all("hall (cosine 0.95, with others 0.94)" in line for line in lines)
    assert not any("den (" in line for line in lines)


def test_summary_and_log_tell_the_cosines_of_a_run(mlecs_run: SimpleNamespace) -> None:
    alignment = mlecs_run.summary["alignment"]
    assert list(alignment["clients"]) == [*CTX.participants]
    assert list(alignment["clients_off_diagonal"]) == [*CTX.participants]
    assert set(alignment["server"]) == {"llm", "slm", "sent"}
    assert all(-1 <= v <= 1 for each in alignment.values() for v in each.values())
    header = (mlecs_run.folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {f"clients/{name}/ccl/cosine" for name in CTX.participants} <= set(header)
    assert alignment_of([]) == {}


def test_run_warns_at_its_end(
    tiny: SimpleNamespace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlecs_lightning.algorithms.mlecs.alignment.SMALL_VOLUME", 1.1)
    monkeypatch.setattr("mlecs_lightning.algorithms.mlecs.alignment.LARGE_COSINE", 1.1)
    tiny.fit(MLECS(steps=tiny.steps()), tmp_path)
    (line,) = [r.getMessage() for r in caplog.records if "fused_weight" in r.getMessage()]
    assert all(f"{name} (volume" in line for name in CTX.participants)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"fused_weight": -0.1}, "fused_weight must not be negative"),
        ({"fused_weight": float("nan")}, "fused_weight must not be negative"),
        ({"fused_weight": 0.1, "alignment": "cosine"}, "has no volume that fused_weight could"),
        ({"sensor_dropout": 1.0}, r"sensor_dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_options_that_do_not_fit_name_their_key(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MLECS(**values)
