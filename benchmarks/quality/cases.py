"""Settings, algorithms and studies, registered before they run."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.harness import REPOSITORY

SEEDS = (27, 34, 46, 52, 93)
SPLITS = (1, 2, 3, 4, 5)

Options = Mapping[str, Any]
"""Dotted keys of the configuration, and their values."""


def _mlecs(**init_args: Any) -> dict[str, Any]:
    return {"algorithm": "MLECS"} | {f"algorithm.init_args.{k}": v for k, v in init_args.items()}


ALL = ["ccl", "amt", "mma", "se_ccl"]
ALGORITHMS: dict[str, Options] = {
    "ML-ECS": _mlecs(),
    **{
        name: {"algorithm": name}
        for name in ("FedAvg", "FedProx", "CoPLMs", "StandalonePublic", "Standalone", "Centralized")
    },
}
ABLATIONS: dict[str, Options] = {
    **{f"without {part}": _mlecs(components=[c for c in ALL if c != part]) for part in ALL},
    **{f"only {part}": _mlecs(components=[part]) for part in ALL},
    "backbone's representation": _mlecs(representation="backbone"),
    "mix 0.5": _mlecs(adapter_mix=0.5),
    "second adapter": _mlecs() | {"edge.lora.private_r": 8},
    "cosine alignment": _mlecs(alignment="cosine"),
    "fused alignment": _mlecs(alignment="fused"),
    "private first": _mlecs(order="private_first"),
    "public first": _mlecs(order="public_first"),
    "contrast weight 0.1": _mlecs(contrast_weight=0.1),
    "private contrast": _mlecs(private_contrast=True),
    "stack": _mlecs(aggregation="stack"),
    "svd": _mlecs(aggregation="svd"),
    "all negatives": _mlecs(class_aware=False),
}


def _rounds(count: int) -> Options:
    """Return a length: rounds of half the steps, over which the learning rate falls."""
    ends = {f"{party}.lr_scheduler.init_args.T_max": count for party in ("edge", "server")}
    steps = {"warmup": 60, "public": 20, "private": 20, "server": 20}
    return {"trainer.max_rounds": count, **ends, "algorithm.init_args.steps": steps}


def _drawn(count: int, rate: float) -> Options:
    return {"clients": {"count": count, "modality_rate": rate, "seed": 0}}


def _rate(lr: float) -> Options:
    return {f"{party}.optimizer.init_args.lr": lr for party in ("edge", "server")}


def _left_out(scene: str) -> Options:
    split = {"data.init_args.split": "leave_one_scene_out", "data.init_args.test_scene": scene}
    return {**_drawn(5, 0.7), **split}


SCENES = (
    *("living_bright", "living_dark", "bedroom", "corner_empty"),
    *("office_A1", "office_A2", "office_B"),
)
URFALL = "configs/urfall/mlecs.yaml"
DIGITS = "benchmarks/quality/digits.yaml"
QUICKSTART = "configs/quickstart.yaml"
WORDS = "benchmarks/quality/words.yaml"
NO_SAMPLE, NO_LABEL = ["two", "seven"], ["five", "eight"]
FEW_STEPS = {"warmup": 60, "public": 20, "private": 20, "server": 40}
# A quarter of the main setting's steps: what is compared over many settings has to be short.
SHORT = _rounds(3)
SETTINGS: dict[str, tuple[str, Options]] = {
    "urfall": (URFALL, {}),
    "urfall public 0.25": (URFALL, {"data.init_args.public_train_fraction": 0.25}),
    **{
        f"urfall short{name}": (URFALL, {**SHORT, **options})
        for name, options in {
            "": {},
            **{f", lr {lr}": _rate(lr) for lr in (0.00025, 0.001)},
            **{f", rate {rate}": _drawn(5, rate) for rate in (0.5, 0.7, 0.9)},
            **{f", {count} clients": _drawn(count, 0.7) for count in (3, 7)},
            **{f", without {scene}": _left_out(scene) for scene in SCENES},
        }.items()
    },
    "quickstart": (QUICKSTART, {}),
    "digits": (DIGITS, {}),
    "digits rate 0.7": (DIGITS, _drawn(5, 0.7)),
    "digits skew 0.3": (DIGITS, {"data.init_args.alpha": 0.3}),
    # Many clients with about ten samples each, and few of the many in a round.
    "digits, 100 clients": (
        DIGITS,
        {
            "clients": {"count": 100, "modality_rate": 0.7, "seed": 0},
            "trainer.participation.fraction": 0.3,
            "algorithm.init_args.steps": {"warmup": 40, "public": 10, "private": 10, "server": 10},
            "data.init_args.eval_batch_size": 64,
            "trainer.limit_test_batches": 1,
            "trainer.bertscore": False,
        },
    ),
    "digits, 4 clients": (
        DIGITS,
        {"trainer.participation.fraction": 1.0, "trainer.bertscore": False},
    ),
    # Public inputs are plentiful, their labels scarce; five splits that no choice was made on.
    **{
        f"digits few labels, split {k}": (
            DIGITS,
            {
                "data.init_args.public_labelled": 0.05,
                "data.init_args.seed": k,
                "algorithm.init_args.order": "interleaved",
            },
        )
        for k in SPLITS
    },
    **{
        f"urfall few labels, split {k}": (
            URFALL,
            {
                **SHORT,
                "data.init_args.public_labelled": 0.25,
                "data.init_args.split": {"seed": k},
            },
        )
        for k in SPLITS
    },
    # Two classes of which the server has no sample, and two of which it has no label; the labels
    # of the clients are so skewed that most of them lack some class.
    **{
        f"digits missing classes, split {k}": (
            DIGITS,
            {
                "data.init_args.public_without": {"classes": NO_SAMPLE},
                "data.init_args.public_labelled": dict.fromkeys(NO_LABEL, 0.0),
                "data.init_args.alpha": 0.3,
                "data.init_args.seed": k,
                "algorithm.init_args.order": "interleaved",
                "trainer.bertscore": False,
            },
        )
        for k in SPLITS[:3]
    },
    # About 30 samples a client (21 to 42), and labels of 15 of the 306 public samples.
    **{
        f"digits 20 clients, split {k}": (
            DIGITS,
            {
                "clients": {"count": 20, "modality_rate": 0.7, "seed": 0},
                "data.init_args.public_labelled": 0.05,
                "data.init_args.public_fraction": 0.2,
                "data.init_args.test_fraction": 0.4,
                "data.init_args.alpha": 5.0,
                "data.init_args.seed": k,
                "algorithm.init_args.order": "interleaved",
                "algorithm.init_args.steps": FEW_STEPS,
                "trainer.limit_test_batches": 1,
                "trainer.bertscore": False,
            },
        )
        for k in SPLITS[:3]
    },
    # A data set on which no choice about answers was made; the splits are by voice.
    **{
        f"words few labels, split {k}": (
            WORDS,
            {
                "data.init_args.file": f"data/words/split-{k}.jsonl",
                "data.init_args.seed": k,
                "trainer.bertscore": False,
            },
        )
        for k in (0, 2, 4)
    },
}


SCORES = ("mean.all.macro_f1", "mean.own.macro_f1", "server.macro_f1")
_SPENT = ("communication.uplink_bytes", "communication.downlink_bytes", "seconds")
METRICS = (*SCORES, "mean.all.rouge_lsum", "mean.all.bertscore", "server.bertscore", *_SPENT)
ACCURACY = (*SCORES, *(score.replace("macro_f1", "accuracy") for score in SCORES), *_SPENT)


class Study(NamedTuple):
    """A part of the matrix.

    Attributes:
        settings: Data and clients.
        algorithms: By label.
        seeds: At most this many of the seeds.
        pooled: Whether the settings take the place of the seeds: mean and interval are over them.
        reference: The algorithm that the others are compared with.
        metrics: The columns of its table.
    """

    settings: Sequence[str]
    algorithms: Mapping[str, Options]
    seeds: int = len(SEEDS)
    pooled: bool = False
    reference: str = "ML-ECS"
    metrics: Sequence[str] = METRICS


def _short(*beginnings: str) -> list[str]:
    return [f"urfall short, {each}" for each in beginnings]


RIVALS = {name: options for name, options in ALGORITHMS.items() if name != "Centralized"}
# Written out, so that a default that changes makes other cases.
ANSWERS: Options = {
    "algorithm.init_args.answers": {"consensus": "similarity", "calibrate": False, "accept": "all"}
}
CALIBRATED: Options = {
    "algorithm.init_args.answers": {"consensus": "confusion", "calibrate": True, "accept": "best"}
}
SELF_TRAINING: Options = {"algorithm.init_args.self_training": 0.5}
FEW_LABELS: dict[str, Options] = {
    "ML-ECS": ALGORITHMS["ML-ECS"],
    "ML-ECS + answers": {**ALGORITHMS["ML-ECS"], **ANSWERS},
    "FedAvg": ALGORITHMS["FedAvg"],
    "FedAvg + answers": {**ALGORITHMS["FedAvg"], **ANSWERS},
    # Answers alone. The rule: it takes the place of FedAvg in the quickstart if its difference from
    # FedAvg + answers on the splits of Digits has an interval above zero, for clients or server.
    "FedMD": {"algorithm": "FedMD"},
    # Chosen on validation data of UR Fall's split 1, and on the withheld targets of the public
    # training samples there and in a split of Digits that is none of these (seed 11).
    "FedAvg + calibrated answers": {**ALGORITHMS["FedAvg"], **CALIBRATED},
    "StandalonePublic": ALGORITHMS["StandalonePublic"],
    "StandalonePublic + self-training": {**ALGORITHMS["StandalonePublic"], **SELF_TRAINING},
    "Centralized": ALGORITHMS["Centralized"],
    "Centralized + self-training": {**ALGORITHMS["Centralized"], **SELF_TRAINING},
}
# Of three more settings. The rule: a default changes only for a method whose difference from it has
# an interval above zero over the splits.
TOGETHER = (
    *("StandalonePublic", "FedAvg", "FedAvg + answers", "FedMD", "ML-ECS + answers", "Centralized"),
)
# As many public steps as with AMT: what the server then lacks is what private data teach.
WITHOUT_AMT: dict[str, Options] = {
    "FedAvg + answers": FEW_LABELS["FedAvg + answers"],
    "FedAvg + answers, without amt": {
        **FEW_LABELS["FedAvg + answers"],
        "algorithm.init_args.steps.private": 0,
    },
}
EQUAL: Options = {
    "algorithm": "FedAvg",
    "algorithm.init_args.weights": "equal",
    "trainer.update_limits.max_ratio": None,
}
# Of 0.1, 0.3 and 1.0 by the validation loss of 100 clients, noise 1, seed 11, none of the seeds.
CLIP = 0.1
PRIVATE: dict[str, Options] = {
    "FedAvg, equal weights": EQUAL,
    **{
        f"FedAvg, noise {noise}": {
            **EQUAL,
            "trainer.privacy": {"clip": CLIP, "noise_multiplier": noise, "delta": 1e-3},
        }
        for noise in (0.3, 1.0, 3.0)
    },
    "StandalonePublic": ALGORITHMS["StandalonePublic"],
}
# The quickstart as it is shipped, and its rivals.
QUICK: dict[str, Options] = {
    "together": {},
    "without answers": {"algorithm.init_args.answers": None},
    "alone": ALGORITHMS["StandalonePublic"],
}
FEW = {name: RIVALS[name] for name in ("ML-ECS", "FedAvg", "StandalonePublic")}
STUDIES = {
    "main": Study(["urfall"], ALGORITHMS),
    "public": Study(["urfall public 0.25"], FEW),
    "rates": Study(_short("rate 0.5", "rate 0.7", "rate 0.9"), RIVALS, seeds=2),
    "ablation": Study(["urfall short", "digits"], {"ML-ECS": _mlecs(), **ABLATIONS}, seeds=2),
    "digits": Study(["digits", "digits rate 0.7", "digits skew 0.3"], RIVALS, seeds=2),
    "clients": Study(_short("3 clients", "7 clients"), FEW, seeds=2),
    "scenes": Study(_short(*(f"without {scene}" for scene in SCENES)), FEW, seeds=1, pooled=True),
    **{
        f"few-labels-{data}": Study(
            [f"{data} few labels, split {k}" for k in SPLITS],
            FEW_LABELS,
            seeds=1,
            pooled=True,
            reference="StandalonePublic",
            metrics=ACCURACY,
        )
        for data in ("digits", "urfall")
    },
    **{
        name: Study(
            [setting for setting in SETTINGS if setting.startswith(settings)],
            {name: FEW_LABELS[name] for name in TOGETHER},
            seeds=1,
            pooled=True,
            reference="StandalonePublic",
            metrics=ACCURACY,
        )
        for name, settings in {
            "missing-class": "digits missing classes",
            "many-clients": "digits 20 clients",
            "few-labels-words": "words few labels",
        }.items()
    },
    "few-labels-amt": Study(
        [f"digits few labels, split {k}" for k in SPLITS],
        WITHOUT_AMT,
        seeds=1,
        pooled=True,
        reference="FedAvg + answers",
        metrics=SCORES,
    ),
    "privacy": Study(
        ["digits, 100 clients", "digits, 4 clients"],
        PRIVATE,
        seeds=3,
        reference="FedAvg, equal weights",
        metrics=(*SCORES[:2], "privacy.epsilon"),
    ),
    "quick": Study(
        ["quickstart"],
        QUICK,
        seeds=2,
        reference="together",
        metrics=ACCURACY,
    ),
    "search": Study(["urfall short", *_short("lr 0.00025", "lr 0.001")], FEW, seeds=1),
    "scarce": Study(
        ["urfall public 0.25"],
        {"ML-ECS": _mlecs(), "without amt": ABLATIONS["without amt"]},
        seeds=4,
    ),
}


class Case(NamedTuple):
    """One run: its labels, and what they mean in the configuration."""

    algorithm: str
    setting: str
    seed: int
    config: str
    options: Options

    @property
    def key(self) -> str:
        """What makes this run what it is; a changed configuration is another case."""
        # Its content, since comments and layout change no result.
        content = yaml.safe_load((REPOSITORY / self.config).read_text(encoding="utf-8"))
        text = json.dumps([content, self.options], sort_keys=True)
        return hashlib.sha256(f"{self.seed}/{text}".encode()).hexdigest()[:16]

    def command(self, folder: Path, root: Path | None) -> list[str]:
        """Return the command line of the run."""
        fixed = {
            "seed_everything": self.seed,
            "trainer.accelerator": "cpu",
            "trainer.check_val_every_n_rounds": 0,
            "trainer.enable_checkpointing": False,
            "trainer.enable_progress_bar": False,
            "trainer.bertscore": True,
            "trainer.default_root_dir": str(folder),
            "trainer.name": self.key,
        }
        if self.config == URFALL and root is not None:
            fixed["data.init_args.root"] = str(root)
        command = [sys.executable, "cli.py", "fit", "--config", self.config]
        for name, value in {**fixed, **self.options}.items():
            command += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        return command


def matrix(studies: Sequence[str], seeds: Sequence[int]) -> list[Case]:
    """Return the cases of the studies, seed by seed: a matrix that is cut short is balanced."""
    cases: dict[str, Case] = {}
    for n, seed in enumerate(seeds):
        for study in (STUDIES[name] for name in studies if n < STUDIES[name].seeds):
            for setting in study.settings:
                config, options = SETTINGS[setting]
                for label, method in study.algorithms.items():
                    case = Case(label, setting, seed, config, {**method, **options})
                    cases.setdefault(case.key, case)
    return list(cases.values())
