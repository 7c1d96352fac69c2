"""The model card of an exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

__all__ = ["model_card"]

_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "rouge_lsum": "Rouge-Lsum",
    "rouge_lsum_mean": "Rouge-Lsum, mean over references",
    "bertscore": "BERTScore",
    "exact_match": "exact match",
}
_TESTS = {"own": "own domain", "all": "all domains"}


def model_card(config: Mapping[str, Any], *, place: str = "this folder") -> str:
    """Return the text of README.md: front matter for the hub, and what users have to know.

    Args:
        config: The contents of ``mlecs_config.json``.
        place: What `load_exported` is given to find the model, such as its name on the hub.
    """
    from huggingface_hub import ModelCardData

    training, backbone = config["training"], config["backbone"]
    on_hub = backbone["source"] == "hub"
    data = ModelCardData(
        base_model=backbone["model"] if on_hub else None,
        library_name="peft",
        tags=["lora", "federated-learning", "multimodal", "mlecs_lightning"],
        **_evaluations(training, place=place),
    )
    modalities = ", ".join(config["modalities"])
    inputs = "\n".join(_input_row(n, m) for n, m in config["modalities"].items())
    used = {n: f'"{n}{_EXAMPLES[m["kind"]]}"' for n, m in _some(config)}
    if all(name.isidentifier() and not iskeyword(name) for name in used):
        arguments = ", ".join(f"{name}={value}" for name, value in used.items())
    else:
        arguments = "**{" + ", ".join(f'"{n}": {value}' for n, value in used.items()) + "}"
    rounds = f"{training['rounds']} round{'s' if training['rounds'] != 1 else ''}"
    return f"""---
{data.to_yaml().strip()}
---

# {training["client"]}: {modalities} to text

A LoRA adapter for {_backbone_in_words(backbone)}, with the encoders and the connector that turn
{modalities} into a soft prompt for it. It was the model of {_party(training["client"])} in a
federation trained by mlecs_lightning {config["versions"]["mlecs_lightning"]}.

## Use

```python
from mlecs_lightning import load_exported
model = load_exported("{place}")
print(model.ask({arguments}))
```

The adapter alone can be loaded with PEFT: `PeftModel.from_pretrained(backbone, "{place}")`. It
then gets no sensor inputs, which reach it only through the soft prompt of the connector.

| input | kind | shape | standardised with mean and deviation of the training data |
|---|---|---|---|
{inputs}

Inputs are paths of files (of the kinds that `Manifest` of mlecs_lightning reads), arrays, or, for a
text, the text itself. A modality that is left out is absent. Instruction in training:
{_asked(config["instruction"])}.

## Backbone

{_where_it_is(backbone)}

## Training

| | |
|---|---|
| method | {training["algorithm"]} |
| options of the method | {_code(training["options"])} |
| data set | {training["data"]} |
| number of clients | {training["clients"]} |
| modalities | {modalities} |
| rounds | {training["rounds"]} |
| seed | {training["seed"]} |
| precision | {config["precision"]} |
| adapter | {_code(config["settings"]["lora"])} |
| versions | {", ".join(f"{name} {number}" for name, number in config["versions"].items())} |

## Scores

{_scores(training)}

## Limits

- It was trained for {rounds} on the data of one federation and tested only on held-out data of the
  same federation. Its quality in other places, with other sensors or other people is unknown.
- It always answers in the form of its training targets, and its answers can be wrong without any
  sign of doubt. It is not a safety device.
- Inputs are scaled with constants from training: a sensor with another unit, rate or mounting needs
  its own model.
- The licences of the backbone, the encoders and the data also apply to this adapter. They are not
  stated here.
"""


_EXAMPLES = {"image": ".png", "series": ".csv", "vector": ".csv", "text": " as a text"}


def _some(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(config["modalities"].items())[:2]


def _party(client: str) -> str:
    return "the server" if client == "server" else f"client `{client}`"


def _input_row(name: str, modality: Mapping[str, Any]) -> str:
    scaled = "yes" if "mean" in modality else "no"
    shape = " x ".join(map(str, modality["shape"]))
    return f"| {name} | {modality['kind']} | {shape} | {scaled} |"


def _backbone_in_words(backbone: Mapping[str, Any]) -> str:
    match backbone["source"]:
        case "included":
            return backbone.get("pocket") or "the language model in `backbone/`"
        case "hub":
            return f"[{backbone['model']}](https://huggingface.co/{backbone['model']})"
        case _:
            return f"the language model `{backbone['model']}`"


def _where_it_is(backbone: Mapping[str, Any]) -> str:
    if backbone["source"] == "included":
        stored = "It is stored in `backbone/` of this folder."
        if not backbone.get("pocket"):
            return stored
        return (
            f"It is {backbone['pocket']}, a small model that mlecs_lightning trained for this data "
            f"set and that is on no hub. {stored}"
        )
    if backbone["source"] == "directory":
        return (
            f"It is not stored here: it was loaded from the directory `{backbone['model']}` of the "
            "machine that trained the model. On other machines, name its place: "
            '`load_exported("this folder", backbone="directory or hub id")`.'
        )
    revision = backbone.get("commit") or backbone.get("revision") or "the newest at that time"
    return f"It is downloaded from the hub: `{backbone['model']}`, revision {revision}."


def _asked(instruction: str | None) -> str:
    return f"`{instruction}`" if instruction else "different for each sample"


def _code(values: Mapping[str, Any]) -> str:
    return f"`{json.dumps(values)}`" if values else "defaults"


def _evaluations(training: Mapping[str, Any], *, place: str) -> dict[str, Any]:
    """Return the scores as the hub lists them; empty if they are not known."""
    from huggingface_hub import EvalResult

    found = [
        EvalResult(
            task_type="text-generation",
            dataset_type=training["data"],
            dataset_name=f"{training['data']}, {_TESTS[test]}",
            dataset_config=test,  # the hub's library merges results that differ in the name alone
            metric_type=metric,
            metric_name=name,
            metric_value=round(scores[metric], 4),
        )
        for test, scores in training["scores"].items()
        for metric, name in _NAMES.items()
        if metric in scores
    ]
    name = place if place != "this folder" else training["client"]
    return {"model_name": name, "eval_results": found} if found else {}


def _scores(training: Mapping[str, Any]) -> str:
    rows = []
    for test, scores in training["scores"].items():
        for metric, name in _NAMES.items():
            if metric in scores:
                constant = training["constant"].get(test, {}).get(metric)
                beside = "" if constant is None else f"{constant:.3f}"
                rows.append(f"| {_TESTS[test]} | {name} | {scores[metric]:.3f} | {beside} |")
    if not rows:
        return "Unknown: the run has no `summary.json` for this round."
    whose = "" if training["client"] == "server" else ", mean over all clients"
    columns = ("held-out data of", "metric", "score", f"best constant sentence{whose}")
    return "\n".join([f"| {' | '.join(columns)} |", "|---|---|---|---|", *rows])
