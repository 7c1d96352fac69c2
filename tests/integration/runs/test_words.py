"""Texts read as tokens, from the manifest to an exported model; what their backbone has seen."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mlecs_lightning import Manifest, load_exported
from mlecs_lightning.clients.texts import pocket_texts, seen_by
from mlecs_lightning.modules.pocket import COPYING, PocketRecipe, pocket_coder
from mlecs_lightning.types import ClientProfile

Mlecs = Callable[..., SimpleNamespace]
CLIENTS = {"kitchen": ["seen", "said"], "hall": ["seen", "ink"]}
MODALITIES = {
    "seen": {"kind": "text", "shape": [96], "as": "tokens", "max_tokens": 12},
    "said": {"kind": "text", "shape": [96], "as": "tokens", "max_tokens": 8},
    "ink": {"kind": "vector", "shape": [3]},
}
COUNTS = {("public", None): 8, ("train", "kitchen"): 8, ("train", "hall"): 8, ("test", None): 4}
# Each in every text and target of its split, and nowhere else.
ONLY = {"public": "marmalade", "train": "zeppelin", "test": "quicksand"}
MICRO = PocketRecipe(layers=1, width=16, heads=2, steps=2, batch_size=2)


@pytest.fixture(scope="module")
def config(manifest_yaml: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("words")
    lines = []
    for (split, client), count in COUNTS.items():
        for i in range(count):
            only = ONLY[split]
            # Some have no word that anybody said.
            said = None if i % 4 == 3 else {"text": f"number {i} likes {only}"}
            lines.append(
                {
                    "id": f"{split}-{client}-{i}",
                    "split": split,
                    "client": client,
                    "modalities": {
                        "seen": {"text": f"{only} on table {i}"},
                        "said": said,
                        "ink": [i, -i, 1],
                    },
                    "target": f"{only} on table {i} and number {i} likes {only} .",
                }
            )
    return manifest_yaml(
        root,
        lines,
        modalities=MODALITIES,
        clients=CLIENTS,
        max_new_tokens=6,
        instruction="sum it up .",
        batch_size=4,
    )


@pytest.fixture
def micro() -> Iterator[None]:
    """Train pocket models for two steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name in COPYING:
            patch.setitem(COPYING, name, replace(MICRO, seed=7))
        yield


@pytest.mark.usefixtures("micro")
def test_words_are_trained_on_predicted_and_exported(
    config: Path, fit: Callable[..., SimpleNamespace], mlecs: Mlecs, tmp_path: Path
) -> None:
    whole = ("--trainer.limit_test_batches", "null", "--trainer.max_rounds", 1)
    ran = fit(tmp_path, *whole, config=config)
    seen = ran.summary["pretraining"]["pocket/slm"]
    assert (seen["kind"], seen["samples"], seen["modalities"]) == (
        "copying",
        "public",
        ["seen", "said"],
    )
    root = ("--trainer.default_root_dir", tmp_path)
    said = mlecs("predict", "--config", config, *root, "--ckpt_path", "last")
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in Path(said.out.strip()).read_text().splitlines()]
    own = {row["id"]: row["prediction"] for row in rows if row["party"] == "kitchen"}
    exported = mlecs("export", ran.folder, "--client", "kitchen", tmp_path / "model")
    assert exported.code == 0, exported.err
    model = load_exported(tmp_path / "model")
    lines = map(json.loads, (config.parent / "samples.jsonl").read_text().splitlines())
    tests = {line["id"]: line["modalities"] for line in lines if line["split"] == "test"}
    asked = {
        name: model.ask(seen=given["seen"]["text"], said=given["said"] and given["said"]["text"])
        for name, given in tests.items()
    }
    assert asked == own
    with pytest.raises(ValueError, match="ink"):
        model.ask(seen="a table", ink=[1, 2, 3])


def test_the_backbone_has_seen_no_word_of_a_client_or_a_test(config: Path) -> None:
    given = yaml.safe_load(config.read_text())["data"]["init_args"]
    data = Manifest(**{k: v for k, v in given.items() if k != "alpha"})
    data.attach({name: ClientProfile(tuple(has)) for name, has in CLIENTS.items()})
    texts = pocket_texts("pocket/slm", data)
    _, pairs, _, words = texts
    assert words is not None
    assert pairs == []
    coder = pocket_coder(*texts)
    assert len(words.examples) == COUNTS["public", None] - 1, "all but the one for validation"
    shown = {text for e in words.examples for text in (*e.texts, e.target) if text is not None}
    assert shown <= set(words.sentences)
    trained_on = {token for text in words.sentences for token in coder.encode(text)}
    for split, word in ONLY.items():
        public = split == "public"
        assert any(word in text for text in words.sentences) == public
        # As one token, it is in the vocabulary; the others are spelt from bytes and parts.
        assert (f"Ġ{word}" in coder.tokenizer.get_vocab()) == public
        assert coder.survives(f"{word} 1 .")
        assert (set(coder.encode(word)) <= trained_on) == public


def test_pretraining_without_examples_leaves_the_task_to_the_adapter(config: Path) -> None:
    given = yaml.safe_load(config.read_text())["data"]["init_args"]
    given = {k: v for k, v in given.items() if k != "alpha"}
    shown = {}
    for samples in ("public", "other"):
        data = Manifest(**given, pretrain_on=samples)  # type: ignore[arg-type]
        data.attach({name: ClientProfile(tuple(has)) for name, has in CLIENTS.items()})
        shown[samples] = pocket_texts("pocket/slm", data)[3]
        assert seen_by("pocket/slm", data)["samples"] == samples
    assert shown["public"] is not None
    assert shown["other"] == shown["public"]._replace(examples=())


def test_data_check_says_what_of_a_text_is_not_read(
    config: Path, mlecs: Mlecs, tmp_path: Path
) -> None:
    """In a script that the vocabulary has never seen a letter takes several tokens."""
    lines = [
        json.loads(line) for line in (config.parent / "samples.jsonl").read_text().splitlines()
    ]
    lines[8]["modalities"]["seen"] = {"text": "表の上の赤い本"}
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = ("--data.init_args.file", tmp_path / "samples.jsonl")
    said = mlecs("data", "check", "--config", config, *file)
    told = " ".join((said.out + said.err).split())
    assert f"(id {lines[8]['id']!r}) has 22 (scripts" in told, told
    assert "raise data.init_args.modalities.seen.max_tokens" in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--algorithm", "ECLM"), "ECLM exchanges the outputs of extractors"),
        (("--algorithm", "CDCCA"), "CDCCA exchanges the outputs of extractors"),
        (
            ("--edge.extractors", "{seen: {class_path: TextCNN}}"),
            "edge.extractors.seen: the language model reads this modality as tokens",
        ),
    ],
)
@pytest.mark.usefixtures("before_any_model")
def test_what_has_no_place_for_words_says_so(
    args: tuple[str, str], message: str, config: Path, mlecs: Mlecs, tmp_path: Path
) -> None:
    ran = mlecs("fit", "--config", config, "--trainer.default_root_dir", tmp_path, *args)
    assert (ran.code, message in " ".join(ran.err.split())) == (1, True), ran.err


@pytest.mark.usefixtures("before_any_model")
@pytest.mark.parametrize(
    ("modality", "message"),
    [
        ({"as": "tokens"}, "seen: as: tokens needs max_tokens"),
        ({"max_tokens": 4}, "seen: max_tokens is for as: tokens only"),
        ({"as": "words", "max_tokens": 4}, "seen.as: expected one of ['vector', 'tokens']"),
        ({"kind": "vector", "as": "tokens", "max_tokens": 4}, "as: tokens is for kind 'text' only"),
    ],
)
def test_faults_of_a_declaration_name_its_key(
    modality: dict[str, object], message: str, config: Path
) -> None:
    given = yaml.safe_load(config.read_text())["data"]["init_args"]
    given["modalities"] = {"seen": {"kind": "text", "shape": [96], **modality}}
    with pytest.raises(ValueError, match="modalities") as caught:
        Manifest(**{k: v for k, v in given.items() if k != "alpha"})
    assert message in str(caught.value)
