"""The workload in Flower 1.41's simulation (Ray): `FedAvg` over `run_simulation`.

By default as a first user writes it: the model is built in the client's function, the backend
gets no configuration. With ``--cached`` the best setting that its documentation leads to: a worker
keeps the model, and there is one worker for each core. Both send the adapter alone.
"""

from __future__ import annotations

import logging
import os

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor

from benchmarks.peers import flower_client
from benchmarks.peers.workload import Clock, Work, arguments, load


def train(
    work: Work, *, clients: int, rounds: int, clock: Clock, cached: bool
) -> tuple[dict[str, Tensor], int]:
    """Train and return the averaged adapter, and the bytes of a round's arrays."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    os.environ[flower_client.WORK] = str(work.folder.resolve())
    if cached:
        os.environ[flower_client.CACHED] = "1"
    server, final = ServerApp(), {}

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number:  # it is called once before the first round
            clock.round_ended()
        return None

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=clients,
            min_available_nodes=clients,
        )
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(work.adapter),
            num_rounds=rounds,
            evaluate_fn=evaluate,
        )
        final["arrays"] = result.arrays

    one_a_core = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(
        server_app=server,
        client_app=flower_client.app,
        num_supernodes=clients,
        backend_config=one_a_core if cached else None,
    )
    arrays = final["arrays"]
    return dict(arrays.to_torch_state_dict()), 2 * clients * arrays.count_bytes()


if __name__ == "__main__":
    import peft  # noqa: F401 - counted with the imports, as for the others
    import transformers  # noqa: F401

    clock, args = Clock(), arguments("cached")
    final, wire = train(
        load(args.work), clients=args.clients, rounds=args.rounds, clock=clock, cached=args.cached
    )
    clock.finish(final, args.out, wire=wire)
