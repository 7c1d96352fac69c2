import math
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from mlecs_lightning.algorithms import CDCCA
from mlecs_lightning.algorithms.cdcca.sampling import (
    UTS,
    Looked,
    Measure,
    token_uncertainty,
    tokens_of,
)
from mlecs_lightning.algorithms.cdcca.tokens import Tokens
from mlecs_lightning.clients import ClientSettings, FederationModels
from mlecs_lightning.types import Batch
from tests.unit.algorithms.models import saying_nothing

ALL = ["pixels", "profile", "fourier"]
CUT = {"pixels": {"class_path": "ImageCNN", "init_args": {"tokens": 4, "width": 16}}}


def uts(**values: Any) -> UTS:
    defaults = {"token_fraction": 0.5, "measure": "features", "keep": "uncertain"}
    others = {"answer_threshold": None, "passes": 3, "variance_weight": 1.0, "feature_dropout": 0.5}
    return UTS(**{**defaults, **others, **values})


@pytest.fixture(scope="module")
def device(tiny: SimpleNamespace) -> FederationModels:
    """A device whose camera gives four tokens; tests leave it as they find it."""
    parties = tiny.parties(
        {"phone": ClientSettings(ALL)},
        server=tiny.model(extractors=CUT),
        edge=tiny.model(extractors=CUT),
    )
    built: FederationModels = tiny.build(CDCCA(), parties)
    return built


@pytest.fixture(scope="module")
def batch(tiny: SimpleNamespace) -> Batch:
    found: Batch
    (found,) = tiny.loaders(tiny.data()).public.take(1, seed=0)
    return found


LOOKED = Looked(
    Tokens(
        {"acc": torch.arange(6.0).view(3, 2, 1), "depth": torch.ones(3, 1, 2)},
        torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.bool),
        ("who ?",) * 3,
    ),
    torch.tensor([[0.1, 0.9, 0.2], [0.8, 9.0, 0.7], [0.3, 0.4, 9.0]]),
    torch.tensor([0.5, 0.2, 0.7]),
)


@pytest.mark.parametrize(
    ("values", "chosen", "mean"),
    [
        # Seven tokens are there; half of them are four.
        ({}, [[0, 1], [1, 0], [1, 2], [2, 1]], 2.8 / 4),
        ({"keep": "certain"}, [[0, 0], [0, 2], [2, 0], [2, 1]], 1.0 / 4),
        # The model is sure of the last sample: of the other five tokens, the four largest.
        ({"answer_threshold": 0.6}, [[0, 1], [0, 2], [1, 0], [1, 2]], 2.6 / 4),
        # Only the second sample is left, which has two tokens.
        ({"answer_threshold": 0.5}, [[1, 0], [1, 2]], 1.5 / 2),
        ({"answer_threshold": 0.1}, [], 0.0),
    ],
)
def test_samples_are_chosen_first_and_then_tokens(
    values: dict[str, Any], chosen: list[list[int]], mean: float
) -> None:
    sent, figures = uts(**values).choose(LOOKED)
    expected = LOOKED.tokens.only(torch.tensor(chosen, dtype=torch.int64).view(-1, 2))
    assert torch.equal(sent.present, expected.present)
    assert all(torch.equal(sent.features[m], expected.features[m]) for m in sent.features)
    assert sent.number == figures["uts/sent"] == len(chosen)
    assert figures["uts/looked_at"] == 7
    assert figures["uts/uncertainty_sent"] == pytest.approx(mean)
    sure = values.get("answer_threshold")
    assert figures.get("uts/uncertain_samples") == (
        None if sure is None else (LOOKED.sure < sure).sum()
    )
    sent.message()  # also of no token


def test_an_image_has_four_tokens_and_a_vector_one(device: FederationModels, batch: Batch) -> None:
    module = device.edge("phone").module.eval()
    with torch.no_grad():
        tokens, (features, _) = tokens_of(module, batch), module.features(batch)
    assert tokens.counts() == {"pixels": 4, "profile": 1, "fourier": 1}
    assert tokens.present.shape == (8, 6)
    assert torch.equal(tokens.features["pixels"][:, 2], features["pixels"][:, 32:48])
    assert all(torch.equal(x, features[m]) for m, x in tokens.inputs().items())


def test_the_variance_of_features_by_hand_without_the_language_model(
    device: FederationModels, batch: Batch
) -> None:
    module = device.edge("phone").module
    calls: list[object] = []
    hook = module.tower().backbone.lm.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(3)
    looked = uts().look(module, batch)
    hook.remove()
    assert not calls
    torch.manual_seed(3)
    inputs, _ = module.sensed(batch)
    columns = []
    with torch.no_grad():
        for m, count in (("pixels", 4), ("profile", 1), ("fourier", 1)):
            noisy = [torch.nn.functional.dropout(inputs[m], 0.5) for _ in range(3)]
            passes = [module.extractors[m](x).view(8, count, -1) for x in noisy]
            mean = sum(passes) / 3
            spread = sum((x - mean).square().sum(-1) for x in passes)
            columns.append(spread / sum(x.square().sum(-1) for x in passes))
    torch.testing.assert_close(looked.scores, torch.cat(columns, dim=1), rtol=1e-4, atol=1e-6)
    assert (looked.scores > 0).all()


@pytest.mark.parametrize("measure", get_args(Measure))
@pytest.mark.parametrize("threshold", [None, 0.9])
def test_what_a_choice_costs(
    device: FederationModels, batch: Batch, measure: Measure, threshold: float | None
) -> None:
    """The passes that are told are those that are run; an answer of several words is one."""
    module, passes = device.edge("phone").module, {"encoder_passes": 0, "language_model_passes": 0}
    backbone, extractor = module.tower().backbone, module.extractors
    chosen = uts(measure=measure, answer_threshold=threshold)

    def counted(name: str, per: int) -> Any:  # noqa: ANN401
        def hook(_: object, given: tuple[Any, ...], __: object) -> None:
            passes[name] += len(given[0]) // per

        return hook

    generate = backbone.generate

    def spied(prompt: Any, *args: Any, **values: Any) -> list[str]:  # noqa: ANN401
        passes["language_model_passes"] += len(prompt) // 8
        return generate(prompt, *args, **values)

    hooks = [
        extractor["fourier"].register_forward_hook(counted("encoder_passes", 8)),
        backbone.register_forward_hook(counted("language_model_passes", 8)),
    ]
    backbone.generate = spied  # type: ignore[method-assign]
    try:
        looked = chosen.look(module, batch)
    finally:
        del backbone.generate
        for hook in hooks:
            hook.remove()
    assert passes == chosen.passes_per_sample(6)
    assert ((looked.sure >= 0) & (looked.sure <= 1)).all()
    assert (looked.sure == 1).all() == (threshold is None and measure != "probability")
    if measure == "probability":
        assert torch.equal(looked.scores, (1 - looked.sure).unsqueeze(1).expand(8, 6))


def test_random_samples_are_sent_whole(device: FederationModels, batch: Batch) -> None:
    chosen = uts(measure="random_samples")
    sent, _ = chosen.choose(chosen.look(device.edge("phone").module, batch))
    assert (sent.samples, sent.number) == (4, 24)
    single = uts(measure="random")
    sent, _ = single.choose(single.look(device.edge("phone").module, batch))
    assert sent.number == 24
    assert sent.samples > 4


def test_a_model_that_says_nothing_is_sure_of_nothing(
    device: FederationModels, batch: Batch
) -> None:
    module = device.edge("phone").module
    with saying_nothing(module.tower().backbone):
        looked = uts(measure="probability", answer_threshold=0.5).look(module, batch)
    assert not looked.sure.any()
    assert (looked.scores == 1).all()


def test_an_empty_answer_is_the_least_certain_one(device: FederationModels, batch: Batch) -> None:
    module = device.edge("phone").module
    with torch.no_grad():
        tokens = tokens_of(module, batch)
    said = ["", *["a bold two"] * (tokens.samples - 1)]
    scores = token_uncertainty(module, tokens, said, passes=2, variance_weight=1.0)
    assert scores[0].min() > scores[1:].max()
    words = module.tower().backbone.lm.get_output_embeddings().out_features
    assert scores[0].tolist() == pytest.approx([math.log(words) + 1.0] * scores.shape[1])
    with saying_nothing(module.tower().backbone):
        looked = uts(measure="answers").look(module, batch)
    assert torch.equal(looked.scores, scores[:1].expand_as(looked.scores).cpu())
