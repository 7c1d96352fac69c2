import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning import MLECS
from mlecs_lightning.algorithms import CDCCA, FedAvg
from mlecs_lightning.algorithms.cdcca.distillation import AKD, Lesson, teachers_answers
from mlecs_lightning.algorithms.cdcca.sampling import token_uncertainty, tokens_of
from mlecs_lightning.algorithms.cdcca.tokens import Tokens
from mlecs_lightning.clients import ClientSettings, FederationModels
from mlecs_lightning.data import DomainStream
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.functional import distillation_loss, hidden_distance
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.wire import DWC, Channel, ChannelError, Message
from mlecs_lightning.wire.encoding import decode, encode

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]
ALL = ["pixels", "profile", "fourier"]
DEVICE = {"phone": ClientSettings(ALL, domains=["bold", "light"])}
STREAM = {"partition": "domain", "schedule": DomainStream(["bold", "light"])}


def fit(
    tiny: SimpleNamespace, root: Path, algorithm: CDCCA | None = None, **values: Any
) -> dict[str, Any]:
    options = {"max_rounds": 2, "enable_checkpointing": True, **values}
    chosen = algorithm or CDCCA(steps=tiny.steps(warmup=2, public=0, private=2, server=2))
    summary: dict[str, Any] = tiny.fit(
        chosen, root, tiny.parties(DEVICE), tiny.data(**STREAM), **options
    )
    return summary


def build(tiny: SimpleNamespace, algorithm: CDCCA | None = None) -> FederationModels:
    federation: FederationModels = tiny.build(
        algorithm or CDCCA(), tiny.parties(DEVICE), tiny.data(**STREAM)
    )
    return federation


def last(root: Path, number: int = 1) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(
        root / f"tiny/version_0/checkpoints/round={number:04d}.ckpt", weights_only=True
    )
    return state


def alike(one: object, other: object) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def adapter(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the student's adapter out of a trainable state, under the names on the wire."""
    start = "towers.slm.backbone.lm."
    return {
        "adapter/" + k.removeprefix(start).replace(".default.", "."): tensor
        for k, tensor in model.items()
        if k.startswith(start) and "lora_" in k
    }


def norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm([t.double() for t in tensors.values()]))


@pytest.fixture(scope="module")
def federation(tiny: SimpleNamespace) -> FederationModels:
    """A warm cloud and a device that was handed over; tests leave it as they find it."""
    algorithm = CDCCA(steps=tiny.steps(warmup=20))
    built, data = build(tiny, algorithm), tiny.data(**STREAM)
    data.attach({"phone": built.parties.profiles["phone"]})
    ctx = RoundContext(-1, 0, ("phone",))
    algorithm.warmup(built.server, tiny.loaders(data), ctx)
    built.deliver(algorithm)
    return built


@pytest.fixture(scope="module")
def tokens(tiny: SimpleNamespace, federation: FederationModels) -> Tokens:
    data = tiny.data(**STREAM)
    data.attach({"phone": federation.parties.profiles["phone"]})
    (batch,) = tiny.loaders(data, "phone").private.take(1, seed=0)
    edge = federation.edge("phone")
    edge.module.eval()
    with torch.no_grad():
        return tokens_of(edge.module, batch)


# Handing over -------------------------------------------------------------------------------------


def test_a_device_is_a_copy_of_the_student(
    tiny: SimpleNamespace, federation: FederationModels, tokens: Tokens
) -> None:
    edge, cloud = federation.edge("phone").module.eval(), federation.server.module.eval()
    answers = ["a bold two"] * tokens.samples
    given = (tokens.inputs(), tokens.present, tokens.instructions, answers)
    with torch.no_grad():
        ours, theirs = (m.tower("slm")(*given).logits for m in (edge, cloud))
    assert torch.equal(ours, theirs)
    (batch,) = tiny.loaders(tiny.data(**STREAM)).public.take(1, seed=0)
    with torch.no_grad():
        ours, theirs = (m.features(batch)[0] for m in (edge, cloud))
    assert alike(ours, theirs)
    fresh = tiny.build(CDCCA(), tiny.parties(DEVICE), tiny.data(**STREAM)).edge("phone").module
    with torch.no_grad():
        assert not alike(fresh.eval().features(batch)[0], theirs)


def test_the_first_message_is_the_difference_from_what_was_handed_over(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """Which is nothing: the student has not learned since."""
    fit(tiny, tmp_path, codec=DWC(fraction=0.1, bits=2))
    first, second = last(tmp_path, 0), last(tmp_path, 1)
    assert first["history"][0]["channel/downlink_error"] == 0
    known = []
    for state in (first, second):  # the device runs what both ends know
        phone = state["clients"]["phone"]
        known.append(phone["wire"]["received"])
        assert alike(adapter(phone["model"]), known[-1])
    # What the second message lacks of the way from one to the other.
    sent = adapter(first["server"]["model"])
    missed, moved = (norm({k: t - sent[k] for k, t in each.items()}) for each in reversed(known))
    error = second["history"][1]["channel/downlink_error"]
    assert error == pytest.approx(missed / moved, rel=1e-4)
    assert not alike(*known)


def test_a_device_needs_the_sensors_and_sizes_of_the_student(tiny: SimpleNamespace) -> None:
    clients = {
        "phone": ClientSettings(ALL),
        "watch": ClientSettings(["pixels"]),
        "tablet": ClientSettings(ALL, connector={"prompt_length": 3}),
    }
    with pytest.raises(ConfigurationError) as caught:
        tiny.build(CDCCA(), tiny.parties(clients))
    title, watch, tablet = str(caught.value).splitlines()
    assert title == "the configuration has faults:"
    assert watch.startswith("clients.watch.modalities is ['pixels']: under CDCCA a device runs a")
    assert tablet.startswith("clients.tablet: under CDCCA")
    assert "connector.to_prompt.2.bias" in tablet


def test_devices_with_other_adapters_are_refused(tiny: SimpleNamespace) -> None:
    clients = {"phone": ClientSettings(ALL), "tablet": ClientSettings(ALL, lora={"r": 3})}
    with pytest.raises(ConfigurationError, match=r"clients\.tablet\.lora is .*copy of one student"):
        tiny.build(CDCCA(), tiny.parties(clients))


def test_devices_of_another_model_are_refused_before_the_warm_up(tiny: SimpleNamespace) -> None:
    other = ClientSettings(ALL, lora={"target_modules": ["c_fc"]})
    clients = {"phone": ClientSettings(ALL), "tablet": other}
    with pytest.raises(ConfigurationError, match=r"must be those of clients\.phone: under CDCCA"):
        tiny.build(CDCCA(), tiny.parties(clients))


def test_teacher_and_student_of_two_languages_are_refused_at_the_start(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(tiny.pocket()).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(tiny.pocket())
    tokenizer.save_pretrained(other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"bold"', '"thick"'))
    settings = tiny.parties(DEVICE, server=tiny.model(backbone={"model": str(other)}))
    with pytest.raises(ConfigurationError, match="different vocabularies") as caught:
        tiny.build(CDCCA(), settings, tiny.data(**STREAM))
    assert "2 differ, such as ['bold', 'thick']" in str(caught.value)
    tiny.build(FedAvg(), settings, tiny.data(**STREAM))  # which compares no logits


def test_a_student_may_have_less_of_the_warm_up(tiny: SimpleNamespace, tapped: Tap) -> None:
    algorithm = CDCCA(steps=tiny.steps(warmup=8), student_warmup=0.25)
    built, data = build(tiny, algorithm), tiny.data(**STREAM)
    start = built.server.state_dict()["model"]
    with tapped() as log:
        algorithm.warmup(built.server, tiny.loaders(data), RoundContext(-1, 0, ("phone",)))
    assert [(stage, len(seen)) for _, stage, seen in log.passes] == [
        ("warmup_teacher", 6),
        ("warmup", 2),
    ]
    moved = built.server.state_dict()["model"]
    name = "towers.slm.connector.fuse.1.bias"
    assert not torch.equal(start[name], moved[name])


def said(module: Any, tokens: Tokens) -> list[str]:  # noqa: ANN401
    """Return what a device answers from all its tokens."""
    tower = module.eval().tower()
    answers: list[str] = tower.generate(
        tower.connector(tokens.inputs(), tokens.present), tokens.instructions
    )
    return answers


# UTS ----------------------------------------------------------------------------------------------


def test_uncertainty_is_the_entropy_of_the_device_s_own_answer(
    federation: FederationModels, tokens: Tokens
) -> None:
    """Dropout is off in these models: no variance, and the entropy by hand."""
    module = federation.edge("phone").module
    answers = said(module, tokens)
    scores = token_uncertainty(module, tokens, answers, passes=2, variance_weight=5.0)
    assert scores.shape == (8, 3)
    assert not module.training
    tower = module.tower()
    with torch.no_grad():
        output = tower(tokens.inputs(), tokens.present, tokens.instructions, answers)
    p = output.logits.softmax(-1)
    entropy = -(p * p.clamp_min(1e-30).log()).sum(-1)
    for row in range(8):
        expected = entropy[row][output.labels[row] >= 0].mean().expand(3)
        torch.testing.assert_close(scores[row], expected, rtol=1e-4, atol=1e-5)


def test_dropout_adds_the_variance_of_what_each_token_says_alone(
    federation: FederationModels, tokens: Tokens
) -> None:
    module = federation.edge("phone").module
    dropout = module.tower().connector.to_prompt[1]
    dropout.p = 0.5
    found = []
    try:
        for weight in (0.0, 1.0, 3.0):
            torch.manual_seed(0)
            found.append(
                token_uncertainty(
                    module, tokens, said(module, tokens), passes=4, variance_weight=weight
                )
            )
    finally:
        dropout.p = 0.0
    entropy, one, three = found
    assert (entropy == entropy[:, :1]).all()  # of the sample
    variance = one - entropy
    assert (variance >= 0).all()
    assert (variance != variance[:, :1]).any()  # of each token
    torch.testing.assert_close(three, entropy + 3 * variance)


def test_what_goes_up_is_declared_and_nothing_else(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    algorithm = CDCCA(
        token_fraction=0.25, steps=tiny.steps(warmup=2, public=0, private=2, server=1)
    )
    with tapped() as log:
        summary = fit(tiny, tmp_path, algorithm)
    assert [way for way, _, _ in log.messages] == ["downlink", "uplink"] * 2
    ups = [decode(data)[0] for way, _, data in log.messages if way == "uplink"]
    for message in ups:
        parts = {k.partition("/")[0] for k in message.tensors}
        assert parts == {"tokens", "positions", "asked", "report"}
        assert message.component("report").keys() == {
            *("uts/looked_at", "uts/sent", "uts/uncertainty", "uts/uncertainty_sent")
        }
        assert message.scalars == {"instructions": ("describe the digit .",)}
        sent = sum(len(message.tensors[f"tokens/{m}"]) for m in ALL)
        assert sent == 12  # a quarter of 2 batches of 8 samples of 3 tokens
        told = message.component("report")
        assert told["uts/uncertainty_sent"] > told["uts/uncertainty"]  # what it is least sure of
    # An answer, and 4 passes over the sample and over each of its three tokens.
    assert summary["sampling"] == {"tokens": 3, "encoder_passes": 1, "language_model_passes": 17}
    # The device takes no step: only the server's warm-up and AKD do.
    assert {party for party, _, _ in log.passes} == {"server"}
    assert set(summary["communication"]["by_component"]["uplink"]) == {
        *("tokens", "positions", "asked", "report", "header")
    }


@pytest.mark.parametrize("kind", [MLECS, FedAvg])
def test_others_refuse_token_features(tiny: SimpleNamespace, kind: type[FedAvg]) -> None:
    """And CD-CCA refuses adapters: each channel carries what its method declares."""
    federation = tiny.build(kind(), tiny.parties(DEVICE), tiny.data(**STREAM))
    module = federation.edge("phone").module
    there = Tokens(
        {m: torch.ones(1, 1, 64) for m in ALL}, torch.ones(1, 3, dtype=torch.bool), ("what ?",)
    )
    adapter = Message(
        {f"adapter/{k}": t for k, t in module.adapter_state().items()},
        {"modalities": tuple(ALL), "samples": 3},
    )
    about: dict[str, Any] = {"direction": "uplink", "client": "phone", "round": 0}
    both = Message({**adapter.tensors, **there.message().tensors}, adapter.scalars)
    ours, theirs = CDCCA().uplink(module), kind().uplink(module)
    for message, schema, word in (
        (there.message(), theirs, "undeclared tensor 'asked/which'"),
        (both, theirs, "undeclared tensor 'tokens/"),
        (adapter, ours, "undeclared tensor 'adapter/"),
    ):
        for codec in (None, DWC()):
            data = encode(message, {"client": "phone", "round": 0})
            with pytest.raises(ChannelError, match=word if codec is None else "undeclared tensor"):
                Channel(codec=codec).receive(data, schema, **about)
    data = encode(there.message(), {"client": "phone", "round": 0})
    assert Channel().receive(data, ours, **about)


# AKD ----------------------------------------------------------------------------------------------


def test_the_loss_of_a_lesson_is_the_sum_of_its_parts(
    tiny: SimpleNamespace, federation: FederationModels, tokens: Tokens
) -> None:
    algorithm = CDCCA(temperature=3.0, hidden_weight=0.7, replay_weight=0.4)
    server, data = federation.server, tiny.data(**STREAM)
    (public,) = tiny.loaders(data).public.take(1, seed=1)
    answers = tuple(teachers_answers(server, tokens, batch_size=3))
    assert len(answers) == 8
    module = server.module.train()
    losses = algorithm.akd.loss(module, Lesson(tokens, answers, public))
    module.eval()
    with torch.no_grad():
        given = (tokens.inputs(), tokens.present, tokens.instructions, answers)
        student, teacher = (module.tower(name)(*given) for name in ("slm", "llm"))
        mask = student.labels >= 0
        logits = distillation_loss(student.logits, teacher.logits, mask=mask, temperature=3.0)
        hidden = hidden_distance(student.view, teacher.view)
        replay = module.read(public, tower="slm").loss
    torch.testing.assert_close(losses["loss"], 0.4 * replay + logits + 0.7 * hidden)
    torch.testing.assert_close(losses["logits"], logits)
    assert not torch.equal(student.logits, teacher.logits)


@pytest.mark.parametrize("distillation", ["akd", "answers"])
def test_only_the_student_s_adapter_and_projection_learn(
    tiny: SimpleNamespace,
    federation: FederationModels,
    tokens: Tokens,
    distillation: Any,  # noqa: ANN401
) -> None:
    algorithm = CDCCA(distillation=distillation)
    server, data = federation.server, tiny.data(**STREAM)
    before = copy.deepcopy(server.state_dict())
    public = tiny.loaders(data).public
    answers = tuple(teachers_answers(server, tokens, batch_size=8))
    trained = len(server.module.trainable_parameters())
    algorithm.akd.teach(server, [Lesson(tokens, answers, b) for b in public.take(2, seed=1)])
    after = server.state_dict()["model"]
    changed = {k for k, t in after.items() if not torch.equal(t, before["model"][k])}
    projection = {"towers.slm.readout.weight", "towers.slm.readout.bias"}
    adapter = {k for k in after if k.startswith("towers.slm.backbone.")}
    assert changed == adapter | (projection if distillation == "akd" else set())
    assert len(server.module.trainable_parameters()) == trained
    server.load_state_dict(before)


def test_a_step_of_the_student_goes_down_the_gradient_of_its_lesson(
    tiny: SimpleNamespace, tokens: Tokens
) -> None:
    sgd = tiny.model(optimizer={"class_path": "SGD", "init_args": {"lr": 0.5}})
    data = tiny.data(**STREAM)
    server = tiny.build(CDCCA(), tiny.parties(DEVICE, server=sgd), data).server
    answers = tuple(teachers_answers(server, tokens, batch_size=8))
    (public,) = tiny.loaders(data).public.take(1, seed=1)
    akd, lesson = CDCCA(replay_weight=0.0, hidden_weight=1.0).akd, Lesson(tokens, answers, public)
    own = {
        k: p
        for k, p in server.module.named_parameters()
        if p.requires_grad and k.startswith(("towers.slm.backbone.", "towers.slm.readout."))
    }
    loss = akd.loss(server.module.train(), lesson)["loss"]
    gradients = torch.autograd.grad(loss, list(own.values()))
    expected = {k: p - 0.5 * g for (k, p), g in zip(own.items(), gradients, strict=True)}
    akd.teach(server, [lesson])
    for name, parameter in own.items():
        torch.testing.assert_close(parameter, expected[name], msg=name)
    assert all(g.any() for k, g in zip(own, gradients, strict=True) if ".lora_A." not in k)


# In a run -----------------------------------------------------------------------------------------


def test_all_tokens_and_all_bits_give_the_uncompressed_run(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    steps = tiny.steps(warmup=2, public=0, private=2, server=2)
    for name, codec in (("plain", None), ("kept", DWC(fraction=1.0, bits=32))):
        fit(tiny, tmp_path / name, CDCCA(token_fraction=1.0, steps=steps), codec=codec)
    plain, kept = (last(tmp_path / name) for name in ("plain", "kept"))
    assert alike(plain["server"], kept["server"])
    assert alike(plain["clients"]["phone"]["model"], kept["clients"]["phone"]["model"])
    first = last(tmp_path / "plain", 0)
    assert not alike(first["clients"]["phone"]["model"], plain["clients"]["phone"]["model"])


@pytest.mark.parametrize("store", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_in_the_same_bits(
    tiny: SimpleNamespace, tmp_path: Path, store: str
) -> None:
    options = {"codec": DWC(fraction=0.2, bits=2, feature_bits=4), "store": store}
    steps = tiny.steps(warmup=2, public=0, private=2, server=2)
    summary = fit(tiny, tmp_path / "whole", CDCCA(steps=steps), **options)
    fit(tiny, tmp_path / "parts", CDCCA(steps=steps), **options, max_rounds=1)
    trainer = tiny.trainer(tmp_path / "parts", max_rounds=2, enable_checkpointing=True, **options)
    resumed = trainer.fit(CDCCA(steps=steps), tiny.data(**STREAM), tiny.parties(DEVICE), "last")
    assert alike(summary | {"seconds": 0}, resumed | {"seconds": 0})
    states = [last(tmp_path / name) for name in ("whole", "parts")]
    for name, state in zip(("whole", "parts"), states, strict=True):
        del state["seconds"]
        if store == "disk":
            folder = tmp_path / name / "tiny/version_0/checkpoints/clients"
            state["clients"] = {
                c: torch.load(folder / f, weights_only=True) for c, f in state["clients"].items()
            }
    assert alike(*states)
    stream = summary["stream"]["clients"]["phone"]
    assert stream["phases"] == [[0, "bold"], [1, "light"]]
    first = states[0]["history"][0]["clients/phone/domains/bold/accuracy"]
    scores = stream["accuracy"]
    assert scores["backward_transfer"] == pytest.approx(
        2 * (scores["final"] - scores["present"]), abs=1e-6
    )
    assert 2 * scores["present"] >= first


def test_the_student_learns_in_training_mode_from_a_teacher_in_evaluation_mode(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    loss = AKD.loss

    def spied(self: AKD, server: Any, lesson: Lesson) -> Any:  # noqa: ANN401
        losses = loss(self, server, lesson)
        seen.append((server.training, *(server.tower(t).training for t in ("slm", "llm"))))
        return losses

    monkeypatch.setattr(AKD, "loss", spied)
    fit(tiny, tmp_path, max_rounds=1)
    assert seen == [(True, True, False)] * 2


@pytest.mark.parametrize("train", [False, True])
def test_a_device_that_is_left_to_itself_sends_and_receives_nothing(
    tiny: SimpleNamespace, tmp_path: Path, train: bool
) -> None:
    algorithm = CDCCA(
        distillation="none",
        train_device=train,
        steps=tiny.steps(warmup=2, public=0, private=2, server=2),
    )
    summary = fit(tiny, tmp_path, algorithm)
    assert summary["communication"]["uplink_bytes"] == 0
    assert summary["communication"]["downlink_bytes"] == 0
    first, second = (last(tmp_path, r)["clients"]["phone"]["model"] for r in range(2))
    assert alike(first, second) != train
    assert alike(*(last(tmp_path, r)["server"]["model"] for r in range(2)))


HOSTILE: dict[str, tuple[Callable[[dict[str, Tensor], dict[str, Any]], object], str]] = {
    "positions": (
        lambda t, s: t.update({"positions/pixels": t["positions/pixels"] + 900}),
        "positions of 'pixels' do not rise",
    ),
    "giant": (
        lambda t, s: t.update({"tokens/pixels": t["tokens/pixels"] * 1e30}),
        "a feature of 'pixels' is beyond",
    ),
    "long": (
        lambda t, s: s.update(instructions=("digit " * 400,)),
        "an instruction of 400 tokens, 'llm' has room for",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_device_that_lies_is_left_out(
    tiny: SimpleNamespace, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = HOSTILE[name]
    receive = Channel.receive

    def tampered(self: Channel, data: bytes, schema: Any, **facts: Any) -> Any:  # noqa: ANN401
        if facts["direction"] == "uplink":
            message, envelope = decode(data)
            tensors, scalars = dict(message.tensors), dict(message.scalars)
            change(tensors, scalars)
            data = encode(Message(tensors, scalars), envelope)
        return receive(self, data, schema, **facts)

    monkeypatch.setattr(Channel, "receive", tampered)
    summary = fit(tiny, tmp_path, max_rounds=1)
    assert summary["faults"]["refused"] == 1
    client = summary["faults"]["events"][0]["client"]
    (log,) = tmp_path.rglob("errors.log")
    assert log.parent.name == client
    assert words in log.read_text()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"token_fraction": 0.0}, "token_fraction must be in (0, 1], got 0.0"),
        ({"token_dropout": 1.0}, "token_dropout must be in [0, 1), got 1.0"),
        ({"student_warmup": 1.5}, "student_warmup must be in [0, 1], got 1.5"),
        ({"passes": 0}, "passes must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"hidden_weight": -1.0}, "hidden_weight must be at least 0, got -1.0"),
        ({"feature_weight": -1.0}, "feature_weight must be at least 0, got -1.0"),
        ({"answer_threshold": 0.0}, "answer_threshold must be null or in (0, 1], got 0.0"),
        ({"feature_dropout": 1.0}, "feature_dropout must be in (0, 1), got 1.0"),
        ({"train": []}, "train must name a part of ['lora', 'norms', 'biases', 'prompts'], got"),
        ({"train_device": True}, "train_device needs distillation: none, got 'akd'"),
    ],
)
def test_settings_without_sense_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="algorithm") as caught:
        CDCCA(**values)
    assert f"algorithm.init_args.{words}" in str(caught.value)
