"""The settings of the studies: data, clients and length, registered before they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPLITS = (1, 2, 3, 4, 5)

Options = Mapping[str, Any]
"""Dotted keys of the configuration, and their values."""


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
    # The same five splits with all labels.
    **{
        f"digits all labels, split {k}": (
            DIGITS,
            {
                "data.init_args.seed": k,
                "algorithm.init_args.order": "interleaved",
                "trainer.bertscore": False,
            },
        )
        for k in SPLITS
    },
    **{
        f"urfall all labels, split {k}": (
            URFALL,
            {**SHORT, "data.init_args.split": {"seed": k}, "trainer.bertscore": False},
        )
        for k in SPLITS
    },
    # Split 2, as options of answers were chosen on validation data of split 1.
    **{
        f"urfall few labels, rate {rate}": (
            URFALL,
            {
                **SHORT,
                **_drawn(5, rate),
                "data.init_args.public_labelled": 0.25,
                "data.init_args.split": {"seed": 2},
                "trainer.bertscore": False,
            },
        )
        for rate in (0.5, 0.7, 0.9)
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
