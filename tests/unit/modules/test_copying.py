"""Training data of pocket models that copy, and that one learns to from them."""

from collections.abc import Callable

import pytest
import torch

from mlecs_lightning.modules.copying import Example, Passages, Words, byte_pair_tokenizer
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


ANIMALS = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kid", "lynx"]
SHOWN = tuple(Example((f"here is {a} at last", None), ASK[0], f"{a} is here") for a in ANIMALS)


@pytest.fixture(scope="module")
def make() -> Callable[..., Passages]:
    def build(
        examples: tuple[Example, ...] = (), *, length: int = 120, drills: int = DRILLS
    ) -> Passages:
        words = WORDS._replace(examples=examples)
        special = ["<eos>", "<slot>"]
        tokenizer = byte_pair_tokenizer(words.all_texts(ASK), special=special, end="<eos>")
        coder = TextCoder(tokenizer, embedded=len(tokenizer), positions=512, model="pocket")
        return Passages(
            words, ASK, coder, filler=1, slots=4, draws=40, drills=drills, length=length, seed=3
        )

    return build


@pytest.fixture(scope="module")
def passages(make: Callable[..., Passages]) -> Passages:
    return make()


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


def test_rare_words_of_a_labelled_sample_are_exchanged(make: Callable[..., Passages]) -> None:
    """What the target repeats is the same in the text, and the frame stays as it is."""
    passages = make(SHOWN, drills=0)
    encode, kinds = passages.encode, {"own": 0, "another": 0, "listed": 0, "left out": 0}
    own = {encode(word) for word in ANIMALS}
    for index in range(40):
        tokens, labels = (tuple(row.tolist()) for row in passages[index])
        frame, said = (*encode("is here"), 0), tuple(label for label in labels if label != -100)
        if said[-len(frame) :] != frame:
            continue  # a passage of another kind
        word = said[: -len(frame)]
        text = (*encode("here is"), *word, *encode("at last"))
        head = (1, 1, 1, 1, *encode("seen:"), *text, *encode("\n"))
        # A client without a modality has no line for it.
        absent = (*encode("heard:"), *encode("nothing"), *encode("\n"))
        forms = {"left out": (*head, *encode(ASK[0]), *said)}
        forms["listed"] = (*head, *absent, *encode(ASK[0]), *said)
        (form,) = (k for k, v in forms.items() if tokens == (*v, *[0] * (120 - len(v))))
        kinds[form] += 1
        kinds["own" if word in own else "another"] += 1
    assert min(kinds.values()) > 3, kinds


def test_a_labelled_sample_that_is_long_loses_text_before_its_target(
    make: Callable[..., Passages],
) -> None:
    long = Example(("word " * 200, "other " * 200), ASK[0], "the end")
    passages = make((long,) * 2, drills=0, length=64)
    ends = [tuple(row[row != -100].tolist()) for row in (passages[i][1] for i in range(40))]
    assert sum(end == (*passages.encode("the end"), 0) for end in ends) > 10


@pytest.mark.slow
def test_a_model_learns_to_copy_what_it_has_never_seen() -> None:
    """Of random tokens at unseen distances: chance is 1 in 290, three seeds reach 0.82 to 0.92."""
    recipe = PocketRecipe(layers=4, width=64, steps=350, batch_size=16, learning_rate=4e-3)
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


def test_only_the_last_layers_see_further_than_two_tokens_back() -> None:
    """Changing a token changes the states of three tokens a layer, at last of all later ones."""
    tokenizer = byte_pair_tokenizer(["a b"], special=["<eos>", "<slot>"], end="<eos>")
    torch.manual_seed(0)
    lm = copying_model(tokenizer, layers=4, width=16, heads=2, spread=0.2).eval()
    tokens = torch.arange(2, 12).unsqueeze(0)
    other = tokens.clone()
    other[0, 3] = 50
    with torch.no_grad():
        one = lm(input_ids=tokens, output_hidden_states=True).hidden_states
        two = lm(input_ids=other, output_hidden_states=True).hidden_states
    changed = [(a != b).any(-1)[0] for a, b in zip(one, two, strict=True)]
    assert [layer.nonzero().flatten().tolist() for layer in changed] == [
        [3],
        [3, 4, 5],
        [3, 4, 5, 6, 7],
        [3, 4, 5, 6, 7, 8, 9],
        [3, 4, 5, 6, 7, 8, 9],
    ]
