import itertools
import re
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mlecs_lightning.data import Digits, SampleTable
from mlecs_lightning.types import ClientProfile

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RAW = load_digits()


@pytest.fixture(scope="module")
def data() -> Digits:
    return Digits(seed=3)


def rows(table: SampleTable) -> np.ndarray:
    """Return where the samples stand in scikit-learn's own array."""
    return np.array([int(sample.removeprefix("digit-")) for sample in table.ids])


# Pools --------------------------------------------------------------------------------------------


def test_every_digit_is_in_one_of_three_pools(data: Digits) -> None:
    parts = [rows(pool) for pool in data.pools]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1797))
    # A quarter public, a fifth test.
    assert [len(part) for part in parts] == [450, 987, 360]


def test_pools_are_stratified_by_digit(data: Digits) -> None:
    overall = np.bincount(RAW.target) / 1797
    for pool in data.pools:
        share = np.bincount(pool.labels, minlength=10) / len(pool)
        assert np.abs(share - overall).max() < 1.5 / len(pool)


def test_pools_depend_on_the_data_seed_alone(data: Digits) -> None:
    np.random.seed(0)  # noqa: NPY002
    assert [pool.ids for pool in Digits(seed=3).pools] == [pool.ids for pool in data.pools]
    assert Digits(seed=4).pools.public.ids != data.pools.public.ids


@pytest.mark.parametrize(("public", "test"), [(0.1, 0.3), (0.5, 0.1)])
def test_fractions_are_shares_of_the_whole(public: float, test: float) -> None:
    pools = Digits(public_fraction=public, test_fraction=test).pools
    assert len(pools.public) == pytest.approx(public * 1797, abs=1)
    assert len(pools.test) == pytest.approx(test * 1797, abs=1)


@pytest.mark.parametrize(("public", "test"), [(0.0, 0.2), (0.2, 0.0), (0.5, 0.5), (0.9, 0.2)])
def test_fractions_that_leave_a_pool_empty_are_refused(public: float, test: float) -> None:
    with pytest.raises(ValueError, match=rf"public_fraction and .* got {public} and {test}"):
        Digits(public_fraction=public, test_fraction=test)


# Facts --------------------------------------------------------------------------------------------


def test_targets_are_true_facts_of_the_raw_images(data: Digits) -> None:
    held = np.concatenate([rows(data.pools.public), rows(data.pools.private)])
    ink = RAW.images.reshape(1797, -1).sum(1)
    middle = np.median(ink[held])
    for pool in data.pools:
        for i, target, domain in zip(rows(pool), pool.targets, pool.domains, strict=True):
            weight = "bold" if ink[i] > middle else "light"
            half = "above" if RAW.images[i, :4].sum() > RAW.images[i, 4:].sum() else "below"
            assert target == f"a {weight} {WORDS[RAW.target[i]]} with more ink {half} ."
            assert domain == weight


def test_every_fact_varies(data: Digits) -> None:
    words = Counter(word for target in data.pools.private.targets for word in target.split())
    assert all(words[word] > 60 for word in WORDS)
    assert 0.4 < words["bold"] / 987 < 0.6
    assert 0.2 < words["above"] / 987 < 0.8


def test_labels_are_the_digits_and_are_read_back_from_the_targets(data: Digits) -> None:
    for pool in data.pools:
        assert pool.labels.tolist() == RAW.target[rows(pool)].tolist()
        assert [data.read_label(target) for target in pool.targets] == pool.labels.tolist()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("a bold seven with more ink above .", 7),
        ("Seven.", 7),
        ("SEVEN seven", 7),
        ("seven or nine", None),
        ("a bold digit", None),
        ("", None),
        ("seventeen", None),
        ("phone someone often", None),
        ("7", None),
    ],
)
def test_label_is_read_from_one_whole_word(data: Digits, text: str, label: int | None) -> None:
    assert data.read_label(text) == label


def test_pretraining_pairs_hold_every_sentence_and_key_words_in_every_order(data: Digits) -> None:
    pairs = data.pretraining_pairs()
    assert len(pairs) == len(set(pairs)) == 10 * 2 * 2 * 6
    sentences = {sentence for _, sentence in pairs}
    assert len(sentences) == 40
    assert {target for pool in data.pools for target in pool.targets} <= sentences
    for sentence in sentences:
        said = re.findall(f"{'|'.join(WORDS)}|bold|light|above|below", sentence)
        assert {k for k, s in pairs if s == sentence} == {
            " ".join(order) for order in itertools.permutations(said)
        }


# Modalities ---------------------------------------------------------------------------------------


def raw_features() -> dict[str, np.ndarray]:
    images = RAW.images / 16
    return {
        "profile": np.concatenate([images.sum(2), images.sum(1)], axis=1),
        "fourier": np.abs(np.fft.fft2(images))[:, :, :5].reshape(1797, 40),
    }


def test_pixels_are_the_images_between_zero_and_one(data: Digits) -> None:
    for pool in data.pools:
        expected = torch.from_numpy(RAW.images[rows(pool)] / 16).float()
        assert torch.equal(pool.inputs["pixels"].squeeze(1), expected)
    assert float(data.pools.private.inputs["pixels"].max()) == 1.0


@pytest.mark.parametrize("modality", ["profile", "fourier"])
def test_features_are_standardised_by_the_public_rows_alone(data: Digits, modality: str) -> None:
    features = raw_features()[modality]
    public = features[rows(data.pools.public)]
    scale = np.maximum(public.std(0), 0.1 * public.std(0).mean())
    for pool in data.pools:
        expected = (features[rows(pool)] - public.mean(0)) / scale
        np.testing.assert_allclose(pool.inputs[modality], expected, atol=1e-4)
    moved = np.abs(data.pools.private.inputs[modality].mean(0).numpy()).max()
    assert moved > 1e-3, "private rows have a mean of their own"


def test_feature_that_no_public_sample_varies_in_is_no_division_by_zero() -> None:
    pools = Digits(public_fraction=0.02).pools
    blank = RAW.images[rows(pools.public)].sum(axis=1).std(axis=0) == 0
    assert blank.any(), "this seed must have such a column of the images"
    assert all(torch.isfinite(x).all() for pool in pools for x in pool.inputs.values())
    assert not pools.public.inputs["profile"][:, 8:][:, blank].any()


def test_inputs_have_the_shapes_that_are_promised(data: Digits) -> None:
    for pool in data.pools:
        assert pool.modalities == tuple(data.modalities)
        assert {m: x.shape[1:] for m, x in pool.inputs.items()} == {
            m: spec.shape for m, spec in data.modalities.items()
        }
        assert {x.dtype for x in pool.inputs.values()} == {torch.float32}
        assert pool.present.all()


# Dealing ------------------------------------------------------------------------------------------


def test_label_skew_is_the_default_partition() -> None:
    names = ("a", "b", "c")
    data = Digits(alpha=0.3)
    data.attach({name: ClientProfile(("pixels",)) for name in names})
    tables = [data.private(n, s) for n in names for s in ("train", "val")]
    assert sorted(i for t in tables for i in t.ids) == list(data.pools.private.ids)
    counts = np.array([np.bincount(data.private(n).labels, minlength=10) for n in names])
    # Even dealing gives each client a third of each digit.
    assert (counts.max(0) / counts.sum(0)).mean() > 0.55


def test_partition_by_domain_deals_bold_and_light_writers() -> None:
    data = Digits(partition="domain")
    data.attach({"a": ClientProfile(("pixels",), ("light",)), "b": ClientProfile(("profile",))})
    assert set(data.private("a").domains) == {"light"}
    assert set(data.private("b").domains) == {"bold"}
    assert all(" bold " in target for target in data.private("b", "test").targets)
