"""A method whose processes kill themselves once, at a stage that the environment names.

``MLECS_DIE`` is the stage and ``MLECS_MARK`` a file that says that it has been done.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlecs_lightning import MLECS
from mlecs_lightning.checkpoints import checkpoint
from mlecs_lightning.federated import run
from mlecs_lightning.network import store
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.wire import Message

ROUND = 1


def die(stage: str) -> None:
    mark = Path(os.environ.get("MLECS_MARK", os.devnull))
    if os.environ.get("MLECS_DIE") == stage and not mark.exists():
        mark.write_text(stage, encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


class Dying(MLECS):
    """ML-ECS, until it dies."""

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message]]:
        if ctx.round == ROUND:
            die("server/before the offer")
        yield from super().broadcast(server, loaders, ctx)

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        if ctx.round == ROUND:
            die("device/before the offer")  # as far as the server can tell
        update = super().client_update(edge, loaders, broadcast, ctx)
        if ctx.round == ROUND:
            die("device/in training")
        return update

    def aggregate(self, updates: Iterable[tuple[str, Message]], ctx: RoundContext) -> Any:  # noqa: ANN401
        def watched() -> Iterable[tuple[str, Message]]:
            for each in updates:
                yield each
                if ctx.round == ROUND:
                    die("server/in training")

        return super().aggregate(watched(), ctx)

    def server_update(
        self,
        server: ServerLearner,
        aggregate: Any,  # noqa: ANN401
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        if ctx.round == ROUND:
            die("server/after the reply")
        return super().server_update(server, aggregate, loaders, ctx)


_save, _put = checkpoint.save_checkpoint, store.DeviceStore.put


def _saves(folder: Path, state: dict[str, Any], *, round: int, complete: bool = True) -> Path:
    if round == ROUND:
        die("server/in the checkpoint")
    return _save(folder, state, round=round, complete=complete)


def _puts(self: store.DeviceStore, client: str, state: dict[str, Any], *, round: int) -> None:
    if round == ROUND:
        die("device/in the checkpoint")
    _put(self, client, state, round=round)
    if round == ROUND:
        die("device/after the reply")  # it is ready, and never sent


run.save_checkpoint = _saves  # type: ignore[attr-defined]
store.DeviceStore.put = _puts  # type: ignore[method-assign]
