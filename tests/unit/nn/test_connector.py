import pytest
import torch
from torch import Tensor, nn

from mlecs_lightning.nn.connector import Connector, Embeddings
from mlecs_lightning.settings import ConnectorSettings

WIDTHS = {"acc": 5, "depth": 3, "rgb": 7}
D, P, H, B = 4, 6, 10, 3
PRESENT = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 0]], dtype=torch.bool)


@pytest.fixture
def connector() -> Connector:
    """Return a connector with weights far from their start, in evaluation mode."""
    torch.manual_seed(0)
    settings = ConnectorSettings(width=D, prompt_length=P, dropout=0.5)
    module = Connector(WIDTHS, H, settings=settings).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


@pytest.fixture
def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {m: torch.randn(B, n, generator=generator) for m, n in WIDTHS.items()}


def test_shapes_and_forward_pass_by_hand(connector: Connector, features: dict[str, Tensor]) -> None:
    out = connector(features, PRESENT)
    assert out.modalities.shape == (B, 3, D)
    assert out.fused.shape == (B, D)
    assert out.prompt.shape == (B, P, H)
    w = connector.state_dict()
    for i in range(B):
        parts = []
        for k, m in enumerate(WIDTHS):
            z = w[f"projections.{m}.weight"] @ features[m][i] + w[f"projections.{m}.bias"]
            torch.testing.assert_close(out.modalities[i, k], z * PRESENT[i, k])
            parts.append(z if PRESENT[i, k] else w["absent"][k])
        x = torch.cat(parts)
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        x = x * w["fuse.0.weight"] + w["fuse.0.bias"]
        fused = w["fuse.1.weight"] @ x + w["fuse.1.bias"]
        torch.testing.assert_close(out.fused[i], fused, atol=1e-4, rtol=1e-4)
        gelu = fused * 0.5 * (1 + torch.erf(fused / 2**0.5))
        prompt = w["to_prompt.2.weight"] @ gelu + w["to_prompt.2.bias"]
        torch.testing.assert_close(out.prompt[i].flatten(), prompt, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("junk", [100.0, float("nan"), float("inf")])
def test_input_of_an_absent_modality_does_not_matter_at_all(
    connector: Connector, features: dict[str, Tensor], junk: float
) -> None:
    out = connector(features, PRESENT)
    for k, m in enumerate(WIDTHS):
        features[m][~PRESENT[:, k]] = junk
    again = connector(features, PRESENT)
    for name in ("modalities", "fused", "prompt"):
        assert torch.equal(getattr(out, name), getattr(again, name))


def test_input_of_a_present_modality_matters(
    connector: Connector, features: dict[str, Tensor]
) -> None:
    out = connector(features, PRESENT)
    features["acc"] = features["acc"] + 1
    changed = (connector(features, PRESENT).fused != out.fused).any(dim=1)
    assert changed.tolist() == PRESENT[:, 0].tolist()


def test_stand_in_of_an_absent_modality_is_learned(
    connector: Connector, features: dict[str, Tensor]
) -> None:
    connector(features, PRESENT).fused[:2].square().sum().backward()
    assert connector.absent.grad is not None
    # Of the first two samples the first lacks depth: only that stand-in was used.
    assert connector.absent.grad.any(dim=1).tolist() == [False, True, False]


def test_projection_that_no_sample_used_has_a_gradient_of_zero(
    connector: Connector, features: dict[str, Tensor]
) -> None:
    nobody = PRESENT.clone()
    nobody[:, 2] = False
    out = connector(features, nobody)
    (out.prompt.sum() + out.modalities.sum()).backward()
    gradient = connector.projections["rgb"].weight.grad
    assert gradient is not None, "DDP would wait for it for ever"
    assert not gradient.any()


def test_dropout_acts_on_the_prompt_alone(
    connector: Connector, features: dict[str, Tensor]
) -> None:
    still = connector(features, PRESENT)
    lively = connector.train()(features, PRESENT)
    assert torch.equal(still.fused, lively.fused)
    assert not torch.equal(still.prompt, lively.prompt)


def test_fresh_prompt_is_of_the_scale_of_word_embeddings() -> None:
    torch.manual_seed(0)
    settings = ConnectorSettings()
    module = Connector({"rgb": 64}, 768, settings=settings).eval()
    prompt = module({"rgb": torch.randn(64, 64)}, torch.ones(64, 1).bool()).prompt
    # GPT-2's trained embeddings have a deviation of 0.14, Llama's of 0.02.
    assert 0.02 < float(prompt.detach().std()) < 0.3
    assert not module.to_prompt[-1].bias.any()  # type: ignore[union-attr]


def test_mixed_precision_keeps_the_stand_in_usable(
    connector: Connector, features: dict[str, Tensor]
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        low = connector(features, PRESENT)
    full = connector(features, PRESENT)
    torch.testing.assert_close(low.fused.float(), full.fused, atol=0.1, rtol=0.1)


def test_vectors_of_the_volume_are_all_modalities_and_the_fused_one() -> None:
    z, fused = torch.randn(B, 3, D), torch.randn(B, D)
    vectors, present = Embeddings(z, PRESENT, fused, torch.zeros(B, P, H)).vectors()
    assert vectors.shape == (B, 4, D)
    assert torch.equal(vectors[:, :3], z)
    assert torch.equal(vectors[:, 3], fused)
    assert present.dtype == torch.bool
    assert present.tolist() == [[*row, True] for row in PRESENT.tolist()]


def test_fusion_is_a_norm_before_the_linear_map(connector: Connector) -> None:
    assert [type(layer) for layer in connector.fuse] == [nn.LayerNorm, nn.Linear]


# Columns of a connector with more modalities --------------------------------------------------


def test_a_connector_with_the_columns_of_another_takes_its_weights() -> None:
    """It computes what the other one does where the other modalities are absent."""
    settings = ConnectorSettings(width=6, prompt_length=2, dropout=0.0)
    torch.manual_seed(0)
    whole = Connector({"a": 3, "b": 4, "c": 5}, 8, settings=settings)
    part = Connector({"c": 5, "a": 3}, 8, settings=settings, slots=("a", "b", "c"))
    missing = part.load_state_dict(whole.state_dict(), strict=False)
    assert missing.missing_keys == []
    assert set(missing.unexpected_keys) == {"projections.b.weight", "projections.b.bias"}
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 4), "c": torch.randn(4, 5)}
    present = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).bool()
    expected = whole(x, present)
    found = part({"c": x["c"], "a": x["a"]}, present[:, [2, 0]])
    assert torch.equal(found.present, present)
    for one, other in zip(found[:4], expected[:4], strict=True):
        assert torch.equal(one, other)


def test_tokens_of_a_modality_may_be_absent_one_by_one() -> None:
    """A learned vector stands in for each; the modality is absent if all of its tokens are."""
    settings = ConnectorSettings(width=D, prompt_length=P, dropout=0.0)
    torch.manual_seed(0)
    module = Connector({"acc": 6, "depth": 3}, H, settings=settings, tokens={"acc": 3})
    with torch.no_grad():
        module.missing["acc"].weight.normal_()
    given = {"acc": torch.randn(3, 6), "depth": torch.randn(3, 3)}
    present = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0]], dtype=torch.bool)
    out = module(given, present)
    assert out.present.tolist() == [[True, True], [False, True], [True, False]]
    filled = {m: x.clone() for m, x in given.items()}
    filled["acc"][0, 2:4] = module.missing["acc"].weight[1]
    by_modality = torch.tensor([[1, 1], [0, 1], [1, 0]], dtype=torch.bool)
    whole = module(filled, by_modality)
    assert torch.equal(out.fused, whole.fused)
    assert torch.equal(out.modalities, whole.modalities)
    assert torch.equal(module.token_columns(by_modality)[1], present[1])
    out.fused.sum().backward()
    assert module.missing["acc"].weight.grad is not None


def test_without_several_tokens_a_connector_has_no_further_weights() -> None:
    settings = ConnectorSettings(width=D, prompt_length=P)
    torch.manual_seed(0)
    plain = Connector(WIDTHS, H, settings=settings).state_dict()
    torch.manual_seed(0)
    one = Connector(WIDTHS, H, settings=settings, tokens=dict.fromkeys(WIDTHS, 1)).state_dict()
    assert plain.keys() == one.keys()
    assert all(torch.equal(plain[k], one[k]) for k in plain)
