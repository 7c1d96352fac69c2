import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from mlecs_lightning import MLECS, Digits
from mlecs_lightning.algorithms import FedAvg
from mlecs_lightning.algorithms.mlecs.algorithm import Component
from mlecs_lightning.clients import FederationModels
from mlecs_lightning.data.base import Pools
from mlecs_lightning.modules.server import RepresentationSource
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.wire import Message

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]
ALL: list[Component] = ["ccl", "amt", "mma", "se_ccl"]
LAYERS = [f"base_model.model.transformer.h.{i}.attn.c_attn" for i in range(3)]
ADAPTER = {f"adapter/{layer}.lora_{x}.weight" for layer in LAYERS for x in "AB"}
CTX = RoundContext(0, 0, ("kitchen", "hall", "study"))


def without(component: Component) -> list[Component]:
    return [name for name in ALL if name != component]


def scalars(data: bytes) -> dict[str, Any]:
    """Read the scalars without our own decoder; there must be no other metadata."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"].keys() == {"message"}
    about = json.loads(header["__metadata__"]["message"])
    assert about.keys() == {"scalars", "envelope"}
    assert about["envelope"].keys() == {"client", "round"}
    return about["scalars"]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[k], t) for k, t in one.items())


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {k for k, t in before.items() if not torch.equal(t, after[k])}


# What crosses the channel ---------------------------------------------------------------------


def test_down_go_adapter_representations_and_ids(mlecs_run: SimpleNamespace) -> None:
    messages = [data for way, _, data in mlecs_run.messages if way == "downlink"]
    assert len(messages) == 6
    for data in messages:
        tensors, values = load(data), scalars(data)
        assert tensors.keys() == ADAPTER | {"fused/anchors"}
        assert values.keys() == {"ids"}
        assert tensors["fused/anchors"].shape == (len(values["ids"]), 16)


def test_up_go_adapter_modalities_and_the_number_of_samples(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace
) -> None:
    messages = [(client, data) for way, client, data in mlecs_run.messages if way == "uplink"]
    assert [client for client, _ in messages] == [*tiny.clients] * 2
    for client, data in messages:
        report = {k for k in load(data) if k.startswith("report/")}
        assert load(data).keys() - report == ADAPTER
        assert scalars(data) == {
            "modalities": tiny.clients[client].modalities,
            "samples": len(mlecs_run.data.private(client)),
        }
        volume = ("volume", "volume_diagonal", "volume_off_diagonal", "gram_det")
        cosines = ("cosine", "cosine_off_diagonal")
        assert report == {
            "report/private/loss",
            *(f"report/ccl/{name}" for name in ("loss", "lm", *cosines, *volume)),
        }


def test_no_sample_no_text_and_no_private_weight_is_in_the_bytes(
    mlecs_run: SimpleNamespace,
) -> None:
    data = mlecs_run.data
    public = {i.encode() for i in data.public("train").ids}
    secrets = {i.encode() for client in CTX.participants for i in data.private(client).ids}
    texts = {t.encode() for t in (*data.pools.private.targets, *data.pools.private.instructions)}
    for number in range(2):
        path = mlecs_run.folder / "checkpoints" / f"round={number:04d}.ckpt"
        for state in torch.load(path, weights_only=True)["clients"].values():
            secrets |= {
                tensor.numpy().tobytes()
                for name, tensor in state["model"].items()
                if ".lora_" not in name and tensor.unique().numel() > 1
            }
    for table in (*(data.private(c) for c in CTX.participants), data.public("train")):
        for column in table.inputs.values():
            secrets |= {row.numpy().tobytes() for row in column}
    for way, _, written in mlecs_run.messages:
        assert not any(secret in written for secret in secrets | texts)
        assert any(i in written for i in public) == (way == "downlink")


def test_ids_sent_are_exactly_those_that_the_client_uses(mlecs_run: SimpleNamespace) -> None:
    used = [
        list(dict.fromkeys(i for batch in batches for i in batch.ids))
        for _, stage, batches in mlecs_run.passes
        if stage == "ccl"
    ]
    sent = [scalars(data)["ids"] for way, _, data in mlecs_run.messages if way == "downlink"]
    assert sent == used
    assert {len(ids) for ids in sent} == {16}  # two batches of eight
    assert len({tuple(sorted(ids)) for ids in sent}) == 6


@pytest.mark.parametrize("source", ["connector", "backbone"])
def test_anchors_are_the_servers_representations_of_these_ids(
    tiny: SimpleNamespace, source: RepresentationSource
) -> None:
    algorithm, data = MLECS(steps=tiny.steps(public=2), representation=source), tiny.data()
    federation = tiny.build(algorithm, None, data)
    server = federation.server.module
    table = data.public("train")
    row = {i: n for n, i in enumerate(table.ids)}
    messages = dict(algorithm.broadcast(federation.server, tiny.loaders(data), CTX))
    assert list(messages) == list(CTX.participants)
    server.eval()
    for message in messages.values():
        batch = table.__getitems__([row[i] for i in message.scalars["ids"]])
        with torch.no_grad():
            f = server.embed(batch, tower="llm").fused
            g = server.read(batch, tower="llm").view
        expected, other = (f, g) if source == "connector" else (g, f)
        anchors = message.tensors["fused/anchors"]
        torch.testing.assert_close(anchors, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(anchors, other, rtol=1e-4, atol=1e-5)


# CCL ------------------------------------------------------------------------------------------


def received(
    tiny: SimpleNamespace, algorithm: MLECS, federation: FederationModels, data: Digits
) -> Message:
    """Return the first client's broadcast."""
    return dict(algorithm.broadcast(federation.server, tiny.loaders(data), CTX))["kitchen"]


def naive_contrast(
    anchors: Tensor, vectors: Tensor, classes: list[str], temperature: float
) -> float:
    """Determinants of the stacked Gram matrices, pair by pair, in float64."""
    size = len(classes)
    a = torch.nn.functional.normalize(anchors.double(), dim=-1)
    v = torch.nn.functional.normalize(vectors.double(), dim=-1)
    volume = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            stacked = torch.cat([a[i : i + 1], v[j]])
            volume[i, j] = torch.linalg.det(stacked @ stacked.T).clamp_min(0).sqrt()
    logits = -volume / temperature
    for i in range(size):
        for j in range(size):
            if i != j and classes[i] == classes[j]:
                logits[i, j] = -torch.inf
    rows = -torch.log_softmax(logits, dim=1).diagonal().mean()
    columns = -torch.log_softmax(logits, dim=0).diagonal().mean()
    return float((rows + columns) / 2)


@pytest.mark.parametrize("class_aware", [True, False])
def test_ccl_is_the_language_model_loss_plus_the_volume_contrast(
    tiny: SimpleNamespace, class_aware: bool
) -> None:
    data = tiny.data()
    algorithm = MLECS(contrast_weight=0.3, temperature=0.2, class_aware=class_aware)
    module = tiny.build(algorithm, None, data).edge("kitchen").module.eval()
    table = data.public("train", modalities=module.modalities)
    batch = table.__getitems__(list(range(12)))
    assert len(set(batch.targets)) < 12  # so that class awareness shows
    # The anchors come in another order than the batch, and there are more than it needs.
    ids = list(table.ids[:20])[::-1]
    anchors = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    row = {i: n for n, i in enumerate(ids)}
    with torch.no_grad():
        losses = algorithm.objectives.ccl(module, batch, anchors=anchors, row=row)
        output = module.read(batch)
    vectors = torch.cat([output.embeddings.modalities, output.embeddings.fused[:, None]], dim=1)
    assert vectors.shape == (12, 3, 16)
    classes = list(batch.targets if class_aware else batch.ids)
    volume = naive_contrast(anchors.flip(0)[:12], vectors, classes, 0.2)
    assert losses["volume"].item() == pytest.approx(volume, rel=1e-3)
    assert losses["lm"].item() == pytest.approx(output.loss.item(), rel=1e-6)
    assert losses["loss"].item() == pytest.approx(output.loss.item() + 0.3 * volume, rel=1e-3)


def test_extractors_stay_as_they_are_in_ccl_and_train_in_amt(tiny: SimpleNamespace) -> None:
    algorithm, data = MLECS(steps=tiny.steps(public=2)), tiny.data()
    federation = tiny.build(algorithm, None, data)
    edge, loaders = federation.edge("kitchen"), tiny.loaders(data, "kitchen")
    start = edge.module.trainable_state()
    broadcast = received(tiny, algorithm, federation, data)
    losses = edge.fit_in_turns([algorithm.public_pass(edge, loaders, CTX, broadcast)])
    assert {"ccl/lm", "ccl/volume", "ccl/gram_det"} <= losses.keys()
    after_ccl = edge.module.trainable_state()
    changed = moved(start, after_ccl)
    assert not any(k.startswith("extractors.") for k in changed)
    for part in ("projections.pixels", "projections.profile", "fuse", "to_prompt", "lora_A"):
        assert any(part in k for k in changed), part
    assert all(p.requires_grad for p in edge.module.extractors.parameters())
    edge.fit_in_turns([algorithm.private_pass(edge, loaders, CTX, broadcast)])
    changed = moved(after_ccl, edge.module.trainable_state())
    extractors = {k for k in start if k.startswith("extractors.")}
    assert extractors <= changed


def test_extractors_may_train_in_ccl_too(tiny: SimpleNamespace) -> None:
    algorithm, data = MLECS(steps=tiny.steps(), freeze_extractors=False), tiny.data()
    federation = tiny.build(algorithm, None, data)
    edge = federation.edge("kitchen")
    start = edge.module.trainable_state()
    broadcast = received(tiny, algorithm, federation, data)
    loaders = tiny.loaders(data, "kitchen")
    edge.fit_in_turns([algorithm.public_pass(edge, loaders, CTX, broadcast)])
    extractors = {k for k in start if k.startswith("extractors.")}
    assert extractors <= moved(start, edge.module.trainable_state())


def test_without_ccl_nothing_of_it_is_sent_measured_or_trained(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    algorithm = MLECS(components=without("ccl"), steps=tiny.steps(server=0))
    with tapped() as log:
        tiny.fit(algorithm, tmp_path / "a")
    for way, _, data in log.messages:
        report = {"report/private/loss", "report/public/loss"} if way == "uplink" else set()
        assert load(data).keys() == ADAPTER | report
        assert scalars(data).keys() == ({"modalities", "samples"} if way == "uplink" else set())
    assert {stage for party, stage, _ in log.passes if party != "server"} == {"public", "private"}
    # The whole client update is that of FedAvg, bit by bit: its public pass minimises L_LM alone.
    with tapped() as plain:
        tiny.fit(FedAvg(steps=tiny.steps(server=0)), tmp_path / "b")
    assert log.messages == plain.messages


def test_without_ccl_the_gradient_of_the_public_pass_is_that_of_the_language_model_loss(
    tiny: SimpleNamespace,
) -> None:
    sgd = tiny.model(optimizer={"class_path": "SGD", "init_args": {"lr": 1.0}})
    data = tiny.data()
    steps = {}
    for components in (ALL, without("ccl")):
        algorithm = MLECS(components=components, steps=tiny.steps(), contrast_weight=5.0)
        federation = tiny.build(algorithm, tiny.parties(edge=sgd), data)
        edge, loaders = federation.edge("kitchen"), tiny.loaders(data, "kitchen")
        before = edge.module.trainable_state()
        broadcast = received(tiny, algorithm, federation, data)
        losses = edge.fit_in_turns([algorithm.public_pass(edge, loaders, CTX, broadcast)])
        assert any("volume" in name for name in losses) == ("ccl" in components)
        after = edge.module.trainable_state()
        steps["ccl" in components] = {k: before[k] - t for k, t in after.items()}
    edge = federation.edge("kitchen")
    (batch,) = loaders.public.take(1, seed=CTX.seed_for("kitchen", "public"))
    edge.module.train().read(batch).loss.backward()
    for name, parameter in edge.module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(steps[False][name], parameter.grad, rtol=1e-3, atol=1e-6)
    # With CCL it is another one.
    name = "towers.slm.connector.projections.pixels.weight"
    assert not torch.allclose(steps[True][name], steps[False][name], rtol=1e-3, atol=1e-6)


# AMT ------------------------------------------------------------------------------------------


class Altered(Digits):
    """Digits whose private samples have other readings and other sentences."""

    def load_pools(self) -> Pools:
        pools = super().load_pools()
        private = pools.private
        for column in private.inputs.values():
            column.neg_()
        targets = tuple(reversed(private.targets))
        return pools._replace(private=type(private)(**{**vars(private), "targets": targets}))


def test_without_amt_nobody_reads_a_private_sample(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    """Other private data of the same size give the same bits on the wire; with AMT, others."""
    for components, alike in ((without("amt"), True), (ALL, False)):
        written = []
        for kind in (Digits, Altered):
            root = tmp_path / f"{alike}-{kind.__name__}"
            algorithm = MLECS(components=components, steps=tiny.steps())
            with tapped() as log:
                tiny.fit(algorithm, root, None, tiny.data(kind), max_rounds=2)
            assert ("private" in {stage for _, stage, _ in log.passes}) == (not alike)
            written.append(log.messages)
        assert (written[0] == written[1]) == alike


# Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"components": ["ccl", "mmm"]}, r"components: \['mmm'\] are none of \['ccl', 'amt',"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"contrast_weight": -0.1}, "contrast_weight not negative"),
    ],
)
def test_values_out_of_range_name_their_key(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MLECS(**values)


def test_a_contrast_needs_two_samples_in_a_batch(tiny: SimpleNamespace) -> None:
    loras = {"a": tiny.model().lora}
    (fault,) = MLECS().faults(loras, batch_size=1)
    assert "batch_size is 1; components ['ccl', 'se_ccl']" in fault
    (fault,) = MLECS(components=without("se_ccl")).faults(loras, batch_size=1)
    assert "components ['ccl'] contrast" in fault
    assert MLECS(components=["amt", "mma"]).faults(loras, batch_size=1) == []
    assert MLECS().faults(loras, batch_size=2) == []


def test_no_components_is_plain_federated_training_on_public_data(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    with tapped() as log:
        tiny.fit(MLECS(components=[], steps=tiny.steps(warmup=1)), tmp_path)
    stages = [(party, stage) for party, stage, _ in log.passes]
    clients = [(name, "public") for name in CTX.participants]
    assert stages == [("server", "warmup"), *clients, ("server", "public")]


# Our additions --------------------------------------------------------------------------------


def test_cosine_alignment_by_hand(tiny: SimpleNamespace) -> None:
    data = tiny.data()
    algorithm = MLECS(contrast_weight=0.3, alignment="cosine")
    module = tiny.build(algorithm, None, data).edge("kitchen").module.eval()
    table = data.public("train", modalities=module.modalities)
    batch = table.__getitems__([0, 1, 2])
    anchors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = algorithm.objectives.ccl(
            module, batch, anchors=anchors, row={i: n for n, i in enumerate(batch.ids)}
        )
        output = module.read(batch)
    f = output.embeddings.fused
    cosine = (f * anchors).sum(1) / f.norm(dim=1) / anchors.norm(dim=1)
    assert losses["cosine_distance"].item() == pytest.approx(1 - cosine.mean().item(), rel=1e-4)
    expected = output.loss.item() + 0.3 * (1 - cosine.mean().item())
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_fused_alignment_leaves_the_modalities_apart(tiny: SimpleNamespace) -> None:
    data = tiny.data()
    algorithm = MLECS(contrast_weight=0.3, temperature=0.2, alignment="fused")
    module = tiny.build(algorithm, None, data).edge("kitchen").module.eval()
    batch = data.public("train", modalities=module.modalities).__getitems__([0, 1, 2])
    anchors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = algorithm.objectives.ccl(
            module, batch, anchors=anchors, row={i: n for n, i in enumerate(batch.ids)}
        )
        f = module.read(batch).embeddings.fused
    # The area that two unit vectors span is the sine between them.
    cosines = torch.nn.functional.normalize(anchors, dim=1) @ torch.nn.functional.normalize(f).T
    same = torch.tensor([[a == b for b in batch.targets] for a in batch.targets])
    logits = (-(1 - cosines**2).sqrt() / 0.2).masked_fill(same & ~torch.eye(3).bool(), -torch.inf)
    target = torch.arange(3)
    expected = sum(
        torch.nn.functional.cross_entropy(each, target) / 2 for each in (logits, logits.T)
    )
    assert losses["volume"].item() == pytest.approx(float(expected), rel=1e-4)


def test_private_contrast_by_hand(tiny: SimpleNamespace) -> None:
    """Anchors are mean directions by target; a sample without one is in L_LM alone."""
    data = tiny.data()
    algorithm = MLECS(contrast_weight=0.3, temperature=0.2, private_contrast=True)
    federation = tiny.build(algorithm, None, data)
    edge, loaders = federation.edge("kitchen"), tiny.loaders(data, "kitchen")
    batch = data.private("kitchen").__getitems__(list(range(8)))
    assert len(set(batch.targets)) > 2
    table = loaders.public.table
    lacking = batch.targets[0]
    rows = [n for n, target in enumerate(table.targets) if target != lacking]
    anchors = torch.randn(len(rows), 16, generator=torch.Generator().manual_seed(1))
    message = Message({"fused/anchors": anchors}, {"ids": tuple(table.ids[n] for n in rows)})
    objective = algorithm.private_pass(edge, loaders, CTX, message).objective
    edge.module.eval()
    with torch.no_grad():
        losses = objective(edge.module, batch)
        output = edge.module.read(batch)
    known = [n for n, target in enumerate(batch.targets) if target != lacking]
    assert 2 <= len(known) < 8
    units = anchors / anchors.norm(dim=1, keepdim=True)
    said = [table.targets[n] for n in rows]
    means = torch.stack(
        [
            units[[n for n, target in enumerate(said) if target == batch.targets[k]]].mean(0)
            for k in known
        ]
    )
    vectors = torch.cat([output.embeddings.modalities, output.embeddings.fused[:, None]], dim=1)
    classes = [batch.targets[k] for k in known]
    volume = naive_contrast(means, vectors[known], classes, 0.2)
    assert losses["volume"].item() == pytest.approx(volume, rel=1e-3)
    assert losses["loss"].item() == pytest.approx(output.loss.item() + 0.3 * volume, rel=1e-3)


def test_private_contrast_without_a_known_target_is_the_language_loss(
    tiny: SimpleNamespace,
) -> None:
    data = tiny.data()
    algorithm = MLECS()
    module = tiny.build(algorithm, None, data).module("kitchen").eval()
    batch = data.private("kitchen").__getitems__([0, 1])
    losses = algorithm.objectives.amt(module, batch, prototypes={})
    assert losses.keys() == {"loss", "lm"}
    assert torch.equal(losses["loss"], losses["lm"])
