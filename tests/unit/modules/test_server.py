from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mlecs_lightning.modules import EdgeModule, Losses, ServerModule
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.types import Batch, ModalitySpec

Build = Callable[..., ModelSettings]
Specs = Mapping[str, ModalitySpec]


@pytest.fixture
def server(settings_of: Build, modalities: Specs) -> ServerModule:
    torch.manual_seed(0)
    return ServerModule(settings_of("llm"), settings_of("slm"), modalities).eval()


def both(server: ServerModule, batch: Batch) -> Losses:
    return {"loss": server.read(batch).loss + server.read(batch, tower="slm").loss}


def test_lightning_s_own_trainer_takes_the_steps_of_a_plain_loop_with_the_llm_alone(
    settings_of: Build,
    modalities: Specs,
    loader: DataLoader[Batch],
    batch: Batch,
    trainer_of: Callable[..., L.Trainer],
    plain_loop: Callable[..., dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    sgd = {"class_path": "SGD", "init_args": {"lr": 0.1}}
    # Vectors, whose extractor draws no dropout.
    specs = {m: modalities[m] for m in ("profile", "fourier")}
    torch.manual_seed(0)
    server = ServerModule(settings_of("llm", optimizer=sgd), settings_of("slm"), specs)
    start = server.trainable_state()
    expected = plain_loop(server, islice(cycle(loader), 5))
    server.load_trainable_state(start)
    trainer = trainer_of(max_steps=5, max_epochs=-1)
    trainer.fit(server, loader)
    state = server.eval().trainable_state()
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    hosted = {k for k in start if k.startswith("towers.slm.")}
    assert {k for k, v in start.items() if torch.equal(state[k], v)} == hosted | {
        k for k in start if ".readout." in k
    }

    trainer.save_checkpoint(tmp_path / "server.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "server.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == state.keys()
    torch.manual_seed(99)
    again = ServerModule.load_from_checkpoint(tmp_path / "server.ckpt").eval()
    assert all(torch.equal(v, state[k]) for k, v in again.trainable_state().items())
    assert again.predict_step(batch) == server.predict_step(batch)
    for tower in ("llm", "slm"):
        assert again.read(batch, tower=tower).loss == server.read(batch, tower=tower).loss


def test_towers_share_the_extractors_and_nothing_else_that_trains(
    server: ServerModule, batch: Batch
) -> None:
    ids = {
        name: {id(p) for p in tower.parameters() if p.requires_grad}
        for name, tower in server.towers.items()
    }
    assert list(ids) == ["llm", "slm"]
    assert not ids["llm"] & ids["slm"]
    both(server, batch)["loss"].backward()
    learned = {
        ".".join(n.split(".")[:2]) for n, p in server.named_parameters() if p.grad is not None
    }
    assert learned == {
        "extractors.pixels",
        "extractors.profile",
        "extractors.fourier",
        "towers.llm",
        "towers.slm",
    }


def test_hosted_slm_is_the_clients_own_over_the_same_frozen_weights(
    server: ServerModule, settings_of: Build, modalities: Specs, batch: Batch
) -> None:
    edge = EdgeModule(settings_of("slm"), {"pixels": modalities["pixels"]})
    hosted, own = server.tower("slm").backbone, edge.backbone
    frozen = [
        [p.data_ptr() for p in b.lm.parameters() if not p.requires_grad] for b in (hosted, own)
    ]
    assert frozen[0] == frozen[1]
    received = {k: v + 0.1 for k, v in edge.adapter_state().items()}
    llm = server.read(batch).loss
    slm = server.read(batch, tower="slm").loss
    server.load_adapter_state(received)
    assert all(torch.equal(v, received[k]) for k, v in server.adapter_state().items())
    assert server.adapter_state().keys() == received.keys()
    assert server.read(batch, tower="slm").loss != slm
    assert server.read(batch).loss == llm, "the LLM's adapter is another"


def test_representation_is_what_the_connector_fused_or_what_the_llm_made_of_it(
    server: ServerModule, batch: Batch
) -> None:
    out = server.read(batch, tower="llm")
    fused, view = server.represent(batch), server.represent(batch, source="backbone")
    assert fused.shape == view.shape == (8, 16)
    assert torch.equal(fused, out.embeddings.fused)
    torch.testing.assert_close(view, out.view, atol=1e-5, rtol=1e-4)
    other = server.read(batch, tower="slm")
    assert not torch.allclose(fused, other.embeddings.fused)
    assert not torch.allclose(view, other.view)


def test_a_server_that_shares_no_batch_takes_losses_and_rows_as_they_are(
    server: ServerModule, batch: Batch
) -> None:
    output = server.train().read(batch)
    assert output.tokens() == (output.labels != -100).sum() > len(batch.ids)
    assert server.mean_loss(output) is output.loss
    assert server.gather(output.view) is output.view
    server.sharded = True  # by one process
    assert torch.equal(server.mean_loss(output), output.loss)
    assert server.gather(output.view) is output.view


def test_a_trainer_minimises_the_objective_that_the_module_is_given(
    server: ServerModule, loader: DataLoader[Batch], trainer_of: Callable[..., L.Trainer]
) -> None:
    hosted = {k: v for k, v in server.trainable_state().items() if k.startswith("towers.slm.")}
    server.objective = both
    trainer = trainer_of(max_steps=1, max_epochs=-1)
    trainer.fit(server.train(), loader)
    state = server.trainable_state()
    assert not all(torch.equal(state[k], v) for k, v in hosted.items())
