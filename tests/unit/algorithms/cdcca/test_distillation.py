from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning.algorithms import CDCCA
from mlecs_lightning.algorithms.cdcca.distillation import Lesson
from mlecs_lightning.algorithms.cdcca.parts import Alignment, Part, trained_tensors
from mlecs_lightning.algorithms.cdcca.sampling import tokens_of
from mlecs_lightning.clients import ClientSettings, FederationModels
from mlecs_lightning.functional import distillation_loss, hidden_distance
from mlecs_lightning.nn.connector import Connector
from mlecs_lightning.settings import ConnectorSettings
from mlecs_lightning.wire import DWC
from tests.unit.algorithms.models import wider_model

DEVICE = {"phone": ClientSettings(["pixels", "profile", "fourier"])}
PARTS: list[Part] = ["lora", "norms", "biases", "prompts"]


def built(tiny: SimpleNamespace, **values: Any) -> tuple[CDCCA, FederationModels]:
    algorithm = CDCCA(**values)
    return algorithm, tiny.build(algorithm, tiny.parties(DEVICE))


def lesson(tiny: SimpleNamespace, models: FederationModels) -> Lesson:
    """Answers of one and of five words, so that the shorter sample has padding."""
    (public,) = tiny.loaders(tiny.data(batch_size=2)).public.take(1, seed=1)
    with torch.no_grad():
        tokens = tokens_of(models.edge("phone").module.eval(), public)
    return Lesson(tokens, ("bold", "a bold two with more"), public)


def test_features_and_answers_by_hand(tiny: SimpleNamespace) -> None:
    weights = {"logits_weight": 0.3, "answer_weight": 0.5, "feature_weight": 0.7}
    algorithm, models = built(tiny, hidden_weight=0.0, replay_weight=0.0, **weights)
    module, given = models.server.module, lesson(tiny, models)
    align = module.get_submodule("alignment")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in align.parameters():
            parameter.normal_()
        # Teacher and student of one kind would be too much alike.
        module.tower("llm").connector.to_prompt[2].bias.normal_()
    losses = algorithm.akd.loss(module.train(), given)
    module.eval()
    assert given.tokens is not None
    said = (given.tokens.inputs(), given.tokens.present, given.tokens.instructions, given.answers)
    with torch.no_grad():
        student, teacher = (module.tower(name)(*said) for name in ("slm", "llm"))
        w = align.state_dict()
        queries = student.embeddings.prompt @ w["prompt.weight"].T + w["prompt.bias"]
        states = student.hidden @ w["hidden.weight"].T + w["hidden.bias"]
        # Prompt, instruction, answer and end: four positions of 4 + 4 + 5 + 1 are padding.
        assert student.hidden.shape[1] == 14
        real = [states[0, :10], states[1]], [teacher.hidden[0, :10], teacher.hidden[1]]
        first, second = (torch.cat(rows) for rows in real)
        features = (queries - teacher.embeddings.prompt).square().mean()
        features = features + (first - second).square().mean()
        logits = distillation_loss(
            student.logits, teacher.logits, mask=student.labels >= 0, temperature=2.0
        )
    torch.testing.assert_close(losses["features"], features)
    torch.testing.assert_close(losses["answer"], student.loss)
    torch.testing.assert_close(losses["hidden"], hidden_distance(student.view, teacher.view))
    torch.testing.assert_close(losses["loss"], 0.3 * logits + 0.5 * student.loss + 0.7 * features)


def test_columns_that_pad_the_teacher_s_output_layer_are_no_words(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    algorithm = CDCCA(hidden_weight=0.0, replay_weight=0.0)
    wider = tiny.model(backbone={"model": wider_model(tiny.pocket(), tmp_path, columns=5)})
    models = tiny.build(algorithm, tiny.parties(DEVICE, server=wider))
    module, given = models.server.module, lesson(tiny, models)
    losses = algorithm.akd.loss(module.train(), given)
    module.eval()
    assert given.tokens is not None
    said = (given.tokens.inputs(), given.tokens.present, given.tokens.instructions, given.answers)
    with torch.no_grad():
        student, teacher = (module.tower(name)(*said) for name in ("slm", "llm"))
    words = student.logits.shape[-1]
    assert teacher.logits.shape[-1] == words + 5
    mask, logits = student.labels >= 0, teacher.logits[..., :words]
    expected = distillation_loss(student.logits, logits, mask=mask, temperature=2.0)
    torch.testing.assert_close(losses["logits"], expected)


def test_a_batch_that_ranks_share_may_have_no_answer_at_all(tiny: SimpleNamespace) -> None:
    algorithm, models = built(tiny)
    module, given = models.server.module.train(), lesson(tiny, models)
    module.sharded = True  # as with several ranks, of which this is the only one
    losses = algorithm.akd.loss(module, given._replace(answers=("", "")))
    assert losses["logits"] == 0
    assert torch.isfinite(losses["loss"])


def test_an_alignment_begins_as_the_identity_and_takes_no_random_number() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    align = Alignment(2, 3)
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.tensor([[[1.0, 2.0]]])
    prompt, hidden = align(x, 2 * x)
    assert (prompt.tolist(), hidden.tolist()) == ([[[1, 2, 0]]], [[[2, 4, 0]]])


def test_the_parts_that_train_beside_lora() -> None:
    settings = ConnectorSettings(width=3, prompt_length=2)
    connector = Connector({"acc": 4, "type": 2}, 5, settings=settings)
    found = {part: set(trained_tensors(connector, [part])) for part in PARTS}
    assert found == {
        "lora": set(),
        "norms": {"fuse.0.weight", "fuse.0.bias"},
        "biases": {"projections.acc.bias", "projections.~type.bias", "fuse.1.bias"},
        "prompts": {"to_prompt.2.bias"},
    }
    assert trained_tensors(connector, PARTS).keys() == set().union(*found.values())


@pytest.mark.parametrize("train", [PARTS, pytest.param(["prompts"], marks=pytest.mark.slow)])
def test_what_trains_goes_down_and_the_device_stays_a_copy(
    tiny: SimpleNamespace, tmp_path: Path, train: list[Part]
) -> None:
    """In the last round too: what the server learns after its broadcast comes with the next."""
    algorithm = CDCCA(
        train=train,
        answer_weight=1.0,
        feature_weight=1.0,
        measure="features",
        steps=tiny.steps(warmup=1, public=0, private=1, server=2),
    )
    tiny.fit(
        algorithm,
        tmp_path,
        tiny.parties(DEVICE),
        max_rounds=2,
        enable_checkpointing=True,
        codec=DWC(fraction=1.0, bits=32),
    )
    states = [
        torch.load(next(tmp_path.rglob(f"round={r:04d}.ckpt")), weights_only=True) for r in range(2)
    ]
    # The device of round 1 has what the server had at the end of round 0.
    phone = states[1]["clients"]["phone"]["model"]
    server, later = (state["server"]["model"] for state in states)
    names = {k for k in phone if k.startswith("towers.slm.") and ".readout." not in k}
    moved = {k for k in names if not torch.equal(server[k], later[k])}
    exact = ".lora_" if "lora" in train else None
    for name in names:
        if exact and exact in name:  # a difference is sent, and added again
            torch.testing.assert_close(phone[name], server[name])
        else:
            assert torch.equal(phone[name], server[name]), name
    kinds = {"lora": ".lora_", "norms": "fuse.0.", "prompts": "to_prompt.2.bias"}
    assert {p for p, word in kinds.items() if any(word in k for k in moved)} == {*train} - {
        "biases"
    }
    assert any("fuse.1.bias" in k for k in moved) == ("biases" in train)
    assert not any(k.endswith("projections.pixels.weight") for k in moved)
