from typing import Any

from mlecs_lightning.evaluation.scores import checks_of
from mlecs_lightning.report.remarks import remarks


def rows(answers: list[str], targets: list[str]) -> list[dict[str, str]]:
    return [{"prediction": a, "target": t} for a, t in zip(answers, targets, strict=True)]


def summary(rouge: float, checks: dict[str, Any]) -> dict[str, Any]:
    return {
        "clients": {"hall": {"own": {}, "all": {"rouge_lsum": rouge}}},
        "server": {"rouge_lsum": 0.9},
        "checks": {"hall": checks, "server": checks},
    }


def test_repeated_sentences_are_counted_by_their_words() -> None:
    known = ["a cat  sleeps .", "", "a dog runs ."]
    said = rows(
        ["a cat sleeps .", "a dog runs .", "a cow eats .", "a dog runs . "],
        ["a cat sleeps .", "a cow eats .", "a cow eats .", "it rains ."],
    )
    checks = checks_of({"rouge_lsum": 0.5}, said, known)
    assert checks == {
        "constant": {"rouge_lsum": 0.5},
        "repeated": {"answers": 0.75, "targets": 0.25},
    }
    assert checks_of({}, [], known) == {}


def test_parties_below_the_constant_sentence_are_named_with_the_remedy() -> None:
    fair = {"constant": {"rouge_lsum": 0.4}, "repeated": {"answers": 0.1, "targets": 0.1}}
    assert remarks(summary(0.4, fair)) == []
    (said,) = remarks(summary(0.39, fair))
    assert "below that of one fixed answer to all samples: 'hall' (0.390 < 0.400)." in said
    assert "server" not in said
    assert "algorithm.init_args.steps" in said


def test_reciting_is_said_only_where_the_targets_are_not_the_same_sentences() -> None:
    for answers, targets, is_said in ((1.0, 1.0, False), (0.9, 0.4, True), (0.4, 0.0, False)):
        check = {"constant": {}, "repeated": {"answers": answers, "targets": targets}}
        told = remarks(summary(0.5, check))
        assert [("word for word" in each) for each in told] == [True] * is_said
        assert all("'hall' (90%, 40%), 'server' (90%, 40%)" in each for each in told)


def test_a_summary_of_an_older_run_has_no_remarks() -> None:
    old = summary(0.0, {})
    del old["checks"]
    assert remarks(old) == []
