from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning.algorithms import MLECS, FedAvg
from mlecs_lightning.algorithms.answers import Answers, Labels, Questions, answer_all, taught
from mlecs_lightning.algorithms.answers.exchange import Acceptance, AnsweredAdapters, chosen
from mlecs_lightning.algorithms.answers.reliability import MAX_CLASSES
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.rounds import RoundContext
from mlecs_lightning.wire import Channel, ChannelError
from mlecs_lightning.wire.channel import Direction
from mlecs_lightning.wire.encoding import decode

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]
ALL = Answers(
    consensus="similarity",
    server_threshold=0.0,
    client_threshold=0.0,
    accept="all",
    calibrate=False,
)
CHOSEN = replace(ALL, accept="best", calibrate=True)


def data(tiny: SimpleNamespace) -> Any:  # noqa: ANN401
    return tiny.data(public_labelled=0.1)


def checkpoint(root: Path, number: int) -> dict[str, Any]:
    path = root / "tiny" / "version_0" / "checkpoints" / f"round={number:04d}.ckpt"
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def run(tiny: SimpleNamespace, tapped: Tap, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401
    """Two rounds of FedAvg with answers and all that crossed the wire: read it, change nothing."""
    root, digits = tmp_path_factory.mktemp("answers"), data(tiny)
    algorithm = FedAvg(steps=tiny.steps(warmup=1), answers=ALL)
    with tapped() as log:
        tiny.fit(algorithm, root, None, digits, max_rounds=2, enable_checkpointing=True)
    questions = ALL.questions(tiny.loaders(digits))
    return SimpleNamespace(
        root=root, log=log, asked=questions.asked, questions=questions, data=digits
    )


def told(run: SimpleNamespace, direction: str) -> list[tuple[str, Labels]]:
    return [
        (client, Labels.of(decode(content)[0]))
        for way, client, content in run.log.messages
        if way == direction
    ]


def test_clients_answer_what_nobody_has_labelled(run: SimpleNamespace) -> None:
    assert 0 < len(run.asked) < len(run.data.public("train"))
    for _, labels in told(run, "uplink"):
        assert len(labels.texts) == len(run.asked)
        assert any(labels.texts)
        assert ((labels.confidence > 0) == torch.tensor([bool(t) for t in labels.texts])).all()


def test_server_says_nothing_before_it_has_heard_from_anybody(
    run: SimpleNamespace, tiny: SimpleNamespace
) -> None:
    down = [labels for _, labels in told(run, "downlink")]
    first, second = down[: len(tiny.clients)], down[len(tiny.clients) :]
    assert all(labels.texts == () for labels in first)
    assert all(len(labels.texts) == len(run.asked) for labels in second)
    assert len({labels.texts for labels in second}) == 1, "the same answers for everybody"


def test_answers_of_the_server_are_those_of_its_weights(
    run: SimpleNamespace, tiny: SimpleNamespace
) -> None:
    """So a run that is resumed sends the same ones, with nothing kept between rounds."""
    federation = tiny.build(FedAvg(answers=ALL), None, run.data)
    federation.server.load_state_dict(checkpoint(run.root, 0)["server"])
    again = ALL.answer(federation.server, run.questions)
    _, sent = told(run, "downlink")[-1]
    assert again.texts == sent.texts
    assert torch.equal(again.confidence.half().float(), sent.confidence)


def test_public_pass_learns_from_answers_in_place_of_targets(
    run: SimpleNamespace, tiny: SimpleNamespace
) -> None:
    answers = dict(zip(run.asked.ids, told(run, "downlink")[-1][1].texts, strict=True))
    known = {i: t for i, t in zip(*_columns(run.data), strict=True) if t}
    passes = [(stage, batches) for name, stage, batches in run.log.passes if name in tiny.clients]
    public = [batch for stage, batches in passes if stage == "public" for batch in batches]
    first, second = public[: len(tiny.clients)], public[len(tiny.clients) :]
    for batch in first:
        assert batch.targets == tuple(known.get(i, "") for i in batch.ids)
    for batch in second:
        assert batch.targets == tuple(known.get(i) or answers[i] for i in batch.ids)
    assert any(i in answers for batch in second for i in batch.ids)


def _columns(digits: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:  # noqa: ANN401
    table = digits.public("train")
    return table.ids, table.targets


def test_server_learns_from_the_consensus_of_the_clients(
    run: SimpleNamespace, tiny: SimpleNamespace
) -> None:
    clients = len(tiny.clients)
    votes = [labels for _, labels in told(run, "uplink")][:clients]
    names = [client for client, _ in told(run, "uplink")][:clients]
    weights = [float(len(run.data.private(name))) for name in names]
    agreed = ALL.agreed(list(zip(votes, weights, strict=True)), run.questions)
    assert agreed is not None
    answers = agreed.by_id(run.asked.ids)
    (batch,) = next(
        batches for name, stage, batches in run.log.passes if (name, stage) == ("server", "public")
    )
    taught = {i: t for i, t in zip(batch.ids, batch.targets, strict=True) if i in answers}
    assert taught
    assert all(answers[i] == target for i, target in taught.items())


@pytest.mark.parametrize("algorithm", [FedAvg, MLECS])
def test_nothing_is_asked_unless_the_settings_say_so(
    algorithm: type[FedAvg], tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    with tapped() as log:
        tiny.fit(algorithm(steps=tiny.steps()), tmp_path, None, data(tiny))
    for _, _, content in log.messages:
        message, _ = decode(content)
        assert not any(name.startswith("answers") for name in (*message.tensors, *message.scalars))


@pytest.mark.parametrize("direction", ["uplink", "downlink"])
def test_answers_cross_the_border_only_where_they_are_declared(
    run: SimpleNamespace, tiny: SimpleNamespace, direction: Direction
) -> None:
    client, content = next(
        (client, content) for way, client, content in run.log.messages if way == direction
    )
    edge = tiny.build(FedAvg(answers=ALL), None, run.data).edge(client).module

    def faults(algorithm: FedAvg) -> str:
        schema, facts = getattr(algorithm, direction)(edge), {"client": client, "round": 0}
        try:
            Channel().receive(content, schema, direction=direction, **facts)
        except ChannelError as error:  # a trainer declares the losses that a client reports, too
            return str(error)
        return ""

    assert "answers" not in faults(FedAvg(answers=ALL))
    for part in ("tensor 'answers/index'", "tensor 'answers/confidence'", "scalar 'answers'"):
        assert f"undeclared {part}" in faults(FedAvg())


@pytest.mark.parametrize(
    ("algorithm", "answers"),
    [
        pytest.param(FedAvg, CHOSEN, marks=pytest.mark.slow),
        pytest.param(FedAvg, ALL, marks=pytest.mark.slow),
        pytest.param(MLECS, ALL, marks=pytest.mark.slow),
    ],
)
def test_run_that_is_gone_on_with_ends_in_the_same_bits(
    algorithm: type[FedAvg], answers: Answers, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    ends = []
    for name, rounds in (("whole", (3,)), ("parts", (1, 3))):
        for count in rounds:
            tiny.trainer(tmp_path / name, max_rounds=count, enable_checkpointing=True).fit(
                algorithm(steps=tiny.steps(warmup=1), answers=answers),
                data(tiny),
                tiny.parties(),
                ckpt_path="last" if count != rounds[0] else None,
            )
        ends.append(checkpoint(tmp_path / name, 2))
    one, other = (end["server"]["model"] for end in ends)
    assert all(torch.equal(one[k], other[k]) for k in one)
    for client in tiny.clients:
        mine, theirs = (end["clients"][client]["model"] for end in ends)
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_answers_of_the_wrong_number_are_refused_and_the_run_goes_on(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = Answers.answer

    def short(self: Answers, learner: Any, questions: Questions) -> Labels:  # noqa: ANN401
        labels = answer(self, learner, questions)
        if learner.name != "hall":
            return labels
        return Labels(labels.texts[1:], labels.confidence[1:])

    monkeypatch.setattr(Answers, "answer", short)
    summary = tiny.fit(FedAvg(steps=tiny.steps(), answers=ALL), tmp_path, None, data(tiny))
    (fault,) = summary["faults"]["events"]
    assert (fault["client"], fault["kind"]) == ("hall", "refused")


def test_probability_is_that_of_the_model_that_answers(tiny: SimpleNamespace) -> None:
    digits = data(tiny)
    server = tiny.build(FedAvg(answers=ALL), None, digits).server
    table = ALL.questions(tiny.loaders(digits)).asked.select(range(4))
    labels = answer_all(server, table)
    spoken = replace(table, targets=labels.texts)
    for n in range(len(table)):
        (loss, tokens) = server.map(
            sequential_loader(spoken.select([n]), 1),
            lambda module, batch: (lambda o: (o.loss, int(o.tokens())))(module.read(batch)),
        )[0]
        expected = torch.exp(-loss * tokens)
        torch.testing.assert_close(labels.confidence[n], expected, atol=1e-5, rtol=1e-3)


def test_answers_that_are_not_sure_enough_teach_nobody(tiny: SimpleNamespace) -> None:
    digits = data(tiny)
    loaders = tiny.loaders(digits)
    asked = ALL.questions(loaders).asked
    texts = tuple(f"text {n}" for n in range(len(asked)))
    labels = Labels(texts, torch.linspace(0, 1, len(asked)))
    lessons = taught(loaders, labels.above(0.75)).public
    table = lessons.table
    found = dict(zip(table.ids, table.targets, strict=True))
    for n, sample in enumerate(asked.ids):
        assert found[sample] == (texts[n] if labels.confidence[n] >= 0.75 else "")
    known = loaders.public.table.labelled()
    assert (table.labelled() | ~known).all(), "targets stay"
    ids = loaders.public.ids(2, seed=5)
    assert lessons.ids(2, seed=5) == ids, "the same batches"


def test_a_sample_without_any_input_is_not_answered(tiny: SimpleNamespace) -> None:
    digits = data(tiny)
    server = tiny.build(FedAvg(answers=ALL), None, digits).server
    table = ALL.questions(tiny.loaders(digits)).asked.select(range(4))
    keep = torch.ones_like(table.present)
    keep[1] = False
    labels = answer_all(server, table.mask(keep))
    assert [bool(text) for text in labels.texts] == [True, False, True, True]
    assert labels.confidence[1] == 0.0


def test_thresholds_have_a_range() -> None:
    with pytest.raises(ValueError, match=r"answers\.server_threshold must lie in \[0, 1\], got 2"):
        Answers(server_threshold=2)
    with pytest.raises(ValueError, match=r"answers\.share must lie in \(0, 1\], got 0"):
        Answers(share=0)


def test_context_of_a_round_is_all_that_answers_need(tiny: SimpleNamespace) -> None:
    """Whoever sends a broadcast knows how many answers to expect, in a resumed round as well."""
    digits = data(tiny)
    for answers in (ALL, CHOSEN):
        algorithm = FedAvg(answers=answers)
        federation = tiny.build(algorithm, None, digits)
        ctx = RoundContext(1, 0, ("hall",))
        ((_, message),) = algorithm.broadcast(federation.server, tiny.loaders(digits), ctx)
        unknown = int((~digits.public("train").labelled()).sum())
        checks = len(digits.public("val")) if answers is CHOSEN else 0
        assert Labels.faults(message, samples=unknown + checks) == []


def labels(*given: tuple[str, float]) -> Labels:
    return Labels(tuple(text for text, _ in given), torch.tensor([sure for _, sure in given]))


OWN = labels(("a", 0.9), ("a", 0.2), ("a", 0.5), ("a", 0.5), ("", 0.0))
THEIRS = labels(("b", 0.6), ("b", 0.6), ("b", 0.5), ("a", 0.1), ("b", 0.3))


@pytest.mark.parametrize(
    ("accept", "texts", "confidence"),
    [
        # Surer itself; less sure; a tie; the same answer; has none of its own.
        ("surer", ("", "b", "", "a", "b"), [0.0, 0.6, 0.0, 0.5, 0.3]),
        ("best", ("a", "b", "a", "a", "b"), [0.9, 0.6, 0.5, 0.5, 0.3]),
        ("agreed", ("", "", "", "a", ""), [0.0, 0.0, 0.0, 0.5, 0.0]),
    ],
)
def test_what_a_client_accepts_by_hand(
    accept: Acceptance, texts: tuple[str, ...], confidence: list[float]
) -> None:
    found = chosen(OWN, THEIRS, accept)
    assert found.texts == texts
    torch.testing.assert_close(found.confidence, torch.tensor(confidence))


def test_party_that_is_wrong_on_checks_is_not_believed(tiny: SimpleNamespace) -> None:
    """The server says that it is sure; its answers to the checks tell otherwise."""
    questions = CHOSEN.questions(tiny.loaders(data(tiny)))
    asked, checks = len(questions.asked), len(questions.checks)
    assert checks > 20
    own = Labels(("mine",) * asked + questions.checks.targets, torch.full((asked + checks,), 0.6))
    theirs = Labels(("wrong",) * (asked + checks), torch.full((asked + checks,), 0.99))
    assert set(CHOSEN.accepted(own, theirs, questions, round=1).texts) == {"mine"}
    raw = Answers(client_threshold=0.0, accept="best", calibrate=False)
    assert set(raw.accepted(own, theirs, questions, round=1).texts) == {"wrong"}


def test_client_that_is_wrong_on_checks_does_not_sway_the_consensus(tiny: SimpleNamespace) -> None:
    questions = CHOSEN.questions(tiny.loaders(data(tiny)))
    asked, checks = len(questions.asked), len(questions.checks)
    right = Labels(("a",) * asked + questions.checks.targets, torch.full((asked + checks,), 0.5))
    wrong = Labels(("b",) * (asked + checks), torch.full((asked + checks,), 0.9))
    votes = [(right, 1.0), (wrong, 1.0)]
    for answers in (CHOSEN, replace(CHOSEN, consensus="confusion")):
        found = answers.agreed(votes, questions)
        assert found is not None
        assert set(found.texts) == {"a"}
        assert len(found.texts) == asked
    raw = replace(CHOSEN, calibrate=False).agreed(votes, questions)
    assert raw is not None
    assert set(raw.texts) == {"b"}


def test_share_is_drawn_anew_each_round_and_the_same_for_all(tiny: SimpleNamespace) -> None:
    half = replace(ALL, share=0.5)
    questions = half.questions(tiny.loaders(data(tiny)))
    n = len(questions.asked)
    theirs = Labels(("a",) * n, torch.ones(n))
    first, again, other = (
        half.accepted(Labels.none(), theirs, questions, round=r).texts for r in (1, 1, 2)
    )
    assert first == again != other
    # Binomial(n, 1/2): five deviations.
    assert abs(sum(map(bool, first)) - n / 2) < 5 * (n / 4) ** 0.5


def test_free_text_is_combined_by_similarity() -> None:
    """More texts than classes that confusion can tell apart: nearly every answer is another one."""
    count = MAX_CLASSES + 1
    questions: Any = SimpleNamespace(asked=range(count), checks=SimpleNamespace(targets=()))
    votes = [
        (Labels(tuple(f"{word} {n}" for n in range(count)), torch.ones(count)), weight)
        for word, weight in (("red", 1.0), ("dark red", 1.0), ("blue", 1.5))
    ]
    answers = Answers(consensus="confusion", calibrate=False)
    found = answers.agreed(votes, questions)
    assert found is not None
    assert set(found.texts) <= {f"{word} {n}" for word in ("red", "dark red") for n in range(count)}


def test_nothing_is_checked_where_nothing_is_asked(tiny: SimpleNamespace) -> None:
    for labelled, some in ((1.0, False), (0.1, True)):
        questions = CHOSEN.questions(tiny.loaders(tiny.data(public_labelled=labelled)))
        assert (len(questions.asked) > 0, len(questions.checks) > 0) == (some, some)


def test_targets_count_as_classes_too() -> None:
    """Free text as targets, and clients that say little, as in the first round."""
    known = MAX_CLASSES + 1
    targets = tuple(f"caption {n}" for n in range(known))
    questions: Any = SimpleNamespace(asked=range(3), checks=SimpleNamespace(targets=targets))
    votes = [(Labels(("red",) * (3 + known), torch.ones(3 + known)), 1.0)]
    found = Answers(consensus="confusion", calibrate=False).agreed(votes, questions)
    assert found is not None
    assert found.texts == ("red",) * 3


def test_an_answer_that_a_model_cannot_read_does_not_count(
    tiny: SimpleNamespace, run: SimpleNamespace
) -> None:
    """One client says much too much and is heard above all others; the server goes on."""
    algorithm = FedAvg(steps=tiny.steps(), answers=ALL)
    server, loaders = tiny.build(algorithm, None, run.data).server, tiny.loaders(run.data)
    count, target = len(run.asked), next(filter(None, loaders.public.table.targets))
    spoken = Labels((target, "x " * 5000, *[""] * (count - 2)), torch.ones(count))
    heard = run.questions.readable(spoken, server.module)
    assert heard.texts == (target, *[""] * (count - 1))
    assert heard.confidence.tolist() == [1.0, *[0.0] * (count - 1)]
    votes = AnsweredAdapters(clients=1, error=0.0, adapters={}, votes=((spoken, 2.0**31),))
    algorithm.server_update(server, votes, loaders, RoundContext(0, 0, ()))
