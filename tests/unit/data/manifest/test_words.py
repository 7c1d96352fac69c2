from mlecs_lightning.data import Digits, URFall
from mlecs_lightning.data.manifest.words import keyword_pairs
from mlecs_lightning.data.urfall.source import _TARGETS


def keys(pairs: list[tuple[str, str]], sentence: str) -> list[str]:
    return [key for key, said in pairs if said == sentence]


def test_key_words_tell_a_sentence_from_the_others() -> None:
    pairs = keyword_pairs(_TARGETS)
    assert URFall.classes == ("upright", "falling", "lying")
    assert keys(pairs, _TARGETS[0]) == ["upright"]
    assert keys(pairs, _TARGETS[1]) == ["falling down", "falling", "down"]
    assert keys(pairs, _TARGETS[2])[0] == "lying on floor"


def test_the_facts_of_digits_are_found_without_being_told() -> None:
    """They are those that Digits writes down by hand: the digit, bold or light, above or below."""
    by_hand = {(frozenset(key.split()), said) for key, said in Digits().pretraining_pairs()}
    sentences = sorted({said for _, said in by_hand})
    found = {(frozenset(key.split()), said) for key, said in keyword_pairs(sentences)}
    assert found == by_hand


def test_a_sentence_of_common_words_has_those_as_keys() -> None:
    pairs = keyword_pairs(["yes it is", "no it is not", "it is"])
    assert keys(pairs, "it is") == ["it is"]
    assert keyword_pairs(["only one"]) == [
        ("only one", "only one"),
        ("only", "only one"),
        ("one", "only one"),
    ]


def test_of_many_key_words_the_rarest_eight_are_kept_in_order() -> None:
    long = " ".join(f"w{i}" for i in range(12))
    others = [f"w{i} x{i}" for i in (0, 3, 5, 7)]
    (first, *_) = keys(keyword_pairs([long, *others]), long)
    assert first == "w1 w2 w4 w6 w8 w9 w10 w11"


def test_long_sentences_are_cut_and_rare_ones_left_out() -> None:
    ((_, said), *_) = keyword_pairs([" ".join(["w"] * 500)])
    assert len(said.split()) == 160
    pairs = keyword_pairs([f"number {i}" for i in range(5000)] + ["number 4999"])
    assert len({said for _, said in pairs}) == 4096
    assert "number 4999" in {said for _, said in pairs}
