"""The task of the benchmark of summaries: what its targets repeat, and what no part shares."""

import pytest

from benchmarks.summaries import (
    CLIENTS,
    MARGIN,
    SEEDS,
    SIZES,
    compared,
    phrases,
    rouge,
    run,
    task,
)


def test_a_target_repeats_what_its_inputs_say_and_nothing_else() -> None:
    frame = {"while", "and", "."}
    for part in SIZES:
        for sample in task(12, part=part, seed=1):
            target, texts = sample["target"], sample["texts"]
            (has,) = (has for has, holds in CLIENTS.values() if sample["domain"] in holds)
            assert list(texts) == has
            said = {word for text in texts.values() for word in text.split()}
            assert set(target.split()) - frame <= said
            assert not set(" ".join(texts.values()).split()) <= set(target.split()), "a choice"


def test_no_phrase_is_in_two_parts_and_public_samples_are_those_of_all_seeds() -> None:
    found = phrases()
    every = [phrase for pool in found.values() for phrase in pool]
    assert len(set(every)) == len(every)
    assert min(map(len, found.values())) >= 6
    assert task(9, part="public", seed=1) == task(9, part="public", seed=2)
    assert task(9, part="test", seed=1) != task(9, part="test", seed=2)


def test_a_client_is_compared_on_the_samples_that_it_is_scored_on() -> None:
    parts = {part: task(12, part=part, seed=1) for part in SIZES}
    rows = {client: compared(parts, has) for client, (has, _) in CLIENTS.items()}
    assert {client: [*row] for client, row in rows.items()} == {
        client: ["constant", *has] for client, (has, _) in CLIENTS.items()
    }
    heard = [s for s in parts["test"] if "audio" in s["texts"]]
    assert 0 < len(heard) < len(parts["test"])
    copied = rouge([s["texts"]["audio"] for s in heard], [s["target"] for s in heard])
    assert rows["radio"]["audio"] == copied


@pytest.mark.slow
def test_clients_beat_a_constant_sentence_and_copying_an_input() -> None:
    """The registered rule on one of its seeds."""
    row = run(SEEDS[0])
    for client in CLIENTS:
        score, against = row["clients"][client], row["compared"][client]
        assert score - against["constant"] >= MARGIN, (client, row)
        assert score > max(against[m] for m in CLIENTS[client][0]), (client, row)
