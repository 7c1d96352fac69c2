from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlecs_lightning.class_paths import check_call
from mlecs_lightning.data.decoding.files import decode_array
from mlecs_lightning.data.decoding.shapes import Declared
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.functional import text_to_bytes
from mlecs_lightning.nn.extractors.small import (
    ImageCNN,
    SeriesCNN,
    TextCNN,
    VectorMLP,
    build_extractor,
)
from mlecs_lightning.types import ModalitySpec

SPECS = [
    *(ModalitySpec("vector", (n,)) for n in (1, 40)),
    *(ModalitySpec("image", shape) for shape in [(1, 1, 1), (1, 8, 8), (3, 5, 7), (9, 24, 32)]),
    *(ModalitySpec("image", shape) for shape in [(2, 1, 50), (3, 33, 4)]),
    *(ModalitySpec("series", shape) for shape in [(3, 60), (1, 1), (6, 2), (4, 98), (1, 900)]),
]


class Flatten(nn.Module):
    """An extractor that a YAML file may name by its import path."""

    def __init__(self, spec: ModalitySpec, *, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, self.out_features = gain, int(torch.Size(spec.shape).numel())

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.flatten(1)


class Widthless(nn.Identity):
    """An extractor that does not say how wide it is."""


def default(spec: ModalitySpec) -> nn.Module:
    return build_extractor("m", spec, extractors={}, key="edge.extractors")


def named(cls: str, **init_args: Any) -> dict[str, Any]:
    return {"rgb": {"class_path": cls, "init_args": init_args}}


# The defaults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.shape}")
def test_default_of_a_kind_takes_any_size_and_every_weight_learns(spec: ModalitySpec) -> None:
    torch.manual_seed(0)
    module = default(spec)
    assert type(module) is {"vector": VectorMLP, "image": ImageCNN, "series": SeriesCNN}[spec.kind]
    y = module(torch.randn(5, *spec.shape))
    assert y.shape == (5, module.out_features) == (5, 64)
    y.square().sum().backward()
    idle = [
        n for n, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert idle == []


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.shape}")
def test_sample_is_encoded_the_same_alone_and_among_others(spec: ModalitySpec) -> None:
    torch.manual_seed(0)
    module = default(spec).eval()
    x = torch.randn(4, *spec.shape)
    others = x.clone()
    others[1:] *= 100
    torch.testing.assert_close(module(x[:1]), module(others)[:1], atol=1e-5, rtol=1e-4)
    assert list(module.buffers()) == [], "no batch statistics"


@pytest.mark.parametrize(
    ("shape", "stages", "side"),
    [
        ((1, 8, 8), 2, 4),
        ((9, 24, 32), 4, 3),
        ((1, 4, 4), 1, 4),
        ((1, 3, 9), 1, 3),
        ((1, 5, 7), 2, 2),
    ],
)
def test_image_is_halved_while_above_four_pixels(
    shape: tuple[int, ...], stages: int, side: int
) -> None:
    layers = ImageCNN(ModalitySpec("image", shape), channels=8).layers
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [8 * 2**i for i in range(stages)]
    assert layers[-1].in_features == 8 * 2 ** (stages - 1) * side**2  # type: ignore[union-attr]


def test_image_encoder_tells_above_from_below() -> None:
    torch.manual_seed(0)
    module = ImageCNN(ModalitySpec("image", (1, 8, 8))).eval()
    x = torch.zeros(2, 1, 8, 8)
    x[0, :, :3], x[1, :, 5:] = 1.0, 1.0
    above, below = module(x).detach()
    assert float((above - below).norm() / above.norm()) > 0.1


def test_series_of_any_length_and_their_level_count() -> None:
    torch.manual_seed(0)
    module = SeriesCNN(ModalitySpec("series", (3, 60))).eval()
    assert module(torch.randn(2, 3, 17)).shape == (2, 64)
    x = torch.randn(1, 3, 60)
    # A constant offset is what tells lying from standing.
    assert float((module(x) - module(x + 1.0)).norm()) > 0.1
    # A single impact in the middle of the window shows.
    struck = x.clone()
    struck[..., 30] += 5.0
    assert float((module(x) - module(struck)).norm()) > 0.1


def test_short_series_have_the_layers_that_they_always_had() -> None:
    """So that checkpoints of earlier versions fit."""
    for length in (1, 15, 50, 64):
        layers = SeriesCNN(ModalitySpec("series", (4, length))).layers
        assert [m.stride for m in layers if isinstance(m, nn.Conv1d)] == [(1,)] * 3


@pytest.mark.parametrize("length", [65, 98, 500, 8000])
def test_the_convolutions_see_all_of_a_long_series(length: int) -> None:
    """The gradient of a point of the features reaches from the first to the last input."""
    torch.manual_seed(0)
    layers = SeriesCNN(ModalitySpec("series", (2, length)), channels=4).layers
    plain = nn.Sequential(*(m for m in layers if not isinstance(m, nn.GroupNorm)))
    x = torch.randn(1, 2, length, requires_grad=True)
    features = plain(x)
    assert 4 <= features.shape[-1] <= 20
    features[..., features.shape[-1] // 2].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1)).nonzero().flatten()
    # The middle sees half of the series to each side, up to a point of the features.
    step = -(-length // features.shape[-1])
    assert int(seen[0]) <= step
    assert int(seen[-1]) >= length - 1 - step


def test_the_order_of_what_happens_in_a_long_series_counts() -> None:
    """Two events and the same two in reverse: same mean, deviation, minimum and maximum."""
    torch.manual_seed(0)
    module = SeriesCNN(ModalitySpec("series", (1, 200))).eval()
    x = torch.zeros(1, 1, 200)
    x[..., 40:60], x[..., 140:160] = 1.0, -1.0
    turned = torch.cat([x[..., 100:], x[..., :100]], dim=-1)
    assert float((module(x) - module(turned)).detach().norm()) > 0.1


def test_width_is_a_setting() -> None:
    for cls, spec in ((VectorMLP, SPECS[0]), (ImageCNN, SPECS[3]), (SeriesCNN, SPECS[8])):
        module = cls(spec, width=10)
        assert module.out_features == module(torch.randn(2, *spec.shape)).shape[1] == 10


# Classes that a user names ------------------------------------------------------------------------


def test_named_class_replaces_the_default_of_that_modality_alone() -> None:
    spec = ModalitySpec("image", (2, 3, 4))
    extractors = named(f"{__name__}.Flatten", gain=3.0)
    own = build_extractor("rgb", spec, extractors=extractors, key="k")
    assert type(own) is Flatten
    assert (own.gain, own.out_features) == (3.0, 24)
    assert type(build_extractor("depth", spec, extractors=extractors, key="k")) is ImageCNN


def test_bare_name_is_one_of_ours() -> None:
    spec = ModalitySpec("image", (2, 3, 4))
    own = build_extractor("rgb", spec, extractors=named("ImageCNN", width=7), key="k")
    assert type(own) is ImageCNN
    assert own.out_features == 7


@pytest.mark.parametrize(
    ("extractors", "message"),
    [
        (named("no.such.Net"), r"edge\.extractors\.rgb\.class_path: cannot import 'no\.such\.Net'"),
        (named("ResNet"), r"edge\.extractors\.rgb\.class_path: cannot import 'ResNet'"),
        (named("ImageCNN", depth=3), r"edge\.extractors\.rgb\.init_args: ImageCNN: .*'depth'"),
        (named("ImageCNN", channels=6), r"edge\.extractors\.rgb\.init_args: ImageCNN: .*divisible"),
        (named(f"{__name__}.Widthless"), r"edge\.extractors\.rgb: .*Widthless needs an integer"),
    ],
)
def test_class_that_does_not_fit_is_named_with_its_key(
    extractors: dict[str, Any], message: str
) -> None:
    spec = ModalitySpec("image", (2, 3, 4))
    with pytest.raises(ConfigurationError, match=message):
        build_extractor("rgb", spec, extractors=extractors, key="edge.extractors")


def test_a_class_that_sits_in_the_spectrum_is_learnt_from_features() -> None:
    """Noise-like waves that only their loudest band tells apart, at random pitch and phase."""
    rng, rate = np.random.default_rng(0), 8000
    time = np.arange(2000) / rate
    waves, classes = [], []
    for n in range(96):
        harmonics = np.arange(1, 30) * rng.uniform(90, 130)
        loudness = np.exp(-(((harmonics - 500 - 600 * (n % 4)) / 200) ** 2))
        phases = rng.uniform(0, 2 * np.pi, (29, 1))
        tones = np.sin(2 * np.pi * harmonics[:, None] * time + phases)
        waves.append((loudness[:, None] * tones).sum(0) + rng.normal(0, 0.01, 2000))
        classes.append(n % 4)
    features = {"kind": "log_mel", "bands": 16, "window": 0.016, "hop": 0.002}
    declared = Declared.from_values(
        {"kind": "series", "shape": [1, 2000], "rate": rate, "features": features}, key="m"
    )
    x = torch.stack([torch.from_numpy(decode_array(w[None], declared).values) for w in waves])
    x = (x - x.mean((0, 2), keepdim=True)) / x.std((0, 2), keepdim=True)
    y = torch.tensor(classes)
    torch.manual_seed(0)
    model = nn.Sequential(SeriesCNN(declared.spec), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x[:48]), y[:48])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answers = model(x[48:]).argmax(-1)
    # Chance is 12 of 48, with a deviation of 3.
    assert int((answers == y[48:]).sum()) > 42


class Kwargs(ImageCNN):
    """Passes all that it is given on to its base class."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)


class ByKeyword(nn.Linear):
    """Asks for the specification, and not as its first argument."""

    def __init__(self, out_features: int, *, spec: ModalitySpec) -> None:
        super().__init__(spec.shape[0], out_features)


@pytest.mark.parametrize(
    ("extractor", "spec", "width"),
    [
        (named("torch.nn.Linear", in_features=3, out_features=5), ModalitySpec("vector", (3,)), 5),
        (named(f"{__name__}.ByKeyword", out_features=4), ModalitySpec("vector", (3,)), 4),
        (named(f"{__name__}.Kwargs", width=7), ModalitySpec("image", (2, 3, 4)), 7),
        (named(f"{__name__}.flat"), ModalitySpec("image", (2, 3, 4)), 24),
    ],
    ids=["a module of torch", "by keyword", "passed on", "a function"],
)
def test_any_module_with_out_features_is_an_extractor(
    extractor: dict[str, Any], spec: ModalitySpec, width: int
) -> None:
    check_call(extractor["rgb"], home="torch.nn", key="k", offered={"spec": spec})
    own = build_extractor("rgb", spec, extractors=extractor, key="k")
    assert own(torch.randn(2, *spec.shape)).shape == (2, width)


def flat(spec: ModalitySpec) -> nn.Module:
    return Flatten(spec)


# Several tokens of an input -----------------------------------------------------------------------


def only_input(layer: nn.Linear, column: int) -> None:
    """Let a layer give one of its inputs."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[:, column] = 1.0


def test_the_tokens_of_an_image_are_patches_row_by_row() -> None:
    model = ImageCNN(ModalitySpec("image", (1, 16, 16)), tokens=4, width=3)
    x = torch.randn(2, 1, 16, 16)
    only_input(model.layers[-1], 5)  # of a patch of 2 x 2 the second row, second column, channel 1
    maps = model.layers[:-2](x)
    assert maps.shape[2:] == (4, 4)
    corners = [maps[:, 1, row, column] for row in (0, 2) for column in (1, 3)]
    assert model.out_features == 12
    torch.testing.assert_close(model(x).view(2, 4, 3)[..., 0], torch.stack(corners, dim=1))


@pytest.mark.parametrize("length", [20, 128])
def test_the_tokens_of_a_series_are_stretches(length: int) -> None:
    model = SeriesCNN(ModalitySpec("series", (2, length)), tokens=4, width=3)
    x = torch.randn(2, 2, length)
    only_input(model.head, 2 * 32 + 2 + 1)  # after the pooled maps and the means: a deviation
    parts = x[:, 1].view(2, 4, -1).std(-1, correction=0)
    torch.testing.assert_close(model(x).view(2, 4, 3)[..., 0], parts)
    only_input(model.head, 32 + 7)  # a maximum
    maps = model.layers(x)[:, 7].view(2, 4, -1).amax(-1)
    torch.testing.assert_close(model(x).view(2, 4, 3)[..., 0], maps)


def test_the_tokens_of_a_text_are_words() -> None:
    model = TextCNN(ModalitySpec("text", (16,)), tokens=3, width=2)
    texts = ["he fell down it", "who"]
    x = torch.stack([text_to_bytes(text, 16) for text in texts]).float()
    only_input(model.head, 4)
    found = model(x).view(2, 3, 2)[..., 0]
    h = model.layers(model.letters(x.long()).transpose(1, 2))[:, 4]
    rest = torch.cat([h[0, 8:12], h[0, 13:15]])
    words = [h[0, :2].mean(), h[0, 3:7].mean(), rest.mean()]
    torch.testing.assert_close(found[0], torch.stack(words))
    torch.testing.assert_close(found[1], torch.stack([h[1, :3].mean(), *torch.zeros(2)]))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: ImageCNN(ModalitySpec("image", (1, 8, 8)), tokens=9),
            r"one of \[1, 4, 16\], got 9",
        ),
        (lambda: SeriesCNN(ModalitySpec("series", (2, 5)), tokens=6), "must be 1 to 5, got 6"),
        (lambda: TextCNN(ModalitySpec("text", (9,)), tokens=0), "at least 1, got 0"),
    ],
)
def test_tokens_that_an_input_does_not_have_are_refused(build: Any, words: str) -> None:  # noqa: ANN401
    with pytest.raises(ConfigurationError, match=words):
        build()
