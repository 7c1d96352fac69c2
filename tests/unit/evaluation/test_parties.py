import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric import Fabric

from mlecs_lightning import Digits
from mlecs_lightning.algorithms import FedAvg
from mlecs_lightning.clients import FederationModels
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.evaluation.scores import mean_rows
from mlecs_lightning.rounds.participation import Limit, limited
from mlecs_lightning.types import Batch


class Parrot:
    """A party that says what a function of the target says."""

    name = "parrot"

    def __init__(self, say: Callable[[int, str], str]) -> None:
        self.say, self.seen = say, 0

    def predict(self, batches: Iterable[Batch]) -> list[dict[str, str]]:
        rows = [(i, t) for batch in batches for i, t in zip(batch.ids, batch.targets, strict=True)]
        self.seen = len(rows)
        return [
            {"id": i, "prediction": self.say(n, t), "target": t} for n, (i, t) in enumerate(rows)
        ]


def evaluator(data: Digits, limit: int | None = None, clients: Limit = None) -> Evaluator:
    fabric = Fabric(accelerator="cpu", devices=1)
    return Evaluator(data, fabric=fabric, bertscore=False, limit=limit, limit_clients=clients)


@pytest.fixture(scope="module")
def data(tiny: SimpleNamespace) -> Digits:
    return tiny.data()


@pytest.fixture(scope="module")
def federation(tiny: SimpleNamespace, data: Digits) -> FederationModels:
    return tiny.build(FedAvg(), None, data)


def test_mean_leaves_out_what_is_missing_or_not_a_number() -> None:
    rows = [{"a": 1.0, "b": math.nan}, {"a": 4.0, "b": 2.0, "c": 8.0}, {}]
    assert mean_rows(rows) == {"a": 2.5, "b": 2.0, "c": 8.0}
    assert mean_rows([{"a": math.nan}]) == {}


@pytest.mark.parametrize(
    ("targets", "scored"),
    [(("?", "!", "...", "-"), {"exact_match"}), (("", " ", "", ""), set()), ((), set())],
)
def test_a_client_with_nothing_to_score_does_not_count_in_the_mean(
    data: Digits, targets: tuple[str, ...], scored: set[str]
) -> None:
    free: Any = SimpleNamespace(classes=(), eval_batch_size=256)  # targets name no class
    judge, table = evaluator(free), data.public("test").select(range(4))
    usual = judge.scores(Parrot(lambda n, t: t if n else "nothing"), table)
    unusual = replace(table.select(range(len(targets))), targets=targets)
    row = judge.scores(Parrot(lambda n, t: "nothing"), unusual)
    assert set(row) == scored
    assert mean_rows([usual, row])["rouge_lsum"] == usual["rouge_lsum"] == 0.75
    assert not any(map(math.isnan, row.values()))


def test_a_party_that_knows_everything_scores_one(data: Digits) -> None:
    scores = evaluator(data).scores(Parrot(lambda n, t: t), data.public("test"))
    assert scores == dict.fromkeys(("rouge_lsum", "exact_match", "accuracy", "macro_f1"), 1.0)


def test_scores_of_known_predictions(data: Digits) -> None:
    """Every second sentence is right; the others name no digit."""
    table = data.public("test").select(range(8))
    parrot = Parrot(lambda n, t: t if n % 2 else "nothing")
    scores = evaluator(data).scores(parrot, table)
    assert scores["accuracy"] == scores["exact_match"] == scores["rouge_lsum"] == 0.5
    # Nothing is named wrongly, so the F1 of a class of r samples, h of them right, is 2h / (r + h).
    samples = [(y, n % 2) for n, y in enumerate(table.labels.tolist())]
    f1 = []
    for label in {y for y, _ in samples}:
        right = [hit for y, hit in samples if y == label]
        f1.append(2 * sum(right) / (len(right) + sum(right)))
    assert scores["macro_f1"] == pytest.approx(sum(f1) / len(f1))


def test_scores_of_one_party_do_not_add_up_with_those_of_the_last(data: Digits) -> None:
    judge, table = evaluator(data), data.public("test")
    judge.scores(Parrot(lambda n, t: ""), table)
    assert judge.scores(Parrot(lambda n, t: t), table)["accuracy"] == 1.0


def test_the_limit_is_in_batches(data: Digits) -> None:
    parrot = Parrot(lambda n, t: t)
    evaluator(data, limit=2).scores(parrot, data.public("test"))
    assert parrot.seen == 2 * data.eval_batch_size


def test_an_empty_table_has_no_scores(data: Digits) -> None:
    nothing = data.public("test").select([])
    parrot = Parrot(lambda n, t: t)
    judge = evaluator(data)
    assert judge.scores(parrot, nothing) == {}
    assert judge.constant(data.public("train"), nothing) == {}


def test_constant_row_is_the_best_sentence_of_the_training_targets(data: Digits) -> None:
    test = data.public("test")
    row = evaluator(data).constant(data.public("train"), test)
    most = max(test.targets.count(t) for t in set(data.public("train").targets))
    assert row["exact_match"] == pytest.approx(most / len(test))
    share = max(test.labels.bincount().tolist()) / len(test)
    assert row["accuracy"] == pytest.approx(share)
    # F1 of the class that is always named, over the ten classes.
    assert row["macro_f1"] == pytest.approx(2 * share / (1 + share) / 10)


def test_constant_row_is_scored_on_what_the_parties_are_scored_on(data: Digits) -> None:
    train, test = data.public("train"), data.public("test")
    seen = test.select(range(data.eval_batch_size))
    assert evaluator(data, limit=1).constant(train, test) == evaluator(data).constant(train, seen)


# Of a federation ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(data: Digits, federation: FederationModels) -> dict[str, Any]:
    return evaluator(data, limit=1).test(federation)


def test_a_client_is_judged_on_its_own_domain_and_on_all(
    data: Digits, federation: FederationModels, results: dict[str, Any]
) -> None:
    judge = evaluator(data, limit=1)
    for name, profile in federation.parties.profiles.items():
        edge = federation.edge(name)
        own, everywhere = data.private(name, "test"), data.held_out(name, profile)
        assert own.ids != everywhere.ids
        assert results["clients"][name] == {
            "modalities": list(profile.modalities),
            "own": judge.scores(edge, own),
            "all": judge.scores(edge, everywhere),
        }
    assert results["server"] == judge.scores(federation.server, data.public("test"))


def test_means_are_over_the_clients(results: dict[str, Any]) -> None:
    for view in ("own", "all"):
        for metric, value in results["mean"][view].items():
            parts = [client[view][metric] for client in results["clients"].values()]
            assert len(parts) == 3
            assert value == pytest.approx(sum(parts) / 3)


def test_constant_rows_stand_beside_every_view(
    data: Digits, federation: FederationModels, results: dict[str, Any]
) -> None:
    judge = evaluator(data, limit=1)
    public = data.public("train")
    assert results["constant"]["server"] == judge.constant(public, data.public("test"))
    own = [
        judge.constant(data.private(c, "train"), data.private(c, "test"))
        for c in federation.clients
    ]
    for metric, value in results["constant"]["own"].items():
        assert value == pytest.approx(sum(row[metric] for row in own) / 3)
    assert results["constant"]["all"].keys() == results["mean"]["all"].keys()


def test_constant_sentence_of_a_client_comes_from_its_own_samples(tiny: SimpleNamespace) -> None:
    data = tiny.data()
    federation = tiny.build(FedAvg(), None, data)
    only = data.private("hall", "train").select([0])
    data._private = {"hall": {**data._private["hall"], "train": only}}
    federation.parties.profiles.pop("kitchen")
    federation.parties.profiles.pop("study")
    judge = evaluator(data)
    results = judge.test(federation)
    table = data.private("hall", "test")
    right = table.targets.count(only.targets[0]) / len(table)
    assert results["constant"]["own"]["exact_match"] == pytest.approx(right)
    assert judge.constant(data.public("train"), table)["exact_match"] > right


def test_a_client_without_own_test_samples_is_left_out_of_the_mean(
    tiny: SimpleNamespace,
) -> None:
    data = tiny.data()
    federation = tiny.build(FedAvg(), None, data)
    data._private["hall"]["test"] = data._private["hall"]["test"].select([])
    data._private["hall"]["val"] = data._private["hall"]["val"].select([])
    results = evaluator(data, limit=1).test(federation)
    assert results["clients"]["hall"]["own"] == {}
    assert results["clients"]["hall"]["all"] != {}
    own = [results["clients"][c]["own"]["rouge_lsum"] for c in ("kitchen", "study")]
    assert results["mean"]["own"]["rouge_lsum"] == pytest.approx(sum(own) / 2)
    values = evaluator(data, limit=1).validate(federation)
    assert not any(k.startswith("clients/hall/") for k in values)
    losses = [values[f"clients/{c}/val/loss"] for c in ("kitchen", "study")]
    assert values["clients/val/loss"] == pytest.approx(sum(losses) / 2)


def test_validation_judges_by_loss_and_scores_on_the_validation_splits(
    data: Digits, federation: FederationModels
) -> None:
    values = evaluator(data, limit=1).validate(federation)
    size = data.eval_batch_size
    for name in federation.clients:
        batch = data.private(name, "val").__getitems__(range(size))
        loss = federation.edge(name).loss([batch])
        assert values[f"clients/{name}/val/loss"] == pytest.approx(loss, rel=1e-6)
    batch = data.public("val").__getitems__(range(size))
    assert values["server/val/loss"] == pytest.approx(federation.server.loss([batch]), rel=1e-6)
    losses = [values[f"clients/{c}/val/loss"] for c in federation.clients]
    assert values["clients/val/loss"] == pytest.approx(sum(losses) / 3)
    assert "server/val/rouge_lsum" in values


def test_counts_of_a_confusion_matrix_give_the_accuracy_that_is_reported(
    federation: FederationModels, data: Digits, results: dict[str, Any]
) -> None:
    told = results["confusion"]
    assert told["classes"] == list(data.classes)
    assert list(told["clients"]) == list(federation.clients)
    parties = {c: (told["clients"][c], results["clients"][c]["all"]) for c in federation.clients}
    parties["server"] = (told["server"], results["server"])
    for counts, scores in parties.values():
        assert [len(row) for row in counts] == [len(data.classes) + 1] * len(data.classes)
        hits = sum(row[k] for k, row in enumerate(counts))
        assert scores["accuracy"] == pytest.approx(hits / sum(map(sum, counts)))
    # True classes are those of the samples, whatever was answered.
    scored = data.public("test").targets[: data.eval_batch_size]
    of_class = [0] * len(data.classes)
    for target in scored:
        of_class[data.read_label(target)] += 1
    assert [sum(row) for row in told["server"]] == of_class


# A share of the clients -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "count"),
    [(None, 10), (3, 3), (12, 10), (1, 1), (1.0, 10), (0.25, 3), (0.01, 1)],
)
def test_a_limit_is_a_number_or_a_fraction(limit: Limit, count: int) -> None:
    assert limited(limit, 10) == count
    assert limited(limit, 0) == 0


def test_a_share_of_the_clients_is_drawn_anew_in_each_round(
    data: Digits, federation: FederationModels
) -> None:
    judge, few = evaluator(data, limit=1), evaluator(data, limit=1, clients=2)
    drawn = [few.drawn(federation, round=number) for number in range(20)]
    assert drawn == [few.drawn(federation, round=number) for number in range(20)]
    assert {len(each) for each in drawn} == {2}
    assert len(set(drawn)) == 3  # all pairs of three clients, each in the federation's order
    whole = judge.validate(federation)
    number = next(n for n in range(20) if drawn[n] == ("kitchen", "study"))
    values = few.validate(federation, round=number)
    losses = [whole[f"clients/{client}/val/loss"] for client in drawn[number]]
    assert values.pop("evaluation/clients") == 2
    assert values["clients/val/loss"] == sum(losses) / 2
    missing = {k for k in whole if k.startswith("clients/hall/")}
    assert values.keys() == whole.keys() - missing
    assert values["server/val/loss"] == whole["server/val/loss"]


def test_only_clients_with_validation_samples_are_drawn(tiny: SimpleNamespace) -> None:
    data = tiny.data()
    federation = tiny.build(FedAvg(), None, data)
    data._private["hall"]["val"] = data._private["hall"]["val"].select([])
    few = evaluator(data, clients=1)
    drawn = {few.drawn(federation, round=number) for number in range(20)}
    assert drawn == {("kitchen",), ("study",)}


def test_the_test_of_a_share_says_how_many(
    data: Digits, federation: FederationModels, results: dict[str, Any]
) -> None:
    tested = evaluator(data, limit=1, clients=0.3).test(federation)
    assert tested["tested"] == 1
    assert "tested" not in results
    (scored,) = (name for name, each in tested["clients"].items() if each["own"])
    assert tested["clients"][scored] == results["clients"][scored]
    assert tested["mean"]["own"] == results["clients"][scored]["own"]
