"""The same run in processes of their own, over TLS: equal to the simulation, bit by bit."""

from pathlib import Path

import pytest

from tests.integration.network.processes import Network, configuration, simulated


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return simulated(tmp_path_factory.mktemp("simulated"), configuration("dying.Dying"))


def test_two_devices_over_tls_end_in_the_bits_of_the_simulation(
    flower: Path, unbroken: dict[str, object], tmp_path: Path
) -> None:
    network = Network(tmp_path, configuration("dying.Dying"), flower)
    assert network.run() == {"server": [0], "kitchen": [0], "hall": [0]}, network.log("server")
    assert network.state() == unbroken


STAGES = ["before the offer", "in training", "after the reply", "in the checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("killed", [("server",), ("kitchen",), ("server", "kitchen")], ids="+".join)
def test_a_killed_party_goes_on_to_the_same_bits(
    flower: Path,
    unbroken: dict[str, object],
    tmp_path: Path,
    killed: tuple[str, ...],
    stage: str,
) -> None:
    network = Network(tmp_path, configuration("dying.Dying"), flower)
    for party in killed:
        kind = "server" if party == "server" else "device"
        mark = str(tmp_path / f"{party}.killed")
        network.environ[party] = {"MLECS_DIE": f"{kind}/{stage}", "MLECS_MARK": mark}
    codes = network.run()
    for party in ("server", "kitchen", "hall"):
        assert codes[party] == ([-9, 0] if party in killed else [0]), network.log(party)
    assert network.state() == unbroken
