"""Texts that language models cannot read, never say, or change: found before anything trains."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from mlecs_lightning import Manifest
from mlecs_lightning.algorithms import Centralized, CoPLMs, FedAvg
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.clients.backbones import check_lengths
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.clients.texts import pocket_texts, seen_by, text_suspicions
from mlecs_lightning.data import Digits
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules.pocket import pocket_coder
from mlecs_lightning.report import check_data

WORDS = ["it", "is", "up", "down", ".", "a", "long", "word", "say"]
POSITIONS, PROMPT, ANSWER = 24, 4, 6
CLIENTS = ("hall", "kitchen")
# (split, client), how many samples.
COUNTS = {
    ("public", None): 8,
    ("train", "hall"): 6,
    ("train", "kitchen"): 6,
    ("val", "hall"): 2,
    ("val", "kitchen"): 2,
    ("test", "hall"): 3,
    ("test", "kitchen"): 3,
}
Where = tuple[str, str | None]


def model(path: Path, positions: int = POSITIONS) -> str:
    """Write a small GPT-2 that reads whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(path)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=positions,
        n_embd=16,
        n_layer=1,
        n_head=2,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two models, one of which reads more."""
    root = tmp_path_factory.mktemp("models")
    return {"short": model(root / "short"), "long": model(root / "long", 64)}


def manifest(
    folder: Path, changed: dict[Where, dict[str, str]], **values: Any
) -> tuple[Manifest, dict[Where, str]]:
    """Write samples of few words; the first one of some splits is another.

    Returns:
        The data, and the id of the first sample of each split.
    """
    lines: list[dict[str, Any]] = []
    firsts: dict[Where, str] = {}
    for (split, client), count in COUNTS.items():
        for i in range(count):
            n = len(lines)
            line = {
                "id": f"sample-{n}",
                "split": split,
                "client": client,
                "modalities": {"tilt": [n, -n, n % 3]},
                "instruction": "say it",
                "target": ("it is up .", "it is down .")[i % 2],
            }
            if i == 0:
                firsts[split, client] = line["id"]
                line |= changed.get((split, client), {})
            lines.append(line)
    file = folder / "m.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = {"tilt": {"kind": "vector", "shape": [3]}}
    options = {"batch_size": 2, "eval_batch_size": 4, **values}
    return Manifest(file, spec, cache_dir=folder, **options), firsts


@pytest.fixture
def settings(tiny: SimpleNamespace, folders: dict[str, str]) -> Callable[..., Any]:
    """Settings of a federation; ``long`` names those who have the model that reads more."""

    def call(*long: str) -> Any:  # noqa: ANN401 - as tiny has it
        def of(party: str) -> Any:  # noqa: ANN401
            backbone = {"model": folders["long" if party in long else "short"]}
            connector = {"prompt_length": PROMPT}
            return tiny.model(backbone=backbone, connector=connector, max_new_tokens=ANSWER)

        clients = {
            name: ClientSettings(["tilt"], backbone={"model": folders["long"]})
            if name in long
            else ClientSettings(["tilt"])
            for name in CLIENTS
        }
        return tiny.parties(clients, server=of("server"), edge=of("edge"))

    return call


def long(words: int) -> str:
    return " ".join(["long"] * words)


# Too long to be read ------------------------------------------------------------------------------

# Where a target of 40 words is, who has the longer model, and all that is named.
PLACES: dict[str, tuple[Where, tuple[str, ...], list[str]]] = {
    "public": (
        ("public", None),
        (),
        ["server, split public: 1 of", "clients.hall and 1 more, split public: 1 of"],
    ),
    "public, large server": (
        ("public", None),
        ("server",),
        ["edge, split public: 1 of", "clients.hall and 1 more, split public: 1 of"],
    ),
    "training": (("train", "hall"), (), ["clients.hall, split train: 1 of 6"]),
    "validation": (("val", "kitchen"), (), ["clients.kitchen, split val: 1 of 2"]),
    "validation, other reads more": (
        ("val", "hall"),
        ("kitchen",),
        ["clients.hall, split val: 1 of 2"],
    ),
    "test": (
        ("test", "kitchen"),
        ("server", "kitchen"),
        # Its own, and the server's copy of its model.
        ["clients.hall, split test: 1 of 6"] * 2,
    ),
}


@pytest.mark.parametrize(("where", "longer", "named"), PLACES.values(), ids=PLACES.keys())
def test_a_text_that_a_party_cannot_read_is_found_before_training(
    where: Where,
    longer: tuple[str, ...],
    named: list[str],
    tiny: SimpleNamespace,
    settings: Callable[..., Any],
    tmp_path: Path,
) -> None:
    data, firsts = manifest(tmp_path, {where: {"target": long(40)}})
    with pytest.raises(ConfigurationError) as caught:
        tiny.build(FedAvg(), settings(*longer), data)
    said = str(caught.value)
    # Instruction of 2, target and end of sequence.
    assert said.count(f"needs {PROMPT + 2 + 41} positions, the model has {POSITIONS}") == len(named)
    assert [each for each in named if each not in said] == []
    assert "shorten them, or take a model that reads more" in said
    assert firsts[where] not in said, "what a client holds is its own"


@pytest.mark.parametrize("field", ["instruction", "target"])
@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_is_the_last_position(
    field: str, over: int, tiny: SimpleNamespace, settings: Callable[..., Any], tmp_path: Path
) -> None:
    """The same text trains, or is refused: prompt, instruction, target or an answer, and end."""
    fits = {"instruction": POSITIONS - PROMPT - ANSWER - 1, "target": POSITIONS - PROMPT - 2 - 1}
    data, _ = manifest(tmp_path, {("train", "hall"): {field: long(fits[field] + over)}})
    if over:
        with pytest.raises(ConfigurationError, match=r"clients\.hall, split train: 1 of 6"):
            tiny.build(FedAvg(), settings(), data)
        return
    federation = tiny.build(FedAvg(), settings(), data)
    edge, table = federation.edge("hall"), data.private("hall")
    assert edge.fit([table.__getitems__(range(len(table)))], stage="s")["s/loss"] > 0
    assert len(edge.predict([table.__getitems__(range(len(table)))])) == 6


def test_what_only_some_methods_read_is_measured_with_them(
    tiny: SimpleNamespace, settings: Callable[..., Any], folders: dict[str, str], tmp_path: Path
) -> None:
    data, _ = manifest(tmp_path, {("train", "hall"): {"target": long(40)}})
    given = settings("hall", "kitchen")

    def said(algorithm: Any, federation: Any = given) -> str:  # noqa: ANN401
        parties = Parties.resolve(federation, algorithm, data)
        with pytest.raises(ConfigurationError) as caught:
            check_lengths(parties, data, algorithm)
        return str(caught.value)

    parties = Parties.resolve(given, FedAvg(), data)
    check_lengths(parties, data, FedAvg())  # both clients read long texts
    assert "server, split train, of all clients: 1 of 12" in said(Centralized())
    # The proxy has the backbone of the edges, whatever that of the device.
    assert "clients.hall, split train: 1 of 6" in said(CoPLMs())
    check_lengths(Parties.resolve(settings(), FedAvg(), data), data, clients=False)


# Too long to be said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "who"),
    [
        (("public", None), "server, split public: 1 of"),
        (("train", "hall"), "clients.hall, split train: 1 of 6"),
        (("val", "kitchen"), "clients.kitchen, split val: 1 of 2"),
        (("test", "hall"), "server, split test: 1 of 6"),
    ],
)
def test_a_target_that_is_never_said_to_its_end_is_warned_of(
    where: Where,
    who: str,
    tiny: SimpleNamespace,
    settings: Callable[..., Any],
    tmp_path: Path,
) -> None:
    data, _ = manifest(tmp_path, {where: {"target": long(ANSWER + 2)}})
    with pytest.warns(UserWarning, match="max_new_tokens") as caught:
        tiny.build(FedAvg(), settings(), data)
    (said,) = [str(w.message) for w in caught if "max_new_tokens" in str(w.message)]
    assert said.startswith(who)
    key = "edge" if where[0] in ("train", "val") else "server"
    assert f"than {key}.max_new_tokens {ANSWER}" in said
    assert f"has {ANSWER + 2}: raise {key}.max_new_tokens" in said


def test_a_target_as_long_as_the_longest_answer_is_fine(
    tiny: SimpleNamespace,
    settings: Callable[..., Any],
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    changed = {where: {"target": long(ANSWER)} for where in COUNTS}
    tiny.build(FedAvg(), settings(), manifest(tmp_path, changed)[0])
    assert not [w for w in recwarn if "max_new_tokens" in str(w.message)]


# Data check ---------------------------------------------------------------------------------------


def suspicions(data: Manifest, federation: Any) -> list[str]:  # noqa: ANN401 - as tiny has it
    parties = Parties.resolve(federation, FedAvg(), data)
    found = text_suspicions(parties, data, algorithm=FedAvg())
    console = Console(file=io.StringIO(), width=400)
    told = check_data(data, parties.profiles, console, texts=found)
    assert told[len(told) - len(found) :] == found
    assert f"suspicious: {len(told) or 'nothing'}" in console.file.getvalue()  # type: ignore[attr-defined]
    return found


def test_data_check_says_nothing_of_texts_that_are_read_and_said(
    settings: Callable[..., Any], tmp_path: Path
) -> None:
    assert suspicions(manifest(tmp_path, {})[0], settings("server", "hall")) == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (long(40), "needs 47 positions, the model has 24"),
        (long(ANSWER + 1), f"than edge.max_new_tokens {ANSWER}"),
        ("it is <eos> up .", "others once the tokenizer"),
        ("it is upside .", "others once the tokenizer"),
        ("<unk>", "others once the tokenizer"),
    ],
)
def test_data_check_names_what_cannot_be_read_or_said_and_one_example(
    target: str, words: str, settings: Callable[..., Any], tmp_path: Path
) -> None:
    data, firsts = manifest(tmp_path, {("val", "hall"): {"target": target}})
    found = [line for line in suspicions(data, settings()) if words in line]
    assert len(found) == 1
    assert found[0].startswith("clients.hall, split val: 1 of 2 t")
    assert f"id {firsts['val', 'hall']!r}" in found[0]
    assert target not in found[0]


def test_data_check_goes_by_the_tokenizer_of_each_party(
    tiny: SimpleNamespace, settings: Callable[..., Any], tmp_path: Path
) -> None:
    """Pocket models, of which none is trained, know the words of public targets alone."""
    changed = {("train", c): {"target": "it is upside ."} for c in CLIENTS}
    data, _ = manifest(tmp_path, changed)
    pocket = tiny.parties(
        {"hall": ClientSettings(["tilt"]), "kitchen": settings("kitchen").clients["kitchen"]},
        server=tiny.model(max_new_tokens=8),
        edge=tiny.model(max_new_tokens=8),
    )
    found = suspicions(data, pocket)
    assert [line.partition(":")[0] for line in found] == [
        "clients.hall, split train",
        "clients.kitchen, split train",
    ]
    assert "'pocket/slm'" in found[0]
    assert "'pocket/slm'" not in found[1]


def test_data_check_of_a_model_that_is_not_here_says_so(
    tiny: SimpleNamespace, settings: Callable[..., Any], tmp_path: Path
) -> None:
    given = settings()
    absent = tiny.model(backbone={"model": "no/such-model"}, max_new_tokens=8)
    parties = tiny.parties(given.clients, server=absent, edge=given.edge)
    (said,) = suspicions(manifest(tmp_path, {})[0], parties)
    assert said.startswith("server.backbone.model 'no/such-model': ")
    assert said.endswith("its texts are not checked")


# What a pocket model has seen ---------------------------------------------------------------------


def test_a_pocket_model_is_pretrained_on_what_is_asked_for() -> None:
    given = (None, "targets", "public", "other")
    data = {each: Digits(pretrain_on=each) for each in given}  # type: ignore[arg-type]
    pairs = {each: pocket_texts("pocket/slm", data[each])[1] for each in given}
    assert pairs[None] == pairs["targets"] == Digits().pretraining_pairs()
    said = {each: {sentence for _, sentence in pairs[each]} for each in given}
    assert said["public"] == {*Digits().pools.public.targets}
    assert said["other"] == {" ".join(sorted(text.split())) for text in said["public"]}
    assert not said["other"] & said["targets"], "LoRA has every sentence to learn"
    assert [keys for keys, _ in pairs["other"]] == [keys for keys, _ in pairs["public"]]
    words = [pocket_coder(*pocket_texts("pocket/slm", data[e])).tokenizer for e in given[2:]]
    assert words[0].get_vocab() == words[1].get_vocab()
    about = {each: seen_by("pocket/slm", data[each]) for each in given}
    assert about[None] == {}
    assert about["other"] == {
        "kind": "key words",
        "samples": "other",
        "sentences": len(said["other"]),
    }


def test_a_manifest_has_no_sentences_but_those_of_its_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pretrain_on: a manifest has no .* take public or other"):
        manifest(tmp_path, {}, pretrain_on="targets")
    data, _ = manifest(tmp_path, {("train", "hall"): {"target": "a word"}}, pretrain_on="other")
    said = {sentence for _, sentence in pocket_texts("pocket/slm", data)[1]}
    assert said == {". is it up", ". down is it"}
