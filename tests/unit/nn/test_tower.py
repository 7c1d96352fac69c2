import pytest
import torch

from mlecs_lightning.nn import Tower
from mlecs_lightning.settings import (
    BackboneSettings,
    ConnectorSettings,
    LoraSettings,
    ModelSettings,
)

WIDTHS = {"pixels": 5, "profile": 3}
PRESENT = torch.tensor([[1, 1], [0, 1], [1, 0]], dtype=torch.bool)
ASK = ["describe the digit .", "the digit .", "describe the digit ."]
SAY = ["a bold seven with more ink above .", "a light two", "nine"]


@pytest.fixture(scope="module")
def tower(gpt2_dir: str) -> Tower:
    torch.manual_seed(0)
    settings = ModelSettings(
        BackboneSettings(gpt2_dir),
        LoraSettings(r=2, dropout=0.0),
        ConnectorSettings(width=4, prompt_length=6),
        max_new_tokens=5,
    )
    return Tower(WIDTHS, settings).eval()


@pytest.fixture
def features() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {m: torch.randn(3, n, generator=generator) for m, n in WIDTHS.items()}


def test_pass_is_connector_then_backbone_then_readout(
    tower: Tower, features: dict[str, torch.Tensor]
) -> None:
    out = tower(features, PRESENT, ASK, SAY)
    embeddings = tower.connector(features, PRESENT)
    read = tower.backbone(embeddings.prompt, ASK, SAY)
    assert all(torch.equal(a, b) for a, b in zip(out.embeddings[:4], embeddings[:4], strict=True))
    assert out.embeddings.words == embeddings.words == ()
    assert embeddings.prompt.shape == (3, 6, tower.backbone.hidden_size)
    assert out.loss == read.loss
    assert torch.equal(out.logits, read.logits)
    assert torch.equal(out.labels, read.labels)
    weight, bias = tower.readout.weight, tower.readout.bias
    torch.testing.assert_close(out.view, read.prompt_hidden @ weight.T + bias)


def test_view_without_text_is_the_one_with_text(
    tower: Tower, features: dict[str, torch.Tensor]
) -> None:
    out = tower(features, PRESENT, ASK, SAY)
    view = tower.view(tower.connector(features, PRESENT))
    assert view.shape == (3, 4)
    torch.testing.assert_close(view, out.view, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text", [True, False])
def test_view_teaches_connector_adapter_and_readout(
    tower: Tower, features: dict[str, torch.Tensor], text: bool
) -> None:
    tower.zero_grad()
    if text:
        view = tower(features, PRESENT, ASK, SAY).view
    else:
        view = tower.view(tower.connector(features, PRESENT))
    view.square().sum().backward()
    idle = {n for n, p in tower.named_parameters() if p.requires_grad and p.grad is None}
    tower.zero_grad()
    assert idle == set()


def test_answers_are_those_of_the_backbone_and_no_longer_than_set(
    tower: Tower, features: dict[str, torch.Tensor]
) -> None:
    embeddings = tower.connector(features, PRESENT)
    longer = tower.backbone.generate(embeddings.prompt, ASK, max_new_tokens=8)
    assert tower.generate(embeddings, ASK) == [" ".join(text.split()[:5]) for text in longer]
