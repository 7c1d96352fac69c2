"""The command line in processes of their own, which start in milliseconds.

They are forked from a server that has imported everything: real processes, with real signals and
real collectives, without six seconds of imports each.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("mlecs_lightning.cli", "peft", "transformers", "transformers.models.gpt2.modeling_gpt2"),
        # What a run imports when it comes to it, most of a second of processor time.
        *("rouge_score.rouge_scorer", "sklearn.datasets", "sklearn.model_selection"),
        "torch.utils.tensorboard",
    ]
)


def command(args: list[str], environment: Mapping[str, str], output: str) -> None:
    """Run the command line and exit with its code."""
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(output, "a")  # noqa: SIM115, PTH123 - until it ends
    import torch

    from mlecs_lightning.cli import main

    torch.set_num_threads(1)
    code = main(args)
    sys.stdout.flush()
    sys.exit(code)


def start(
    *args: object, environment: Mapping[str, str] | None = None, output: str = os.devnull
) -> ForkServerProcess:
    """Start the command line."""
    arguments = ([str(arg) for arg in args], environment or {}, output)
    process = CONTEXT.Process(target=command, args=arguments)
    process.start()
    return process


def start_ranks(
    size: int,
    *args: object,
    output: str = os.devnull,
    environments: Sequence[Mapping[str, str]] = (),
) -> list[ForkServerProcess]:
    """Start the command line on several ranks, in the environment that torchrun gives them.

    Args:
        size: How many.
        *args: The command line.
        output: File of all that they say.
        environments: For each rank what it has beside that.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "TORCHELASTIC_RUN_ID": "test",
    }
    own = environments or [{}] * size
    return [
        start(
            *args,
            environment={**shared, **own[r], "RANK": str(r), "LOCAL_RANK": str(r)},
            output=output,
        )
        for r in range(size)
    ]


def ended(process: ForkServerProcess) -> int:
    """Wait for the end of a process; return its exit code."""
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode
