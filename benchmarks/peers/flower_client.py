"""The client of `flower.py`, in a module of its own so that Ray's workers import it.

``cached`` decides whether a worker keeps the model that it has built for the next client, or builds
one for every message, as Flower's tutorials do.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.peers.model import PromptLM
from benchmarks.peers.workload import Work, load

WORK, CACHED = "BENCHMARK_WORK", "BENCHMARK_CACHED"

app = ClientApp()


def _build() -> tuple[Work, PromptLM]:
    torch.set_num_threads(1)
    work = load(Path(os.environ[WORK]))
    return work, PromptLM(work)


_cached = functools.cache(_build)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Load the adapter, take the client's steps, send the adapter back."""
    work, model = _cached() if os.environ.get(CACHED) else _build()
    sizes = work.sizes
    model.train()
    model.load_adapter(message.content["arrays"].to_torch_state_dict())
    parameters = list(model.adapter().values())
    optimizer = torch.optim.AdamW(parameters, lr=sizes.learning_rate)
    number = int(message.content["config"]["server-round"]) - 1
    x, tokens = work.passes(int(context.node_config["partition-id"]), number)
    for batch in zip(x.split(sizes.batch), tokens.split(sizes.batch), strict=True):
        model.loss(*batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, sizes.clip)
        optimizer.step()
        optimizer.zero_grad()
    adapter = {k: p.detach() for k, p in model.adapter().items()}
    content = {
        "arrays": ArrayRecord(adapter),
        "metrics": MetricRecord({"num-examples": len(x)}),
    }
    return Message(content=RecordDict(content), reply_to=message)
