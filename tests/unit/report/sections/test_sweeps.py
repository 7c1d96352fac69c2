from pathlib import Path
from typing import Any

from mlecs_lightning.report.parts import Setting, arrange
from mlecs_lightning.report.results.reading import read_runs
from mlecs_lightning.report.sections.sweeps import Sweep, find_sweeps, sweeps
from tests.unit.report.run_files import a_config, a_summary, write_run

BITS = "trainer.codec.init_args.bits"


def a_coded_run(
    root: Path,
    bits: float,
    fraction: float,
    *,
    seed: int = 1,
    score: float = 0.5,
    algorithm: str = "CDCCA",
    **more: Any,
) -> None:
    codec = {"class_path": "DWC", "init_args": {"bits": bits, "fraction": fraction, "on": True}}
    summary = a_summary(algorithm, seed, score, **more)
    summary["communication"] |= {"uplink_bytes": 1000, "downlink_bytes": 500 * bits}
    config = a_config(algorithm, seed, codec=codec)
    write_run(root / f"version_{len(list(root.glob('*')))}", config=config, summary=summary)


def setting_of(root: Path) -> Setting:
    (found,) = arrange(read_runs([root]), reference="CDCCA")
    return found


def test_runs_that_differ_in_one_number_alone_are_a_sweep(tmp_path: Path) -> None:
    for bits in (8, 2, 4):
        a_coded_run(tmp_path, bits, 0.25)
    found = find_sweeps(setting_of(tmp_path))
    assert found == [
        Sweep(BITS, "CDCCA", {2.0: "CDCCA: bits 2", 4.0: "CDCCA: bits 4", 8.0: "CDCCA"})
    ]
    assert list(found[0].at) == [2, 4, 8]


def test_two_numbers_that_change_together_are_none(tmp_path: Path) -> None:
    a_coded_run(tmp_path, 2, 0.25)
    a_coded_run(tmp_path, 4, 0.5)
    assert find_sweeps(setting_of(tmp_path)) == []
    assert sweeps(setting_of(tmp_path)) == []


def test_other_algorithms_and_seeds_are_none(tmp_path: Path) -> None:
    a_coded_run(tmp_path, 2, 0.25)
    a_coded_run(tmp_path, 4, 0.25, algorithm="FedAvg")
    a_coded_run(tmp_path, 2, 0.25, seed=2)
    assert find_sweeps(setting_of(tmp_path)) == []


def test_what_is_no_number_is_none(tmp_path: Path) -> None:
    for n, codec in enumerate((None, "DWC", True, False)):
        write_run(
            tmp_path / f"version_{n}", config=a_config("CDCCA", codec=codec), summary=a_summary()
        )
    assert find_sweeps(setting_of(tmp_path)) == []


def test_a_run_that_has_not_ended_is_no_value(tmp_path: Path) -> None:
    a_coded_run(tmp_path, 2, 0.25)
    a_coded_run(tmp_path, 4, 0.25)
    (tmp_path / "version_1" / "summary.json").unlink()
    (tmp_path / "version_1" / "metrics.csv").write_text("step\n1\n")
    assert find_sweeps(setting_of(tmp_path)) == []


def test_a_grid_of_two_numbers_has_a_line_for_each_value_of_the_other(tmp_path: Path) -> None:
    for bits in (2, 4):
        for fraction in (0.1, 0.5):
            a_coded_run(tmp_path, bits, fraction)
    found = find_sweeps(setting_of(tmp_path))
    assert [(sweep.key, sweep.label) for sweep in found] == [
        (BITS, "CDCCA: fraction 0.1"),
        (BITS, "CDCCA: fraction 0.5"),
        ("trainer.codec.init_args.fraction", "CDCCA: bits 2"),
        ("trainer.codec.init_args.fraction", "CDCCA: bits 4"),
    ]


def test_a_section_shows_means_over_seeds_with_the_bytes(tmp_path: Path) -> None:
    for bits, seed, score in ((2, 1, 0.4), (2, 2, 0.5), (4, 1, 0.6)):
        a_coded_run(tmp_path, bits, 0.25, seed=seed, score=score)
    (section,) = sweeps(setting_of(tmp_path))
    assert section.title == "Quality against codec.bits"
    assert BITS in section.note
    (grid,) = section.grids
    assert [column.name for column in grid.columns] == [
        *("codec.bits", "seeds", "macro-F1, clients, all", "macro-F1, clients, own"),
        *("macro-F1, server", "bytes up", "bytes down"),
    ]
    assert [[each.text for each in line] for line in grid.rows] == [
        [
            *("2", "2", "0.450 ± 0.071", "0.550 ± 0.071", "0.650 ± 0.071"),
            *("1 kB", "1 kB"),
        ],
        ["4", "1 seed, no spread", "0.600", "0.700", "0.800", "1 kB", "2 kB"],
    ]
    assert [panel.caption for panel in section.panels] == [
        column.name for column in grid.columns[2:]
    ]
    assert section.legend == ()
    (bare,) = sweeps(setting_of(tmp_path), charts=False)
    assert not bare.panels
    assert bare.grids == section.grids


def test_on_a_stream_it_is_the_present_that_counts(tmp_path: Path) -> None:
    for bits, present in ((2, 0.3), (4, 0.7)):
        stream = {"clients": {}, "mean": {"macro_f1": {"present": present}}}
        a_coded_run(tmp_path, bits, 0.25, stream=stream)
    (section,) = sweeps(setting_of(tmp_path))
    assert [column.name for column in section.grids[0].columns[2:4]] == [
        *("macro-F1, present", "macro-F1, whole")
    ]
    assert [line[2].text for line in section.grids[0].rows] == ["0.300", "0.700"]


def test_several_lines_are_named(tmp_path: Path) -> None:
    for bits in (2, 4):
        for fraction in (0.1, 0.5):
            a_coded_run(tmp_path, bits, fraction)
    section, _ = sweeps(setting_of(tmp_path))
    assert section.legend == [(0, "CDCCA: fraction 0.1"), (1, "CDCCA: fraction 0.5")]
    assert [line[0].text for line in section.grids[0].rows] == [
        *("CDCCA: fraction 0.1", "CDCCA: fraction 0.1"),
        *("CDCCA: fraction 0.5", "CDCCA: fraction 0.5"),
    ]
