import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from mlecs_lightning.class_paths import ClassPath
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules import EdgeModule, Losses, MultimodalLM, ServerModule
from mlecs_lightning.settings import BackboneSettings, ModelSettings
from mlecs_lightning.types import Batch, ModalitySpec

Build = Callable[..., ModelSettings]
Specs = Mapping[str, ModalitySpec]


class Normed(nn.Module):
    """An extractor with buffers, which a client must not lose."""

    def __init__(self, spec: ModalitySpec) -> None:
        super().__init__()
        self.out_features = spec.shape[0]
        self.norm = nn.BatchNorm1d(spec.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]


@pytest.fixture
def edge(settings_of: Build, modalities: Specs) -> EdgeModule:
    torch.manual_seed(0)
    return EdgeModule(settings_of(), modalities).eval()


@pytest.fixture
def server(settings_of: Build, modalities: Specs) -> ServerModule:
    torch.manual_seed(0)
    return ServerModule(settings_of("llm"), settings_of("slm"), modalities).eval()


@pytest.fixture(params=["edge", "server"])
def module(request: pytest.FixtureRequest) -> MultimodalLM:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def everything(module: MultimodalLM, batch: Batch) -> Losses:
    """Use every tower and its view, as SE-CCL does."""
    outputs = [module.read(batch, tower=name) for name in module.towers]
    return {"loss": sum((o.loss + o.view.square().mean() for o in outputs), torch.tensor(0.0))}


def without(batch: Batch, modality: str) -> Batch:
    """Return the batch of a party that has never heard of a modality."""
    kept = [k for k, m in enumerate(batch.modalities) if m != modality]
    return batch._replace(
        modalities=tuple(batch.modalities[k] for k in kept),
        inputs={m: x for m, x in batch.inputs.items() if m != modality},
        present=batch.present[:, kept],
    )


def absent(batch: Batch, modality: str) -> Batch:
    """Return the batch with a modality there, but of no sample."""
    present = batch.present.clone()
    present[:, batch.modalities.index(modality)] = False
    return batch._replace(present=present)


# Features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["pixels", "profile", "fourier"])
def test_modality_that_a_batch_lacks_counts_as_absent(
    edge: EdgeModule, batch: Batch, modality: str
) -> None:
    lacking, empty = edge.embed(without(batch, modality)), edge.embed(absent(batch, modality))
    assert all(torch.equal(a, b) for a, b in zip(lacking[:4], empty[:4], strict=True))
    assert lacking.present.sum(0).tolist() == [
        0 if m == modality else int(n)
        for m, n in zip(batch.modalities, batch.present.sum(0), strict=True)
    ]
    loss = edge(without(batch, modality))["loss"]
    assert loss == edge(absent(batch, modality))["loss"] != edge(batch)["loss"]


def test_input_of_an_absent_modality_does_not_change_an_answer(
    edge: EdgeModule, batch: Batch
) -> None:
    assert not batch.present.all()
    noisy = {
        m: torch.where(batch.present[:, k].view(-1, *[1] * (x.dim() - 1)), x, 50.0)
        for k, (m, x) in enumerate(batch.inputs.items())
    }
    assert torch.equal(edge.embed(batch).prompt, edge.embed(batch._replace(inputs=noisy)).prompt)


def test_columns_of_a_batch_are_found_by_name(edge: EdgeModule, batch: Batch) -> None:
    order = [2, 0, 1]
    turned = batch._replace(
        modalities=tuple(batch.modalities[k] for k in order),
        inputs={batch.modalities[k]: batch.inputs[batch.modalities[k]] for k in order},
        present=batch.present[:, order],
    )
    for ours, theirs in zip(edge.embed(batch)[:4], edge.embed(turned)[:4], strict=True):
        assert torch.equal(ours, theirs)


def test_modality_that_the_model_cannot_take_is_ignored(
    settings_of: Build, modalities: Specs, batch: Batch
) -> None:
    two = {m: modalities[m] for m in ("fourier", "pixels")}
    edge = EdgeModule(settings_of(), two).eval()
    assert edge.modalities == ("fourier", "pixels")
    embeddings = edge.embed(batch)
    assert embeddings.modalities.shape == (8, 2, 16)
    assert torch.equal(embeddings.present, batch.present[:, [2, 0]])
    assert torch.equal(embeddings.fused, edge.embed(without(batch, "profile")).fused)


# Gradients ----------------------------------------------------------------------------------------


def idle(module: MultimodalLM) -> set[str]:
    """Name the parameters that should train and got no gradient: DDP would wait for them."""
    return {n for n, p in module.named_parameters() if p.requires_grad and p.grad is None}


@pytest.mark.parametrize("modality", [None, "pixels", "profile", "fourier"])
def test_every_weight_gets_a_gradient_whatever_the_batch_lacks(
    module: MultimodalLM, batch: Batch, modality: str | None
) -> None:
    module(batch if modality is None else without(batch, modality), everything)["loss"].backward()
    assert idle(module) == set()


def test_language_modelling_leaves_only_what_it_does_not_use(
    module: MultimodalLM, batch: Batch
) -> None:
    module(without(batch, "pixels"))["loss"].backward()
    unused = {n for n, _ in module.named_parameters() if ".readout." in n}
    if isinstance(module, ServerModule):
        unused |= {
            n
            for n, p in module.named_parameters()
            if n.startswith("towers.slm.") and p.requires_grad
        }
    assert idle(module) == unused


def test_frozen_weights_get_no_gradient(module: MultimodalLM, batch: Batch) -> None:
    module(batch, everything)["loss"].backward()
    learned = {n for n, p in module.named_parameters() if p.grad is not None}
    assert learned == {
        n for n, _ in module.named_parameters() if ".backbone.lm." not in n or ".lora_" in n
    }


def test_extractors_are_frozen_for_a_while_and_no_longer(edge: EdgeModule, batch: Batch) -> None:
    first = next(iter(edge.extractors["profile"].parameters()))
    first.requires_grad_(False)
    with edge.frozen_extractors():
        edge(batch, everything)["loss"].backward()
        assert len(edge.trainable_parameters()) > 0
    learned = {n.split(".")[0] for n, p in edge.named_parameters() if p.grad is not None}
    assert learned == {"towers"}
    assert idle(edge) == {n for n, p in edge.extractors.named_parameters("extractors")} - {
        "extractors.profile.layers.0.weight"
    }
    assert not first.requires_grad, "what was frozen before stays frozen"
    with pytest.raises(RuntimeError, match="stop"), edge.frozen_extractors():
        raise RuntimeError("stop")
    assert sum(not p.requires_grad for p in edge.extractors.parameters()) == 1


def test_objective_gets_the_module_and_the_batch(edge: EdgeModule, batch: Batch) -> None:
    def objective(module: MultimodalLM, given: Batch) -> Losses:
        assert module is edge
        assert given is batch
        return {"loss": torch.tensor(3.0), "part": torch.tensor(1.0)}

    assert edge(batch, objective) == {"loss": 3.0, "part": 1.0}


# State --------------------------------------------------------------------------------------------


def test_trainable_state_comes_back_bit_for_bit(module: MultimodalLM) -> None:
    state = module.trainable_state()
    kept = {k: v.clone() for k, v in state.items()}
    with torch.no_grad():
        for parameter in module.trainable_parameters():
            parameter.add_(1)
    changed = module.trainable_state()
    assert all(torch.equal(state[k], kept[k]) for k in kept), "a state is a copy"
    assert all(not torch.equal(changed[k], kept[k]) for k in kept)
    module.load_trainable_state(state)
    assert all(torch.equal(v, kept[k]) for k, v in module.trainable_state().items())


def test_trainable_state_is_what_trains(module: MultimodalLM) -> None:
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert set(module.trainable_state()) == trained
    assert sum(v.numel() for v in module.trainable_state().values()) == sum(
        p.numel() for p in module.trainable_parameters()
    )


def test_trainable_state_is_of_the_live_tensors_whatever_became_of_them(edge: EdgeModule) -> None:
    before = edge.trainable_state()
    edge.tower().connector.double()
    torch.nn.init.ones_(edge.tower().connector.absent)
    edge.tower().readout.weight = nn.Parameter(torch.full_like(edge.tower().readout.weight, 2.0))
    after = edge.trainable_state()
    assert list(after) == list(before)
    assert {v.dtype for k, v in after.items() if ".connector." in k} == {torch.float64}
    assert float(after["towers.slm.connector.absent"].min()) == 1.0
    assert float(after["towers.slm.readout.weight"].min()) == 2.0
    edge.load_trainable_state(before)
    assert float(edge.tower().readout.weight.max()) < 2.0
    state = copy.deepcopy(edge).trainable_state()  # of its own tensors, not of the first's
    torch.nn.init.zeros_(edge.tower().readout.weight)
    assert float(state["towers.slm.readout.weight"].abs().max()) > 0


class Counting(Normed):
    """An extractor with a state that is neither parameter nor buffer."""

    def get_extra_state(self) -> Tensor:
        return torch.tensor([3.0])

    def set_extra_state(self, state: Tensor) -> None:
        pass


def test_a_state_of_a_part_s_own_making_is_part_of_it(
    settings_of: Build, modalities: Specs
) -> None:
    settings = settings_of(extractors={"profile": {"class_path": f"{__name__}.Counting"}})
    edge = EdgeModule(settings, modalities)
    for _ in range(2):
        assert float(edge.trainable_state()["extractors.profile._extra_state"]) == 3.0
    edge.load_trainable_state({k: torch.zeros_like(v) for k, v in edge.trainable_state().items()})
    assert float(edge.tower().readout.weight.abs().max()) == 0.0


def test_batch_moves_as_one(batch: Batch) -> None:
    moved = Fabric(accelerator="cpu", devices=1).to_device(batch)
    assert moved.ids == batch.ids
    assert all(torch.equal(moved.inputs[m], batch.inputs[m]) for m in batch.modalities)
    away = batch.to("meta")
    assert {x.device.type for x in (*away.inputs.values(), away.present)} == {"meta"}
    assert (away.ids, away.instructions, away.targets) == (
        *(batch.ids, batch.instructions, batch.targets),
    )
    assert batch.present.device.type == "cpu"


def test_state_that_does_not_fit_is_refused_and_nothing_is_written(edge: EdgeModule) -> None:
    state = edge.trainable_state()
    first, *_, last = state
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    missing = {k: v for k, v in zeros.items() if k != last}
    with pytest.raises(KeyError, match=rf"missing \['{last}'\], unknown \['extra'\]"):
        edge.load_trainable_state(missing | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"{last}: expected shape \(16,\), got \(1,\)"):
        edge.load_trainable_state(zeros | {last: torch.zeros(1)})
    assert torch.equal(edge.trainable_state()[first], state[first])


def test_buffers_of_an_extractor_are_part_of_the_state(
    settings_of: Build, modalities: Specs, batch: Batch
) -> None:
    settings = settings_of(extractors={"profile": {"class_path": f"{__name__}.Normed"}})
    edge = EdgeModule(settings, modalities)
    fresh = edge.trainable_state()
    key = "extractors.profile.norm.running_mean"
    edge.train()(batch)
    assert edge.trainable_state()[key].any()
    assert key not in edge._ddp_params_and_buffers_to_ignore
    edge.load_trainable_state(fresh)
    assert not edge.trainable_state()[key].any()


def test_ddp_ignores_exactly_the_frozen_tensors(
    settings_of: Build, modalities: Specs, pockets: dict[str, str]
) -> None:
    # Both towers over one backbone: DDP goes by name, and a shared tensor has a name in each.
    one = settings_of("slm")
    for module in (
        EdgeModule(one, modalities),
        ServerModule(settings_of("llm"), one, modalities),
        ServerModule(one, one, modalities),
    ):
        parameters = module.named_parameters(remove_duplicate=False)
        frozen = {name for name, p in parameters if not p.requires_grad}
        frozen |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
        assert set(module._ddp_params_and_buffers_to_ignore) == frozen
        prefixes = {f"towers.{name}.backbone.lm." for name in module.towers}
        assert {p for p in prefixes if any(n.startswith(p) for n in frozen)} == prefixes


def test_parameters_are_counted_by_hand(
    settings_of: Build, modalities: Specs, pockets: dict[str, str]
) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(pockets["slm"])
    h = base.config.n_embd
    lm = sum(p.numel() for p in base.parameters())
    lora = base.config.n_layer * 2 * (h + 3 * h)  # r = 2 on c_attn
    d, p = 16, 4
    connector = (64 * d + d) + d + 2 * d + (d * d + d) + (d * p * h + p * h)
    readout = h * d + d
    extractor = (16 * 64 + 64) + (64 * 64 + 64)
    tower = lora + connector + readout
    specs = {"profile": modalities["profile"]}
    half = replace(settings_of(), backbone=BackboneSettings(pockets["slm"], dtype="bfloat16"))
    edge = EdgeModule(half, specs)
    assert edge.parameter_count() == extractor + tower + lm
    assert edge.parameter_bytes() == 4 * (extractor + tower) + 2 * lm
    assert sum(q.numel() for q in edge.trainable_parameters()) == extractor + tower
    # A server with one backbone for both towers holds it once.
    assert ServerModule(half, half, specs).parameter_count() == extractor + 2 * tower + lm


# Lightning ----------------------------------------------------------------------------------------


def test_optimizer_is_the_one_of_the_settings_over_what_trains(
    settings_of: Build, modalities: Specs
) -> None:
    chosen = {"class_path": "SGD", "init_args": {"lr": 0.25, "momentum": 0.5}}
    edge = EdgeModule(settings_of(optimizer=chosen), modalities)
    optimizer = edge.configure_optimizers()
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (0.25, 0.5)
    assert {id(p) for p in group["params"]} == {id(p) for p in edge.trainable_parameters()}


@pytest.mark.parametrize(
    ("chosen", "fused"),
    [
        ({"class_path": "AdamW"}, True),
        ({"class_path": "AdamW", "init_args": {"fused": None, "foreach": None}}, True),
        ({"class_path": "torch.optim.AdamW", "init_args": {"fused": False}}, False),
        ({"class_path": "Adam", "init_args": {"foreach": True}}, None),
        ({"class_path": "SGD", "init_args": {"lr": 0.1}}, None),
    ],
)
def test_fused_step_is_taken_unless_the_settings_choose(
    settings_of: Build, modalities: Specs, chosen: ClassPath, fused: bool | None
) -> None:
    edge = EdgeModule(settings_of(optimizer=chosen), modalities)
    assert edge.configure_optimizers().defaults["fused"] is fused
    assert not edge.configure_optimizers(scaled=True).defaults["fused"]


def test_optimizer_that_cannot_be_built_is_named_with_its_key(
    settings_of: Build, modalities: Specs
) -> None:
    bad = settings_of(optimizer={"class_path": "SGD", "init_args": {"speed": 1}})
    edge = EdgeModule(bad, modalities, key="clients.hall")
    with pytest.raises(ConfigurationError, match=r"^clients\.hall\.optimizer\.init_args: SGD: "):
        edge.configure_optimizers()


def test_extractor_that_cannot_be_built_is_named_with_its_key(
    settings_of: Build, modalities: Specs
) -> None:
    bad = settings_of(extractors={"pixels": {"class_path": "ResNet"}})
    with pytest.raises(ConfigurationError, match=r"^clients\.hall\.extractors\.pixels\.class_path"):
        EdgeModule(bad, modalities, key="clients.hall")


def test_step_without_a_trainer_returns_the_losses(edge: EdgeModule, batch: Batch) -> None:
    losses = [step(batch) for step in (edge.training_step, edge.validation_step, edge.test_step)]
    assert [float(loss["loss"].detach()) for loss in losses] == [
        pytest.approx(float(edge.read(batch).loss.detach()))
    ] * 3


def test_prediction_is_the_answer_of_the_first_tower(server: ServerModule, batch: Batch) -> None:
    rows = server.predict_step(batch)
    answers = server.tower("llm").generate(server.embed(batch), batch.instructions)
    assert rows == [{"id": i, "prediction": a} for i, a in zip(batch.ids, answers, strict=True)]
    assert server.tower() is server.tower("llm") is not server.tower("slm")
