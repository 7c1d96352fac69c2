"""Algorithms and studies, registered before they run."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.harness import REPOSITORY
from benchmarks.quality.settings import SCENES, SETTINGS, SPLITS, URFALL, Options

SEEDS = (27, 34, 46, 52, 93)


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


SCORES = ("mean.all.macro_f1", "mean.own.macro_f1", "server.macro_f1")
BYTES = ("communication.uplink_bytes", "communication.downlink_bytes")
_SPENT = (*BYTES, "seconds")
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
        short: The algorithms of its short table, in their order, if it has one.
    """

    settings: Sequence[str]
    algorithms: Mapping[str, Options]
    seeds: int = len(SEEDS)
    pooled: bool = False
    reference: str = "ML-ECS"
    metrics: Sequence[str] = METRICS
    short: Sequence[str] = ()


def _short(*beginnings: str) -> list[str]:
    return [f"urfall short, {each}" for each in beginnings]


def _splits(settings: Sequence[str], algorithms: Mapping[str, Options], **more: Any) -> Study:
    """Return a study over splits of the data, with one seed, against no exchange."""
    fixed: dict[str, Any] = {"seeds": 1, "pooled": True, "metrics": ACCURACY}
    return Study(settings, algorithms, reference="StandalonePublic", **{**fixed, **more})


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
    # Rivals without answers, as published. The rule: answers are the better way for what devices
    # know if the difference of FedAvg + answers from each has an interval above zero, for clients
    # (all) or server, and none below. FedMLLM is FedProx here, as no instruction names a sensor.
    "MultiFedAvg": {"algorithm": "MultiFedAvg"},
    # Encoders and answers together. The rule: it takes the place of FedAvg + answers in the shipped
    # configurations of a data set if its difference from that has an interval above zero over the
    # splits, for clients (all) or server, and none below for clients (all, own) or server.
    "MultiFedAvg + answers": {"algorithm": "MultiFedAvg", **ANSWERS},
    "FediLoRA": {"algorithm": "FediLoRA"},
    "FedDPA": {
        **ALGORITHMS["FedAvg"],
        "edge.lora.private_r": 8,
        "edge.lora.scope": "per_stage",
    },
    "FedProx": ALGORITHMS["FedProx"],
}
README = (
    *("StandalonePublic", "FedAvg", "MultiFedAvg", "ML-ECS"),
    *("ML-ECS + answers", "FedMD", "FedAvg + answers", "MultiFedAvg + answers", "Centralized"),
)
# With all labels there is nothing to answer, so that FedAvg stands for FedAvg + answers, calibrated
# or not. The rule: a method may be the default if its mean difference from StandalonePublic is at
# least -0.01 on both data sets, for all and for own samples.
ALL_LABELS = {
    **{name: ALGORITHMS[name] for name in ("StandalonePublic", "FedAvg", "ML-ECS", "Centralized")},
    **{name: FEW_LABELS[name] for name in ("MultiFedAvg", "FedDPA")},
}
# The rule: answers help against missing sensors if, from rate 0.9 to 0.5, clients lose less on all
# samples with them than under every other method, with each of the seeds.
RATES = ("StandalonePublic", "FedAvg", "FedAvg + answers", "MultiFedAvg")
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
        f"few-labels-{data}": _splits(
            [f"{data} few labels, split {k}" for k in SPLITS], FEW_LABELS, short=README
        )
        for data in ("digits", "urfall")
    },
    **{
        f"splits-{data}": _splits([f"{data} all labels, split {k}" for k in SPLITS], ALL_LABELS)
        for data in ("digits", "urfall")
    },
    "rates-answers": Study(
        [f"urfall few labels, rate {rate}" for rate in (0.5, 0.7, 0.9)],
        {name: FEW_LABELS[name] for name in RATES},
        seeds=2,
        reference="StandalonePublic",
        metrics=ACCURACY,
    ),
    **{
        name: _splits(
            [setting for setting in SETTINGS if setting.startswith(settings)],
            {name: FEW_LABELS[name] for name in TOGETHER},
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
