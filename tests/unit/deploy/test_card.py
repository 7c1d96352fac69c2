import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from mlecs_lightning.deploy.card import model_card


@pytest.fixture
def config(exported: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((exported / "mlecs_config.json").read_text())
    return values


def test_the_hub_reads_the_front_matter(exported: Path, config: dict[str, Any]) -> None:
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model is None, "no hub has a pocket model"
    named = {"model": "gpt2", "revision": "main", "source": "hub", "commit": "abc"}
    card = ModelCard(model_card({**config, "backbone": named}))
    assert card.data.base_model == "gpt2"
    assert "`gpt2`, revision abc" in card.text


def test_it_says_what_the_model_was_trained_with(
    exported: Path, mlecs_run: SimpleNamespace
) -> None:
    text = (exported / "README.md").read_text()
    score = mlecs_run.summary["clients"]["hall"]["all"]["rouge_lsum"]
    beside = mlecs_run.summary["constant"]["all"]["rouge_lsum"]
    for row in (
        "| method | MLECS |",
        "| modalities | fourier |",
        "| rounds | 2 |",
        "| seed | 0 |",
        "| data set | Digits |",
        "| number of clients | 3 |",
        f"| all domains | Rouge-Lsum | {score:.3f} | {beside:.3f} |",
    ):
        assert row in text
    assert "## Limits" in text


def test_it_tells_no_scores_that_are_not_those_of_the_model(config: dict[str, Any]) -> None:
    training = {**config["training"], "scores": {}}
    assert "| all domains |" not in (text := model_card({**config, "training": training}))
    assert "Unknown" in text


def test_its_lines_of_use_are_python(config: dict[str, Any]) -> None:
    code = model_card(config).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'model.ask(fourier="fourier.csv")' in code


def test_its_lines_of_use_are_python_whatever_a_modality_is_called(
    config: dict[str, Any],
) -> None:
    one = next(iter(config["modalities"].values()))
    card = model_card({**config, "modalities": {"ECG left": one}})
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert '**{"ECG left": ' in code
