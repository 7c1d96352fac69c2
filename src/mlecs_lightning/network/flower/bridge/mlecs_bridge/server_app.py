"""At the server: pushes what the resident process gives it, and brings back what arrives.

Each message on the socket is a line of JSON, followed by the bytes of a request or an answer.
"""

from __future__ import annotations

import json
import time
from multiprocessing.connection import Client, Connection
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from mlecs_bridge.records import data_of, record_of

app = ServerApp()

_POLL = 0.2
_NODES_EVERY = 1.0
_TTL = 7 * 86400.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run until the resident process closes the socket."""
    with Client(str(context.run_config["socket"]), "AF_UNIX") as resident:
        try:
            _hand_over(grid, resident, limit=int(context.run_config["limit"]))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _hand_over(grid: Grid, resident: Connection, *, limit: int) -> None:
    tickets: dict[str, str] = {}
    told = 0.0
    while True:
        wait = _POLL
        while resident.poll(wait):
            ticket, message = _request(resident.recv_bytes())
            (number,) = grid.push_messages([message])
            if number:
                tickets[number] = ticket
            else:
                _tell(resident, {"ticket": ticket, "error": "it could not be sent"})
            wait = 0.0
        if time.monotonic() - told > _NODES_EVERY:
            _tell(resident, {"nodes": list(grid.get_node_ids())})
            told = time.monotonic()
        for reply in grid.pull_messages(list(tickets)) if tickets else ():
            ticket = tickets.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                _tell(resident, {"ticket": ticket, "error": str(reply.error.reason)})
                continue
            try:
                data = data_of(reply.content)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                # A device may send anything, and must not end this app for all others.
                told = f"it has no message that can be read: {type(error).__name__}"
                _tell(resident, {"ticket": ticket, "error": told})
                continue
            if limit and len(data) > limit:
                _tell(resident, {"ticket": ticket, "error": f"{len(data)} bytes exceed {limit}"})
            else:
                _tell(resident, {"ticket": ticket}, data)


def _request(raw: bytes) -> tuple[str, Message]:
    line, _, data = raw.partition(b"\n")
    header = json.loads(line)
    node = int(header["node"])
    return header["ticket"], Message(record_of(data), node, "train", ttl=_TTL)


def _tell(resident: Connection, header: dict[str, Any], data: bytes = b"") -> None:
    resident.send_bytes(json.dumps(header).encode() + b"\n" + data)
