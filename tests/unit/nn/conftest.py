"""Two families of language models on disk, small and of this machine's making."""

from pathlib import Path

import pytest
import torch

from mlecs_lightning.data import Digits
from mlecs_lightning.modules.pocket import make_pocket


@pytest.fixture(scope="session")
def gpt2_dir(cache_dir: Path) -> str:
    """Return the trained pocket SLM of the digits, a GPT-2."""
    data = Digits()
    return str(make_pocket("pocket/slm", data.pretraining_pairs(), data.public().instructions))


@pytest.fixture(scope="session")
def llama_dir(gpt2_dir: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an untrained Llama with the pocket model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("llama")
    tokenizer = AutoTokenizer.from_pretrained(gpt2_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        # Wide enough that its answers depend on what it reads.
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def model_dir(request: pytest.FixtureRequest) -> str:
    """Return one family after the other."""
    return str(request.getfixturevalue(f"{request.param}_dir"))
