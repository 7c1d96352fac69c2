"""Tokens a second of a training step, and the share of the card's peak: edge model and server.

    python -m benchmarks.throughput [--gpu] [--edge ID --server ID] [--peak TFLOPS]

A step is that of `Learner.fit`: forward, backward, clipping, fused AdamW, on one sensor of 64
values, an instruction and an answer of equal length. With ``--gpu`` the backbones are of
the Llama family in the sizes of Qwen2.5-0.5B and Qwen2.5-7B in bfloat16, with drawn weights, made
on this machine and loaded like any other; without it they are tiny, to see on a CPU that everything
runs. ``--edge`` and ``--server`` take a hub id or a directory in their place.

*operations*: multiplications and additions of one step as they are carried out (torch's
`FlopCounterMode`; two for each pair, nothing for weights that are frozen). *of peak*: operations a
second over what the card's data sheet says of dense bfloat16, or ``--peak``. *unfused*: torch's
default AdamW. *compiled*: `torch.compile` of the backbone, its first steps left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import spread
from benchmarks.peers import workload
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.rounds.learner import EdgeLearner, Learner
from mlecs_lightning.settings import BackboneSettings, ModelSettings
from mlecs_lightning.types import Batch, ModalitySpec

PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
"""Dense bfloat16, in 10^12 operations a second, from the makers' data sheets."""

FEATURES = 64
VARIANTS = ("default", "unfused", "compiled")


class Size(NamedTuple):
    """The numbers of a backbone and of a batch."""

    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    batch: int
    words: int


TINY = {"edge": Size(2, 64, 128, 4, 2, 1000, 4, 8), "server": Size(4, 128, 256, 4, 2, 1000, 4, 8)}
REAL = {
    "edge": Size(24, 896, 4864, 14, 2, 151_936, 8, 240),
    "server": Size(28, 3584, 18_944, 28, 4, 152_064, 8, 240),
}


def make(size: Size, folder: Path, device: torch.device) -> str:
    """Write a Llama with drawn weights as an ordinary directory; return its name."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device(device):  # drawing 7B numbers on a CPU takes minutes
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    workload.word_tokenizer(100).save_pretrained(folder)
    return str(folder)


def batch(size: Size) -> Batch:
    """Return one batch of drawn vectors and words."""
    words = " ".join(f"w{1 + i % 99}" for i in range(size.words))
    return Batch(
        ids=tuple(map(str, range(size.batch))),
        modalities=("v",),
        inputs={"v": torch.randn(size.batch, FEATURES)},
        present=torch.ones(size.batch, 1, dtype=torch.bool),
        instructions=(words,) * size.batch,
        targets=(words,) * size.batch,
    )


def learner(model: str, fabric: Fabric, variant: str) -> EdgeLearner:
    """Return a model that is ready to train, in one of the variants."""
    unfused = {"fused": False} if variant == "unfused" else {}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, **unfused}}
    settings = ModelSettings(BackboneSettings(model), optimizer=optimizer)
    module = EdgeModule(settings, {"v": ModalitySpec("vector", (FEATURES,))})
    if variant == "compiled":
        module.backbone.lm.compile()
    return Learner("benchmark", module, fabric=fabric, gradient_clip_val=1.0, sync=False)


def step(party: EdgeLearner, one: Batch, *, steps: int) -> float:
    """Return the seconds of a step, mean over a pass of some."""
    began = time.perf_counter()
    party.fit([one] * steps, stage="benchmark")
    if party.module.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def rows(name: str, model: str, size: Size, fabric: Fabric, args: argparse.Namespace) -> list[str]:
    """Measure a model's variants, in turns; return a line of each."""
    one, cuda = batch(size), fabric.device.type == "cuda"
    # Counted without compiling, which would hide the operations from the counter.
    party = learner(model, fabric, "default")
    with FlopCounterMode(display=False) as counter:
        party.fit([one], stage="benchmark")
    operations = counter.get_total_flops()
    words = party.module.backbone.tokens(one.targets[0])
    length = party.module.settings.connector.prompt_length + 2 * words + 1
    parties = {variant: learner(model, fabric, variant) for variant in args.variants}
    taken: dict[str, list[float]] = {variant: [] for variant in parties}
    memory = dict.fromkeys(parties, "-")
    for turn in range(args.repeats + 1):
        for variant, party in parties.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            seconds = step(party, one, steps=args.steps)
            if turn:  # the first one compiles
                taken[variant].append(seconds)
            if cuda:
                memory[variant] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
    lines = []
    for variant, each in taken.items():
        middle = median(each)
        share = f"{100 * operations / middle / args.peak / 1e12:.1f} %" if args.peak else "-"
        step_ms = spread([1e3 * seconds for seconds in each], "{:.1f}")
        rate = f"{size.batch * length / middle:,.0f}"
        cells = [step_ms, rate, f"{operations:.3g}", share, memory[variant]]
        lines.append(f"| {name}, {variant} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure both models and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true", help="real sizes, on CUDA, bf16-mixed")
    parser.add_argument("--edge", help="hub id or directory of the edge's backbone")
    parser.add_argument("--server", help="hub id or directory of the server's")
    parser.add_argument("--peak", type=float, help="10^12 operations a second of the device")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch finds no CUDA device")
    precision: Any = "bf16-mixed" if args.gpu else "32-true"
    fabric = Fabric(accelerator="cuda" if args.gpu else "cpu", devices=1, precision=precision)
    if args.gpu and not args.peak:
        card = torch.cuda.get_device_name()
        args.peak = next((peak for name, peak in PEAKS.items() if name in card), None)
    torch.manual_seed(0)
    print("| model | a step, ms | tokens/s | operations | of peak | memory, GiB |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as root:
        for name, size in (REAL if args.gpu else TINY).items():
            given = getattr(args, name)
            model = given or make(size, Path(root) / name, fabric.device)
            print("\n".join(rows(name, model, size, fabric, args)), flush=True)


if __name__ == "__main__":
    main()
