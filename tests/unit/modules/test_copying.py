"""Training data of pocket models that copy, and that one learns to from them."""

import pytest
import torch

from mlecs_lightning.modules.copying import Passages, Words, byte_pair_tokenizer
from mlecs_lightning.modules.pocket_training import PocketRecipe, copying_model, train_to_copy
from mlecs_lightning.nn.texts import TextCoder

WORDS = Words(
    (
        "the camera shows that a fox runs in the garden",
        "bells ring far away on the recording",
        "a fox runs in the garden while bells ring far away .",
    ),
    ("seen", "heard"),
)
ASK = ["sum it up ."]
DRILLS = 20


@pytest.fixture(scope="module")
def passages() -> Passages:
    tokenizer = byte_pair_tokenizer(WORDS.all_texts(ASK), special=["<eos>", "<slot>"], end="<eos>")
    coder = TextCoder(tokenizer, embedded=len(tokenizer), positions=512, model="pocket")
    return Passages(
        WORDS, ASK, coder, filler=1, slots=4, draws=40, drills=DRILLS, length=120, seed=3
    )


def test_what_a_drill_asks_for_stands_before_it(passages: Passages) -> None:
    """Wherever a token counts, it and the one before it occur earlier, next to each other."""
    distances = set()
    for index in range(DRILLS):
        tokens, labels = (row.tolist() for row in passages[index])
        counted = [i for i, label in enumerate(labels) if label != -100]
        assert 20 < len(counted) < 48
        for i in counted:
            assert labels[i] == tokens[i]
            before = [j for j in range(1, i) if tokens[j - 1 : j + 1] == tokens[i - 1 : i + 1]]
            assert before, "what cannot be known is not asked for"
            distances.add(i - before[-1])
    assert len(distances) > 20, "copying at one distance is a matter of positions"
    special = {0, 1}
    assert not special & set(tokens[:96])


def test_after_the_drills_come_sentences_behind_texts(passages: Passages) -> None:
    for index in range(DRILLS, len(passages)):
        tokens, labels = (row.tolist() for row in passages[index])
        first = next(i for i, label in enumerate(labels) if label != -100)
        assert tokens[:4] == [1] * 4
        counted = [label for label in labels if label != -100]
        assert counted == tokens[first : first + len(counted)]
    assert all(map(torch.equal, passages[DRILLS], passages[DRILLS]))


@pytest.mark.slow
def test_a_model_learns_to_copy_what_it_has_never_seen() -> None:
    """Of random tokens at unseen distances: chance is 1 in 290, three seeds reach 0.82 to 0.92."""
    recipe = PocketRecipe(layers=3, width=64, steps=350, batch_size=16, learning_rate=4e-3)
    tokenizer, lm = train_to_copy(recipe, WORDS, ASK, on_step=lambda: None)
    dice = torch.Generator().manual_seed(1)
    right = []
    for length, gap in ((5, 3), (12, 40), (20, 70)):
        part = torch.randint(2, len(tokenizer), (32, length), generator=dice)
        between = torch.randint(2, len(tokenizer), (32, gap), generator=dice)
        with torch.no_grad():
            said = lm(input_ids=torch.cat([part, between, part], dim=1)).logits.argmax(-1)
        right.append((said[:, length + gap : -1] == part[:, 1:]).float().mean().item())
    assert min(right) > 0.5, right


def test_only_the_last_layer_sees_further_than_the_token_before() -> None:
    """Changing a token changes the states of two tokens a layer, and of all later ones at last."""
    tokenizer = byte_pair_tokenizer(["a b"], special=["<eos>", "<slot>"], end="<eos>")
    torch.manual_seed(0)
    lm = copying_model(tokenizer, layers=3, width=16, heads=2, spread=0.2).eval()
    tokens = torch.arange(2, 12).unsqueeze(0)
    other = tokens.clone()
    other[0, 3] = 50
    with torch.no_grad():
        one = lm(input_ids=tokens, output_hidden_states=True).hidden_states
        two = lm(input_ids=other, output_hidden_states=True).hidden_states
    changed = [(a != b).any(-1)[0] for a, b in zip(one, two, strict=True)]
    assert [layer.nonzero().flatten().tolist() for layer in changed] == [
        [3],
        [3, 4],
        [3, 4, 5],
        [3, 4, 5, 6, 7, 8, 9],
    ]
