from pathlib import Path

import pytest

from mlecs_lightning.deploy.adapter import backbone_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("pocket/slm", "pocket/slm"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("gpt2", "gpt2"),
        ("/home/anna/cache/pocket/llm-0123456789abcdef", "pocket/llm"),
        ("cache/pocket/slm-0123456789abcdef", "pocket/slm"),
        ("/home/anna/models/my-llm", "my-llm"),
        ("/home/anna/models/my-llm/", "my-llm"),
    ],
)
def test_a_backbone_is_named_without_its_place(model: str, name: str) -> None:
    assert backbone_name(model) == name


def test_a_directory_that_is_there_is_named_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "anna" / "llm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert backbone_name("anna/llm") == "llm"
    assert backbone_name("./anna/llm") == "llm"
    assert backbone_name("anna/other") == "anna/other"  # of the hub
