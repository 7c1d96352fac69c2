"""The workload in a plain PyTorch loop: the least that it can take."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.model import PromptLM
from benchmarks.peers.workload import Clock, Work, arguments, load


def train(
    work: Work, *, clients: int, rounds: int, clock: Clock, device: str = "cpu"
) -> dict[str, Tensor]:
    """Train and return the averaged adapter."""
    model, sizes = PromptLM(work).to(device), work.sizes
    model.train()
    parameters = list(model.adapter().values())
    common = {k: p.detach().clone() for k, p in model.adapter().items()}
    for number in range(rounds):
        total = {k: torch.zeros_like(p) for k, p in common.items()}
        for client in range(clients):
            model.load_adapter(common)
            optimizer = torch.optim.AdamW(parameters, lr=sizes.learning_rate)
            x, tokens = (seen.to(device) for seen in work.passes(client, number))
            for batch in zip(x.split(sizes.batch), tokens.split(sizes.batch), strict=True):
                model.loss(*batch).backward()
                torch.nn.utils.clip_grad_norm_(parameters, sizes.clip)
                optimizer.step()
                optimizer.zero_grad()
            for name, parameter in model.adapter().items():
                total[name] += parameter.detach()
        common = {k: t / clients for k, t in total.items()}
        clock.round_ended()
    return common


if __name__ == "__main__":
    import peft  # noqa: F401 - counted with the imports, not with the first round
    import transformers  # noqa: F401

    clock, args = Clock(), arguments()
    work = load(args.work)
    final = train(work, clients=args.clients, rounds=args.rounds, clock=clock)
    clock.finish(final, args.out, wire=0)
