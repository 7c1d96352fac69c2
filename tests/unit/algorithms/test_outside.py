"""An algorithm from another package costs one file, one line of YAML and one test."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning.cli import main

FEDAVGM = '''
"""FedAvg with momentum on the server: FedAvgM (arXiv 1909.06335)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlecs_lightning import FedAvg, ServerModule


class FedAvgM(FedAvg):
    """v <- momentum v + (w - mean of the clients' adapters), w <- w - v, with w the hosted adapter.

    The velocity v is a buffer of the server's module, so that checkpoints hold it.
    """

    def __init__(self, *, momentum: float = 0.9, **options: Any) -> None:
        """Set the momentum; for the other options see `FedAvg`."""
        super().__init__(**options)
        self.momentum = momentum

    def build_server(self, module: ServerModule, clients: Iterable[str]) -> None:
        velocity = nn.Module()
        for host in module.hosts:
            velocity.register_buffer(host, torch.zeros_like(_flat(module.adapter_state(host))))
        module.add_module("velocity", velocity)

    def host_adapter(self, server: ServerModule, host: str, adapter: Mapping[str, Tensor]) -> None:
        hosted = server.adapter_state(host)
        velocity = server.get_buffer(f"velocity.{host}")
        step = _flat(hosted) - _flat({name: adapter[name] for name in hosted}).to(velocity)
        velocity.mul_(self.momentum).add_(step)
        steps = velocity.split([tensor.numel() for tensor in hosted.values()])
        moved = {k: w - v.view_as(w) for (k, w), v in zip(hosted.items(), steps, strict=True)}
        super().host_adapter(server, host, moved)


def _flat(adapter: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in adapter.values()])
'''
MOMENTUM = 0.5
YAML = f"""
algorithm:
  class_path: outside.FedAvgM
  init_args: {{momentum: {MOMENTUM}, steps: {{warmup: 1, public: 1, private: 2, server: 0}}}}
"""


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, repo_root: Path, cache_dir: Path
) -> list[dict[str, Any]]:
    """Two rounds of a fit with the outside algorithm, and a third one after a resume."""
    root = tmp_path_factory.mktemp("outside")
    (root / "outside.py").write_text(FEDAVGM)
    (root / "outside.yaml").write_text(YAML)
    words = ["fit", "--config", str(repo_root / "benchmarks/quality/digits.yaml")]
    words += ["--config", str(root / "outside.yaml"), "--trainer.default_root_dir", str(root)]
    words += ["--trainer.limit_val_batches", "0", "--trainer.limit_test_batches", "1"]
    words += ["--trainer.save_top_k", "-1", "--trainer.enable_progress_bar", "false"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.syspath_prepend(root)
        for more in (["2"], ["3", "--ckpt_path", "last"]):
            assert main([*words, "--trainer.max_rounds", *more]) == 0
    found = sorted(root.glob("quickstart/version_*/checkpoints/round=????.ckpt"))
    return [torch.load(path, weights_only=True) for path in found]


def adapter(model: dict[str, Tensor]) -> Tensor:
    """Return the adapter of the SLM in a checkpoint as one vector."""
    tensors = [t for k, t in model.items() if k.startswith("towers.slm.") and ".lora_" in k]
    return torch.cat([tensor.flatten() for tensor in tensors])


def mean_update(checkpoint: dict[str, Any]) -> Tensor:
    """Return the mean of the adapters that clients ended the round with, by their samples."""
    samples = {client: said["samples"] for client, _, said in checkpoint["claims"]}
    assert len(set(samples.values())) > 1, "a plain mean would be the same"
    parts = [
        adapter(state["model"]) * (samples[client] / sum(samples.values()))
        for client, state in checkpoint["clients"].items()
    ]
    return torch.stack(parts).sum(dim=0)


def test_outside_algorithm_trains_and_resumes(checkpoints: list[dict[str, Any]]) -> None:
    """w_1 is the first mean, for v_0 = 0; from then on v and w follow the equations."""
    assert [c["about"]["algorithm"] for c in checkpoints] == ["FedAvgM"] * 3
    servers = [c["server"]["model"] for c in checkpoints]
    torch.testing.assert_close(adapter(servers[0]), mean_update(checkpoints[0]))
    for before, after, checkpoint in zip(servers, servers[1:], checkpoints[1:], strict=False):
        step = adapter(before) - mean_update(checkpoint)
        assert step.abs().max() > 1e-4
        velocity = MOMENTUM * before["velocity.slm"] + step
        torch.testing.assert_close(after["velocity.slm"], velocity)
        torch.testing.assert_close(adapter(after), adapter(before) - velocity)
