"""On the device: hands a request to the resident process, and its answer back."""

from __future__ import annotations

import os
from multiprocessing.connection import Client

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from mlecs_bridge.records import data_of, record_of

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Ask the resident process, which may take as long as the training."""
    with Client(os.environ["MLECS_SOCKET"], "AF_UNIX") as resident:
        resident.send_bytes(data_of(message.content))
        answer = resident.recv_bytes()
    return Message(record_of(answer), reply_to=message)
