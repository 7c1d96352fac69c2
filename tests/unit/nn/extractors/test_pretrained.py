"""Encoders of transformers as extractors: built small, saved, and loaded as any other is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.extractors.pretrained import PretrainedExtractor, Tune, load_frozen_encoder
from mlecs_lightning.nn.extractors.small import build_extractor
from mlecs_lightning.types import ModalitySpec

WIDTH, RATE = 32, 16000
_SIZE = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_VISION = {**_SIZE, "image_size": 16, "patch_size": 8}
_TEXT = {**_SIZE, "vocab_size": 10, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_LAYERS = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2)}
_WHISPER = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "vocab_size": 10,
    "begin_suppress_tokens": None,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}
_MELS = {"num_mel_bins": 16, "max_length": 64}
_PREPROCESSOR = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}

# Class, configuration, and what prepares the input: a feature extractor or the values of a file.
MODELS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "clip": ("CLIPModel", {"text_config": _TEXT, "vision_config": _VISION}, _PREPROCESSOR),
    "siglip": ("SiglipModel", {"text_config": _TEXT, "vision_config": _VISION}, None),
    "vit": ("ViTModel", _VISION, None),
    "vit-classifier": ("ViTForImageClassification", _VISION, None),
    "whisper": ("WhisperModel", _WHISPER, {"feature_size": 16, "chunk_length": 1}),
    "wav2vec2": (
        "Wav2Vec2Model",
        {**_SIZE, **_LAYERS, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
        {},
    ),
    "ast": ("ASTModel", {**_SIZE, **_MELS}, _MELS),
    "bert": ("BertModel", _TEXT, None),
}
IMAGE, AUDIO = ModalitySpec("image", (3, 16, 16)), ModalitySpec("series", (1, 4000))
SPECS = {
    **dict.fromkeys(("clip", "siglip", "vit", "vit-classifier"), IMAGE),
    **dict.fromkeys(("whisper", "wav2vec2", "ast"), AUDIO),
}
SLOW = {"siglip", "vit-classifier"}
every_model = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SPECS]
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return the directory of a small untrained model, made when it is first asked for."""
    made: dict[str, str] = {}

    def call(name: str) -> str:
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            cls, values, prepare = MODELS[name]
            model = getattr(transformers, cls)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model(model.config_class(**values)).save_pretrained(path)
            if SPECS.get(name) == AUDIO:
                kind = {"ast": "AST", "whisper": "Whisper", "wav2vec2": "Wav2Vec2"}[name]
                getattr(transformers, f"{kind}FeatureExtractor")(**prepare).save_pretrained(path)
            elif prepare is not None:
                (path / "preprocessor_config.json").write_text(json.dumps(prepare))
            made[name] = str(path)
        return made[name]

    return call


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLECS_CACHE", str(tmp_path))


def inputs(spec: ModalitySpec, count: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *spec.shape, generator=generator)
    return x if spec.kind == "image" else x - 0.5


def calls_of(module: PretrainedExtractor) -> list[int]:
    """Return a list that grows by the size of each batch that the encoder reads."""
    calls: list[int] = []

    def note(_: nn.Module, __: object, kwargs: dict[str, Tensor]) -> None:
        calls.append(len(next(iter(kwargs.values()))))

    module.encoder.register_forward_pre_hook(note, with_kwargs=True)
    return calls


def read(module: PretrainedExtractor, x: Tensor) -> Tensor:
    """Return what the encoder gets of a batch."""
    (value,) = module.reader(x).values()
    return value


# What comes out -----------------------------------------------------------------------------------


def by_hand(name: str, path: str, x: Tensor) -> Tensor:
    """Return the features of transformers alone, as its documentation computes them."""
    model = transformers.AutoModel.from_pretrained(path).eval()
    if name == "clip":
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in _PREPROCESSOR.values())
        return model.vision_model((x - mean) / deviation).pooler_output
    if SPECS[name] == IMAGE:
        output = (model.vision_model if name == "siglip" else model)((x - 0.5) / 0.5)
        return output.last_hidden_state[:, 0] if "class" in name else output.pooler_output
    prepare = transformers.AutoFeatureExtractor.from_pretrained(path)
    read = prepare(list(x[:, 0].numpy()), sampling_rate=RATE, return_tensors="pt")
    if name == "whisper":  # 4,000 of the 16,000 samples, so 13 of 50 frames hold sound
        return model.encoder(read["input_features"]).last_hidden_state[:, :13].mean(1)
    output = model(read["input_values"])
    return output.pooler_output if name == "ast" else output.last_hidden_state.mean(1)


@every_model
@pytest.mark.parametrize("cache_gb", [0, 4])
def test_features_are_those_of_transformers(
    saved: Callable[[str], str], name: str, cache_gb: float
) -> None:
    module = PretrainedExtractor(SPECS[name], model=saved(name), cache_gb=cache_gb)
    x = inputs(SPECS[name])
    features = module(x)
    assert features.shape == (3, module.out_features) == (3, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(features, by_hand(name, saved(name), x), atol=1e-5, rtol=1e-4)
    assert float((features[0] - features[1]).norm()) > 1e-3, "samples are told apart"


def test_images_are_resized_as_the_processor_does(saved: Callable[[str], str]) -> None:
    module = PretrainedExtractor(ModalitySpec("image", (3, 40, 40)), model=saved("clip"))
    smooth = torch.nn.functional.interpolate(inputs(IMAGE)[:1, :, :5, :5], (40, 40), mode="bicubic")
    pixels = (smooth.clamp(0, 1) * 255).to(torch.uint8)
    theirs = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=16, **_PREPROCESSOR
    )(np.asarray(pixels[0]), return_tensors="pt")["pixel_values"]
    # PIL rounds to whole grey values, here 1/255 of a deviation of 0.1.
    assert float((read(module, pixels / 255) - theirs).abs().max()) < 0.05
    wide = PretrainedExtractor(
        ModalitySpec("image", (3, 40, 40)), model=saved("clip"), value_range=[0, 255]
    )
    torch.testing.assert_close(wide(pixels.float()), module(pixels / 255), atol=1e-4, rtol=1e-4)
    # What the data set has standardised is resized alone.
    ready = PretrainedExtractor(
        ModalitySpec("image", (3, 16, 16)), model=saved("clip"), value_range=None
    )
    standardised = read(module, pixels / 255)
    assert torch.equal(read(ready, standardised), standardised)


def test_one_channel_is_grey_and_several_images_are_frames(saved: Callable[[str], str]) -> None:
    plain = PretrainedExtractor(IMAGE, model=saved("vit"))
    grey = PretrainedExtractor(ModalitySpec("image", (1, 16, 16)), model=saved("vit"))
    film = PretrainedExtractor(ModalitySpec("image", (6, 16, 16)), model=saved("vit"))
    x = inputs(ModalitySpec("image", (6, 16, 16)))
    torch.testing.assert_close(grey(x[:, :1]), plain(x[:, :1].expand(-1, 3, -1, -1)))
    assert film.out_features == 2 * WIDTH
    torch.testing.assert_close(film(x), torch.cat([plain(x[:, :3]), plain(x[:, 3:])], 1))


def test_audio_is_resampled_to_the_rate_of_the_model(saved: Callable[[str], str]) -> None:
    time = torch.arange(8000) / RATE
    wave = torch.sin(2 * torch.pi * 300 * time)[None, None]
    module = PretrainedExtractor(ModalitySpec("series", (1, 8000)), model=saved("ast"))
    slow = PretrainedExtractor(
        ModalitySpec("series", (1, 4000)), model=saved("ast"), sampling_rate=RATE // 2
    )
    twice = PretrainedExtractor(ModalitySpec("series", (1, 4000)), model=saved("ast"))
    expected = read(module, wave)[:, :40]
    assert float((read(slow, wave[..., ::2])[:, :40] - expected).abs().median()) < 0.05
    assert float((read(twice, wave[..., ::2])[:, :20] - expected[:, :20]).abs().median()) > 0.05


# What trains --------------------------------------------------------------------------------------


@every_model
def test_frozen_encoder_has_one_copy_no_gradient_and_one_mode(
    saved: Callable[[str], str], name: str
) -> None:
    load_frozen_encoder.cache_clear()
    state = torch.get_rng_state()
    first, second = (
        PretrainedExtractor(SPECS[name], model=saved(name), cache_gb=gb) for gb in (0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state), "whoever loads first draws no other weights"
    assert first.encoder is not second.encoder
    places = [[p.data_ptr() for p in m.parameters()] for m in (first, second)]
    assert places[0] == places[1] != []
    assert not any(p.requires_grad for p in first.parameters())
    assert first.frozen_names() >= set(first.state_dict())
    x = inputs(SPECS[name]).requires_grad_()
    assert not first.train()(x).requires_grad
    assert not any(m.training for m in first.encoder.modules())
    assert torch.equal(first.train()(x), first.eval()(x)), "no dropout, no masking"


@every_model
def test_lora_trains_nothing_but_itself(saved: Callable[[str], str], name: str) -> None:
    spec = SPECS[name]
    frozen = PretrainedExtractor(spec, model=saved(name), cache_gb=0)
    module = PretrainedExtractor(spec, model=saved(name), tune="lora", lora_r=2, lora_dropout=0.5)
    x = inputs(spec)
    torch.testing.assert_close(module.eval()(x), frozen(x), msg="a fresh adapter changes nothing")
    learned = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert {n.split(".")[-4] for n in learned} == {"q_proj", "v_proj"}
    assert all(p.shape[0 if "lora_A" in n else 1] == 2 for n, p in learned.items())
    assert module.frozen_names() == set(module.state_dict()) - set(learned) | {
        n for n, _ in module.named_buffers()
    }
    base = {p.data_ptr() for n, p in module.named_parameters() if n not in learned}
    assert base == {p.data_ptr() for p in frozen.parameters()}
    optimizer = torch.optim.SGD(learned.values(), lr=10.0)
    for _ in range(2):
        module.train()(x)[:, 0].sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in learned.values())
    assert not torch.equal(module.train()(x), module(x)), "the dropout of LoRA is on"
    assert not torch.equal(module.eval()(x), frozen(x))
    assert not any(p.grad is not None for n, p in module.named_parameters() if n not in learned)


@every_model
def test_full_tuning_trains_a_copy(saved: Callable[[str], str], name: str) -> None:
    spec, x = SPECS[name], inputs(SPECS[name])
    frozen = PretrainedExtractor(spec, model=saved(name), cache_gb=0)
    before = frozen(x)
    module = PretrainedExtractor(spec, model=saved(name), tune="full")
    learned = [p for p in module.parameters() if p.requires_grad]
    module(x).square().sum().backward()
    assert all(p.grad is not None for p in learned)
    torch.optim.SGD(learned, lr=0.1).step()
    assert not torch.equal(module(x), before)
    assert torch.equal(frozen(x), before)


def other_weights(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    state["layernorm.bias"][0] += 1
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def other_preparation(path: Path) -> None:
    text = (path / "preprocessor_config.json").read_text()
    (path / "preprocessor_config.json").write_text(json.dumps(json.loads(text) | {"image_std": 1}))


@pytest.mark.parametrize("tune", ["frozen", "lora"])
@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda path: None, set()),
        (other_weights, {"weights"}),
        (other_preparation, {"preparation"}),
    ],
)
def test_what_a_checkpoint_leaves_out_is_known_by_its_content(
    saved: Callable[[str], str],
    tmp_path: Path,
    change: Callable[[Path], None],
    differs: set[str],
    tune: Tune,
) -> None:
    copy = Path(shutil.copytree(saved("vit"), tmp_path / "copy"))
    (copy / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": 0.5, "image_std": 0.5})
    )
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    change(other)
    one, two = (
        PretrainedExtractor(IMAGE, model=str(path), tune=tune).frozen_contents()
        for path in (copy, other)
    )
    assert (one["model"], two["model"]) == (str(copy), str(other))
    assert {k for k in ("weights", "preparation") if one[k] != two[k]} == differs


def test_an_encoder_whose_weights_all_train_leaves_nothing_out(saved: Callable[[str], str]) -> None:
    module = PretrainedExtractor(IMAGE, model=saved("vit"), tune="full")
    assert module.frozen_contents() == {}


# The cache ----------------------------------------------------------------------------------------


@every_model
def test_hit_is_the_computed_feature_bit_by_bit_and_runs_no_model(
    saved: Callable[[str], str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, x = SPECS[name], inputs(SPECS[name], count=5)
    module = PretrainedExtractor(spec, model=saved(name))
    calls = calls_of(module)
    first = module(x)
    assert calls == [1] * 5
    again = PretrainedExtractor(spec, model=saved(name))
    other_calls = calls_of(again)
    assert torch.equal(again(x.flip(0)), first.flip(0))
    assert (calls, other_calls) == ([1] * 5, [])
    # Without the file, in another order and in other batches.
    monkeypatch.setenv("MLECS_CACHE", str(tmp_path / "other"))
    assert torch.equal(torch.cat([module(x[3:]), module(x[:3])]), torch.cat([first[3:], first[:3]]))
    assert calls == [1] * 10


def test_feature_of_other_weights_precision_or_preparation_is_no_hit(
    saved: Callable[[str], str], tmp_path: Path
) -> None:
    x = inputs(IMAGE)
    module = PretrainedExtractor(IMAGE, model=saved("vit"))
    calls = calls_of(module)
    module(x)
    with torch.autocast("cpu", torch.bfloat16):
        module(x)
    module(x)
    assert len(calls) == 6
    whiter = PretrainedExtractor(IMAGE, model=saved("vit"), value_range=[0, 2])
    half = PretrainedExtractor(IMAGE, model=saved("vit"), dtype="bfloat16")
    model = transformers.AutoModel.from_pretrained(saved("vit"))
    with torch.no_grad():
        model.layernorm.bias[0] += 1
    model.save_pretrained(tmp_path / "vit")
    moved = PretrainedExtractor(IMAGE, model=str(tmp_path / "vit"))
    for other in (whiter, half, moved):
        calls = calls_of(other)
        assert not torch.equal(other(x), module(x))
        assert len(calls) == 3


# What a user may get wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spec", "values", "message"),
    [
        ("ast", IMAGE, {}, r"reads audio, but the modality has kind 'image'"),
        ("vit", AUDIO, {}, r"\(vit\) reads images, but the modality has kind 'series'"),
        ("bert", IMAGE, {}, r"\(bert\) reads text"),
        ("vit", ModalitySpec("vector", (4,)), {}, "has kind 'vector'"),
        ("vit", ModalitySpec("image", (4, 16, 16)), {}, "the modality has 4"),
        ("ast", ModalitySpec("series", (2, 4000)), {}, "the modality has 2 channels"),
        ("whisper", ModalitySpec("series", (1, 16001)), {}, r"to 1 s of audio, .* 1\.00006 s"),
        ("wav2vec2", ModalitySpec("series", (1, 99)), {}, r"0\.025 to inf s .* 0\.0061875 s"),
        ("ast", AUDIO, {"sampling_rate": 0}, "sampling_rate must be positive, got 0"),
        ("vit", IMAGE, {"tune": "half"}, r"tune must be one of .*'lora'.*, got 'half'"),
        ("vit", IMAGE, {"value_range": [1, 0]}, r"value_range: .*, got \[1, 0\]"),
        ("vit", IMAGE, {"cache_gb": -1}, "cache_gb must be at least 0, got -1"),
        ("vit", IMAGE, {"tune": "lora", "lora_r": 0}, "r must be at least 1"),
        (
            "clip",
            IMAGE,
            {"tune": "lora", "lora_target_modules": ["qkv"]},
            r"lora_target_modules: .* no layers \['qkv'\]; its linear layers are .*'q_proj'",
        ),
        ("vit", IMAGE, {"speed": 3}, "'speed'"),
    ],
)
def test_fault_is_named_with_modality_and_key(
    saved: Callable[[str], str],
    name: str,
    spec: ModalitySpec,
    values: dict[str, Any],
    message: str,
) -> None:
    setting = {"class_path": "PretrainedExtractor", "init_args": {"model": saved(name), **values}}
    with pytest.raises(ConfigurationError, match=message) as caught:
        build_extractor("camera", spec, extractors={"camera": setting}, key="edge.extractors")
    assert str(caught.value).startswith("edge.extractors.camera.init_args: PretrainedExtractor: ")


def test_checkpoint_that_lacks_weights_is_refused(
    saved: Callable[[str], str], tmp_path: Path
) -> None:
    model = transformers.AutoModel.from_pretrained(saved("vit"))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("layernorm.")}
    model.save_pretrained(tmp_path / "vit", state_dict=state)
    with pytest.raises(ConfigurationError, match=r"lacks 2 weights, such as \['layernorm\.bias'"):
        PretrainedExtractor(IMAGE, model=str(tmp_path / "vit"))
    with pytest.raises(ConfigurationError, match=r"^model '/no/such/model': "):
        PretrainedExtractor(IMAGE, model="/no/such/model")
