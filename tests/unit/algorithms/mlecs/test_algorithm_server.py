from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from mlecs_lightning import MLECS
from mlecs_lightning.algorithms import FedAvg, Steps
from mlecs_lightning.algorithms.mlecs.algorithm import Component
from mlecs_lightning.algorithms.mlecs.objectives import Objectives
from mlecs_lightning.functional import VolumeContrast, volume_contrastive_loss
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.wire import Message

ALL: list[Component] = ["ccl", "amt", "mma", "se_ccl"]
CTX = RoundContext(0, 0, ("kitchen", "hall", "study"))


def without(component: Component) -> list[Component]:
    return [name for name in ALL if name != component]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[k], t) for k, t in one.items())


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {k for k, t in before.items() if not torch.equal(t, after[k])}


# MMA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Modalities 3, 1, 2; samples 10, 30, 60; values 1, 2, 10.
        ({}, (3 * 1 + 1 * 2 + 2 * 10) / 6),
        ({"weigh_by_samples": True}, (30 * 1 + 30 * 2 + 120 * 10) / 180),
        ({"components": without("mma")}, (10 * 1 + 30 * 2 + 60 * 10) / 100),
        (
            {"components": without("mma"), "weigh_by_samples": True},
            (10 * 1 + 30 * 2 + 60 * 10) / 100,
        ),
    ],
)
def test_weights_by_hand(tiny: SimpleNamespace, values: dict[str, Any], expected: float) -> None:
    algorithm = MLECS(**values)
    like = tiny.build(algorithm).server.module.adapter_state()
    updates = [
        (
            client,
            Message(
                {f"adapter/{k}": torch.full_like(t, value) for k, t in like.items()},
                {"modalities": ("a", "b", "c")[:modalities], "samples": count},
            ),
        )
        for client, value, modalities, count in (
            ("kitchen", 1.0, 3, 10),
            ("hall", 2.0, 1, 30),
            ("study", 10.0, 2, 60),
        )
    ]
    aggregate = algorithm.aggregate(iter(updates), CTX)
    for tensor in aggregate.adapters["slm"].values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected))


def test_weights_of_a_run_by_hand(mlecs_run: SimpleNamespace, tiny: SimpleNamespace) -> None:
    """What the server aggregated in round 0 of a real run, with SE-CCL's training on top."""
    up = {c: load(d) for w, c, d in mlecs_run.messages[:6] if w == "uplink"}
    counts = {"kitchen": 2, "hall": 1, "study": 2}
    updates = [
        (c, Message(t, {"modalities": tuple(tiny.clients[c].modalities), "samples": 1}))
        for c, t in up.items()
    ]
    aggregate = mlecs_run.algorithm.aggregate(iter(updates), CTX)
    for name, tensor in aggregate.adapters["slm"].items():
        mean = sum(up[c][f"adapter/{name}"] * n for c, n in counts.items()) / 5
        torch.testing.assert_close(tensor, mean, rtol=1e-5, atol=1e-8)
    assert aggregate.error == pytest.approx(mlecs_run.summary["aggregation_error"][0], rel=1e-6)


# SE-CCL ---------------------------------------------------------------------------------------


def test_without_se_ccl_the_server_trains_its_llm_alone(tiny: SimpleNamespace) -> None:
    algorithm = MLECS(components=without("se_ccl"), steps=Steps(1, 1, 1, 2))
    data = tiny.data()
    ends = []
    for method in (algorithm, FedAvg(steps=Steps(1, 1, 1, 2))):
        server = tiny.build(method, None, data).server
        start = server.module.trainable_state()
        losses = method.warmup(server, tiny.loaders(data), CTX)
        losses |= method.server_update(server, None, tiny.loaders(data), CTX)
        assert losses.keys() == {"warmup/loss", "public/loss"}
        ends.append(server.module.trainable_state())
        changed = moved(start, ends[-1])
        assert not any(k.startswith("towers.slm") for k in changed)
        for part in ("extractors.fourier", "towers.llm.connector", "towers.llm.backbone"):
            assert any(k.startswith(part) for k in changed)
    assert equal(*ends)
    # The objective is the LLM's L_LM.
    (batch,) = tiny.loaders(data).public.take(1, seed=3)
    assert algorithm.server_objective() is None
    loss = server.module.eval()(batch, algorithm.server_objective())["loss"]
    assert loss.item() == server.module.read(batch, tower="llm").loss.item()


def test_with_se_ccl_both_towers_train_in_the_warm_up_and_in_the_round(
    tiny: SimpleNamespace,
) -> None:
    algorithm, data = MLECS(steps=Steps(1, 1, 1, 2)), tiny.data()
    server = tiny.build(algorithm, None, data).server
    start = server.module.trainable_state()
    losses = algorithm.warmup(server, tiny.loaders(data), CTX)
    assert losses["warmup/loss"] == pytest.approx(losses["warmup/lm_llm"] + losses["warmup/lm_slm"])
    warm = server.module.trainable_state()
    losses = algorithm.server_update(server, None, tiny.loaders(data), CTX)
    assert losses["public/loss"] == pytest.approx(
        losses["public/lm_llm"] + losses["public/lm_slm"] + 0.1 * losses["public/volume"], rel=1e-5
    )
    assert {f"public/cosine_{name}" for name in ("llm", "slm", "sent")} <= losses.keys()
    # The readout g has no part in L_LM, and one in the volume terms.
    readouts = {f"towers.{t}.readout.{p}" for t in ("llm", "slm") for p in ("weight", "bias")}
    assert start.keys() - moved(start, warm) >= readouts
    absent = {f"towers.{t}.connector.absent" for t in ("llm", "slm")}
    assert moved(warm, server.module.trainable_state()) >= start.keys() - absent


@pytest.fixture
def both(tiny: SimpleNamespace) -> SimpleNamespace:
    """A server whose adapters say something, and a public batch."""
    data = tiny.data()
    module = tiny.build(MLECS(), None, data).server.module.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=generator)
    batch = data.public("train").__getitems__(list(range(8)))
    return SimpleNamespace(module=module, batch=batch)


@pytest.mark.parametrize("objective", ["all_towers", "se_ccl"])
def test_the_extractors_may_follow_the_llm_alone(both: SimpleNamespace, objective: str) -> None:
    extractors = list(both.module.extractors.parameters())
    (alone,) = [torch.autograd.grad(both.module.read(both.batch, tower="llm").loss, extractors)]
    for shared, equal in ((True, False), (False, True)):
        objectives = MLECS(contrast_weight=0.0, slm_trains_extractors=shared).objectives
        losses = getattr(objectives, objective)(both.module, both.batch)
        together = torch.autograd.grad(losses["loss"], extractors)
        close = [torch.allclose(*pair, atol=1e-6) for pair in zip(alone, together, strict=True)]
        assert all(close) if equal else not any(close)


def test_each_volume_term_reaches_the_tensors_it_should(
    both: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pulls vectors ends at the connector; what pulls a view goes through the backbone."""
    terms: list[Tensor] = []
    contrast = Objectives._contrast

    def record(self: Objectives, *vectors: Tensor) -> VolumeContrast:
        terms.append((result := contrast(self, *vectors)).loss)
        return result

    monkeypatch.setattr(Objectives, "_contrast", record)
    MLECS().objectives.se_ccl(both.module, both.batch)
    assert len(terms) == 4
    names, parameters = zip(
        *((n, p) for n, p in both.module.named_parameters() if p.requires_grad), strict=True
    )
    groups = ("extractors", "projections", "fuse", "to_prompt", "lora_A", "lora_B", "readout")
    reached = []
    for term in terms:
        grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        hit = [n for n, g in zip(names, grads, strict=True) if g is not None and g.any()]
        towers = {n.split(".")[1] for n in hit if n.startswith("towers.")}
        reached.append((*towers, *(group for group in groups if any(group in n for n in hit))))
    vectors = ("extractors", "projections", "fuse")
    assert sorted(reached) == sorted(
        [("llm", *vectors), ("slm", *vectors), ("llm", *groups), ("slm", *groups)]
    )


def test_gradient_of_se_ccl_is_that_of_its_terms_with_constants_for_what_is_stopped(
    both: SimpleNamespace,
) -> None:
    module, batch = both.module, both.batch
    algorithm = MLECS(contrast_weight=0.7, temperature=0.3)
    trained = [p for p in module.parameters() if p.requires_grad]
    names = [n for n, p in module.named_parameters() if p.requires_grad]
    losses = algorithm.objectives.se_ccl(module, batch)
    grads = torch.autograd.grad(losses["loss"], trained, allow_unused=True)

    classes = torch.tensor([sorted(set(batch.targets)).index(t) for t in batch.targets])

    def volume(anchors: Tensor, vectors: Tensor) -> Tensor:
        return volume_contrastive_loss(anchors, vectors, classes=classes, temperature=0.3).loss

    def run(tower: str) -> tuple[Tensor, Tensor, Tensor]:
        output = module.read(batch, tower=tower)
        fused = output.embeddings.fused[:, None]
        return output.loss, output.view, torch.cat([output.embeddings.modalities, fused], dim=1)

    (lm_l, g_l, v_l), (lm_s, g_s, v_s) = run("llm"), run("slm")
    fixed = {k: t.detach().clone() for k, t in {"gl": g_l, "gs": g_s, "vl": v_l, "vs": v_s}.items()}
    across = volume(fixed["gs"], v_l) + volume(fixed["gl"], v_s)
    within = volume(g_l, fixed["vl"]) + volume(g_s, fixed["vs"])
    by_hand = lm_l + lm_s + 0.7 * (across + within)
    assert losses["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    expected = torch.autograd.grad(by_hand, trained, allow_unused=True)
    for name, got, want in zip(names, grads, expected, strict=True):
        if want is None:
            assert got is None
        else:
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5, msg=name)


def test_the_server_hosts_the_aggregate_before_it_trains(tiny: SimpleNamespace) -> None:
    algorithm, data = MLECS(steps=Steps(0, 0, 0, 0)), tiny.data()
    server = tiny.build(algorithm, None, data).server
    like = server.module.adapter_state()
    llm = {k: t for k, t in server.module.trainable_state().items() if k.startswith("towers.llm")}
    updates = [
        (
            "hall",
            Message(
                {f"adapter/{k}": torch.full_like(t, 0.5) for k, t in like.items()},
                {"modalities": ("fourier",), "samples": 1},
            ),
        )
    ]
    aggregate = algorithm.aggregate(iter(updates), CTX)
    algorithm.server_update(server, aggregate, tiny.loaders(data), CTX)
    assert all((t == 0.5).all() for t in server.module.adapter_state().values())
    after = server.module.trainable_state()
    assert all(torch.equal(after[k], t) for k, t in llm.items())
