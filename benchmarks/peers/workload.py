"""The work that all peers do: made once, kept in a folder, read by every script here.

FedAvg of a LoRA adapter in a tiny frozen GPT-2 behind a soft prompt. In a round each client loads
the common adapter, takes four steps of a fresh AdamW over its own samples in a given order, with
the gradient clipped to norm 1; the server averages the adapters. Nothing else trains. The folder
has the backbone as an ordinary Hugging Face directory and ``work.safetensors``: samples, order,
fixed prompt weights, initial adapter, and the numbers below as metadata.

Reading it takes torch and safetensors alone, so that no peer pays for another's imports.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    *("ADAPTERS", "LARGE", "SIZES", "Clock", "Sizes", "Work"),
    *("arguments", "load", "make", "word_tokenizer"),
]

STARTED = "BENCHMARK_STARTED"
"""Environment variable: when the process was started, in seconds of `time.time`."""


@dataclass(frozen=True)
class Sizes:
    """What is fixed in a workload.

    Attributes:
        layers: Transformer blocks of the backbone.
        width: Its hidden width H.
        rank: Rank r of the adapter on ``c_attn`` and ``c_proj``.
        clients: Clients that there are data for.
        rounds: Rounds that there is an order for.
        steps: AdamW steps of a client in a round.
        batch: Samples of a step.
        features: Width F of the input vector.
        prompt: Soft-prompt positions P.
        latent: Width D of what the prompt is made from.
        head: Tokens of the instruction.
        tail: Tokens of the target, the end of sequence included.
        words: Vocabulary, the end of sequence included.
        learning_rate: Of AdamW.
        clip: Largest gradient norm.
        seed: Of everything drawn.
    """

    layers: int = 2
    width: int = 64
    rank: int = 8
    clients: int = 2048
    rounds: int = 8
    steps: int = 4
    batch: int = 4
    features: int = 8
    prompt: int = 2
    latent: int = 64
    head: int = 4
    tail: int = 8
    words: int = 100
    learning_rate: float = 2e-4
    clip: float = 1.0
    seed: int = 0

    @property
    def positions(self) -> int:
        """Positions of a sample: prompt, instruction and target."""
        return self.prompt + self.head + self.tail


# AdamW takes a step of the learning rate even where a gradient is little more than rounding, which
# differs between any two implementations: of 2.9 million elements some are, and a larger rate would
# put them further apart than the comparison allows.
SIZES = {
    "45KB": Sizes(),
    "11.5MB": Sizes(layers=4, width=256, rank=256, clients=512, learning_rate=5e-5),
}
ADAPTERS = tuple(SIZES)
LARGE = Sizes(
    layers=24,
    width=1280,
    rank=16,
    clients=64,
    rounds=3,
    prompt=8,
    head=24,
    tail=96,
    learning_rate=5e-5,
)
"""A backbone of 0.47 billion parameters and an adapter of 22 MB, for a GPU."""
TARGETS = ["c_attn", "c_proj"]


@dataclass(frozen=True)
class Work:
    """A workload as it was read.

    Attributes:
        folder: Where it is.
        sizes: Its numbers.
        x: (C, N, F) input vectors.
        tokens: (C, N, L) instruction and target.
        order: (rounds, C, steps, B) row of every sample that a client sees.
        prompt: Weights of the fixed network that makes the soft prompt.
        adapter: Initial adapter, under PEFT's names.
    """

    folder: Path
    sizes: Sizes
    x: Tensor
    tokens: Tensor
    order: Tensor
    prompt: dict[str, Tensor]
    adapter: dict[str, Tensor]

    @property
    def backbone(self) -> str:
        """Directory of the backbone."""
        return str(self.folder / "backbone")

    def passes(self, client: int, round: int) -> tuple[Tensor, Tensor]:
        """Return what a client sees in a round, in order: (steps * B, F) and (steps * B, L)."""
        rows = self.order[round, client].flatten()
        return self.x[client, rows], self.tokens[client, rows]


def name_of(client: int) -> str:
    """Return the name of a client."""
    return f"c{client:04d}"


def load(folder: Path) -> Work:
    """Read a workload."""
    with safe_open(folder / "work.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        sizes = Sizes(**json.loads(file.metadata()["sizes"]))
    parts: dict[str, dict[str, Tensor]] = {"prompt": {}, "adapter": {}}
    for key in list(tensors):
        part, _, name = key.partition("/")
        if name:
            parts[part][name] = tensors.pop(key)
    return Work(folder, sizes, **tensors, **parts)


def word_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words ``w1`` to ``w{words - 1}``; 0 is the end of sequence."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, **{f"w{i}": i for i in range(1, words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<eos>", pad_token="<eos>"
    )


def make(folder: Path, sizes: Sizes) -> Work:
    """Make a workload unless it is there; needs mlecs_lightning, whose order of samples it takes.

    One of other sizes, of an earlier version, is made anew.

    Returns:
        The workload.
    """
    if (folder / "work.safetensors").exists():
        work = load(folder)
        if work.sizes == sizes:
            return work
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    from benchmarks.peers.model import prompt_network
    from mlecs_lightning.data.sampling import draw_batches
    from mlecs_lightning.rounds.context import RoundContext

    torch.manual_seed(sizes.seed)
    backbone = folder / "backbone"
    backbone.mkdir(parents=True, exist_ok=True)
    word_tokenizer(sizes.words).save_pretrained(backbone)
    lm = GPT2LMHeadModel(
        GPT2Config(
            **{"vocab_size": sizes.words, "n_positions": max(64, sizes.positions)},
            **{"n_layer": sizes.layers, "n_embd": sizes.width, "n_head": max(4, sizes.width // 64)},
            **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
            **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
        )
    )
    lm.save_pretrained(backbone)
    adapted = get_peft_model(lm, LoraConfig(r=sizes.rank, target_modules=TARGETS))
    # Drawn, B as well: from B = 0 the first gradient of A is zero, and AdamW would blow rounding up
    # to whole steps, which no two implementations share.
    adapter = {
        name.replace(".default.", "."): torch.randn_like(p) * 0.05
        for name, p in adapted.named_parameters()
        if p.requires_grad
    }
    samples = sizes.steps * sizes.batch
    tokens = torch.randint(1, sizes.words, (sizes.clients, samples, sizes.head + sizes.tail))
    tokens[..., : sizes.head] = torch.arange(1, sizes.head + 1)
    tokens[..., -1] = 0
    order = [
        [
            draw_batches(
                samples,
                sizes.batch,
                steps=sizes.steps,
                seed=RoundContext(number, sizes.seed, ()).seed_for(name_of(c), "private"),
            )
            for c in range(sizes.clients)
        ]
        for number in range(sizes.rounds)
    ]
    prompt = {k: v.detach() for k, v in prompt_network(sizes).state_dict().items()}
    tensors = {
        "x": torch.randn(sizes.clients, samples, sizes.features),
        "tokens": tokens,
        "order": torch.tensor(order),
        **{f"prompt/{k}": v.contiguous() for k, v in prompt.items()},
        **{f"adapter/{k}": v.contiguous() for k, v in adapter.items()},
    }
    staging = folder / "work.tmp"
    save_file(tensors, staging, metadata={"sizes": json.dumps(asdict(sizes))})
    staging.rename(folder / "work.safetensors")
    return load(folder)


class Clock:
    """Says what a peer's run took, as one line of JSON at the end."""

    def __init__(self) -> None:
        """Start where the imports have ended."""
        self.imported = time.time() - float(os.environ.get(STARTED, time.time()))
        self._start = self._last = time.perf_counter()
        self._cpu = time.process_time()
        self.rounds: list[float] = []
        self.cpus: list[float] = []

    def round_ended(self) -> None:
        """Note the end of a round, when a GPU has done what it was given."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now, cpu = time.perf_counter(), time.process_time()
        self.rounds.append(now - self._last)
        self.cpus.append(cpu - self._cpu)
        self._last, self._cpu = now, cpu

    def finish(self, adapter: dict[str, Tensor], out: Path, *, wire: int) -> None:
        """Write the final adapter, and print what the run took.

        Args:
            adapter: The averaged adapter, under PEFT's names.
            out: Where to write it.
            wire: Bytes that crossed a border between client and server in a round, both ways.
        """
        save_file({k: v.contiguous() for k, v in adapter.items()}, out)
        line = {"import": self.imported, "rounds": self.rounds, "cpu": self.cpus, "wire": wire}
        print(json.dumps(line), flush=True)


def arguments(*extra: str) -> argparse.Namespace:
    """Read the command line that every peer has.

    Args:
        extra: Names of flags of this peer.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path, help="where to write the final adapter")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    for flag in extra:
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args(sys.argv[1:])
