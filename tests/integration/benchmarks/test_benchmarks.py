"""benchmarks/: peers do the same work, and tables say what was measured."""

import logging
import sys
import time
from pathlib import Path
from subprocess import CalledProcessError, run

import pytest
import torch

from benchmarks import all as everything
from benchmarks import harness, loop, profile_round, scaling, startup, throughput
from benchmarks.peers import new_trainer, ours, plain, workload

SMALL = workload.Sizes(layers=1, width=16, rank=2, clients=3, rounds=2, latent=8)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> workload.Work:
    return workload.make(tmp_path_factory.mktemp("work"), SMALL)


@pytest.fixture(scope="module")
def reference(work: workload.Work) -> dict[str, torch.Tensor]:
    return plain.train(work, clients=3, rounds=2, clock=workload.Clock())


def off(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def test_the_plain_loop_trains_all_of_the_adapter(
    work: workload.Work, reference: dict[str, torch.Tensor]
) -> None:
    moved = {k: (reference[k] - work.adapter[k]).abs().max() for k in reference}
    # Eight steps of AdamW at 2e-4 move a value by at most 1.03 of 1.6e-3, whatever the gradients.
    assert min(moved.values()) > 0
    assert max(moved.values()) < 1.7e-3


@pytest.mark.parametrize(("store", "cohort"), [("memory", 1), ("disk", 1), ("memory", 2)])
def test_our_trainer_ends_at_the_adapter_of_the_plain_loop(
    work: workload.Work, reference: dict[str, torch.Tensor], store: str, cohort: int
) -> None:
    clock = workload.Clock()
    adapter, wire = ours.train(work, clients=3, rounds=2, clock=clock, store=store, cohort=cohort)
    assert off(adapter, reference) <= 1e-6
    assert len(clock.rounds) == 2
    payload = 2 * 3 * sum(t.numel() * 4 for t in adapter.values())
    assert payload < wire < 3 * payload  # names and scalars come on top, for tiny tensors


def test_lightning_ends_at_the_adapter_of_the_plain_loop(
    work: workload.Work, reference: dict[str, torch.Tensor]
) -> None:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    adapter = new_trainer.train(work, clients=3, rounds=2, clock=workload.Clock())
    logger.setLevel(level)  # silenced for a process of its own, and this one has other tests
    assert off(adapter, reference) <= 1e-6


def test_a_workload_is_read_as_it_was_made(work: workload.Work) -> None:
    again = workload.make(work.folder, SMALL)
    assert again.sizes == SMALL
    assert torch.equal(again.tokens, work.tokens)
    rows = again.order[1, 2].flatten()
    assert sorted(rows.tolist()) == list(range(16))  # every sample once
    assert torch.equal(again.passes(2, 1)[0], work.x[2, rows])


def test_a_run_is_watched_to_its_end() -> None:
    hold = "import time; held = b'x' * (200 * 2**20); time.sleep(0.5); print('done')"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    ran = harness.run([sys.executable, "-c", nested], interval=0.05)
    assert ran.lines == ["done"]
    assert 200 < ran.peak / 2**20 < 260
    assert ran.seconds > 0.5


def test_a_run_leaves_no_process_behind(tmp_path: Path) -> None:
    mark = tmp_path / "still here"
    late = f"import pathlib, time; time.sleep(1); pathlib.Path({str(mark)!r}).touch()"
    spawn = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}])"
    harness.run([sys.executable, "-c", spawn], interval=0.05)
    time.sleep(1.5)
    assert not mark.exists()


def test_a_run_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        harness.run([sys.executable, "-c", "1 / 0"])
    with pytest.raises(RuntimeError):
        harness.run([sys.executable, "-c", "import time; time.sleep(60)"], limit=0.2)


def line(peer: str, turn: int, later: float, **other: object) -> dict[str, object]:
    return {
        **{"peer": peer, "turn": turn, "adapter": "45KB", "clients": 10, "import": 2.0},
        **{"rounds": [9.0, later], "cpu": [5.0, later / 2], "wire": 0, "peak": 2**20 * 100},
        **{"difference": 0.0, "load": 1.0, **other},
    }


def test_a_table_has_medians_ratios_of_a_turn_and_the_winner_in_bold() -> None:
    lines = [
        *(line(loop.PLAIN, turn, later) for turn, later in enumerate((1.0, 2.0, 10.0))),
        *(line(loop.OURS, turn, later) for turn, later in enumerate((1.5, 2.0, 30.0))),
        *(line("pfl-research", turn, 1.5) for turn in range(3)),
        line("Flower simulation, default", 0, 0.1, difference=2e-5),
    ]
    plainly, mine, pfl, flower = loop.table(lines, "45KB", 10).splitlines()[4:]
    assert "| 2.000 (1.000-10.000) | 1.00 (1.00-1.00) |" in plainly
    assert "**" not in plainly
    assert "| 2.000 (1.500-30.000) | 1.50 (1.00-3.00) | 100.0 (75.0-1500.0) |" in mine
    assert "| **1.500 (1.500-1.500)** | **0.75 (0.15-1.50)** | **75.0 (75.0-75.0)** |" in pfl
    assert "void" in flower  # its adapter is another one


def test_a_commit_is_dirty_when_what_runs_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "REPOSITORY", tmp_path)
    assert harness.commit() == "unknown"
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    results, code = tmp_path / "benchmarks/results/a.jsonl", tmp_path / "code.py"
    results.write_text("")
    code.write_text("")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        run(["git", *words], cwd=tmp_path, check=True)
    clean = harness.commit()
    results.write_text("{}")
    assert harness.commit() == clean != "unknown"
    code.write_text("1")
    assert harness.commit() == f"{clean}-dirty"


def test_every_size_has_its_turns() -> None:
    assert loop.TURNS.keys() == workload.SIZES.keys()
    assert all(max(turns) <= workload.SIZES[name].clients for name, turns in loop.TURNS.items())


def test_a_start_is_compared_with_the_bare_one_of_its_turn() -> None:
    seconds = {startup.NOTHING: [1.0, 2.0, 4.0], startup.IMPORT: [3.0, 4.0, 4.0]}
    *_, bare, mine = startup.table(seconds).splitlines()
    assert bare.endswith("| 2.000 (1.000-4.000) | - |")
    assert mine.endswith("| 4.000 (3.000-4.000) | 2.00 |")  # of 3, 2 and 1
    assert startup.once(["-c", "import mlecs_lightning"]) > 0
    with pytest.raises(CalledProcessError):
        startup.once(["-c", "1 / 0"])


def test_a_line_is_told_from_what_is_none() -> None:
    straight = scaling.Line.through([1, 2, 4], [3.0, 5.0, 9.0])
    assert (straight.fixed, straight.each) == pytest.approx((1, 2))
    assert straight.off == pytest.approx(0, abs=1e-9)
    assert "no line" not in str(straight)
    square = scaling.Line.through([1, 2, 4, 8], [1.0, 4.0, 16.0, 64.0])
    assert square.bend == pytest.approx((64 - 16) / 4 / 3)
    assert str(square).startswith("no line (bend 4.00)")


def test_scaling_counts_what_varies() -> None:
    rounds = {"rounds": [10.0, 1.0, 2.0, 3.0]}
    assert scaling.seconds({"axis": "clients", **rounds}) == 2.0
    assert scaling.seconds({"axis": "rounds", **rounds}) == 16.0
    lines = [
        {"axis": "clients", "value": n, "processes": 1, "rounds": [9.0, n], "peak": 2**20}
        for n in (4, 8, 16)
    ]
    text = scaling.table(lines)
    assert "| clients | 8 | 1 | 8.000 (8.000-8.000) | 1 |" in text
    assert "1 each, off 0 %" in text


def test_a_round_of_ml_ecs_scales_in_this_process(tmp_path: Path) -> None:
    workload.make(tmp_path, workload.Sizes(layers=1, width=16, clients=1))
    clock = workload.Clock()
    scaling.train({"clients": 2, "public": 8, "rounds": 2}, tmp_path, clock)
    assert len(clock.rounds) == 2


def test_a_block_goes_between_its_markers(tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text("a\n<!-- loop:begin -->\nold\n<!-- loop:end -->\nb\n")
    everything.write(document, "loop", "new")
    assert document.read_text() == "a\n<!-- loop:begin -->\nnew\n<!-- loop:end -->\nb\n"


def test_throughput_counts_what_a_step_carries_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edge = throughput.make(throughput.TINY["edge"], tmp_path, torch.device("cpu"))
    options = ["--edge", edge, "--variants", "unfused", "--steps", "1", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["throughput", "--peak", "0.1", *options])
    throughput.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["edge, unfused", "server, unfused"]
    for row, size in zip(rows, throughput.TINY.values(), strict=True):
        positions = 16 + 2 * size.words + 1  # the prompt, and the end of sequence
        seconds, rate = float(row[1].split()[0]) / 1e3, float(row[2].replace(",", ""))
        rounded = 0.05e-3 / seconds + 0.5 / rate  # the last digits that are printed
        assert rate * seconds == pytest.approx(size.batch * positions, rel=1.1 * rounded)
        # Forward and gradient of the linear layers of a block: q, o, k, v and the three of the MLP.
        wide = 2 + 2 * size.key_heads / size.heads
        weights = size.layers * (wide * size.width**2 + 3 * size.width * size.inner)
        least = 4 * size.batch * positions * weights
        assert least < float(row[3]) < 3 * least
        share = 100 * float(row[3]) / seconds / 0.1e12
        assert float(row[4].strip(" %")) == pytest.approx(share, rel=0.01 + rounded, abs=0.06)


def test_without_the_environment_of_the_peers_they_are_left_out(tmp_path: Path) -> None:
    names, there = list(loop.PEERS), Path(sys.executable)
    left = set(names) - set(loop.runnable(names, tmp_path / "python", 8))
    assert {name.split(",")[0].split()[0] for name in left} == {"pfl-research", "Flower"}
    assert loop.runnable(names, there, 512) == names
    many = loop.runnable(names, there, 2048)
    assert many == [n for n in names if n == loop.PLAIN or n.startswith(loop.OURS)]


def test_throughput_needs_the_gpu_that_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["throughput", "--gpu"])
    with pytest.raises(SystemExit):
        throughput.main()


def test_results_have_a_place_for_every_benchmark() -> None:
    text = (harness.REPOSITORY / "docs/results.md").read_text()
    for name in everything.BENCHMARKS:
        assert text.count(f"<!-- {name}:begin -->") == text.count(f"<!-- {name}:end -->") == 1


def test_a_line_of_results_is_json(tmp_path: Path) -> None:
    path = tmp_path / "loop.jsonl"
    assert harness.read_lines(path) == []
    harness.append_line(path, {"peer": "x"})
    path.write_text(path.read_text() + "\n")
    harness.append_line(path, {"peer": "ü"})
    assert harness.read_lines(path) == [{"peer": "x"}, {"peer": "ü"}]


def test_stages_are_timed_without_those_within() -> None:
    def spin(seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    stages = profile_round.Stages()
    inner = stages.wrapped("inner", lambda: spin(0.02))

    def whole() -> None:
        spin(0.01)
        inner()
        inner()

    stages.wrapped("outer", whole)()
    within, outer = stages.times["inner"], stages.times["outer"]
    assert (within.calls, outer.calls) == (2, 1)
    assert within.own == within.whole >= 0.04
    assert outer.own == pytest.approx(outer.whole - within.whole)
    assert outer.own >= 0.01
    before = torch.Tensor.backward
    with stages.watching():
        assert torch.Tensor.backward is not before
    assert torch.Tensor.backward is before
