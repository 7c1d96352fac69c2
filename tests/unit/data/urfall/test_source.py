import sys
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from mlecs_lightning.data.urfall.files import CLASSES
from mlecs_lightning.data.urfall.source import URFall
from mlecs_lightning.data.urfall.split import SCENES, split_sequences


@pytest.fixture(scope="module")
def data(urfd_root: Path) -> URFall:
    pytest.importorskip("av")
    return URFall(urfd_root)


def test_pools_have_the_documented_sizes(data: URFall) -> None:
    counts = {
        name: np.bincount(pool.labels, minlength=3).tolist()
        for name, pool in data.pools._asdict().items()
    }
    assert counts == {
        "public": [275, 54, 78],
        "private": [721, 185, 281],
        "test": [228, 79, 95],
    }


def test_sequences_stay_in_their_pool(data: URFall) -> None:
    for pool, expected in zip(data.pools, split_sequences("suggested"), strict=True):
        assert set(pool.groups) == set(expected)
        assert [SCENES[group] for group in pool.groups] == list(pool.domains)
        assert all(i.startswith(f"{g}/") for i, g in zip(pool.ids, pool.groups, strict=True))
    ids = [i for pool in data.pools for i in pool.ids]
    assert len(set(ids)) == len(ids)
    assert not any(i.startswith("fall-10") for i in ids)


def test_inputs_are_standardised_by_the_public_split(data: URFall) -> None:
    public, private, _ = data.pools
    for name, spec in data.modalities.items():
        column = public.inputs[name].double()
        assert column.shape[1:] == spec.shape
        others = [0, *range(2, column.ndim)]
        np.testing.assert_allclose(column.mean(others), 0, atol=1e-4)
        np.testing.assert_allclose(column.std(others, correction=0), 1, atol=1e-4)
        # With statistics of all pools the private ones would lie on the other side of zero.
        assert private.inputs[name].double().mean(others).abs().max() > 0.02
    assert all(bool(pool.present.all()) for pool in data.pools)


def test_background_is_gone_from_rgb(data: URFall) -> None:
    """Of the pixel values of a scene, its own mean is a small part."""
    private = data.pools.private
    rows = [i for i, domain in enumerate(private.domains) if domain == "living_dark"]
    images = private.inputs["rgb"][rows]
    assert float(images.mean(0).square().mean() / images.square().mean()) < 0.2


def test_every_target_reads_back_as_its_class(data: URFall) -> None:
    for pool in data.pools:
        labels = [data.read_label(target) for target in pool.targets]
        assert labels == pool.labels.tolist()
    assert set(data.pools.test.instructions) == {"what is the person doing ?"}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The person is Lying, on the floor.", 2),
        ("falling falling", 1),
        ("the person is upright or falling .", None),
        ("the person is uprightly .", None),
        ("the person fell .", None),
        ("", None),
    ],
)
def test_label_is_a_whole_word_and_the_only_one(text: str, label: int | None) -> None:
    assert URFall("unread").read_label(text) == label


def test_pretraining_pairs_are_balanced_and_hold_every_target() -> None:
    module = URFall("unread")
    pairs = module.pretraining_pairs()
    assert len(set(pairs)) == len(pairs) == 33
    for label, name in enumerate(CLASSES):
        keys = [key for key, sentence in pairs if module.read_label(sentence) == label]
        assert len(keys) == 11
        assert name in keys
        assert all(module.read_label(key) == label for key in keys)
    sentences = {sentence for _, sentence in pairs}
    assert len(sentences) == 3
    # Words are separated by single blanks, full stops too.
    assert all(sentence.endswith(" .") and sentence == sentence.lower() for sentence in sentences)


def test_one_scene_is_left_out(urfd_root: Path) -> None:
    module = URFall(
        urfd_root, modalities=["depth"], split="leave_one_scene_out", test_scene="office_B"
    )
    public, private, test = module.pools
    assert set(test.domains) == {"office_B"}
    assert len(set(test.groups)) == 5
    assert set(public.domains) | set(private.domains) == set(SCENES.values()) - {"office_B"}


def test_videos_and_pyav_are_needed_for_rgb_only(
    urfd_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    module = URFall(urfd_root, modalities=["depth", "acc"], cache_dir=tmp_path)
    assert module.pools.public.modalities == ("acc", "depth")
    assert list(module.modalities) == ["acc", "depth"]
    with pytest.raises(ImportError, match=r"mlecs_lightning\[video\]"):
        _ = URFall(urfd_root, modalities=["rgb"], cache_dir=tmp_path).pools


def test_missing_root_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        _ = URFall(tmp_path / "nowhere").pools
    message = str(raised.value)
    assert message.startswith(f"data.init_args.root: '{tmp_path / 'nowhere'}' is not a folder")
    assert "accelerometer/: found 0 of 69, missing " in message
    assert "labels_depth_features/: found 0 of 2" in message
    assert "rgb_cam0/: found 0 of 69" in message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"modalities": ["sound"]}, r"modalities must be some of .* got \['sound'\]"),
        ({"modalities": []}, "modalities must be some of"),
        ({"window_seconds": 0.0}, "window_seconds must be positive .* got 0.0 and 5"),
        ({"stride": 0}, "stride at least 1, got 1.0 and 0"),
        ({"val_fraction": 1.0}, "val_fraction must be in"),
    ],
)
def test_value_out_of_range_names_its_key(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        URFall("unread", **wrong)  # type: ignore[arg-type]


def test_settings_of_the_base_are_settings_of_the_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(URFall, "data", sub_configs=False)
    parsed = parser.parse_args(["--data.root=x", "--data.batch_size=7", "--data.modalities=[rgb]"])
    module = URFall(**parsed.data)
    assert (module.batch_size, module.partition, list(module.modalities)) == (7, "domain", ["rgb"])


def test_clients_of_all_scenes_get_windows(data: URFall) -> None:
    from mlecs_lightning.types import ClientProfile

    data.attach({scene: ClientProfile(("acc",), (scene,)) for scene in set(SCENES.values())})
    for scene in set(SCENES.values()):
        train = data.private(scene)
        assert set(train.domains) == {scene}
        assert set(data.private(scene, "test").domains) == {scene}
        assert not set(train.groups) & set(data.private(scene, "val").groups)
