import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load

from mlecs_lightning.algorithms import CoPLMs
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.functional import distillation_loss
from mlecs_lightning.modules.pocket import POCKETS, make_pocket
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.settings import BackboneSettings
from mlecs_lightning.wire import Message
from tests.unit.algorithms.models import wider_model

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]
CTX = RoundContext(0, 0, ("kitchen", "hall", "study"))


def test_clients_have_a_proxy_of_the_hosted_shape_over_the_same_weights(
    tiny: SimpleNamespace,
) -> None:
    federation = tiny.build(CoPLMs())
    edge = federation.module("hall")
    assert list(edge.towers) == ["slm", "proxy"]
    hosted = federation.server.module.adapter_state()
    assert {k: t.shape for k, t in edge.adapter_state().items()} == {
        k: t.shape for k, t in hosted.items()
    }
    word = [edge.tower(n).backbone.lm.get_input_embeddings().weight for n in ("slm", "proxy")]
    assert word[0].data_ptr() == word[1].data_ptr()


def test_mutual_loss_by_hand(tiny: SimpleNamespace) -> None:
    algorithm = CoPLMs(weight=0.5, temperature=3.0)
    data = tiny.data()
    federation = tiny.build(algorithm, None, data)
    (batch,) = tiny.loaders(data, "hall").public.take(1, seed=0)
    for module, other in ((federation.module("hall"), "proxy"), (federation.server.module, "slm")):
        own, proxy = module.read(batch), module.read(batch, tower=other)
        spoken = own.labels >= 0
        expected = own.loss + proxy.loss
        for student, teacher in ((own, proxy), (proxy, own)):
            expected = expected + 0.5 * distillation_loss(
                student.logits, teacher.logits, mask=spoken, temperature=3.0
            )
        losses = algorithm.mutual(module, batch)
        torch.testing.assert_close(losses["loss"], expected)
        assert float(losses["divergence"]) > 0


def test_columns_that_pad_an_output_layer_are_no_words(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    algorithm, data = CoPLMs(temperature=3.0), tiny.data()
    wider = tiny.model(backbone={"model": wider_model(tiny.pocket(), tmp_path, columns=5)})
    module = tiny.build(algorithm, tiny.parties(server=wider), data).server.module
    (batch,) = tiny.loaders(data).public.take(1, seed=0)
    with torch.no_grad():
        losses = algorithm.mutual(module, batch)
        own, proxy = module.read(batch), module.read(batch, tower="slm")
    words = proxy.logits.shape[-1]
    assert own.logits.shape[-1] == words + 5
    pair, spoken = (own.logits[..., :words], proxy.logits), own.labels >= 0
    expected = sum(
        distillation_loss(student, teacher, mask=spoken, temperature=3.0)
        for student, teacher in (pair, pair[::-1])
    )
    torch.testing.assert_close(losses["divergence"], expected)


def test_the_own_adapter_stays_and_the_proxy_learns_on_public_data_alone(
    tiny: SimpleNamespace,
) -> None:
    algorithm = CoPLMs(steps=tiny.steps())
    data = tiny.data()
    federation = tiny.build(algorithm, None, data)
    edge, loaders = federation.edge("hall"), tiny.loaders(data, "hall")

    def adapters() -> list[dict[str, torch.Tensor]]:
        return [edge.module.tower(n).backbone.adapter_state() for n in ("slm", "proxy")]

    def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
        return any(not torch.equal(t, after[k]) for k, t in before.items())

    own, proxy = adapters()
    edge.fit_in_turns([algorithm.private_pass(edge, loaders, CTX, None)])
    trained, same = adapters()
    assert moved(own, trained)
    assert not moved(proxy, same)

    sent = {f"adapter/{k}": t + 1.0 for k, t in proxy.items()}
    edge.module.load_adapter_state(Message(sent).component("adapter"))
    kept, received = adapters()
    assert not moved(trained, kept)
    assert moved(proxy, received)
    edge.fit_in_turns([algorithm.public_pass(edge, loaders, CTX, None)])
    assert moved(kept, adapters()[0])
    assert moved(received, adapters()[1])


def test_the_proxies_travel_and_nothing_else(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    with tapped() as log:
        summary = tiny.fit(CoPLMs(steps=tiny.steps(warmup=1)), tmp_path, max_rounds=2)
    assert summary["rounds"] == 2
    for _, _, data in log.messages:
        assert {name.partition("/")[0] for name in load(data)} - {"report"} == {"adapter"}
    down = [load(data) for way, client, data in log.messages if way == "downlink"]
    up = [load(data) for way, client, data in log.messages if way == "uplink"]
    assert len(down) == len(up) == 6
    assert any(not torch.equal(t, up[0][k]) for k, t in down[0].items())
    assert json.loads((tmp_path / "tiny/version_0/summary.json").read_text())["clients"]


@pytest.mark.slow
@pytest.mark.parametrize("store", ["memory", "disk"])
def test_resumed_is_bit_equal(tiny: SimpleNamespace, store: str, tmp_path: Path) -> None:
    def run(root: Path, **values: object) -> dict[str, torch.Tensor]:
        tiny.fit(
            CoPLMs(steps=tiny.steps(warmup=1)),
            root,
            enable_checkpointing=True,
            store=store,
            **values,
        )
        path = max(root.rglob("round=*.ckpt"))
        state = torch.load(path, weights_only=True)["server"]["model"]
        assert isinstance(state, dict)
        return state

    whole = run(tmp_path / "a", max_rounds=2)
    run(tmp_path / "b", max_rounds=1)
    trainer = tiny.trainer(tmp_path / "b", max_rounds=2, enable_checkpointing=True, store=store)
    trainer.fit(CoPLMs(steps=tiny.steps(warmup=1)), tiny.data(), tiny.parties(), ckpt_path="last")
    again = torch.load(max((tmp_path / "b").rglob("round=*.ckpt")), weights_only=True)
    assert all(torch.equal(t, again["server"]["model"][k]) for k, t in whole.items())


def test_another_vocabulary_is_named(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.parties()
    with monkeypatch.context() as patch:
        patch.setenv("MLECS_CACHE", str(tmp_path))
        patch.setitem(POCKETS, "pocket/slm", replace(POCKETS["pocket/slm"], steps=1))
        other = make_pocket("pocket/slm", [("a b", "c d e")], ["say"])
    server = replace(settings.server, backbone=BackboneSettings(str(other)))
    with pytest.raises(ConfigurationError, match=r"server.backbone.model has another vocabulary"):
        tiny.build(CoPLMs(), replace(settings, server=server))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"weight": -1.0}, "weight must not be negative"), ({"temperature": 0.0}, "must be positive")],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoPLMs(**values)
