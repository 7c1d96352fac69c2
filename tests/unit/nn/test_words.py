"""Texts as tokens in front of the instruction: budgets, markers, absence, and z of their words."""

from pathlib import Path

import pytest
import torch

from mlecs_lightning.functional import text_to_bytes
from mlecs_lightning.modules.copying import byte_pair_tokenizer
from mlecs_lightning.modules.pocket_training import copying_model
from mlecs_lightning.nn import Tower
from mlecs_lightning.nn.connector import Embeddings
from mlecs_lightning.nn.texts import TextCoder
from mlecs_lightning.nn.words import ABSENT, WordReader, longest, piece, word_means
from mlecs_lightning.settings import (
    BackboneSettings,
    ConnectorSettings,
    LoraSettings,
    ModelSettings,
)

TEXTS = ["a red fox runs", "bells ring far away", "an old song"]
LIMITS = {"said": 6, "heard": 3}
ASK = ["say it ."] * 3
PRESENT = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0]], dtype=torch.bool)


@pytest.fixture(scope="module")
def byte_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained pocket model, random enough to answer as its input demands."""
    path = tmp_path_factory.mktemp("bytes")
    # Each twice, so that its words are tokens.
    own = [*TEXTS, *ASK, "said:", "heard:", ABSENT] * 2
    tokenizer = byte_pair_tokenizer(own, special=["<eos>", "<slot>"], end="<eos>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = copying_model(tokenizer, layers=3, width=32, heads=4, spread=0.2)
    lm.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tower(byte_dir: Path) -> Tower:
    torch.manual_seed(0)
    settings = ModelSettings(
        BackboneSettings(str(byte_dir)),
        LoraSettings(r=2, dropout=0.0),
        ConnectorSettings(width=4, prompt_length=2, dropout=0.0),
        max_new_tokens=6,
    )
    return Tower({"said": 0, "pixels": 5, "heard": 0}, settings, limits=LIMITS).eval()


@pytest.fixture
def coder(tower: Tower) -> TextCoder:
    return tower.backbone.coder


def inputs(said: list[str], heard: list[str]) -> dict[str, torch.Tensor]:
    return {
        "said": torch.stack([text_to_bytes(text, 64) for text in said]),
        "pixels": torch.ones(len(said), 5),
        "heard": torch.stack([text_to_bytes(text, 64) for text in heard]),
    }


def read_back(coder: TextCoder, words: tuple[int, ...]) -> str:
    return coder.decode([list(words)])[0]


def test_each_modality_is_read_after_its_name_and_cut_by_its_own_budget(coder: TextCoder) -> None:
    words, texts = WordReader(coder, LIMITS)(inputs(TEXTS, TEXTS[::-1]), PRESENT)
    assert read_back(coder, words[0]) == "said: a red fox runs heard: an old song"
    assert texts["heard"][0] == coder.encode("an old song")[:3]
    long = "a red fox runs " * 5
    cut, _ = WordReader(coder, LIMITS)(inputs([long] * 3, [long] * 3), PRESENT)
    assert max(map(len, cut)) <= longest(coder, LIMITS)
    assert len(cut[0]) == longest(coder, LIMITS), "the budget is used up"


def test_no_token_of_an_absent_text_reaches_the_model(coder: TextCoder, tower: Tower) -> None:
    """Not even from bytes that nobody has erased."""
    words, texts = WordReader(coder, LIMITS)(inputs(TEXTS, TEXTS), PRESENT)
    assert words[1] == (
        *piece(coder, "said", None, 6),
        *piece(coder, "heard", TEXTS[1], 3),
    )
    assert read_back(coder, words[2]).endswith(f"heard: {ABSENT}")
    assert texts["said"][1] == texts["heard"][2] == ()
    seen = tower.embed(inputs(TEXTS, TEXTS), PRESENT)
    other = inputs([TEXTS[0], "zebra", TEXTS[2]], [TEXTS[0], TEXTS[1], "quartz"])
    unseen = tower.embed(other, PRESENT)
    assert seen.words == unseen.words
    for one, two in zip(seen[:4], unseen[:4], strict=True):
        assert torch.equal(one, two)


def test_words_stand_between_prompt_and_instruction(tower: Tower, coder: TextCoder) -> None:
    """The same tokens, once as words and once as part of the instruction."""
    embeddings = tower.embed(inputs(TEXTS, TEXTS), PRESENT)
    out = tower.backbone(embeddings.prompt, ASK, TEXTS, words=embeddings.words)
    heads = tower.backbone._heads(ASK, embeddings.words)
    assert heads == [(*w, *coder.encode(ASK[0])) for w in embeddings.words]
    tokens, _, labels = tower.backbone._pack(heads, TEXTS)
    assert [row[row >= 0].tolist() for row in labels] == [
        [*coder.encode(text), coder.end] for text in TEXTS
    ]
    assert tokens.shape == labels.shape
    plain = tower.backbone(embeddings.prompt, ASK, TEXTS)
    assert out.loss != plain.loss
    torch.testing.assert_close(out.prompt_hidden, plain.prompt_hidden, msg="the model is causal")


def answers(tower: Tower, embeddings: Embeddings) -> list[str]:
    return tower.generate(embeddings, ASK)


def test_answers_depend_on_the_words_and_not_on_the_batch(tower: Tower) -> None:
    x = inputs(TEXTS, TEXTS)
    together = answers(tower, tower.embed(x, PRESENT))
    for row in range(3):
        alone = tower.embed({m: v[row : row + 1] for m, v in x.items()}, PRESENT[row : row + 1])
        assert tower.backbone.generate(
            alone.prompt, ASK[:1], max_new_tokens=6, words=alone.words
        ) == [together[row]]
    wordless = tower.embed(x, PRESENT)._replace(words=())
    assert answers(tower, wordless) != together


def test_z_is_projected_from_the_mean_of_frozen_word_embeddings(
    tower: Tower, coder: TextCoder
) -> None:
    embedding = tower.backbone.lm.get_input_embeddings()
    rows = [coder.encode(TEXTS[0])[:6], ()]
    means = word_means(rows, embedding)
    by_hand = embedding.weight[list(rows[0])].mean(dim=0)
    torch.testing.assert_close(means[0], torch.nn.functional.layer_norm(by_hand, (32,)))
    assert not means[1].any()
    embeddings = tower.embed(inputs(TEXTS, TEXTS), PRESENT)
    torch.testing.assert_close(
        embeddings.modalities[0, 0], tower.connector.projections["said"](means[0])
    )
    assert not means.requires_grad
    assert embeddings.fused.requires_grad


def test_room_counts_the_budgets(tower: Tower, coder: TextCoder) -> None:
    room = tower.room()
    markers = sum(len(coder.encode(f"{m}:")) + len(coder.encode("\n")) for m in LIMITS)
    assert room.words == markers + 6 + 3
    fixed = 2 + room.words + len(coder.encode(ASK[0]))
    assert room.needed(ASK[0], "") == fixed + 6 + 1
    assert room.asked() == 512 - 2 - room.words - 6 - 1


@pytest.mark.parametrize("text", ["", "ÄÖ €", "ζώο 狐 🦊", "<eos> _ </s>", "tab\tand 'quotes'"])
def test_any_text_can_be_read_and_said(coder: TextCoder, text: str) -> None:
    assert coder.survives(text)
    assert coder.end not in coder.encode(text)
