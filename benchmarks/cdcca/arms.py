"""The arms of the benchmark of CD-CCA: what each changes in the configuration of its stream."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.harness import REPOSITORY

__all__ = ["ARMS", "MAIN", "PAIRS", "QUICK", "STREAMS", "Arm", "Stream"]

_ARGS, _DWC, _RIVALS = "algorithm.init_args", "trainer.codec.init_args", "benchmarks.cdcca.rivals"
_PLAIN: dict[str, Any] = {f"{_ARGS}.token_fraction": 1.0, "trainer.codec": None}
_ALONE = {**_PLAIN, f"{_ARGS}.distillation": "none"}


class Stream(NamedTuple):
    """A stream of domains.

    Attributes:
        config: Its configuration.
        device: The name of the device.
        options: What the benchmark changes in it for all arms: several tokens a sensor, all of one
            width, so that a share of the tokens is the same share of the bytes.
    """

    config: str
    device: str
    options: dict[str, Any]


def _encoder(name: str, **values: int) -> dict[str, Any]:
    return {"class_path": name, "init_args": {"width": 16, **values}}


_DIGITS = {
    "pixels": _encoder("ImageCNN", tokens=16),
    "profile": _encoder("VectorMLP"),
    "fourier": _encoder("VectorMLP"),
}
_SCENES = {m: _encoder("SeriesCNN", tokens=8) for m in ("acc", "depth")}
STREAMS = {
    "digits": Stream(
        str(REPOSITORY / "configs" / "quickstart_cdcca.yaml"),
        "phone",
        {"server.extractors": _DIGITS, "edge.extractors": _DIGITS},
    ),
    "urfall": Stream(
        str(REPOSITORY / "configs" / "urfall" / "cdcca.yaml"),
        "device",
        {"server.extractors": _SCENES, "edge.extractors": _SCENES},
    ),
    # As the file has it.
    "urfall, one token": Stream(
        str(REPOSITORY / "configs" / "urfall" / "cdcca.yaml"), "device", {}
    ),
}


class Arm(NamedTuple):
    """One arm.

    Attributes:
        options: What it changes.
        parts: The parts that it adds to the models. Arms with the same parts go on from one state
            after the warm-up; the warm-up itself is the same for all arms of a seed.
    """

    options: dict[str, Any]
    parts: str = "plain"


def _rival(name: str, lr: float) -> Arm:
    options = {"algorithm": f"{_RIVALS}.{name}", "edge.optimizer.init_args.lr": lr}
    return Arm({"trainer.codec": None, **options}, "cotta" if name == "CoTTA" else "plain")


def _akd(**values: Any) -> Arm:
    options = {**_PLAIN, **{f"{_ARGS}.{key}": value for key, value in values.items()}}
    return Arm(options, "aligned" if "feature_weight" in values else "plain")


def _uts(measure: str, **values: Any) -> Arm:
    chosen = {"token_fraction": 0.25, "measure": measure, "passes": 2, **values}
    return Arm({"trainer.codec": None, **{f"{_ARGS}.{k}": v for k, v in chosen.items()}})


_PAPER = {"logits_weight": 0.0, "hidden_weight": 0.0, "answer_weight": 1.0, "feature_weight": 1.0}
_ALL_PARTS = ["lora", "norms", "biases", "prompts"]
ARMS: dict[str, Arm] = {
    # The device alone, without labels. Of two learning rates the better one counts for a rival.
    "source only": Arm(_ALONE),
    **{
        f"{label}, lr {lr:g}": _rival(name, lr)
        for label, name in (("TENT", "TENT"), ("CoTTA", "CoTTA"), ("pseudo-labels", "PseudoLabels"))
        for lr in (1e-3, 1e-4)
    },
    "fine-tuning with labels": Arm(
        {**_ALONE, f"{_ARGS}.train_device": True, f"{_ARGS}.steps.private": 10}
    ),
    # AKD, from all tokens in full precision.
    "all tokens, logits and hidden states": Arm(_PLAIN),
    "teacher's words": _akd(distillation="answers"),
    "answer and features": _akd(**_PAPER),
    "answer and features, all parts": _akd(**_PAPER, train=_ALL_PARTS),
    "logits, hidden states, features": _akd(feature_weight=0.1),
    "logits and answer": _akd(answer_weight=1.0),
    # UTS, a quarter of the tokens, adapters in full precision.
    "random tokens": _uts("random"),
    "random samples": _uts("random_samples"),
    "answers, uncertain": _uts("answers"),
    "answers, certain": _uts("answers", keep="certain"),
    "probability, uncertain": _uts("probability"),
    "features, uncertain": _uts("features"),
    "features, certain": _uts("features", keep="certain"),
    "uncertain samples, features": _uts("features", answer_threshold=0.5),
    # All three parts; the second sends whole samples, for 20 times fewer bytes than all tokens.
    "CD-CCA": Arm(
        {f"{_ARGS}.token_fraction": 0.25, f"{_ARGS}.measure": "features", f"{_ARGS}.passes": 2}
    ),
    "CD-CCA, whole samples": Arm(
        {f"{_ARGS}.token_fraction": 0.125, f"{_ARGS}.measure": "probability"}
    ),
    "as configured": Arm({}),
    "as configured, int8 device": Arm({"edge.inference": "int8"}),
    # Curves against rho, q and b.
    **{f"rho {r}": Arm({**_PLAIN, f"{_ARGS}.token_fraction": r}) for r in (0.5, 0.25, 0.1)},
    **{
        name: Arm(
            {
                f"{_ARGS}.token_fraction": 1.0,
                f"{_DWC}.fraction": q,
                f"{_DWC}.bits": b,
                f"{_DWC}.feature_bits": 32,
            }
        )
        for name, q, b in (
            *((f"q {q}", q, 32) for q in (0.25, 0.1, 0.02)),
            *((f"b {b}", 1.0, b) for b in (8, 4, 2)),
        )
    },
}
_FURTHER = ("rho ", "q ", "b ", "as configured")
MAIN = tuple(name for name in ARMS if not name.startswith(_FURTHER))
QUICK = (
    *("source only", "TENT, lr 0.0001", "CoTTA, lr 0.0001", "pseudo-labels, lr 0.0001"),
    *("all tokens, logits and hidden states", "teacher's words", "answer and features"),
    *("random tokens", "random samples", "probability, uncertain", "uncertain samples, features"),
    "CD-CCA, whole samples",
)
_FULL = "all tokens, logits and hidden states"
_CHOSEN = tuple(name for name in MAIN if name.endswith(("certain", "samples, features")))
_RIVALS_OF = tuple(n for n in MAIN if n.startswith(("source", "TENT", "CoTTA", "pseudo")))
_OURS = ("CD-CCA", "CD-CCA, whole samples")
PAIRS = (
    # AKD against the words alone; UTS against random tokens and random samples; against full
    # transfer; against rivals.
    *((_FULL, "teacher's words"), ("answer and features", "teacher's words")),
    ("answer and features, all parts", "teacher's words"),
    *((name, other) for other in ("random tokens", "random samples") for name in _CHOSEN),
    ("random samples", "random tokens"),
    *((name, _FULL) for name in _OURS),
    *((_FULL, other) for other in _RIVALS_OF),
    *((name, other) for name in _OURS for other in _RIVALS_OF),
)
