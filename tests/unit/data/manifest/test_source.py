import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlecs_lightning.data import Manifest
from mlecs_lightning.data.manifest.words import keyword_pairs
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.functional import bytes_to_text
from mlecs_lightning.metrics import references_of
from mlecs_lightning.types import ClientProfile

MODALITIES: dict[str, dict[str, Any]] = {
    "camera": {"kind": "image", "shape": [1, 4, 4]},
    "tilt": {"kind": "vector", "shape": [2]},
}
LABELS = {"up": ["up", "rising"], "down": ["down"]}
Row = dict[str, Any]


def row(id: str, split: str, **values: Any) -> Row:
    """One line with a tilt of its own, and a target of two that the id gives."""
    number = sum(map(ord, id))
    target = (
        {} if "targets" in values else {"target": "it is up ." if number % 2 else "it is down ."}
    )
    return {"id": id, "split": split, "modalities": {"tilt": [number, -number]}, **target, **values}


def rows(split: str, count: int, name: str = "", **values: Any) -> list[Row]:
    return [row(f"{split}-{name}-{i}", split, **values) for i in range(count)]


BASIC = [
    *rows("public", 8),
    *rows("train", 6, "k", client="kitchen"),
    *rows("train", 4, "h", client="hall"),
    *rows("test", 2, "k", client="kitchen"),
    *rows("test", 2, "n"),
]
CLIENTS = {"kitchen": ClientProfile(("tilt",)), "hall": ClientProfile(("tilt",))}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Manifest]:
    def call(lines: list[Row] = BASIC, **values: Any) -> Manifest:
        file = tmp_path / "m.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        only_tilt = {"tilt": MODALITIES["tilt"]}
        return Manifest(
            file, **{"modalities": only_tilt, "cache_dir": tmp_path / "cache", **values}
        )

    return call


Build = Callable[..., Manifest]


# Reading ------------------------------------------------------------------------------------------


def test_lines_become_the_three_pools_in_their_order(build: Build) -> None:
    pools = build(instruction="which way ?").pools
    expected = ("public", "train", "test")
    for split, pool in zip(expected, pools, strict=True):
        assert pool.ids == tuple(line["id"] for line in BASIC if line["split"] == split)
        assert set(pool.instructions) == {"which way ?"}
    assert pools.private.domains == ("kitchen",) * 6 + ("hall",) * 4
    assert pools.test.domains == ("kitchen", "kitchen", "unnamed", "unnamed")
    assert pools.public.targets[:2] == tuple(line["target"] for line in BASIC[:2])
    raw = torch.tensor([line["modalities"]["tilt"] for line in BASIC[:8]])
    torch.testing.assert_close(
        pools.public.inputs["tilt"],
        (raw - raw.double().mean(0)).float() / raw.double().std(0, correction=0).float(),
    )


def test_values_stay_as_they_are_for_an_encoder_that_wants_them_so(build: Build) -> None:
    tilt = {"kind": "vector", "shape": [2], "standardise": False}
    public = build(modalities={"tilt": tilt}).pools.public
    assert public.inputs["tilt"].tolist() == [line["modalities"]["tilt"] for line in BASIC[:8]]


def test_every_kind_of_file_ends_up_in_its_row(build: Build, tmp_path: Path) -> None:
    lines = []
    for i, line in enumerate([*rows("public", 4), *rows("train", 2)]):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
        np.save(tmp_path / f"{i}.npy", np.full((1, 4, 4), 20 * i / 255))
        (tmp_path / f"{i}.csv").write_text(f"a,b\n{i},{-i}\n")
        kind = "npy" if i % 2 else "png"
        lines.append({**line, "modalities": {"camera": f"{i}.{kind}", "tilt": f"{i}.csv"}})
    pools = build(lines, modalities=MODALITIES).pools
    # The public values 0, 1, 2, 3 have the mean 1.5 and the deviation sqrt(1.25).
    expected = (torch.arange(6) - 1.5) / 1.25**0.5
    for name, sign in (("camera", 1), ("tilt", 1)):
        column = torch.cat([pools.public.inputs[name], pools.private.inputs[name]])
        torch.testing.assert_close(column.flatten(1)[:, 0], sign * expected)
    assert pools.private.present.all()


def test_the_second_run_reads_its_files_from_the_cache(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for i, line in enumerate([*rows("public", 3), *rows("train", 2)]):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append({**line, "modalities": {"camera": f"{i}.png", "tilt": [i, i]}})
    first = build(lines, modalities=MODALITIES).pools
    monkeypatch.setattr(Image, "open", None)  # a decoder that is asked again fails
    again = build(lines, modalities=MODALITIES).pools
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.inputs["camera"], other.inputs["camera"])
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ConfigurationError, match="the manifest has 5 faults"):
        _ = build(lines, modalities=MODALITIES).pools


def test_faults_of_lines_and_files_stop_before_training_in_one_message(build: Build) -> None:
    lines = [
        *BASIC,
        {**row("x", "train", client="hall"), "modalities": {"tilt": "../../secret.csv"}},
        {**row("y", "train", client="hall"), "modalities": {"tilt": "none.csv"}},
        {**row("z", "train", client="hall"), "split": "dev"},
    ]
    with pytest.raises(ConfigurationError) as raised:
        _ = build(lines).pools
    said = str(raised.value).splitlines()
    assert said[0] == "the manifest has 3 faults:"
    assert [fault.split(":")[1].split()[0] for fault in said[1:]] == ["25", "23", "24"]


def test_dropped_inputs_count_as_absent_and_samples_without_any_vanish(build: Build) -> None:
    lines = [
        *(
            {**line, "modalities": {"tilt": [i, i], "camera": np.full((1, 4, 4), i).tolist()}}
            for i, line in enumerate(BASIC)
        ),
        {
            **row("half", "train", client="hall"),
            "modalities": {"tilt": "none.csv", "camera": "no.png"},
        },
        {**row("x", "train", client="hall"), "modalities": {"tilt": [1, 2], "camera": "no.png"}},
    ]
    data = build(lines, modalities=MODALITIES, on_error="drop")
    with pytest.warns(UserWarning, match=r"3 inputs count as absent: m\.jsonl:23 \(id 'half'\)"):
        private = data.pools.private
    assert private.ids[-2:] == ("train-h-3", "x")
    assert private.present[-1].tolist() == [False, True]
    assert not private.inputs["camera"][-1].any()
    assert data.inputs is not None
    assert len(data.inputs.unread) == 3


@pytest.mark.parametrize("on_error", ["raise", "drop"])
def test_a_path_out_of_the_root_always_stops_the_run(build: Build, on_error: str) -> None:
    lines = [*BASIC, {**row("x", "train", client="hall"), "modalities": {"tilt": "/etc/hosts.csv"}}]
    with pytest.raises(
        ConfigurationError, match=r"\(id 'x'\), tilt: '/etc/hosts.csv' is not a relat"
    ):
        _ = build(lines, on_error=on_error).pools


ONLY_CAMERA = {"camera": np.zeros((1, 4, 4)).tolist()}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no sample of split 'public' is left: the server has nothing to train on"),
        (rows("public", 2), "no sample of split 'train' is left: every client has nothing"),
        (
            [{**BASIC[0], "modalities": ONLY_CAMERA}, *BASIC[8:]],
            "no public sample has 'tilt': the server cannot learn it, and there is nothing",
        ),
        (
            [*rows("public", 2, target=None), *BASIC[8:]],
            "no public sample has a target: the server has nothing to learn from",
        ),
    ],
    ids=["empty", "no private", "no public tilt", "no public target"],
)
def test_what_a_federation_cannot_do_without(build: Build, lines: list[Row], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _ = build(lines, modalities=MODALITIES).pools


# Targets ------------------------------------------------------------------------------------------


def test_several_targets_go_to_the_metrics_and_the_first_is_trained_on(build: Build) -> None:
    texts = ["it is up .", "it is rising .", "look up ."]
    lines = [*BASIC, *rows("train", 40, "m", client="hall", targets=texts)]
    first = build(lines).pools.private
    assert set(first.targets[10:]) == {"it is up ."}
    assert references_of(first.targets[10]) == tuple(texts)
    assert references_of(first.targets[0]) == (first.targets[0],)
    drawn = build(lines, reference="any", seed=3).pools.private.targets
    assert set(drawn[10:]) == set(texts)
    assert drawn == build(lines, reference="any", seed=3).pools.private.targets
    assert drawn != build(lines, reference="any", seed=4).pools.private.targets
    # Through a loader, and to another process.
    assert references_of(first.select([12])[0].targets[0]) == tuple(texts)
    assert references_of(pickle.loads(pickle.dumps(first.targets[10]))) == tuple(texts)


def test_of_several_targets_those_of_another_class_are_never_trained_on(build: Build) -> None:
    texts = ["it is up .", "it is rising .", "not down .", "no idea ."]
    lines = [*BASIC, *rows("train", 40, "m", client="hall", targets=texts)]
    private = build(lines, reference="any", labels=LABELS).pools.private
    assert set(private.targets[10:]) == {"it is up .", "it is rising ."}


def test_scored_samples_keep_their_first_target(build: Build) -> None:
    lines = [*BASIC, *rows("test", 20, "m", targets=["it is up .", "it is rising ."])]
    assert set(build(lines, reference="any").pools.test.targets[4:]) == {"it is up ."}


def test_classes_are_read_back_from_sentences(build: Build) -> None:
    data = build(labels=LABELS)
    assert data.classes == ("up", "down")
    assert [data.read_label(t) for t in ("It is Rising", "down.", "up and down", "?")] == [
        *(0, 1, None, None)
    ]
    for pool in data.pools:
        assert pool.labels.tolist() == ["down" in target for target in pool.targets]


def test_without_labels_there_are_no_classes(build: Build) -> None:
    data = build()
    assert data.classes == ()
    assert data.read_label("it is up .") is None
    assert not data.pools.public.labels.any()


def test_a_target_without_a_class_is_a_fault_with_its_line(build: Build) -> None:
    lines = [*BASIC, row("x", "test", target="sideways .")]
    with pytest.raises(
        ConfigurationError, match=r"m\.jsonl:23 \(id 'x'\): .*'sideways \.' must name"
    ):
        _ = build(lines, labels=LABELS).pools


def test_a_pocket_model_learns_the_public_sentences_alone(build: Build) -> None:
    lines = [
        *BASIC,
        row("p", "public", targets=["a cat .", "a tom ."]),
        row("t", "train", client="hall", target="a secret ."),
        row("s", "test", target="a surprise ."),
    ]
    pairs = build(lines).pretraining_pairs()
    assert {said for _, said in pairs} == {"it is up .", "it is down .", "a cat .", "a tom ."}
    assert set(pairs) == set(keyword_pairs({said for _, said in pairs}))


# Dealing ------------------------------------------------------------------------------------------


def test_a_client_that_the_manifest_names_gets_its_own_samples(build: Build) -> None:
    data = build(val_fraction=0.25)
    data.attach(CLIENTS)
    for name, total in (("kitchen", 6), ("hall", 4)):
        train, val = data.private(name), data.private(name, "val")
        assert set(train.domains + val.domains) == {name}
        assert len(train) + len(val) == total
        assert len(val) == round(total / 4)
    assert data.private("kitchen", "test").ids == ("test-k-0", "test-k-1")
    assert data.private("hall", "test").ids == ()
    assert len(data.held_out("hall", CLIENTS["hall"])) == 4


def test_clients_may_hold_the_samples_of_others_if_they_say_so(build: Build) -> None:
    data = build()
    data.attach({"attic": ClientProfile(("tilt",), ("hall", "kitchen"))})
    assert set(data.private("attic").domains) == {"hall", "kitchen"}


def test_a_client_that_the_manifest_does_not_know_is_a_fault(build: Build) -> None:
    with pytest.raises(ConfigurationError) as raised:
        build().attach({**CLIENTS, "attic": ClientProfile(("tilt", "taste"))})
    assert str(raised.value).splitlines() == [
        "clients.attic: no line of split train names this client, only ['kitchen', 'hall']; "
        "to give it samples of these, list them under clients.attic.domains",
        "clients.attic.modalities: 'taste' is not one of ['tilt']",
    ]


def test_domains_are_dealt_as_in_other_data_sets(build: Build) -> None:
    lines = [*rows("public", 4), *(line for d in "abc" for line in rows("train", 4, d, domain=d))]
    data = build(lines)
    data.attach({"kitchen": ClientProfile(("tilt",), ("b",)), "hall": ClientProfile(("tilt",))})
    assert set(data.private("kitchen").domains) == {"b"}
    assert set(data.private("hall").domains) == {"a", "c"}


def test_without_clients_and_domains_the_recordings_are_dealt_in_turn(build: Build) -> None:
    lines = [*rows("public", 4), *(row(f"t{i}", "train", group=f"g{i // 2}") for i in range(12))]
    data = build(lines, val_fraction=0.0)
    data.attach(CLIENTS)
    groups = {name: data.private(name).groups for name in CLIENTS}
    assert groups["kitchen"] == ("g0", "g0", "g2", "g2", "g4", "g4")
    assert groups["hall"] == ("g1", "g1", "g3", "g3", "g5", "g5")


def test_dirichlet_skews_the_labels(build: Build) -> None:
    lines = [*rows("public", 4), *rows("train", 200), *rows("test", 20)]
    data = build(lines, labels=LABELS, partition="dirichlet", alpha=0.3, seed=1)
    data.attach(CLIENTS)
    shares = [data.private(name).labels.float().mean().item() for name in CLIENTS]
    assert abs(shares[0] - shares[1]) > 0.2


def test_dirichlet_does_not_take_samples_from_clients_that_own_them(build: Build) -> None:
    lines = [*BASIC, *rows("val", 2, client="hall")]
    with pytest.raises(ConfigurationError) as raised:
        build(lines, labels=LABELS, partition="dirichlet").attach(CLIENTS)
    assert [line.split("has ")[1] for line in str(raised.value).splitlines()] == [
        "the clients ['kitchen', 'hall']; use domain",
        "clients' samples of split val; use domain",
    ]


def test_samples_without_any_modality_of_the_client_are_not_its_samples(build: Build) -> None:
    image = np.zeros((1, 4, 4)).tolist()
    lines = [
        *(
            {**line, "modalities": {"tilt": [i, i], "camera": image}}
            for i, line in enumerate(BASIC)
        ),
        {**row("x", "train", client="hall"), "modalities": {"camera": image}},
        {**row("y", "test", client="hall"), "modalities": {"camera": image}},
    ]
    data = build(lines, modalities=MODALITIES, val_fraction=0.0)
    data.attach({"kitchen": ClientProfile(("camera",)), "hall": ClientProfile(("tilt",))})
    assert "x" not in data.private("hall").ids
    assert "y" not in data.private("hall", "test").ids
    assert "y" in data.held_out("kitchen", ClientProfile(("camera",))).ids
    # The ids of public samples mean the same to server and clients: none is left out there.
    assert data.public(modalities=["tilt"]).ids == data.public().ids


def test_a_client_that_is_left_without_samples_is_a_fault(build: Build) -> None:
    lines = [{**BASIC[0], "modalities": {"tilt": [0, 0], **ONLY_CAMERA}}, *BASIC[1:]]
    data = build(lines, modalities=MODALITIES)
    data.attach(CLIENTS)
    with pytest.raises(ConfigurationError, match=r"clients.hall: none of its samples has .*camera"):
        data.attach({**CLIENTS, "hall": ClientProfile(("camera",))})
    assert len(data.private("hall")) > 0, "the clients that were attached stay"


def test_a_sample_rate_leaves_no_sample_without_a_modality(build: Build) -> None:
    image = np.zeros((1, 4, 4)).tolist()
    both = [
        {**line, "modalities": {"tilt": [i, i], "camera": image}} for i, line in enumerate(BASIC)
    ]
    data = build(
        [*both, *rows("train", 60, "x", client="hall")], modalities=MODALITIES, sample_rate=0.5
    )
    data.attach(dict.fromkeys(CLIENTS, ClientProfile(("tilt", "camera"))))
    train = data.private("hall")
    assert train.present.any(1).all()
    assert {f"train-x-{n}" for n in range(60)} <= {*train.ids, *data.private("hall", "val").ids}


# Validation ---------------------------------------------------------------------------------------


def test_val_lines_are_the_validation_of_whom_they_name(build: Build) -> None:
    lines = [*BASIC, *rows("val", 3, "h", client="hall"), *rows("val", 2, "n")]
    data = build(lines, val_fraction=0.5)
    data.attach(CLIENTS)
    assert data.public("val").ids == ("val-n-0", "val-n-1")
    assert len(data.public("train")) == 8
    assert len(data.private("hall")) == 4
    assert data.private("hall", "val").ids == ("val-h-0", "val-h-1", "val-h-2")
    assert len(data.private("kitchen")) == 6
    assert data.private("kitchen", "val").ids == ()
    assert data.val_fraction == 0.5


@pytest.mark.parametrize(
    ("val", "sizes"),
    [
        (rows("val", 3, "h", client="hall"), (4, 4, 4, 3)),
        (rows("val", 3, "n"), (8, 3, 2, 2)),
    ],
    ids=["of clients", "of the server"],
)
def test_where_no_val_line_is_meant_a_share_is_held_out(
    build: Build, val: list[Row], sizes: tuple[int, ...]
) -> None:
    data = build([*BASIC, *val], val_fraction=0.5)
    data.attach(CLIENTS)
    tables = (data.public(), data.public("val"), data.private("hall"), data.private("hall", "val"))
    assert tuple(map(len, tables)) == sizes


# New files ----------------------------------------------------------------------------------------


def test_lines_without_a_target_are_asked_and_not_scored(build: Build) -> None:
    new = {"id": "new", "modalities": {"tilt": [1, 2]}}
    data = build([*BASIC, new], labels=LABELS)
    assert "new" not in data.pools.test.ids
    assert data.asked().ids == (*data.pools.test.ids, "new")
    assert data.asked().targets[-1] == ""
    assert torch.equal(data.asked().inputs["tilt"][-1], data.preparations["tilt"].read([1, 2]))


def test_public_lines_without_a_target_are_trained_on_and_never_validate(build: Build) -> None:
    unlabelled = [row(f"public-u-{i}", "public", target=None) for i in range(12)]
    lines = [*unlabelled[:6], *BASIC, *unlabelled[6:]]
    complete = build(val_fraction=0.4)
    held = complete.public("val").ids
    data = build(lines, val_fraction=0.4, labels=LABELS)
    train, val = data.public("train"), data.public("val")
    assert (len(train), len(val)) == (len(complete.public("train")) + 12, 3)
    assert sorted(train.ids + val.ids) == sorted(i["id"] for i in lines if i["split"] == "public")
    assert val.ids == held
    assert val.labelled().all()
    known = dict(zip(train.ids, train.targets, strict=True))
    assert all((known[i] == "") == i.startswith("public-u") for i in known)
    sentences = {sentence for _, sentence in data.pretraining_pairs()}
    assert sentences == {"it is up .", "it is down ."}


def test_scarce_public_data_are_scarce_beside_val_lines_of_the_server_too(build: Build) -> None:
    lines = [*BASIC, *rows("val", 2)]
    few = build(lines, public_train_fraction=0.5)
    assert len(few.public("train")) == 4
    assert few.public("val").ids == ("val--0", "val--1")


def test_new_lines_alone_are_scaled_as_those_of_the_training(build: Build) -> None:
    trained = build()
    known = trained.pools.test.inputs["tilt"]
    preparations = trained.preparations
    data = build([line for line in BASIC if line["split"] == "test"])
    data.prepare_as(preparations)
    assert torch.equal(data.asked().inputs["tilt"], known)
    assert data.preparations == preparations
    seen = data.held_out("kitchen", CLIENTS["kitchen"], table=data.asked())
    assert torch.equal(seen.inputs["tilt"], known)


def test_what_is_asked_about_loses_nothing_to_the_sample_rate(build: Build) -> None:
    image = np.zeros((1, 4, 4)).tolist()
    both = [
        {**line, "modalities": {"tilt": [i, i], "camera": image}} for i, line in enumerate(BASIC)
    ]
    data = build([*both, *rows("test", 40, "y")], modalities=MODALITIES, sample_rate=0.3)
    profile = ClientProfile(("tilt", "camera"))
    asked = data.asked()
    assert torch.equal(data.held_out("kitchen", profile, table=asked).present, asked.present)
    measured = data.held_out("kitchen", profile)
    assert len(measured) == len(asked)
    assert not torch.equal(measured.present, asked.present)


def test_another_form_of_a_modality_cannot_be_asked_about(build: Build) -> None:
    preparations = build().preparations
    tilt = {"kind": "vector", "shape": [2], "standardise": False}
    for other in ({"tilt": tilt}, MODALITIES, {"camera": MODALITIES["camera"]}):
        with pytest.raises(ConfigurationError, match=r"init_args\.modalities\.(tilt|camera) is"):
            build(modalities=other).prepare_as(preparations)


def test_nothing_to_answer_is_an_error(build: Build) -> None:
    data = build(rows("public", 2))
    data.prepare_as(build().preparations)
    build(rows("public", 2))
    with pytest.raises(ConfigurationError, match=r"nothing to answer in \['m.jsonl'\]"):
        data.asked()


# Text ---------------------------------------------------------------------------------------------


def test_texts_are_read_from_files_and_lines_and_never_scaled(build: Build, tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text("now turn it over")
    lines = [
        {**line, "modalities": {"said": said}}
        for line, said in zip(
            [*rows("public", 3), *rows("train", 1), *rows("test", 1)],
            ["said.txt", {"text": "oil hisses"}, "said.txt", {"text": "größer"}, "said.txt"],
            strict=True,
        )
    ]
    said = {"said": {"kind": "text", "shape": [16]}}
    pools = build(lines, modalities=said).pools
    assert bytes_to_text(pools.public.inputs["said"]) == [
        *("now turn it over", "oil hisses", "now turn it over")
    ]
    assert bytes_to_text(pools.private.inputs["said"]) == ["größer"]
    short = build(lines, modalities={"said": {"kind": "text", "shape": [7]}})
    assert bytes_to_text(short.pools.private.inputs["said"]) == ["größe"]
    (tmp_path / "said.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigurationError) as caught:
        _ = build(lines, modalities=said).pools
    assert (
        "m.jsonl:1 (id 'public--0'), said: 'said.txt' is no text in UTF-8: line 1, byte 4"
        in str(caught.value)
    )
    lines[1]["modalities"] = {"said": "oil hisses"}
    with pytest.raises(
        ConfigurationError, match=r"m\.jsonl:2 .*'oil hisses' is not the path of a .txt"
    ):
        _ = build(lines, modalities=said).pools


# Splits that are drawn ----------------------------------------------------------------------------


def test_lines_without_a_split_are_dealt_by_fractions_and_by_group(build: Build) -> None:
    lines = [
        {k: v for k, v in each.items() if k != "split"}
        for name in ("kitchen", "hall")
        for each in rows("any", 20, name, domain=name)
    ]
    lines = [{**each, "group": f"{each['domain']}{n // 2}"} for n, each in enumerate(lines)]
    pools = build(lines, labels=LABELS, split={"public": 0.3, "test": 0.2}).pools
    assert [len(pool) for pool in pools] == [12, 20, 8]
    groups = [{*pool.groups} for pool in pools]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20
    assert all({*pool.domains} == {"kitchen", "hall"} for pool in pools)
    with pytest.raises(ConfigurationError, match=r"data\.init_args\.split can draw one"):
        _ = build(lines).pools


def test_lines_of_other_clients_are_left_out_of_what_a_client_answers(build: Build) -> None:
    data = build()
    assert [*data.asked().domains] == ["kitchen", "kitchen", "unnamed", "unnamed"]
    assert [*data.asked(others={"kitchen"}).domains] == ["unnamed", "unnamed"]
    assert data.asked(others={"hall"}).ids == data.asked().ids
    by_domain = [
        {**{k: v for k, v in line.items() if k != "client"}, "domain": line["client"]}
        if "client" in line
        else line
        for line in BASIC
    ]
    assert len(build(by_domain).asked(others={"kitchen"})) == 4, "a domain is nobody's own"
