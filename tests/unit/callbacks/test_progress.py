import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mlecs_lightning.algorithms import StandalonePublic
from mlecs_lightning.callbacks import FederatedCallback, RichProgress


def screen() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def shown(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    console, root = screen(), tmp_path_factory.mktemp("shown")
    progress = RichProgress(console)
    tiny.fit(
        StandalonePublic(steps=tiny.steps()),
        root,
        max_rounds=2,
        check_val_every_n_rounds=1,
        callbacks=[progress],
    )
    return SimpleNamespace(text=text(console), root=root, progress=progress)


def test_the_folder_and_a_line_for_each_round_are_printed(shown: SimpleNamespace) -> None:
    lines = shown.text.replace("\r", "\n").splitlines()
    assert any(line.startswith("run folder: ") for line in lines)
    rounds = [line for line in lines if "validation loss" in line]
    assert len(rounds) == 2
    for number, line in enumerate(rounds, start=1):
        assert f"round {number}: validation loss  clients " in line
        assert "server " in line


def test_the_bar_counts_client_updates(shown: SimpleNamespace) -> None:
    assert "6/6" in shown.text
    assert "round 2/2" in shown.text


def test_a_resumed_run_starts_where_it_stopped() -> None:
    progress = RichProgress(console := screen())
    progress.on_fit_start(max_rounds=4, clients=("a", "b"), folder="x")
    progress.on_round_start(round=3, participants=("a", "b"))
    progress.on_client_end(round=3, client="a", metrics={})
    progress.close()
    assert "7/8" in text(console)
    assert "round 4/4" in text(console)


def test_without_validation_nothing_is_printed_for_the_round() -> None:
    progress = RichProgress(console := screen())
    progress.on_fit_start(max_rounds=1, clients=("a",), folder="x")
    progress.on_round_end(round=0, metrics={"server/public/loss": 1.0})
    progress.close()
    assert "validation loss" not in text(console)


class Failing(FederatedCallback):
    def on_client_end(self, **facts: Any) -> None:
        raise RuntimeError("stop")


def test_the_terminal_is_given_back_after_an_error(tiny: SimpleNamespace, tmp_path: Path) -> None:
    progress = RichProgress(console := screen())
    with pytest.raises(RuntimeError, match="stop"):
        tiny.fit(StandalonePublic(steps=tiny.steps()), tmp_path, callbacks=[progress, Failing()])
    assert progress._bar is None
    assert text(console).count("\x1b[?25h") >= 1  # the cursor is shown again
    progress.close()  # twice does no harm
